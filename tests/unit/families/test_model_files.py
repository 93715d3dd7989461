"""A model's directory: by path, by package, and what its config.json tells."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from model_fixtures import TINY, save_tiny

from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families.model_files import find_model, hidden_width


def test_a_directory_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    assert find_model("weights", tmp_path / "config.pbtxt") == tmp_path / "weights"
    assert find_model(str(tmp_path / "weights"), Path("elsewhere")) == tmp_path / "weights"


@pytest.mark.parametrize("model", ["./weights", "../weights", "/nowhere/at/all"])
def test_a_directory_that_is_not_there(tmp_path: Path, model: str) -> None:
    with pytest.raises(BackboneRefused, match=r"parameters\.model: .* is not a directory"):
        find_model(model, tmp_path / "config.pbtxt")


def test_what_was_put_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMPLEX_CACHE", str(tmp_path))
    place = save_tiny(tmp_path / "models" / "tiny")
    assert find_model("cache:tiny", Path("config.pbtxt")) == place
    (tmp_path / "config.json").write_text("{}")
    for name, problem in {
        "gone": "holds no model.*dinov2_weights.py FILE cache:gone.*make setup",
        "../models/tiny": "without slashes",
        "..": "without slashes",
        "": "without slashes",
    }.items():
        with pytest.raises(BackboneRefused, match=rf"parameters\.model: .*{problem}"):
            find_model(f"cache:{name}", Path("config.pbtxt"))


def test_a_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tiny_model_package"
    save_tiny(package / "deep" / "model")
    (package / "empty").mkdir()
    (package / "empty" / "config.json").write_text(json.dumps({}))
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_model("package:tiny_model_package", Path("config.pbtxt")) == package / "deep" / "model"
    assert "tiny_model_package" not in sys.modules


@pytest.mark.parametrize("kind", TINY)
def test_the_width_is_read_without_loading(tmp_path: Path, kind: str) -> None:
    assert hidden_width(save_tiny(tmp_path / "model", kind)) == 32


@pytest.mark.parametrize("text", [None, "{", "{}", '{"hidden_size": "wide"}'])
def test_a_width_that_nobody_says(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert hidden_width(tmp_path) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            LocalEntryNotFoundError("[Errno -2]\nsomething"),
            "it is not in this user's cache, and the hub cannot be reached",
        ),
        (OSError("no\n space"), "the hub does not have it: no space"),
    ],
)
def test_a_hub_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, said: str
) -> None:
    import huggingface_hub

    def download(name: str, **_: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(BackboneRefused, match=re.escape(said)):
        find_model("some/model", tmp_path / "config.pbtxt")


def test_a_hub_id_is_fetched_only_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked = []

    def download(name: str, *, local_files_only: bool, **_: Any) -> str:
        asked.append((name, local_files_only))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("some/model", tmp_path / "config.pbtxt", fetch=False) == tmp_path
    assert find_model("some/model", tmp_path / "config.pbtxt") == tmp_path
    assert asked == [("some/model", True), ("some/model", False)]


def test_a_package_in_a_package_is_found_without_importing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "tiny_outer_package"
    save_tiny(package / "inner" / "model")
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_model("package:tiny_outer_package.inner", Path("config.pbtxt")) == package / "inner" / "model"
    assert "tiny_outer_package" not in sys.modules


@pytest.mark.parametrize("name", ["this.x", "this", "__main__", "no_such", "json.x", "", ".", "a..b"])
def test_no_package_is_imported_to_be_found(name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(BackboneRefused, match="is not installed"):
        find_model(f"package:{name}", Path("config.pbtxt"))
    assert not (set(sys.modules) - before) & {"this"}
