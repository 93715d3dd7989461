"""Starts the generator's process and hands it plans."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks.load.child import Child
from benchmarks.load.plan import Outcome, Plan


class Generator(Child):
    """The generator's process, pinned to a core, idle between plans."""

    module = "benchmarks.load.client"

    def __init__(self, core: int | None = None) -> None:
        super().__init__({"core": core})

    def run(self, plan: Plan, *, beside: Callable[[], None] | None = None) -> Outcome:
        """Generate the load; returns after the last answer. `beside` is called at about the end of the warm-up."""
        if beside is None:
            return Outcome.from_json(self.ask(plan.to_json()))
        with ThreadPoolExecutor(1) as pool:
            outcome = pool.submit(self.run, plan)
            time.sleep(plan.warmup)
            beside()
            return outcome.result()


def run_load(plan: Plan, core: int | None = None) -> Outcome:
    """Run one plan in a new process."""
    with Generator(core) as generator:
        return generator.run(plan)
