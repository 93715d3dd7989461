"""The demo's tasks: served answers are those of plain Transformers and PEFT, however they are batched."""

from __future__ import annotations

import asyncio
import io
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import ask_grpc, ask_http, ask_items
from google.protobuf import text_format
from language_model_case import GenerateReference
from reference import Reference, difference
from rich.console import Console
from sentences import mixture, sentence
from tolerances import BFLOAT16
from tritonclient.grpc import model_config_pb2
from waiting import LARGER, busy

from fmplex import Client, Generated
from fmplex.cli.demo import QUESTIONS, show_stream
from fmplex_backend.families.model_files import find_model
from fmplex_backend.families.precision import chosen_dtype, dtype_name
from fmplex_backend.scheduling.scheduler import MAX_SHARED
from testing import device
from testing.clients import Answer, Question
from testing.language_models import SMOL
from testing.models import minilm
from testing.repositories import copy_repository
from testing.servers import Serving, serving

BACKBONE, LANGUAGE_MODEL = "minilm", "smollm2"
DEMO = Path(__file__).parents[2] / "model_repository"
TEXTS = mixture(40)
SIZES = (1, 7, 32)
DEVICES_OWN = "auto"  # this copy of the backbone is in the dtype that the demo has; all others are in float32
WIDE = "fifo"  # this copy of the backbone takes a request of 32 items of every task at once


@dataclass(frozen=True)
class Demo:
    """The server, with copies of backbone and tasks for the other schedulers: `stfq-sentiment`."""

    serving: Serving
    tasks: tuple[str, ...]
    references: dict[str, Reference]

    def ask(self, protocol: str, questions: Sequence[Question], clients: int = 64) -> list[Answer]:
        """Every question, from so many clients."""
        if protocol == "http":
            return ask_http(self.serving.http_url, questions, clients)
        return ask_grpc(self.serving.grpc_url, questions, clients)

    def check(self, questions: Sequence[Question], answers: Sequence[Answer]) -> None:
        """Every row against the reference."""
        for question, answer in zip(questions, answers, strict=True):
            reference = self.references[question.task.removeprefix("stfq-").removeprefix("fifo-")]
            for row, text in enumerate(question.texts):
                assert isinstance(text, str)
                problem = difference(answer.good(), row, reference(text))
                assert not problem, f"{question.task} of {text[:80]!r}: {problem}"


def parsed(file: Path) -> Any:
    """A config.pbtxt."""
    return text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def tasks_of(repository: Path, backbone: str = BACKBONE) -> list[str]:
    """Every ensemble of a backbone."""
    configs = [parsed(file) for file in sorted(repository.glob("*/config.pbtxt"))]
    steps = {config.name: [step.model_name for step in config.ensemble_scheduling.step] for config in configs}
    return [name for name, models in steps.items() if models == [backbone]]


def copy_models(target: Path) -> Path:
    """The demo's text backbone and language model, with their tasks."""
    target.mkdir()
    for backbone in (BACKBONE, LANGUAGE_MODEL):
        for name in (backbone, *tasks_of(DEMO, backbone)):
            copy_repository(DEMO / name, target / name)
    return target


def add_variant(repository: Path, scheduler: str, tasks: Sequence[str]) -> None:
    """The backbone and its tasks once more, under another scheduler; DEVICES_OWN: under the same, in another dtype."""
    (backbone,) = {parsed(repository / task / "config.pbtxt").ensemble_scheduling.step[0].model_name for task in tasks}
    config = parsed(copy_repository(repository / backbone, repository / f"{scheduler}-{backbone}") / "config.pbtxt")
    config.name = f"{scheduler}-{backbone}"
    if scheduler == DEVICES_OWN:
        config.parameters["dtype"].string_value = "auto"
    else:
        config.parameters["scheduler"].string_value = scheduler
    if scheduler == WIDE:
        config.max_batch_size = max(SIZES) * len(tasks)
        config.parameters["max_batch_tokens"].string_value = "1000000"
    (repository / config.name / "config.pbtxt").write_text(str(config), encoding="utf-8")
    for task in tasks:
        entry = parsed(copy_repository(repository / task, repository / f"{scheduler}-{task}") / "config.pbtxt")
        entry.name = f"{scheduler}-{task}"
        entry.ensemble_scheduling.step[0].model_name = config.name
        (repository / entry.name / "config.pbtxt").write_text(str(entry), encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo's repository, copied."""
    folder = tmp_path_factory.mktemp("demo")
    repository = copy_models(folder / "repository")
    tasks = tasks_of(repository)
    references = {task: Reference(minilm(), repository / task / "1") for task in tasks}
    for backbone in (BACKBONE, LANGUAGE_MODEL):
        config = parsed(repository / backbone / "config.pbtxt")
        assert "dtype" not in config.parameters  # what users start with
        config.parameters["dtype"].string_value = device.dtype()
        (repository / backbone / "config.pbtxt").write_text(str(config), encoding="utf-8")
    for scheduler in ("stfq", "fifo", DEVICES_OWN):
        add_variant(repository, scheduler, tasks)
    with serving(repository, folder) as server:
        assert not server.refused
        yield Demo(server, tuple(tasks), references)


def chunks(size: int, tasks: Sequence[str], prefix: str = "", texts: Sequence[str] = TEXTS) -> list[Question]:
    """All texts to all tasks, `size` in a request, in one shuffled order."""
    starts = range(0, max(1, len(texts) - size + 1), size)
    questions = [Question(prefix + task, tuple(texts[start : start + size])) for task in tasks for start in starts]
    random.Random(size).shuffle(questions)
    return questions


def test_the_demo_is_what_it_says(demo: Demo) -> None:
    decoders = [reference.decoder["kind"] for reference in demo.references.values()]
    assert len(decoders) >= 6
    assert {"embedding", "classification", "token-classification"} <= set(decoders)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_answers_of_64_clients_are_the_reference_s(demo: Demo, protocol: str, size: int) -> None:
    questions = chunks(size, demo.tasks)
    answers = demo.ask(protocol, questions)
    demo.check(questions, answers)
    items = [answer.batch_items for answer in answers]
    assert max(items) <= 32 * MAX_SHARED  # of several tasks with the same texts, those of a head alone share rows
    if size < 32:
        assert sum(found > size for found in items) > len(items) / 2, "hardly any request shared a batch"


@pytest.mark.parametrize("scheduler", ["stfq", "fifo"])
def test_other_schedulers_answer_the_same(demo: Demo, scheduler: str) -> None:
    questions = chunks(1, demo.tasks, f"{scheduler}-", TEXTS[:20]) + chunks(7, demo.tasks, f"{scheduler}-", TEXTS[20:])
    answers = demo.ask("grpc", questions)
    demo.check(questions, answers)
    shared = [answer.batch_items > len(question.texts) for question, answer in zip(questions, answers, strict=True)]
    assert any(shared) == (scheduler == "fifo")


def test_the_demo_as_it_is_takes_the_dtype_of_its_device(demo: Demo) -> None:
    taken = dtype_name(chosen_dtype("auto", torch.device(device.torch_device()), None))
    questions = chunks(7, demo.tasks, f"{DEVICES_OWN}-")
    for question, answer in zip(questions, demo.ask("grpc", questions), strict=True):
        reference = demo.references[question.task.removeprefix(f"{DEVICES_OWN}-")]
        for row, text in enumerate(question.texts):
            assert isinstance(text, str)
            allowed = BFLOAT16 if taken == "bfloat16" else None
            problem = difference(answer.good(), row, reference(text), allowed)
            assert not problem, f"{question.task} of {text[:80]!r}: {problem}"
    with Client(demo.serving.grpc_url) as client:
        assert client.status(f"{DEVICES_OWN}-{BACKBONE}").dtype == taken
        assert client.status(BACKBONE).dtype == device.dtype()


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_of_all_tasks(demo: Demo, size: int) -> None:
    """While the backbone is busy one request of every task comes in; the receipts prove that they ran as one."""
    questions = [Question(f"{WIDE}-{task}", tuple(TEXTS[:size])) for task in demo.tasks]
    blocker = f"{WIDE}-{demo.tasks[0]}"
    with busy(demo.serving, blocker, f"{WIDE}-minilm", LARGER) as large:
        answers = ask_grpc(demo.serving.grpc_url, questions, len(questions))
        demo.check([Question(blocker, LARGER)], [large.result()])
    demo.check(questions, answers)
    assert [answer.batch_items for answer in answers] == [size * len(questions)] * len(questions)


def test_one_text_alone_and_in_company(demo: Demo) -> None:
    """A long neighbour does not change a short text's answer, nor the other way round."""
    texts = ("", sentence(200, 1), "ok", sentence(120, 2), "\n", sentence(199, 3), "?")
    questions = [Question(task, texts) for task in demo.tasks]
    demo.check(questions, demo.ask("grpc", questions))


def test_its_language_model_says_what_transformers_says(demo: Demo) -> None:
    """Greedily, all tasks at a time, and in parts; one has a LoRA."""
    repository = demo.serving.repository
    model = find_model(f"package:{SMOL}", repository / LANGUAGE_MODEL / "config.pbtxt")
    tasks = tasks_of(repository, LANGUAGE_MODEL)
    assert any((repository / task / "1" / "adapter").is_dir() for task in tasks)
    questions = [Question(task, (QUESTIONS[task],), {"stream": "true", "max_tokens": "12"}) for task in tasks]
    for question, answer in zip(questions, ask_items(demo.serving.grpc_url, questions), strict=True):
        reference = GenerateReference(model, repository / question.task / "1", max_tokens=12)
        assert not difference(answer.good(), 0, reference(question.texts[0])), question.task
    with Client(demo.serving.grpc_url) as client:
        interface = client.interface("headline")
        (whole,) = client.predict("headline", QUESTIONS["headline"])
    shown = io.StringIO()
    asyncio.run(show_stream(demo.serving.server, interface, Console(file=shown)))
    assert isinstance(whole, Generated)
    assert whole.text in shown.getvalue()


def ensemble_outputs(demo: Demo, task: str) -> list[str]:
    return [output.name for output in parsed(demo.serving.repository / task / "config.pbtxt").output]


def test_every_output_of_the_entry_comes(demo: Demo) -> None:
    for task in demo.tasks:
        (answer,) = demo.ask("grpc", [Question(task, ("hello",))])
        assert sorted(answer.good()) == sorted(ensemble_outputs(demo, task))
        assert answer.outputs["usage"].shape == (1, 3)
        queue_us, compute_us, items = answer.outputs["usage"][0].tolist()
        assert 0 <= queue_us < 60e6
        assert 0 < compute_us < 60e6
        assert items == 1


@pytest.fixture
def run_perf(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`fmplex perf -- ...`; its output."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(*arguments: str) -> str:
        line = [sys.executable, "-m", "fmplex", "perf", "--", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_perf_analyzer_as_a_user_runs_it(demo: Demo, run_perf: Callable[..., str], protocol: str) -> None:
    task = "sentiment" if "sentiment" in demo.tasks else demo.tasks[-1]
    url = demo.serving.grpc_url if protocol == "grpc" else demo.serving.http_url
    short = ("--measurement-interval", "500", "--stability-percentage", "999", "--max-trials", "3")
    output = run_perf("-m", task, "-i", protocol, "-u", url, "--concurrency-range", "1:4:3", *short)
    rates = [float(rate) for rate in re.findall(r"Throughput: ([\d.]+) infer/sec", output)]
    assert len(rates) == 2, output
    assert min(rates) > 0
