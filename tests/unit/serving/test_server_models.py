"""What a backbone asks the server about other models, and when it does not ask."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest
from fake_family.runtime import FakeClock

from fmplex_backend.errors import ServerProblem
from fmplex_backend.serving.loaded_entries import LoadedEntries
from fmplex_backend.serving.readiness import Readiness
from fmplex_backend.serving.server_models import ServerModels


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """pb_utils of a server under explicit control."""
    monkeypatch.setenv("FMPLEX_MODEL_CONTROL", "explicit")
    return MagicMock()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(0.0)


@pytest.fixture
def models(asked: MagicMock, tmp_path: Path, clock: FakeClock) -> ServerModels:
    ready, unload = asked.is_model_ready, asked.unload_model
    models = ServerModels(
        tmp_path, is_ready=ready, unload=unload, readiness=Readiness(""), entries=asked.entries, clock=clock
    )
    models.is_serving = True
    return models


def test_it_says_which_are_loaded(asked: MagicMock, models: ServerModels) -> None:
    for answer in (True, False):
        asked.is_model_ready.return_value = answer
        assert models.is_loaded("one") is answer
    asked.is_model_ready.side_effect = RuntimeError("Server not ready")
    assert models.is_loaded("one")


def test_what_the_server_says_over_http_counts_where_it_says_something(
    asked: MagicMock, tmp_path: Path, clock: FakeClock
) -> None:
    over_http = MagicMock()
    models = ServerModels(
        tmp_path, is_ready=asked.is_model_ready, unload=None, readiness=over_http, entries=asked.entries, clock=clock
    )
    assert models.is_loaded("one") is None
    assert over_http.mock_calls == []
    models.is_serving = True
    for answer in (True, False):
        over_http.is_ready.return_value = answer
        assert models.is_loaded("one") is answer
    assert asked.is_model_ready.mock_calls == []
    over_http.is_ready.return_value = None
    assert models.is_loaded("one") is asked.is_model_ready.return_value.__bool__()
    models.close()
    over_http.close.assert_called_once_with()
    asked.entries.close.assert_called_once_with()


def test_it_is_not_asked_before_the_first_request(asked: MagicMock, models: ServerModels) -> None:
    models.is_serving = False
    assert models.is_loaded("one") is None
    assert models.loaded_tags("one") is None
    with pytest.raises(ServerProblem):
        models.unload("one")
    assert asked.mock_calls == []


def test_an_old_server_does_not_say(tmp_path: Path) -> None:
    assert not ServerModels(
        tmp_path, is_ready=None, unload=None, readiness=Readiness(""), entries=LoadedEntries("", "base")
    ).is_loaded("one")


def test_it_unloads(asked: MagicMock, models: ServerModels) -> None:
    models.unload("one")
    asked.unload_model.assert_called_once_with("one")


def test_what_it_refuses_is_not_asked_for_again_soon(asked: MagicMock, models: ServerModels, clock: FakeClock) -> None:
    asked.unload_model.side_effect = RuntimeError("versions that are still available: 1")
    with pytest.raises(ServerProblem, match="still available"):
        models.unload("one")
    with pytest.raises(ServerProblem, match="within 60 s"):
        models.unload("one")
    assert asked.unload_model.call_count == 1
    clock.sleep(61.0)
    asked.unload_model.side_effect = None
    models.unload("one")


@pytest.mark.parametrize("control", ["poll", ""])
def test_nothing_is_unloaded_where_control_is_not_explicit(
    asked: MagicMock, models: ServerModels, monkeypatch: pytest.MonkeyPatch, control: str
) -> None:
    monkeypatch.setenv("FMPLEX_MODEL_CONTROL", control)
    with pytest.raises(ServerProblem, match="not known to be explicit"):
        models.unload("one")
    asked.unload_model.assert_not_called()


def test_nothing_is_unloaded_while_the_backbone_may_be_reloaded(
    asked: MagicMock, models: ServerModels, clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "config.pbtxt").write_text("changed")
    for _ in range(2):
        with pytest.raises(ServerProblem, match="may be about to be loaded again"):
            models.unload("one")
        clock.sleep(30.0)
    asked.unload_model.assert_not_called()
    models.unload("one")
    asked.unload_model.assert_called_once_with("one")
