"""How `make test` spreads the tests over processes, and what these may say."""

from __future__ import annotations

import os
from collections.abc import Generator
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

MEASURING = ("account", "family_contract", "life", "second_family", "shutdown")  # of tests/triton


STATE = pytest.StashKey[TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Keys and records of the servers under test are kept apart from those of whoever runs the tests."""
    config.stash[STATE] = folder = TemporaryDirectory(prefix="fmplex-state-")
    os.environ["XDG_STATE_HOME"] = folder.name


def pytest_unconfigure(config: pytest.Config) -> None:
    """They are gone with them."""
    config.stash[STATE].cleanup()


class FilesWhole(LoadScopeScheduling):
    """Files stay whole, for their fixtures; those that measure shares and delays run one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "measuring" if file in {f"tests/triton/test_{name}.py" for name in MEASURING} else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test on the real server that fails runs once more: what else the machine does can make it late.

    The first failure is shown whatever comes of the second run. A unit test runs once.
    """
    for item in items:
        if item.nodeid.startswith("tests/triton/"):
            item.add_marker(pytest.mark.flaky(reruns=1))


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
