"""`fmplex backbone add` and `list`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import text_task, write_task
from live_server import FakeServer, status
from model_fixtures import save_tiny
from typer.testing import CliRunner

from fmplex import ServerProblem, Unreachable
from fmplex.cli import app as cli
from fmplex.cli import backbones, live
from fmplex_backend.repository.configs import backbone_parameters, read_config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer({"base": status()})
    for module in (live, backbones):
        monkeypatch.setattr(module, "Client", server.client)
    return server


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, ["backbone", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_a_model_becomes_a_backbone(root: Path, model: Path, server: FakeServer) -> None:
    said = run("add", "base", model, "-r", root, "--slots", 8, "--max-batch-size", 4, "--server", "host")
    assert said == f"base: {root / 'base'} (text-encoder)\n"
    assert backbone_parameters(root, "base") == {"model": str(model), "family": "text-encoder", "vfm_slots": "8"}
    assert read_config(root / "base" / "config.pbtxt").max_batch_size == 4
    assert (root / "base" / "1").is_dir()
    assert server.calls == [("load", "base")]


def test_a_directory_from_here_is_written_whole(root: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    said = json.loads(run("add", "base", "model", "-r", root, "--dtype", "float16", "--json"))
    assert (said["model"], said["family"], said["loaded"]) == (str(model), "text-encoder", False)
    assert backbone_parameters(root, "base") == {"model": str(model), "family": "text-encoder", "dtype": "float16"}


def edited(model: Path, **changes: Any) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"is_encoder_decoder": True},
        {"vision_config": {"hidden_size": 8}},
        {"hidden_size": None, "model_type": "strange"},
    ],
)
def test_a_model_of_no_family(root: Path, model: Path, changes: dict[str, Any]) -> None:
    edited(model, **changes)
    said = run("add", "base", model, "-r", root, code=1)
    assert "is a model of no family here, which has" in said
    assert not (root / "base").exists()
    run("add", "base", model, "-r", root, "--family", "text-encoder")


def test_a_language_model_has_no_batch_size(root: Path, model: Path) -> None:
    edited(model, architectures=["GPT2LMHeadModel"], model_type="gpt2")
    assert "(causal-lm)" in run("add", "base", model, "-r", root)
    assert "max_batch_size" not in (root / "base" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("base", "/nowhere"), "/nowhere is not a directory"),
        (("base", ""), "'' names no model"),
        (("base", "package:"), "'package:' names no model"),
        (("base", "EMPTY"), "holds no config.json"),
        (("base", "package:nothing_of_that_name"), "the package 'nothing_of_that_name' is not installed"),
        (("a/b", "MODEL"), "'a/b' cannot name a task or a backbone"),
        (("taken", "MODEL"), "taken exists. Choose another name"),
        (("base", "MODEL", "--dtype", "float8"), "parameters.dtype: input should be 'auto'"),
        (
            ("base", "MODEL", "--family", "other"),
            "parameters.family: input should be 'audio-encoder' or 'causal-lm' or ",
        ),
        (("base", "MODEL", "--slots", "0"), "parameters.vfm_slots"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    root: Path, model: Path, arguments: tuple[str, ...], said: str
) -> None:
    (root / "taken").mkdir()
    places = {"MODEL": str(model), "EMPTY": str(root)}
    given = [places.get(each, each) for each in arguments]
    assert said in run("add", *given, "-r", root, code=1)
    assert not (root / "base").exists()


def test_a_batch_size_that_triton_cannot_hold(root: Path, model: Path) -> None:
    run("add", "base", model, "-r", root, "--max-batch-size", 2**31, code=2)


def test_a_model_whose_config_is_torn(root: Path, model: Path) -> None:
    (model / "config.json").write_text("[]")
    assert "config.json is not readable as JSON" in run("add", "base", model, "-r", root, code=1)


def test_a_server_that_does_not_load_it(root: Path, model: Path, server: FakeServer) -> None:
    server.problem = ServerProblem("no memory")
    assert f"{root / 'base'} is written, but no memory" in run(
        "add", "base", model, "-r", root, "--server", "host", code=1
    )


def test_list(root: Path, model: Path, server: FakeServer) -> None:
    run("add", "base", model, "-r", root)
    run("add", "more", model, "-r", root)
    write_task(root, "one", 0, task=text_task({"kind": "embedding"}))
    base, more = json.loads(run("list", "-r", root, "--json"))
    assert (base["backbone"], base["tasks"], base["state"], base["batches"]) == ("base", 1, "serving", 0)
    assert (more["backbone"], more["tasks"], more["state"]) == ("more", 0, "not served")
    assert "does not serve its backbone 'more'" in run("list", "-r", root)
    server.problem = Unreachable("gone")
    (root / "more" / "config.pbtxt").write_text('backend: "fmplex"')
    base, more = json.loads(run("list", "-r", root, "--json"))
    assert (base["state"], base["model"], more["state"]) == (None, str(model), "refused")
    assert "parameters.model" in more["error"]
