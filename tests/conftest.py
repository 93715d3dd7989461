"""How `make test` spreads the tests over processes, and what these may say."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Generator
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from fmplex_backend.server_variables import METRICS_S

MEASURING = ("account", "life", "second_family", "shutdown")  # of tests/triton
CONTRACT = "tests/triton/test_family_contract.py"
# Of the contract what measures seconds, which are the scheduler's and the account's for every family: `make test`
# measures one, `make test-all` each.
MEASURES = ("test_backlogged_tasks_share_by_weight", "test_charged_seconds_are_measured_seconds")
MEASURED = "text-encoder"
# Changes while it serves, which are the loader's for every family of encoders: the same.
CHANGES = (
    "test_a_task_comes_and_goes",
    "test_a_new_version_is_served_whole",
    "test_a_broken_task_names_file_field_and_remedy",
    "test_refusals_are_counted",
    "test_a_broken_version_leaves_the_old_one_serving",
)
# What goes over HTTP is the boundary's for every family, and 7 items lie between the 1 and the 32 that stay: the same.
ANSWERS = ("test_equal_to_the_model_alone", "test_equal_when_tasks_and_adapters_share_batches")
BOUNDARY = re.compile(r"-http\]|-7-grpc\]")
FAMILY = re.compile(r"\[([a-z]+-[a-z]+)")  # in the names of its tests


STATE = pytest.StashKey[TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Set what servers under test inherit. Their keys and records are kept apart from those of who runs the tests."""
    gc.set_threshold(20_000, 10, 10)  # as the command line does: imports and fixtures make millions of objects
    config.stash[STATE] = folder = TemporaryDirectory(prefix="fmplex-state-")
    os.environ["XDG_STATE_HOME"] = folder.name
    # Servers under test share the cores. A thread of OpenMP's that waits for one without a core would keep its own:
    # the passes at a load of MiniLM, 1.7 s of one core, took 17.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ[METRICS_S] = "0.25"  # tests wait for what is published after something has happened


def pytest_unconfigure(config: pytest.Config) -> None:
    """They are gone with them."""
    config.stash[STATE].cleanup()


class FilesWhole(LoadScopeScheduling):
    """Files stay whole, for their fixtures; those that measure shares and delays run one after the other.

    The contract stays whole for each family, which has a server of its own.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file == CONTRACT and (family := FAMILY.search(nodeid)):
            return "measuring" if family[1] == MEASURED else f"contract of {family[1]}"
        return "measuring" if file in {f"tests/triton/test_{name}.py" for name in MEASURING} else file


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test on the real server that fails runs once more: what else the machine does can make it late.

    The first failure is shown whatever comes of the second run. A unit test runs once.
    """
    for item in items:
        if item.nodeid.startswith("tests/triton/"):
            item.add_marker(pytest.mark.flaky(reruns=1))
        family = FAMILY.search(item.nodeid) if item.nodeid.startswith(CONTRACT) else None
        if family and family[1] != MEASURED:
            name = getattr(item, "originalname", "")
            is_boundary = name in ANSWERS and BOUNDARY.search(item.nodeid)
            if is_boundary or name in MEASURES or (name in CHANGES and family[1] != "causal-lm"):
                item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What failed first and ran once more."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"ran once more: {report.nodeid}")
        terminalreporter.line(report.longreprtext)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesWhole:
    """Wherever processes are asked for."""
    return FilesWhole(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what no encoding has, such as names of files that are not UTF-8: processes exchange reports as UTF-8."""
    report = yield
    report.sections = [(_encodable(title), _encodable(text)) for title, text in report.sections]
    if report.longrepr is not None and (shown := _encodable(str(report.longrepr))) != str(report.longrepr):
        report.longrepr = shown
    return report


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
