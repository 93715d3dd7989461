"""The table of the README, from benchmarks/results/*.json: the main figures, beside their aims."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.experiments import capacity, churn, families, groups, sharing

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Results:
    """The experiments' JSON files."""

    folder: Path

    def row(self, experiment: str, **wanted: Any) -> Row:
        """The row whose fields have the wanted values; exactly one must."""
        rows = json.loads((self.folder / f"{experiment}.json").read_text(encoding="utf-8"))["rows"]
        (found,) = (row for row in rows if all(row.get(key) == value for key, value in wanted.items()))
        return dict(found)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table."""

    what: str
    experiment: str
    measured: Callable[[Results], str]
    aim: str


def _throughput(kind: str) -> Callable[[Results], str]:
    def said(results: Results) -> str:
        long, short = (results.row("throughput", kind=kind, tokens=tokens)["ratio"] for tokens in (64, 16))
        return f"{long:.2f} ({short:.2f})"

    return said


def _of_family(experiment: str, point: str) -> Callable[[Results], str]:
    def ratio(results: Results, kind: str) -> str:
        return f"{results.row(experiment, what='throughput', kind=kind, point=point)['ratio']:.2f}"

    return lambda results: f"{ratio(results, 'head')} ({ratio(results, 'lora')})"


def _mean(layout: str, tasks: int) -> Callable[[Results], str]:
    def said(results: Results) -> str:
        row = results.row("sharing", layout=layout, tasks=tasks, load=sharing.AT)
        return f"{row['mean_ratio']['per-task']['median']:.2f}"

    return said


def _saturated(results: Results) -> str:
    rows = [results.row("sharing", layout=name, tasks=4, load="saturated") for name in ("apart", "spread")]
    return "; ".join(f"{row['rate_ratio']['per-task']['median']:.2f}" for row in rows)


def _fair(figure: Callable[[Row], float], case: str = "3:1, 16 tokens") -> Callable[[Results], str]:
    return lambda results: f"{figure(results.row('fairness', case=case)):.2f}"


def _score(row: Row) -> float:
    return float(row["arms"]["bfq"]["score"])


def _isolated(results: Results) -> str:
    row = results.row("isolation", point="20 times its share")
    return f"{row['p99_ms']['bfq']['median'] / row['allowed_ms']:.2f}"


def _memory(results: Results) -> str:
    return "; ".join(f"{results.row('memory', kind=kind)['ratio']['median']:.2f}" for kind in ("lora", "head"))


def _thousand(kind: str) -> Callable[[Results], str]:
    def said(results: Results) -> str:
        mib = results.row("capacity", kind=kind)["mib"]
        return f"{mib['1000'] / mib['1']:.2f}"

    return said


def _many(results: Results) -> str:
    shared, plain = (results.row("capacity", kind=kind)["fits"]["16"]["tasks"] for kind in ("shared, head", "per-task"))
    return f"{shared / plain:.0f}"


def _group(kind: str, figure: str) -> Callable[[Results], str]:
    def said(results: Results) -> str:
        long, short = (results.row("groups", kind=kind, tokens=tokens)[figure]["median"] for tokens in (64, 16))
        return f"{long:.2f} ({short:.2f})"

    return said


def _peer(name: str) -> Callable[[Results], str]:
    def said(results: Results) -> str:
        ahead = [results.row("peers", tokens=tokens)["ahead"].get(name) for tokens in (64, 16)]
        if None in ahead:
            return "not measured"
        long, short = (each["median"] for each in ahead)
        return f"{long:.2f} ({short:.2f})"

    return said


def _scheduling(results: Results) -> str:
    many, one = (results.row("scheduling", bmax=bmax)["us"]["100"] for bmax in (32, 1))
    return f"{many:.1f} us ({one:.0f} us)"


def _failed(results: Results) -> str:
    row = results.row("churn")
    return f"{row['failures']} of {row['requests']:,}"


LINES = (
    Line(
        "10 LoRA tasks through the server, of the bare backbone's throughput, 64 tokens (16)",
        "throughput",
        _throughput("lora"),
        "0.93 (0.82)",
    ),
    Line(
        "10 head-only tasks through the server, of the bare backbone's throughput, 64 tokens (16)",
        "throughput",
        _throughput("head"),
        "0.97 (0.87)",
    ),
    *(
        Line(
            f"the same of 10 tasks with heads (with LoRA) on {what}",
            experiment,
            _of_family(experiment, point),
            f"{families.TARGETS['head']:g} ({families.TARGETS['lora']:g})",
        )
        for what, experiment, point in (
            ("DINOv2-small, pictures of 224 x 224", "vision", "224 x 224"),
            ("a small PatchTST, series of 32 channels", "series", "32 channels"),
            ("an encoder as Whisper tiny.en's, clips of 2 s", "audio", "clips of 2 s"),
        )
    ),
    Line(
        "answers per second of 10 head-only tasks asked the same texts, times those of separate texts, 64 tokens (16)",
        "groups",
        _group("head", "of_separate"),
        f"{groups.TARGET:g}",
    ),
    Line(
        "the same of 10 LoRA tasks, of that with `share_rows` off",
        "groups",
        _group("lora", "of_unshared"),
        f"{groups.LORA_TARGET:g}",
    ),
    Line(
        "8 and 256 tokens mixed, of the two run apart",
        "mixture",
        lambda results: f"{results.row('mixture')['ratio']:.2f}",
        "0.9",
    ),
    Line(
        "mean latency of 4 LoRA tasks at 70% load, of that of a process for each, models on one core",
        "sharing",
        _mean("apart", 4),
        f"{sharing.OF_PER_TASK:g}",
    ),
    Line("the same of 8 tasks", "sharing", _mean("apart", 8), f"{sharing.OF_PER_TASK:g}"),
    Line(
        "the same of 4 tasks, models, Triton and clients all on both cores",
        "sharing",
        _mean("spread", 4),
        f"{sharing.OF_PER_TASK:g}",
    ),
    Line(
        "throughput of 4 LoRA tasks, saturated, of a process for each: models on one core; all on both",
        "sharing",
        _saturated,
        "1",
    ),
    Line(
        "texts of one embedding task, 32 clients, all tuned and in bfloat16, times those of infinity, 64 tokens (16)",
        "peers",
        _peer("infinity"),
        "1",
    ),
    Line("the same, times those of LitServe with sentence-transformers", "peers", _peer("litserve"), "1"),
    Line(
        "fairness score at weights 3:1, 16 tokens, both backlogged",
        "fairness",
        _fair(_score),
        "0.99",
    ),
    Line(
        "the same in order of arrival",
        "fairness",
        _fair(lambda row: row["arms"]["fifo"]["score"]),
        "",
    ),
    Line(
        "fairness score of two equal tasks, one of 8 tokens and one of 64, in seconds of service",
        "fairness",
        _fair(_score, "1:1, 8 and 64 tokens"),
        "0.99",
    ),
    Line(
        "throughput at weights 3:1, 16 tokens, of that of fair queueing without batches",
        "fairness",
        _fair(lambda row: row["of_stfq"]["median"]),
        "2.5",
    ),
    Line(
        "what batches bring the bare backbone there",
        "fairness",
        _fair(lambda row: row["gain"]["median"]),
        "",
    ),
    Line(
        "p99 of a task beside one that sends 20 times its share, of what is allowed (alone, and two full batches)",
        "isolation",
        _isolated,
        "1",
    ),
    Line(
        "its requests within an SLO of 1.5 full batches beside a backlogged task",
        "isolation",
        lambda results: f"{results.row('isolation', sweep='slo')['within_slo']['bfq']:.2f}",
        "0.99",
    ),
    Line(
        "throughput with LoRA on all of ten tasks, of none (the authors' prototype: 0.55)",
        "adapters",
        lambda results: f"{results.row('adapters', point='10 of 10')['of_none']['median']:.2f}",
        "0.9",
    ),
    Line("memory of 10 LoRA tasks against 1; of 100 head-only tasks", "memory", _memory, "1.03; 1.1"),
    Line("memory of 1,000 head-only tasks against 1", "capacity", _thousand("shared, head"), f"{capacity.GROWTH:g}"),
    Line("memory of 1,000 LoRA tasks against 1", "capacity", _thousand("shared, LoRA"), f"{capacity.GROWTH:g}"),
    Line(
        "tasks at 0.1 requests/s each in 16 GiB, times as many as a process for each",
        "capacity",
        _many,
        f"{capacity.TIMES_AS_MANY:g}",
    ),
    Line(
        "core time of a request between its arrival and the forward",
        "overhead",
        lambda results: f"{results.row('overhead')['before_us'] / 1000:.2f} ms",
        "0.35 ms",
    ),
    Line("scheduling a request with 100 tasks backlogged, Bmax 32 (1)", "scheduling", _scheduling, "50 us"),
    Line(
        "the same with 1,000 backlogged, times as much",
        "scheduling",
        lambda results: f"{results.row('scheduling', bmax=32)['ratio']:.2f}",
        "1.5",
    ),
    Line(
        "a LoRA task added to a running server, until its first answer",
        "changes",
        lambda results: f"{results.row('changes')['idle_add_ms']:.0f} ms",
        "100 ms",
    ),
    Line(
        "a changed weight in effect",
        "changes",
        lambda results: f"{results.row('changes')['weight_ms']:.0f} ms",
        "20 ms",
    ),
    Line("requests of other tasks that failed while one was changed every 200 ms", "churn", _failed, "0"),
    Line(
        "p99 of these, of that without changes",
        "churn",
        lambda results: f"{results.row('churn')['ratio']['median']:.2f}",
        f"{churn.P99:g}",
    ),
)


def table(folder: Path) -> str:
    """The table in Markdown."""
    results = Results(folder)
    head = ["| what | measured | aim | repeat |", "| --- | --- | --- | --- |"]
    rows = [f"| {each.what} | {_measured(each, results)} | {each.aim} | `ONLY={each.experiment}` |" for each in LINES]
    return "\n".join([*head, *rows])


def where(folder: Path) -> str:
    """The machines that the table's figures are from, as lines of 120 characters at most."""
    experiments: dict[str, list[str]] = {}  # by machine
    for name in dict.fromkeys(line.experiment for line in LINES):
        file = folder / f"{name}.json"
        if file.is_file():
            machine = json.loads(file.read_text(encoding="utf-8"))["machine"]
            words = [word for word in machine["cpu"].replace("(R)", "").split() if not word.endswith("_bf16")]
            experiments.setdefault(f"{machine['cores']} cores of an {' '.join(words)}", []).append(name)
    most = max(experiments, key=lambda each: len(experiments[each]), default="")
    others = [f"{', '.join(names)} on {each}" for each, names in experiments.items() if each != most]
    return textwrap.fill("; ".join([f"On {most}", *others]) + ".", 120)


def _measured(line: Line, results: Results) -> str:
    if not (results.folder / f"{line.experiment}.json").exists():
        return "not measured"
    return line.measured(results)
