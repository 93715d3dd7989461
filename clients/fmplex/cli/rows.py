"""A task as a row of `fmplex task list`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fmplex.cli.live import Live
from fmplex_backend.errors import FmplexError
from fmplex_backend.repository.config import TaskConfig, load_task_config
from fmplex_backend.repository.tasks import BrokenTask, TaskSpec
from fmplex_backend.repository.terms import TERMS

# Of a task's figures the first of these is shown.
FIGURES_SHOWN = ("accuracy", "entity_f1", "f1", "micro_f1", "macro_f1", "spearman", "rmse", "mae", "perplexity")


def row_of(name: str, backbone: str, entry: TaskSpec | BrokenTask, now: Live | None) -> dict[str, Any]:
    """A task's columns by name, None where there is no value; `error` where it cannot be served.

    `version` is the one that the server serves, where it tells of one, else the one of the entry.
    """
    row: dict[str, Any] = {"task": name, "backbone": backbone, "tag": entry.vfm, "state": None}
    row |= dict.fromkeys((*TERMS, "cache", "version"))
    row |= dict.fromkeys(("adapter", "decoder", "figure", "queue", "share", "error"))
    if isinstance(entry, BrokenTask):
        row |= {"state": "refused", "error": str(entry.error)}
    else:
        row |= {name: getattr(entry, name) for name in (*TERMS, "cache")}
        row |= {"version": entry.version.number} | _parts(entry)
    return row if now is None else row | _live(row, name, now)


def _parts(entry: TaskSpec) -> dict[str, Any]:
    try:
        config = load_task_config(entry.version.path / "task.json")
    except FmplexError as error:
        return {"state": "refused", "error": str(error)}
    return {"adapter": _adapter_kind(entry.version.path, config), "decoder": config.decoder.kind} | _figure(config)


def _live(row: dict[str, Any], name: str, now: Live) -> dict[str, Any]:
    """What the server tells; where it serves a task whose files are wrong by now, their error stays."""
    task = now.tasks[name]
    told: dict[str, Any] = {"state": task.state, "queue": task.with_canary.queued, "share": now.share(task)}
    told["error"] = task.error or row["error"]
    return told if task.version is None else told | {"version": task.version}


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
    name = next((name for name in FIGURES_SHOWN if name in config.metrics), None)
    return {"figure": f"{name} {config.metrics[name]}" if name else None}


def short(value: Any) -> str:
    """A value as text: a number without trailing zeros, a list or dict as JSON."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
