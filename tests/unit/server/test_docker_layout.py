"""The layout that docker/Dockerfile makes, made in a plain directory, and what the Dockerfile relies on."""

from __future__ import annotations

import ast
import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmplex.cli.app import app
from fmplex_controller.server.installation import BACKEND, find_tritonserver

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def install_into(directory: Path) -> Path:
    result = CliRunner().invoke(app, ["install-backend", "--create", str(directory)])
    assert result.exit_code == 0, result.output
    return Path(result.stdout.strip())


def test_the_backend_is_one_file_in_a_folder_of_its_name(tmp_path: Path) -> None:
    model = install_into(tmp_path / "opt" / "tritonserver" / "backends")
    assert model == tmp_path / "opt" / "tritonserver" / "backends" / BACKEND / "model.py"
    assert [file.name for file in model.parent.iterdir()] == ["model.py"]
    assert not model.is_symlink()
    assert os.access(model, os.R_OK)


def test_the_file_only_imports_the_class_that_triton_looks_for(tmp_path: Path) -> None:
    (statement,) = ast.parse(install_into(tmp_path).read_text()).body
    assert isinstance(statement, ast.ImportFrom)
    assert statement.module == "fmplex_backend.triton"
    assert [alias.name for alias in statement.names] == ["TritonPythonModel"]


def test_it_joins_other_backends_and_installing_again_renews_it(tmp_path: Path) -> None:
    (tmp_path / "python").mkdir()
    model = install_into(tmp_path)
    model.write_text("an older backend")
    assert install_into(tmp_path).read_text() != "an older backend"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [BACKEND, "python"]


def test_a_server_beside_it_is_found_as_in_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_into(tmp_path / "backends")
    for file in ("bin/tritonserver", "backends/python/libtriton_python.so"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_tritonserver().backends == tmp_path / "backends"


class TestDockerfile:
    def test_image_and_packages_are_pinned(self) -> None:
        assert re.search(r"^FROM nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3$", DOCKERFILE, re.MULTILINE)
        assert re.findall(r"^ +([a-z]+)==\d+\.\d+\.\d+ \\$", DOCKERFILE, re.MULTILINE) == [
            "numpy",
            "peft",
            "torch",
            "transformers",
        ]
        assert "--no-cache-dir" in DOCKERFILE

    def test_what_it_copies_exists_and_reaches_the_build(self) -> None:
        ignore = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
            for source in shlex.split(line)[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignore

    def test_it_runs_without_root_and_serves(self) -> None:
        user, command = DOCKERFILE.rindex("\nUSER "), DOCKERFILE.rindex("\nCMD ")
        assert user < command
        assert ast.literal_eval(DOCKERFILE[command:].split(None, 1)[1])[:2] == ["fmplex", "serve"]

    def test_its_key_is_kept_where_its_user_may_write(self) -> None:
        assert DOCKERFILE.index("ENV XDG_STATE_HOME=") < DOCKERFILE.index(
            "RUN install --directory --owner=triton-server"
        )
        assert DOCKERFILE.index('--mode=700 "$XDG_STATE_HOME"') < DOCKERFILE.rindex("\nUSER ")

    def test_it_is_closed(self) -> None:
        assert "--open" not in DOCKERFILE

    def test_compose_starts_a_server_again_that_has_ended(self) -> None:
        assert "\n    restart: on-failure\n" in (ROOT / "docker" / "compose.yaml").read_text()
