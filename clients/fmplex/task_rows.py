"""A task as a row of `fmplex task list`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fmplex import live
from fmplex.errors import FmplexError
from fmplex_backend.config import TaskConfig, load_task_config
from fmplex_backend.repository import BrokenTask, TaskSpec

MAIN_FIGURES = ("accuracy", "entity_f1", "micro_f1", "macro_f1", "spearman", "rmse", "mae")


def row_of(name: str, backbone: str, entry: TaskSpec | BrokenTask, now: live.Live | None) -> dict[str, Any]:
    """What a list says about a task; `error` where it cannot be served."""
    row: dict[str, Any] = {"task": name, "backbone": backbone, "tag": entry.vfm}
    row |= dict.fromkeys(("weight", "slo_ms", "max_queue", "version", "adapter", "decoder", "figure", "error"))
    row |= {"queue": now.queued if now else None, "share": now.share if now else None}
    if isinstance(entry, BrokenTask):
        return row | {"error": str(entry.error)}
    row |= {"weight": entry.weight, "max_queue": entry.max_queue, "version": entry.version.number}
    row["slo_ms"] = None if entry.slo is None else entry.slo * 1000
    try:
        config = load_task_config(entry.version.path / "task.json")
    except FmplexError as error:
        return row | {"error": str(error)}
    return (
        row | {"adapter": _adapter_kind(entry.version.path, config), "decoder": config.decoder.kind} | _figure(config)
    )


def _adapter_kind(path: Path, config: TaskConfig) -> str | None:
    if config.adapter is None:
        return None
    try:
        document = json.loads((path / config.adapter.path / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "unreadable"
    kind = "DoRA" if document.get("use_dora") else str(document.get("peft_type", "?")).replace("LORA", "LoRA")
    return f"{kind} r={document['r']}" if "r" in document else kind


def _figure(config: TaskConfig) -> dict[str, Any]:
    name = next((name for name in MAIN_FIGURES if name in config.metrics), None)
    return {"figure": f"{name} {config.metrics[name]}" if name else None}


def short(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
