"""The arms: ways of serving several tasks that are compared, each on the same cores.

* shared: one FMplex backbone, scheduled by bfq, stfq or fifo;
* per-task: plain Triton, a Python-backend model with a copy of the backbone for each task, adapters merged, dynamic
  batching on, all processes on the model cores together;
* partitioned: the same, each process on its own share of the model cores.

`subject().apart` keeps the model processes off the cores of Triton and the load generator; `spread` lets everything run
on all cores, which partitioning needs on a machine with two.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

from benchmarks.harness.repositories import LABELS, model_directory, write_adapters, write_backbone, write_task
from benchmarks.harness.serving import pin, serving
from benchmarks.harness.subject import Cores, subject
from fmplex_backend.repository.grouping import GroupRepository
from testing.clients import Question
from testing.servers import Serving

CODE = Path(__file__).parent
WARMED = 16  # at most so many tasks are asked before an arm counts as ready


@dataclass(frozen=True, slots=True)
class Task:
    """A classification task; `adapter` is a PEFT directory, `encoder` a section of task.json."""

    name: str
    weight: float = 1.0
    adapter: Path | None = None
    slo_ms: float | None = None
    max_queue: int | None = None
    encoder: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arm:
    """A running server that has answered requests."""

    name: str
    server: Serving
    receipts: bool  # whether answers carry usage receipts

    @property
    def url(self) -> str:
        """Of its gRPC endpoint."""
        return self.server.grpc_url


@contextlib.contextmanager
def shared(
    tasks: Sequence[Task],
    *,
    scheduler: str = "bfq",
    cores: Cores | None = None,
    threads: int = 1,
    name: str = "",
    groups: Mapping[str, Sequence[Task]] | None = None,
    **more: str,
) -> Iterator[Arm]:
    """One backbone for all tasks, and groups of them; `more` are further parameters of its config."""
    cores = cores or subject().apart
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        write_backbone(repository, threads=str(threads), scheduler=scheduler, vfm_slots="1024", **more)
        for number, task in enumerate(tasks):
            write_task(
                repository,
                task.name,
                number,
                adapter=task.adapter,
                weight=task.weight,
                slo_ms=task.slo_ms,
                max_queue=task.max_queue,
                encoder=task.encoder,
            )
        for group, members in (groups or {}).items():
            GroupRepository(repository).create(group, [task.name for task in members])
        with serving(repository) as server:
            pin(server.process, *cores.others)
            pin(server.stub(), *cores.models)
            ask_all(server, tasks[:WARMED])
            yield Arm(name or scheduler, server, receipts=True)


@contextlib.contextmanager
def per_task(
    tasks: Sequence[Task],
    *,
    cores: Cores | None = None,
    threads: int = 1,
    delay_us: int = 0,
    partitioned: bool = False,
    name: str = "",
) -> Iterator[Arm]:
    """A plain model for each task. Partitioned: each on its share of the model cores (in turn if these are fewer)."""
    cores = cores or subject().apart
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        for task in tasks:
            mps_percent = round(100 / len(tasks)) if partitioned and subject().gpu else 0
            write_plain(repository, task, threads, delay_us, mps_percent)
        with serving(repository) as server:
            pin(server.process, *cores.others)
            stubs = server.stubs()
            for number, task in enumerate(tasks):
                own = _share(cores.models, number, len(tasks)) if partitioned else cores.models
                pin(stubs[task.name], *own)
            ask_all(server, tasks[:WARMED])
            yield Arm(name or ("partitioned" if partitioned else "per-task"), server, receipts=False)


def ask_all(server: Serving, tasks: Sequence[Task], rows: Sequence[int] = ()) -> None:
    """Every task answers requests of so many rows, so that what is allocated or compiled on first use is ready.

    Args:
        rows: of each request; a whole batch and a single text by default.
    """
    with server.client() as client:
        for task in tasks:
            for count in rows or (subject().max_batch, 1):
                client.ask(Question(task.name, ("is it warm yet",) * count)).good()


def write_plain(repository: Path, task: Task, threads: int = 1, delay_us: int = 0, mps_percent: int = 0) -> None:
    """A task as a plain Triton model; `mps_percent` is the part of the GPU's threads its process gets, 0 for all."""
    version = repository / task.name / "1"
    version.mkdir(parents=True)
    shutil.copy(CODE / "plain_model.py", version / "model.py")
    model = merged(task.adapter) if task.adapter else model_directory()
    with tempfile.TemporaryDirectory() as aside:  # the same head as the shared arm's
        shutil.copy(write_task(Path(aside), task.name, 0) / "1" / "decoder.safetensors", version)
    settings = {
        "model": str(model),
        "dtype": subject().dtype,
        "threads": str(threads),
        "labels": ",".join(LABELS),
        "mps_percent": str(mps_percent),
    }
    policy = f"default_queue_policy {{ max_queue_size: {task.max_queue} }}" if task.max_queue else ""
    lines = [
        f'name: "{task.name}"',
        'backend: "python"',
        f"max_batch_size: {subject().max_batch}",
        'input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]',
        f'output [ {{ name: "SCORES" data_type: TYPE_FP32 dims: [ {len(LABELS)} ] }},',
        '         { name: "LABEL" data_type: TYPE_STRING dims: [ 1 ] } ]',
        f"instance_group [ {{ kind: {subject().kind} count: 1 }} ]",
        f"dynamic_batching {{ max_queue_delay_microseconds: {delay_us} {policy} }}",
        *(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in settings.items()),
    ]
    (repository / task.name / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@cache
def merged(adapter: Path) -> Path:
    """The directory of the backbone with an adapter merged in, made beside the adapter's."""
    target = adapter.with_name(f"{adapter.name}-merged")
    if not target.is_dir():
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(model_directory(), dtype="auto"), str(adapter))
        model.merge_and_unload().save_pretrained(str(target))
        AutoTokenizer.from_pretrained(model_directory()).save_pretrained(str(target))
    return target


@contextlib.contextmanager
def lora_tasks(count: int, *, ranks: Sequence[int] = (8,)) -> Iterator[list[Task]]:
    """Tasks with a LoRA adapter each."""
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(Path(folder), count, ranks=ranks)
        yield [Task(f"task{number}", adapter=adapter) for number, adapter in enumerate(adapters)]


def head_tasks(count: int) -> list[Task]:
    """Tasks with a head and no adapter."""
    return [Task(f"task{number}") for number in range(count)]


def _share(cores: tuple[int, ...], number: int, count: int) -> tuple[int, ...]:
    if count >= len(cores):
        return (cores[number % len(cores)],)
    return cores[number * len(cores) // count : (number + 1) * len(cores) // count]
