"""What Triton must not read is left out at an explicit start, and keeps a polling server from starting."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from fmplex_backend.errors import SetupProblem
from fmplex_controller.server import process as server_module
from fmplex_controller.server.installation import Installation
from fmplex_controller.server.options import ServerOptions, command
from fmplex_controller.server.process import ModelState, Server
from fmplex_controller.server.unlisted import check_polled, left_out, models_in, names_to_load

LATIN = os.fsdecode(b"x\xff")


@pytest.fixture
def spoilt(repository: Path) -> Path:
    """Two models, a name that is no text, a version that Triton does not survive, a link that leads nowhere."""
    for name in ("one", "tâche", LATIN, "fatal"):
        (repository / name / "1").mkdir(parents=True)
    (repository / "fatal" / str(2**63)).mkdir()
    (repository / "dangling").symlink_to("nowhere")
    (repository / "endless").symlink_to("x" * 300)
    (repository / "a file").touch()
    return repository


def test_what_is_left_out_and_why(spoilt: Path) -> None:
    reasons = left_out(spoilt)
    assert list(reasons) == ["dangling", "endless", "fatal", LATIN]
    assert "leads nowhere" in reasons["dangling"]
    assert str(2**63) in reasons["fatal"]
    assert "Rename" in reasons[LATIN]
    assert names_to_load(spoilt, reasons) == ["one", "tâche"]
    assert models_in(spoilt) == ["fatal", "one", "tâche"]


def test_what_is_kept_unloaded_is_not_brought_along(repository: Path) -> None:
    for name in ("one", "two"):
        (repository / name / "1").mkdir(parents=True)
    step = 'ensemble_scheduling { step [ { model_name: "%s" model_version: -1 output_map { key: "%s" value: "x" } } ] }'
    for name, used, output in (("task", "one", "VFM_0"), ("group", "task", "SCORES"), ("other", "two", "VFM_0")):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(f'name: "{name}" platform: "ensemble" {step % (used, output)}')
    (repository / "one" / "UNLOADED").touch()
    reasons = left_out(repository)
    assert reasons["one"].endswith("Remove that, or `fmplex task load one`")
    assert reasons["task"] == "it needs one, which is kept unloaded"
    assert reasons["group"] == "it needs task, which is kept unloaded"
    assert names_to_load(repository, reasons) == ["other", "two"]


def test_where_nothing_is_wrong_everything_is_loaded(repository: Path) -> None:
    (repository / "one" / "1").mkdir(parents=True)
    assert left_out(repository) == {}
    assert names_to_load(repository, {}) == ["*"]


def test_what_is_to_be_loaded_is_on_the_command_line(system: Installation, spoilt: Path) -> None:
    line = command(system, Path("/backends"), ServerOptions(spoilt), load=names_to_load(spoilt, left_out(spoilt)))
    assert [each for each in line if each.startswith("--load-model")] == ["--load-model=one", "--load-model=tâche"]


def test_a_server_that_polls_would_read_all_of_it(spoilt: Path, system: Installation) -> None:
    with pytest.raises(
        SetupProblem, match=r"would not survive[\s\S]*fatal/9223372036854775808[\s\S]*--control explicit"
    ):
        Server(ServerOptions(spoilt, control="poll", http_port=1), system)._check_repository()
    (spoilt / "fatal" / str(2**63)).rmdir()
    check_polled(spoilt)


class Client:
    """Of a server that cannot list its repository."""

    def __init__(self, url: str) -> None: ...

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def get_model_repository_index(self, **options: Any) -> Any:
        raise InferenceServerException("Exception deserializing response!")

    def is_model_ready(self, name: str, **options: Any) -> bool:
        name.encode()
        return name != "fatal"


def test_states_of_a_repository_that_triton_cannot_list(
    spoilt: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server_module.grpcclient, "InferenceServerClient", Client)
    server = Server(ServerOptions(spoilt))
    server._check_repository()
    fatal, *ready = server.models()
    assert ready == [ModelState("one", "", "READY"), ModelState("tâche", "", "READY")]
    assert fatal.state == ""
    assert str(2**63) in fatal.reason
