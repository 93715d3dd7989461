"""A task's adapter between trainings: PEFT's configuration and tensors, wherever they came from."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from fmplex.task.backbone import Backbone
from fmplex_backend.adapters.kinds import IA3, LoRA, Pretrained
from fmplex_backend.adapters.peft import WEIGHTS
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.heads import CarriedOver
from fmplex_backend.fingerprint import fingerprint
from fmplex_backend.weights import read_safetensors

CONFIG = "adapter_config.json"
HEADS = ("classifier", "score", "pre_classifier")  # modules of a score head that PEFT may save beside an adapter
PREFIX = "base_model.model."
SCORES, ONE_LABEL = "ForSequenceClassification", "single_label_classification"


@dataclass(frozen=True, slots=True)
class AdapterState:
    """An adapter as `save_pretrained` writes it: configuration and tensors."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @staticmethod
    def read(directory: Path) -> AdapterState:
        """Read a PEFT directory; raises TaskRefused or TaskProblem."""
        file = directory / CONFIG
        if not file.is_file():
            raise TaskProblem(
                f"{directory} holds no adapter: it has no {CONFIG}. Name a directory that save_pretrained wrote"
            )
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TaskProblem(f"{file} is not JSON: {error}. Save the adapter again") from None
        return AdapterState(config, read_safetensors(directory / WEIGHTS))

    @staticmethod
    def of(model: Any) -> AdapterState:
        """A copy of the adapter in a model that is being fitted."""
        config = model.peft_config["default"].to_dict()
        tensors = get_peft_model_state_dict(model)
        return AdapterState(
            {key: listed(value) for key, value in config.items()},
            {name: each.detach().cpu().clone().contiguous() for name, each in tensors.items()},
        )

    def write(self, directory: Path, model: str) -> None:
        """Write a PEFT directory, for the backbone named `model`."""
        directory.mkdir(parents=True)
        document = self.config | {"base_model_name_or_path": model, "inference_mode": True}
        text = json.dumps(document, indent=2, sort_keys=True, default=str)
        (directory / CONFIG).write_text(f"{text}\n", encoding="utf-8")
        save_file(self.tensors, directory / WEIGHTS, metadata={"format": "pt"})

    def around(self, model: Any) -> Any:
        """The model with this adapter in it, ready to be fitted further."""
        config: Any = PeftConfig.from_peft_type(**self.config)  # type: ignore[no-untyped-call]
        config.inference_mode, config.base_model_name_or_path = False, None
        wrapped = _wrapped(model, config)
        set_peft_model_state_dict(wrapped, dict(self.tensors))
        return wrapped


def _wrapped(model: Any, config: PeftConfig) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a name that transformers has deprecated
        return get_peft_model(model, config)


def set_dropout(model: Any, on: bool) -> None:
    """Let an adapter's dropout take part; nothing else of the model has a mode while it is fitted."""
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            module.train(on)


def fresh(adapter: LoRA | IA3, backbone: Backbone) -> Any:
    """The backbone with a new adapter in it; raises TaskProblem where it fits no module."""
    linears = {name.rpartition(".")[2] for name, _ in _linears(backbone)}
    config = adapter.peft_config(backbone.model_type, linears)
    try:
        return _wrapped(backbone.for_training(), config)
    except ValueError as error:
        reason = str(error).partition(". Please check")[0].rstrip(".")  # PEFT's remedy names no module
        raise TaskProblem(
            f"the adapter does not fit {backbone.name!r}: {reason}. Name some of its Linear modules: "
            f"{', '.join(sorted(linears))}"
        ) from None


def _linears(backbone: Backbone) -> list[tuple[str, torch.nn.Module]]:
    return [(name, each) for name, each in backbone.for_training().named_modules() if isinstance(each, torch.nn.Linear)]


def listed(value: Any) -> Any:
    """Sets as sorted lists, enums by value, so that the same adapter gives the same file."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return getattr(value, "value", value)


# -- adapters from elsewhere


@dataclass(frozen=True, slots=True)
class Imported:
    """An adapter that was trained elsewhere, with its score head if it came with one."""

    adapter: AdapterState
    head: CarriedOver | None


def find(source: str | Path) -> Path:
    """The directory of a `Pretrained`: a path, or a hub id."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_absolute() or str(source).startswith("."):
        raise TaskProblem(f"there is no directory {path}. Name one that save_pretrained wrote")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source)))
    except Exception as error:  # the hub's client raises whatever its transport raises
        reason = str(error).strip().splitlines()[0].removeprefix("Got: ")
        raise TaskProblem(
            f"{source} is not a directory, and could not be had from the hub: {reason}. Name a directory that "
            "save_pretrained wrote, or a hub id that this machine can reach"
        ) from None


def import_adapter(adapter: Pretrained, backbone: Backbone) -> Imported:
    """Read an adapter of any origin; a head for sequence classification is carried over."""
    directory = find(adapter.source)
    state = AdapterState.read(directory)
    _check_base(directory, state.config, backbone)
    own = sorted(set(state.config.get("modules_to_save") or ()) - set(HEADS))
    head = {name: each for name, each in state.tensors.items() if _head_part(name)}
    own_tensors = {name: each for name, each in state.tensors.items() if name not in head}
    config = state.config | {"modules_to_save": own or None, "task_type": None, "auto_mapping": None}
    if not head:
        return Imported(AdapterState(config, own_tensors), None)
    tensors = {_head_part(name): each for name, each in head.items()}
    return Imported(AdapterState(config, own_tensors), _head(tensors, backbone, directory))


def _head_part(name: str) -> str:
    """`base_model.model.classifier.out_proj.weight` -> what follows the prefix; empty where it is not of the head."""
    path = name.removeprefix(PREFIX)
    for head in HEADS:
        if path.startswith(f"{head}."):
            return path.replace(".modules_to_save.default", "", 1)
    return ""


def _head(tensors: Mapping[str, Tensor], backbone: Backbone, directory: Path) -> CarriedOver:
    """A score head as transformers' AutoModelForSequenceClassification has it."""
    model = backbone.for_training()
    config = model.config.to_dict() | {"architectures": [SCORES], "problem_type": ONE_LABEL, "id2label": {}}
    unread = tuple(f"{name}." for name in backbone.runtime.unread)
    in_backbone = {name: each for name, each in model.state_dict().items() if name.startswith(unread)}
    try:
        return backbone.family.carried_over(config, in_backbone | dict(tensors))
    except ValueError as error:
        raise TaskProblem(
            f"{directory}: the score head of a {backbone.model_type} ({', '.join(sorted(tensors))}) cannot be carried "
            f"over: {error}. Name all its layers in modules_to_save, or take it out of the adapter's files and fit "
            "another one: fit(..., parts='decoder')"
        ) from None


def _check_base(directory: Path, config: Mapping[str, Any], backbone: Backbone) -> None:
    base = str(config.get("base_model_name_or_path") or "")
    own = backbone.runtime.fingerprint
    if not base:
        return
    if Path(base).is_dir():
        same = fingerprint(Path(base)) in (own, None)
    elif Path(base).is_absolute():
        return  # a path of another machine; modules and shapes are compared when the adapter is loaded
    else:
        one, other = _comparable(base), _comparable(backbone.config.model)
        same = one in other or other in one or Path(backbone.config.model).is_absolute()
    if not same:
        raise TaskProblem(
            f"{directory / CONFIG}: base_model_name_or_path: it was trained for {base}, the backbone {backbone.name!r} "
            f"is {backbone.config.model}. Name a backbone with that model, or, where they hold the same weights, "
            "correct the field"
        )


def _comparable(model: str) -> str:
    """A model's name without owner, case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", model.removeprefix("package:").rpartition("/")[2].lower())
