"""Ways to break a task's directory, and what the answer must then name: file, field (or tensor), remedy."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig
from safetensors.torch import load_file, save_file

from testing.adapters import lora

Break = Callable[[Path], None]  # of a task's directory


def edit_json(name: str, **changes: Any) -> Break:
    """Change fields of a JSON file; `a__b` is field b of section a."""

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
    """Delete a file or a folder."""

    def edit(directory: Path) -> None:
        path = directory / "1" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def cut(name: str) -> Break:
    """Truncate a file to its first half."""

    def edit(directory: Path) -> None:
        file = directory / "1" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return edit


def edit_entry(old: str, new: str) -> Break:
    """Replace a piece of config.pbtxt."""

    def edit(directory: Path) -> None:
        file = directory / "config.pbtxt"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return edit


def link(name: str, target: str) -> Break:
    """Put a link in the place of a file."""

    def edit(directory: Path) -> None:
        (directory / "1" / name).unlink()
        (directory / "1" / name).symlink_to(target)

    return edit


def sparse(name: str, tensor: str, shape: tuple[int, ...]) -> Break:
    """A file that says it holds one tensor of that shape, and takes no space on disk."""

    def edit(directory: Path) -> None:
        size = 4 * math.prod(shape)
        header = json.dumps({tensor: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
        with (directory / "1" / name).open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            stream.truncate(8 + len(header) + size)

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


def _lora_lacks(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        if "layer.3" in name:
            del tensors[name]


def _whole(tensors: dict[str, torch.Tensor]) -> None:
    tensors["weight"] = tensors["weight"].to(torch.int8)


def _huge(tensors: dict[str, torch.Tensor]) -> None:
    tensors["weight"][0] = 3e38


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
    Case(
        "unknown-decoder", edit_json("task.json", decoder__kind="oracle"), ("1/task.json", "decoder", "oracle", "docs/")
    ),
    Case("unknown-field", edit_json("task.json", encoder__speed=3), ("1/task.json", "encoder.speed", "docs/")),
    Case("other-family", edit_json("task.json", family="causal-lm"), ("1/task.json", "family", "docs/")),
    Case("same-labels", edit_json("task.json", decoder__labels=["a", "a", "b"]), ("1/task.json", "labels", "twice")),
    Case(
        "too-long", edit_json("task.json", encoder__max_length=4096), ("1/task.json", "encoder.max_length", "Lower it")
    ),
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
    Case("head-whole", edit_tensor(HEAD, _whole), (f"1/{HEAD}", "weight", "I8, not F64", "Save it with that dtype")),
    Case("head-huge", edit_tensor(HEAD, _huge), (f"1/{HEAD}", "weight", "overflow", "Train the head again")),
    Case("head-sparse", sparse(HEAD, "weight", (1 << 20, 128)), (f"1/{HEAD}", "bias", "a head holds weight and bias")),
    Case("too-much", sparse(HEAD, "weight", (1 << 22, 384)), ("/1: ", "6144 MiB", "max_version_bytes")),
    Case("head-link", link(HEAD, "/etc/hostname"), (f"1/{HEAD}", "(link)", "/etc/hostname", "--allow-links")),
    Case(
        "head-elsewhere",
        edit_json("task.json", decoder__weights="/etc/shadow"),
        ("1/task.json", "decoder", "weights", "a path inside the version directory", "docs/"),
    ),
    Case(
        "adapter-elsewhere",
        edit_json("task.json", adapter__path="../../lora8/1/adapter"),
        ("1/task.json", "adapter.path", "a path inside the version directory", "docs/"),
        lora(),
    ),
    Case(
        "adapter-never-ends",
        edit_json(SETTINGS, alpha_pattern={r"(\w+\.?)+!": 1}),
        (f"1/{SETTINGS}", "alpha_pattern", "processor time", "without patterns"),
        lora(),
    ),
    Case(
        "adapter-alpha-nan",
        edit_json(SETTINGS, lora_alpha=math.nan),
        (f"1/{SETTINGS}", "lora_alpha", "a finite number", "Save the adapter again"),
        lora(),
    ),
    Case(
        "adapter-alpha-huge",
        edit_json(SETTINGS, lora_alpha=1e38),
        (f"1/{ADAPTER}", "lora_alpha 1e+38", "Correct lora_alpha"),
        lora(),
    ),
    Case("adapter-rank", edit_json(SETTINGS, r=16), (f"1/{SETTINGS}", ": r: ", "16", "rank 8", "both files"), lora()),
    Case(
        "adapter-lacks-layer",
        edit_tensor(ADAPTER, _lora_lacks),
        (f"1/{SETTINGS}", "target_modules", "no tensors for", "layer.3", "both files"),
        lora(),
    ),
    Case("no-adapter", delete("adapter"), (f"1/{SETTINGS}", "no such file", "save_pretrained"), lora()),
    Case("no-adapter-weights", delete(ADAPTER), (f"1/{ADAPTER}", "no such file", "Copy it"), lora()),
    Case("adapter-cut", cut(ADAPTER), (f"1/{ADAPTER}", "not readable as safetensors", "cut short"), lora()),
    Case("settings-cut", cut(SETTINGS), (f"1/{SETTINGS}", "PEFT cannot read it", "Save the adapter again"), lora()),
    Case("adapter-nan", edit_tensor(ADAPTER, _nan), (f"1/{ADAPTER}", "lora_B", "NaN", "Train or export"), lora()),
    Case("adapter-narrow", edit_tensor(ADAPTER, _lora_narrow), (f"1/{ADAPTER}", "lora_A", "256]", "384"), lora()),
    Case(
        "adapter-foreign", edit_tensor(ADAPTER, _lora_foreign), (f"1/{ADAPTER}", "layer.11", "another backbone"), lora()
    ),
    Case(
        "adapter-half", edit_tensor(ADAPTER, _lora_half), (f"1/{ADAPTER}", "layer.3", "Save the adapter again"), lora()
    ),
    Case(
        "adapter-kind",
        lambda directory: None,
        (f"1/{SETTINGS}", "peft_type", "LOHA", "Supported: LoRA"),
        LoHaConfig(r=4, target_modules=["query"], init_weights=False),
    ),
    Case(
        "adapter-saves-modules",
        edit_json(SETTINGS, modules_to_save=["position_embeddings"]),
        (f"1/{SETTINGS}", "modules_to_save", "no row for each row", "smallest module around it"),
        lora(),
    ),
    Case(
        "entry-dims",
        edit_entry('dims: [3] }\noutput { name: "LABEL"', 'dims: [5] }\noutput { name: "LABEL"'),
        ("config.pbtxt", "output.SCORES.dims", "5", "3"),
    ),
    Case(
        "entry-outputs",
        edit_entry('output_map { key: "SCORES" value', 'output_map { key: "EMBEDDING" value'),
        ("config.pbtxt", "output_map.EMBEDDING", "does not make it", "Map one of"),
    ),
    Case(
        "entry-weight",
        edit_entry('string_value: "1.5"', 'string_value: "much"'),
        ("config.pbtxt", "parameters.weight", "'much'", "number above 0"),
    ),
    Case(
        "entry-slo",
        edit_entry('key: "weight" value { string_value: "1.5"', 'key: "slo_ms" value { string_value: "-5"'),
        ("config.pbtxt", "parameters.slo_ms", "'-5'", "number above 0"),
    ),
)
