"""The load generator: one asyncio gRPC client in a process of its own, pinned to a core.

* closed loop: each of a stream's clients sends its next request when the last one has been answered;
* open loop: a stream's requests are sent at times fixed beforehand (`arrivals`, `traces`), whatever the server does.

Latency is measured from the time at which a request was due, so that a server that stalls cannot hide the requests
that were due meanwhile (coordinated omission). Requests that are due during the warm-up are not counted.
"""

from benchmarks.load.generator import Generator, run_load
from benchmarks.load.plan import Outcome, Plan, Stream, Tally, closed

__all__ = ["Generator", "Outcome", "Plan", "Stream", "Tally", "closed", "run_load"]
