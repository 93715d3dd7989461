"""Memory of tritonserver and the backbone's process with more and more tasks, as proportional set size.

Every count is a server of its own, measured once, after the same REQUESTS requests spread over its tasks. All run with
MALLOC_ARENA_MAX=1: how much glibc keeps in its arenas per thread varies by 70 MiB from start to start, far more than
the tasks take. Shared pages count by their share, so nothing else with torch should run meanwhile.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as grpcclient

from benchmarks.compare import against
from benchmarks.repositories import texts_of_length, write_adapters, write_backbone, write_task
from benchmarks.serving import backbone_process, pss_mib, serving

REQUESTS, FEWER = 80, 40  # the second in a quick run
COMPARISONS = (("lora", 1, 10, 1.03), ("head", 1, 100, 1.10))


def memory(kind: str, count: int, requests: int, folder: Path) -> float:
    """MiB of a server with so many tasks."""
    repository = folder / f"{kind}{count}"
    write_backbone(repository)
    adapters = write_adapters(folder / "adapters", count) if kind == "lora" else [None] * count
    for number, adapter in enumerate(adapters):
        write_task(repository, f"task{number}", number, adapter=adapter)
    texts = texts_of_length(64, 8)
    tensor = grpcclient.InferInput("TEXT", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, dtype=np.object_)[:, None])
    with (
        serving(repository, MALLOC_ARENA_MAX="1") as server,
        grpcclient.InferenceServerClient(server.grpc_url) as client,
    ):
        for number in range(requests):
            client.infer(f"task{number % count}", [tensor])
        return pss_mib(psutil.Process(server.pid), backbone_process(server))


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Each comparison, its two sides in turn."""
    rows = []
    for kind, few, many, target in COMPARISONS[-1:] if quick else COMPARISONS:
        mib = {}
        for count in (few, many):
            with tempfile.TemporaryDirectory() as folder:
                mib[count] = memory(kind, count, FEWER if quick else REQUESTS, Path(folder))
        rows.append(
            {
                "kind": kind,
                "few": few,
                "many": many,
                "target": target,
                "ratio": mib[many] / mib[few],
                "few_mib": mib[few],
                "many_mib": mib[many],
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """A line each."""
    for row in rows:
        print(
            f"{row['many']} {row['kind']} tasks take {row['ratio']:.3f} of the memory of {row['few']} "
            f"({against(row['ratio'], row['target'], at_most=True)}): "
            f"{row['many_mib']:.0f} against {row['few_mib']:.0f} MiB"
        )


if __name__ == "__main__":
    show(run())
