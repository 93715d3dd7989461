"""The ways to serve several tasks that are compared, each on the same cores.

* shared: one backbone with virtual models (bfq, or stfq or fifo in the same place);
* per-task: the plain Triton way, one Python-backend model and one backbone copy per task, adapters merged, dynamic
  batching on, all processes on the model cores together;
* partitioned: the same, each process on its own share of the model cores.

`subject().apart` keeps the model processes off the cores of Triton and the load generator; `spread` gives everything
all cores, which is what partitioning needs on two.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import tritonclient.grpc as grpcclient
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

from benchmarks.repositories import LABELS, model_directory, write_adapters, write_backbone, write_task
from benchmarks.serving import backend_processes, model_process, pin, serving
from benchmarks.subject import Cores, subject
from fmplex_controller.server import Server

CODE = Path(__file__).parent
WARMED = 16  # tasks that have answered before an arm counts as ready


@dataclass(frozen=True, slots=True)
class Task:
    """A classification task; `adapter` is a PEFT directory."""

    name: str
    weight: float = 1.0
    adapter: Path | None = None
    slo_ms: float | None = None
    max_queue: int | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """A way of serving, up and ready."""

    name: str
    server: Server
    receipts: bool  # whether answers say how large their batch was

    @property
    def url(self) -> str:
        """For gRPC."""
        return self.server.grpc_url


@contextlib.contextmanager
def shared(
    tasks: Sequence[Task],
    *,
    scheduler: str = "bfq",
    cores: Cores | None = None,
    threads: int = 1,
    name: str = "",
    **more: str,
) -> Iterator[Arm]:
    """One backbone for all; `more` are further parameters of it."""
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
            )
        with serving(repository) as server:
            pin(psutil.Process(server.pid), *cores.others)
            for process in backend_processes(server):
                pin(process, *cores.models)
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
    """A backbone for each. Partitioned: task k on the k-th share of the model cores (in turn, if they are fewer)."""
    cores = cores or subject().apart
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        for task in tasks:
            part = round(100 / len(tasks)) if partitioned else 0
            write_plain(repository, task, threads, delay_us, part if subject().gpu else 0)
        with serving(repository) as server:
            pin(psutil.Process(server.pid), *cores.others)
            for number, task in enumerate(tasks):
                own = _share(cores.models, number, len(tasks)) if partitioned else cores.models
                pin(model_process(server, task.name), *own)
            ask_all(server, tasks[:WARMED])
            yield Arm(name or ("partitioned" if partitioned else "per-task"), server, receipts=False)


def ask_all(server: Server, tasks: Sequence[Task], rows: Sequence[int] = ()) -> None:
    """Every task answers requests of so many rows: what is allocated or compiled on first use is behind it.

    Args:
        rows: of each request; a whole batch and a single text by default.
    """
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        for task in tasks:
            for count in rows or (subject().max_batch, 1):
                tensor = grpcclient.InferInput("TEXT", [count, 1], "BYTES")
                tensor.set_data_from_numpy(np.array([["is it warm yet"]] * count, dtype=np.object_))
                client.infer(task.name, [tensor])


def write_plain(repository: Path, task: Task, threads: int = 1, delay_us: int = 0, mps_percent: int = 0) -> None:
    """A task as a plain Triton model; with `mps_percent` its process gets that part of the GPU's threads."""
    version = repository / task.name / "1"
    version.mkdir(parents=True)
    shutil.copy(CODE / "plain_model.py", version / "model.py")
    model = merged(task.adapter) if task.adapter else model_directory()
    with tempfile.TemporaryDirectory() as aside:  # the same head file as the shared arm's
        write_task(Path(aside), task.name, 0)
        shutil.copy(Path(aside, task.name, "1", "decoder.safetensors"), version)
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
    """The backbone with an adapter merged in, beside the adapter."""
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
    """Tasks with nothing but a head."""
    return [Task(f"task{number}") for number in range(count)]


def _share(cores: tuple[int, ...], number: int, count: int) -> tuple[int, ...]:
    if count >= len(cores):
        return (cores[number % len(cores)],)
    return cores[number * len(cores) // count : (number + 1) * len(cores) // count]
