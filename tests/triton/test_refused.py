"""Fail closed, fail alone: a task that cannot be served says which file, what in it and what to do; others go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import Answer, GrpcClient, Hammer, Question
from peft import LoHaConfig
from reference import Reference, difference, minilm
from safetensors.torch import load_file, save_file
from sentences import sentence
from serving import Serving, eventually, serving
from tasks import Task, lora, write_backbone, write_entry, write_task, write_version

TEXTS = [sentence(n, n) for n in range(1, 12)]
GOOD = (Task("good-head", 0), Task("good-lora", 1, adapter=lora()))
Break = Callable[[Path], None]  # gets the task's directory


def edit_json(name: str, **changes: Any) -> Break:
    """Change fields of a JSON file; a dotted name goes inside."""

    def edit(directory: Path) -> None:
        file = directory / "1" / name
        document = json.loads(file.read_text())
        for key, value in changes.items():
            *outer, last = key.split("__")
            section = document
            for part in outer:
                section = section.setdefault(part, {})
            section[last] = value
        file.write_text(json.dumps(document))

    return edit


def edit_tensor(name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Break:
    """Change the tensors of a safetensors file."""

    def edit(directory: Path) -> None:
        file = directory / "1" / name
        tensors = load_file(file)
        change(tensors)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)

    return edit


def delete(name: str) -> Break:
    """Take a file or a folder away."""

    def edit(directory: Path) -> None:
        path = directory / "1" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def cut(name: str) -> Break:
    """Keep the first half."""

    def edit(directory: Path) -> None:
        file = directory / "1" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return edit


def edit_entry(old: str, new: str) -> Break:
    """Replace in config.pbtxt."""

    def edit(directory: Path) -> None:
        file = directory / "config.pbtxt"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return edit


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[max(tensors)][0, 0] = float("nan")


def _infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["bias"][0] = float("inf")


def _narrow(tensors: dict[str, torch.Tensor]) -> None:
    tensors["weight"] = tensors["weight"][:, :128]


def _fewer(tensors: dict[str, torch.Tensor]) -> None:
    tensors["weight"], tensors["bias"] = tensors["weight"][:2], tensors["bias"][:2]


def _renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["kernel"] = tensors.pop("weight")


def _lora_narrow(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if "lora_A" in name:
            tensors[name] = tensors[name][:, :256]


def _lora_foreign(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.replace("layer.5", "layer.11")] = tensors.pop(name)


def _lora_half(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        if "layer.3" in name and "lora_B" in name:
            del tensors[name]


@dataclass(frozen=True)
class Case:
    """A way to break a task, and what the answer must name: file, field (or tensor), remedy."""

    name: str
    spoil: Break
    says: tuple[str, ...]
    adapter: Any = None


HEAD, ADAPTER, SETTINGS = "decoder.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"
CASES = (
    Case("no-task-json", delete("task.json"), ("1/task.json", "(whole file)", "no such file", "needs a task.json")),
    Case("task-json-cut", cut("task.json"), ("1/task.json", "not readable as JSON", "Write it again")),
    Case("unknown-decoder", edit_json("task.json", decoder__kind="oracle"), ("1/task.json", "decoder", "oracle", "docs/")),
    Case("unknown-field", edit_json("task.json", encoder__speed=3), ("1/task.json", "encoder.speed", "docs/")),
    Case("other-family", edit_json("task.json", family="causal-lm"), ("1/task.json", "family", "docs/")),
    Case("same-labels", edit_json("task.json", decoder__labels=["a", "a", "b"]), ("1/task.json", "labels", "twice")),
    Case("too-long", edit_json("task.json", encoder__max_length=4096), ("1/task.json", "encoder.max_length", "Lower it")),
    Case(
        "foreign",
        edit_json("task.json", backbone__model="another", backbone__fingerprint="sha256:" + "0" * 32),
        ("1/task.json", "backbone.fingerprint", "trained for another", "Bind the task to"),
    ),
    Case("no-head", delete(HEAD), (f"1/{HEAD}", "no such file", "Copy it")),
    Case("head-cut", cut(HEAD), (f"1/{HEAD}", "not readable as safetensors", "cut short")),
    Case("head-nan", edit_tensor(HEAD, _nan), (f"1/{HEAD}", "NaN", "Train or export")),
    Case("head-infinite", edit_tensor(HEAD, _infinite), (f"1/{HEAD}", "bias", "infinite", "Train or export")),
    Case("head-narrow", edit_tensor(HEAD, _narrow), (f"1/{HEAD}", "weight", "[3, 128]", "384", "Was it trained for")),
    Case("head-fewer", edit_tensor(HEAD, _fewer), (f"1/{HEAD}", "weight", "[2, 384]", "Was it trained for")),
    Case("head-renamed", edit_tensor(HEAD, _renamed), (f"1/{HEAD}", "kernel", "weight", "Save the head's tensors")),
    Case("no-adapter", delete("adapter"), (f"1/{SETTINGS}", "no such file", "save_pretrained"), lora()),
    Case("no-adapter-weights", delete(ADAPTER), (f"1/{ADAPTER}", "no such file", "Copy it"), lora()),
    Case("adapter-cut", cut(ADAPTER), (f"1/{ADAPTER}", "not readable as safetensors", "cut short"), lora()),
    Case("settings-cut", cut(SETTINGS), (f"1/{SETTINGS}", "PEFT cannot read it", "Save the adapter again"), lora()),
    Case("adapter-nan", edit_tensor(ADAPTER, _nan), (f"1/{ADAPTER}", "lora_B", "NaN", "Train or export"), lora()),
    Case("adapter-narrow", edit_tensor(ADAPTER, _lora_narrow), (f"1/{ADAPTER}", "lora_A", "256]", "384"), lora()),
    Case("adapter-foreign", edit_tensor(ADAPTER, _lora_foreign), (f"1/{ADAPTER}", "layer.11", "another backbone"), lora()),
    Case("adapter-half", edit_tensor(ADAPTER, _lora_half), (f"1/{ADAPTER}", "layer.3", "Save the adapter again"), lora()),
    Case(
        "adapter-kind",
        lambda directory: None,
        (f"1/{SETTINGS}", "peft_type", "LOHA", "Supported: LoRA"),
        LoHaConfig(r=4, target_modules=["query"], init_weights=False),
    ),
    Case(
        "adapter-saves-modules",
        edit_json(SETTINGS, modules_to_save=["pooler"]),
        (f"1/{SETTINGS}", "modules_to_save", "Train with it unset"),
        lora(),
    ),
    Case("entry-dims", edit_entry("dims: [3] }\noutput { name: \"LABEL\"", "dims: [5] }\noutput { name: \"LABEL\""),
         ("config.pbtxt", "output.SCORES.dims", "5", "3")),
    Case("entry-outputs", edit_entry('output_map { key: "SCORES" value', 'output_map { key: "EMBEDDING" value'),
         ("config.pbtxt", "output_map.EMBEDDING", "does not make it", "Map one of")),
    Case("entry-weight", edit_entry('string_value: "1.5"', 'string_value: "much"'),
         ("config.pbtxt", "parameters.weight", "'much'", "number above 0")),
    Case("entry-slo", edit_entry('key: "weight" value { string_value: "1.5"', 'key: "slo_ms" value { string_value: "-5"'),
         ("config.pbtxt", "parameters.slo_ms", "'-5'", "number above 0")),
)  # fmt: skip
SPOILT_VERSIONS = (
    "no-task-json",
    "task-json-cut",
    "unknown-decoder",
    "foreign",
    "head-nan",
    "head-narrow",
    "adapter-cut",
    "adapter-foreign",
    "adapter-kind",
)
TAGS = {case.name: 10 + number for number, case in enumerate(CASES)}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that found all those tasks broken when it started, and two that are not."""
    folder = tmp_path_factory.mktemp("refusing")
    repository = folder / "repository"
    write_backbone(repository)
    for good in GOOD:
        write_task(repository, good)
    for case in CASES:
        task = Task(case.name, TAGS[case.name], adapter=case.adapter, parameters={"weight": "1.5"})
        case.spoil(write_task(repository, task))
    with serving(repository, folder) as server:
        assert not server.refused
        yield server


@pytest.fixture
def client(refusing: Serving) -> Iterator[GrpcClient]:
    """One that asks by hand."""
    with refusing.client() as client:
        yield client


@pytest.fixture(autouse=True)
def others_go_on(refusing: Serving) -> Iterator[None]:
    """Clients of the good tasks."""
    references = {task.name: Reference(minilm(), refusing.repository / task.name / "1") for task in GOOD}
    for reference in references.values():
        for text in TEXTS:
            reference(text)

    def check(question: Question, answer: Answer) -> str:
        return difference(answer.outputs, 0, references[question.task](str(question.texts[0])))

    questions = [Question(task.name, (text,)) for task in GOOD for text in TEXTS]
    with Hammer(refusing.grpc_url, questions, check, clients=2) as hammer:
        hammer.wait_for(2)
        yield
        hammer.wait_for(2)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_broken_task_names_file_field_and_remedy(client: GrpcClient, case: Case) -> None:
    answer = client.ask_one(case.name, "hello")
    assert answer.status == "INTERNAL"
    missing = [words for words in (case.name, *case.says) if words not in answer.message]
    assert not missing, f"{missing} not in: {answer.message}"


def test_refusals_are_counted(refusing: Serving, client: GrpcClient) -> None:
    before = refusing.metric("failures_total", "no-head", "refused")
    for _ in range(3):
        assert client.ask_one("no-head", "hello").error
    eventually(
        lambda: refusing.metric("failures_total", "no-head", "refused") == before + 3, "three more refusals on /metrics"
    )


def test_a_broken_task_heals_when_its_file_comes(refusing: Serving, client: GrpcClient, tmp_path: Path) -> None:
    task = Task("healing", 80, adapter=lora())
    directory = write_task(refusing.repository, task)
    weights = directory / "1" / ADAPTER
    aside = weights.rename(tmp_path / "weights")
    refusing.load("healing")
    assert ADAPTER in client.ask_one("healing", TEXTS[0]).message
    shutil.copy(aside, weights.with_name("arriving"))
    weights.with_name("arriving").rename(weights)
    eventually(lambda: not client.ask_one("healing", TEXTS[0]).error, "it is served")
    reference = Reference(minilm(), directory / "1")
    assert not difference(client.ask_one("healing", TEXTS[0]).good(), 0, reference(TEXTS[0]))


@pytest.mark.parametrize("case", [case for case in CASES if case.name in SPOILT_VERSIONS], ids=lambda case: str(case.name))
def test_a_broken_new_version_leaves_the_old_one_serving(
    refusing: Serving, client: GrpcClient, tmp_path: Path, case: Case
) -> None:
    """Whole again under the next number, it is served."""
    task = Task(f"versions-{case.name}", 90, adapter=lora(), seed=1)
    directory = write_task(refusing.repository, task)
    refusing.load(task.name)
    old = Reference(minilm(), directory / "1")(TEXTS[3])
    try:
        assert not difference(client.ask_one(task.name, TEXTS[3]).good(), 0, old)
        write_version(tmp_path / "1", replace(task, adapter=case.adapter or lora(4), seed=2))
        case.spoil(tmp_path)
        (tmp_path / "1").rename(directory / "2")
        refusing.load(task.name)
        for _ in range(5):
            assert not difference(client.ask_one(task.name, TEXTS[3]).good(), 0, old)
    finally:
        refusing.unload(task.name)
        shutil.rmtree(directory)


def test_a_tag_beyond_the_slots(refusing: Serving, client: GrpcClient) -> None:
    """Triton itself refuses it at load: the backbone has no such output."""
    task = Task("beyond", 5000)
    directory = write_task(refusing.repository, task)
    with pytest.raises(Exception, match="VFM_5000"):
        refusing.load("beyond")
    assert client.ask_one("beyond", "hello").error
    shutil.rmtree(directory)


def test_two_tags_in_one_entry(refusing: Serving, client: GrpcClient) -> None:
    task = Task("two-tags", 81)
    directory = write_task(refusing.repository, task)
    second = 'output_map { key: "VFM_82" value: "usage2" } } ] }'
    edit_entry("} } ] }", "}\n" + second)(directory)
    edit_entry('output { name: "usage"', 'output { name: "usage2" data_type: TYPE_INT64 dims: [ 3 ] }\noutput { name: "usage"')(directory)  # fmt: skip
    refusing.load("two-tags")
    answer = client.ask_one("two-tags", "hello")
    assert answer.error
    assert "two-tags" in answer.message or "tasks' tags" in answer.message
    refusing.unload("two-tags")
    shutil.rmtree(directory)


def test_a_changed_entry_that_is_wrong(refusing: Serving, client: GrpcClient) -> None:
    """The terms of a running task are spoilt, then put right."""
    task = Task("spoilt", 83)
    directory = write_task(refusing.repository, task)
    refusing.load("spoilt")
    client.ask_one("spoilt", "hello").good()
    write_entry(directory, replace(task, parameters={"weight": "none"}))
    eventually(lambda: "parameters.weight" in client.ask_one("spoilt", "hello").message, "it is refused")
    write_entry(directory, replace(task, parameters={"weight": "2"}))
    eventually(lambda: not client.ask_one("spoilt", "hello").error, "it is served")
    refusing.unload("spoilt")
    shutil.rmtree(directory)
