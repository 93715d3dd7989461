"""Arrivals of production traces, scaled to a rate. Three formats, recognised by their header:

* Azure LLM inference 2023: TIMESTAMP,ContextTokens,GeneratedTokens
* Azure Functions 2021: app,func,end_timestamp,duration
* Azure Functions 2019: HashOwner,HashApp,HashFunction,Trigger,1,2,3,... (invocations per minute)

The data is not part of the project: https://github.com/Azure/AzurePublicDataset has it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True)
class Arrival:
    """One invocation of a function: seconds from the first, tokens of its prompt (0: the trace does not say)."""

    time: float
    function: str
    tokens: int = 0
    answer: int = 0  # tokens of its answer, likewise


def read_trace(file: Path) -> list[Arrival]:
    """The arrivals of a trace, in order of time."""
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        fields, rows = set(reader.fieldnames or ()), list(reader)
    if "ContextTokens" in fields:
        found = [
            Arrival(_seconds(row["TIMESTAMP"]), "llm", int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in rows
        ]
    elif "end_timestamp" in fields:
        found = [Arrival(float(row["end_timestamp"]) - float(row["duration"]), row["func"]) for row in rows]
    elif "HashFunction" in fields:
        found = [arrival for row in rows for arrival in _per_minute(row)]
    else:
        raise ValueError(f"{file.name} is no trace of a known format: {', '.join(sorted(fields))}")
    found.sort(key=lambda arrival: arrival.time)
    return [replace(each, time=each.time - found[0].time) for each in found]


def replay(trace: list[Arrival], rate: float, seconds: float, *, offset: int = 0) -> list[Arrival]:
    """`seconds` of a trace from arrival `offset` on, its time scaled so that the mean rate is `rate`."""
    count = round(rate * seconds)
    part = [trace[(offset + number) % len(trace)] for number in range(count + 1)]
    gaps = np.maximum(np.diff([arrival.time for arrival in part]), 0.0)  # 0 where the trace starts over
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    scale = seconds / times[-1] if times[-1] > 0 else 0.0
    return [replace(arrival, time=float(time * scale)) for time, arrival in zip(times[:-1], part, strict=False)]


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp[:26]).timestamp()  # the trace has 7 digits of a second


def _per_minute(row: dict[str, str]) -> list[Arrival]:
    """Counts spread evenly over their minute."""
    arrivals = []
    for minute, count in ((int(name), int(value or 0)) for name, value in row.items() if name.isdigit()):
        arrivals += [Arrival(60 * (minute - 1 + n / count), row["HashFunction"]) for n in range(count)]
    return arrivals
