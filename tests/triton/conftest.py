"""The end of every live server's log, in the report of a test that fails."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
import transformers

from testing.servers import LIVE

LINES = 60

torch.set_num_threads(1)  # the server needs the cores

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs."""
    report = yield
    if report.failed:
        report.sections += [(f"log of {log.parent.name}", _tail(log)) for log in LIVE if log.exists()]
    return report


def _tail(log: Any) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if not line.startswith(("|", "+"))][-LINES:])  # no tables
