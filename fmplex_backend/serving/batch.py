"""A batch of a backbone: what runs together, and what is counted of all that ran."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from fmplex_backend.errors import ExecutionFailed
from fmplex_backend.types import Failed, Pass, Request, Runtime


class BackboneCounts:
    """Totals over all batches. The engine thread writes them, the metrics thread reads them."""

    def __init__(self) -> None:
        self.batches = 0
        self.passes = 0
        self.items = 0
        self.rows_saved = 0  # of the items: an equal row ran for them
        self.busy_s = 0.0
        self.last_batch_at: float | None = None  # when the last one ended, by the engine's clock
        self.broken_passes = 0


@dataclass(frozen=True, slots=True)
class AtWork:
    """What the engine has run, and since when, by its clock, it has run the batch at hand: None where there is none."""

    settled_s: float = 0.0  # seconds of batches whose requests have been charged
    running_since: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Requests that run together, and their passes: queued on the device, or each run when it is asked for."""

    requests: list[Request]
    passes: Iterator[Pass]
    started_at: float
    spare: bool = False  # of copies: nothing is learned from what they take


def isolated(
    batch: list[Request],
    passes: Iterator[Pass],
    runtime: Runtime,
    in_flight: Collection[Request],
    counts: BackboneCounts,
) -> Iterator[Pass]:
    """The batch's passes. If one raises, what is left runs request by request, so that only the culprit fails.

    Args:
        in_flight: the requests that have no outcome yet; the caller takes them out as passes are yielded.
    """
    try:
        yield from passes
        if missing := sum(request in in_flight for request in batch):
            raise RuntimeError(f"the runtime left {missing} requests without an outcome")
    except Exception as error:
        counts.broken_passes += 1
        if runtime.is_fatal(error):
            raise  # ends the thread, and that the process, with every request answered
        left = [request for request in batch if request in in_flight]
        alone = len(batch) == 1
        failed = ExecutionFailed(f"the pass over the backbone raised {type(error).__name__}: {error}")
        yield Pass(
            None,
            [(request, request.work) for request in left],
            [(request, Failed(failed)) for request in left] if alone else [],
        )
        if not alone:
            for request in left:
                yield from isolated([request], _alone(request, runtime), runtime, in_flight, counts)


def _alone(request: Request, runtime: Runtime) -> Iterator[Pass]:
    yield from runtime.run([request])


def raising(error: Exception) -> Iterator[Pass]:
    """Passes of a batch that could not be started."""
    raise error
    yield
