"""The load generator: one asyncio gRPC client in a process of its own, on a core that is stated.

* closed loop: a stream's clients send their next request when they have the answer to the last one;
* open loop: a stream's requests go out at times fixed beforehand (`arrivals`, `traces`), whatever the server does.

Latency counts from the time a request was meant to be sent, so that a server that stalls cannot hide the requests
that should have come meanwhile (coordinated omission). Nothing of the warm-up is counted.
"""

from benchmarks.load.generator import Generator, run_load
from benchmarks.load.plan import Outcome, Plan, Stream, Tally, closed

__all__ = ["Generator", "Outcome", "Plan", "Stream", "Tally", "closed", "run_load"]
