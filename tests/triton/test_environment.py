"""The backend refuses an environment in which the stub would give back empty tensors, and says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from stub_environment import make_environment, patch_module, site_packages

from testing.repositories import Task, write_backbone, write_task
from testing.servers import Serving, serving


def assert_refused(server: Serving) -> None:
    """Backbone and task are not served, for a reason that helps."""
    states = {state.name: state for state in server.states}
    assert not states["minilm"].ready
    assert not states["plain"].ready
    for words in ("BackboneRefused", "numpy", "every output would be empty", "numpy<2"):
        assert words in states["minilm"].reason
    with server.client() as client:
        assert client.ask_one("plain", "hello").error


def repository_in(folder: Path) -> Path:
    repository = folder / "repository"
    write_backbone(repository)
    write_task(repository, Task("plain", 0))
    return repository


def test_a_stub_that_reads_nothing_of_an_array_is_refused(tmp_path: Path) -> None:
    """A stand-in for numpy 2, with what it was seen to do: tensors made of memory come back as zeros."""
    variables = make_environment(tmp_path / "environment")
    patch = """
        check = module._check_numpy

        def check_with_blind_tensors():
            real = module.pb_utils.Tensor

            class Tensor(real):
                @staticmethod
                def from_dlpack(name, capsule):
                    return real(name, 0 * real.from_dlpack(name, capsule).as_numpy())

            module.pb_utils.Tensor = Tensor
            check()

        module._check_numpy = check_with_blind_tensors
    """
    patch_module(tmp_path / "environment", "fmplex_backend.triton", patch)
    with serving(repository_in(tmp_path), tmp_path, variables=variables) as server:
        assert_refused(server)


@pytest.mark.slow  # fetches numpy 2 from the package index
def test_numpy_2_is_refused(tmp_path: Path) -> None:
    variables = make_environment(tmp_path / "environment")
    target = site_packages(tmp_path / "environment")
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), "numpy>=2,<3"]
    subprocess.run(line, check=True, timeout=120)
    with serving(repository_in(tmp_path), tmp_path, variables=variables) as server:
        assert_refused(server)
