"""Starts the generator's process and hands it plans."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from benchmarks.load.plan import Outcome, Plan


class Generator:
    """The generator's process, pinned to a core, idle between plans."""

    def __init__(self, core: int | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in __exit__
        line = [sys.executable, "-m", "benchmarks.load.client"]
        self._process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._exchange({"core": core})

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: TracebackType | None) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)
        self._errors.close()

    def run(self, plan: Plan, *, beside: Callable[[], None] | None = None) -> Outcome:
        """Generate the load; returns after the last answer. `beside` is called at about the end of the warm-up."""
        if beside is None:
            return Outcome.from_json(self._exchange(plan.to_json()))
        with ThreadPoolExecutor(1) as pool:
            outcome = pool.submit(self.run, plan)
            time.sleep(plan.warmup)
            beside()
            return outcome.result()

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise RuntimeError(f"the load generator failed:\n{self._errors.read()[-2000:]}")
        document: dict[str, Any] = json.loads(answer)
        return document


def run_load(plan: Plan, core: int | None = None) -> Outcome:
    """Run one plan in a new process."""
    with Generator(core) as generator:
        return generator.run(plan)
