"""Sections `encoder` of text backbones: what they do to a text, and what is refused of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from task_fixtures import (
    Letters,
    install,
    labelled,
)

from fmplex import (
    Backbone,
    Classifier,
    Embedder,
    PluginEncoder,
    Task,
    Text,
)
from fmplex_backend.errors import TaskRefused
from fmplex_backend.families.text_encoder.sections import GROUP


def test_a_prefix_and_a_template_are_read_as_they_are_served(backbone: Backbone) -> None:
    plain = Task("e", backbone, decoder=Embedder())
    for encoder in (Text(prefix="w7 w8 "), Text(template="w7 w8 {text}")):
        task = Task("e", backbone, decoder=Embedder(), encoder=encoder)
        assert np.allclose(task.outputs("w1")[0]["EMBEDDING"], plain.outputs("w7 w8 w1")[0]["EMBEDDING"], atol=1e-6)


def test_windows_average_what_a_long_text_holds(backbone: Backbone) -> None:
    task = Task("e", backbone, decoder=Embedder(normalize=False), encoder=Text(max_length=8, windows=3))
    short = Task("e", backbone, decoder=Embedder(normalize=False), encoder=Text(max_length=8))
    words = [f"w{number}" for number in range(15)]
    pieces = [" ".join(words[start : start + 6]) for start in (0, 6, 12)]
    mean = np.mean([each["EMBEDDING"] for each in short.outputs(pieces)], axis=0)
    (found, alone) = task.outputs([" ".join(words), pieces[0]])
    assert np.allclose(found["EMBEDDING"], mean, atol=1e-6)
    assert not found["TRUNCATED"].any()
    assert np.allclose(alone["EMBEDDING"], short.outputs(pieces[0])[0]["EMBEDDING"], atol=1e-6)
    assert task.outputs(" ".join(words * 2))[0]["TRUNCATED"].all()


class Tasteless(Letters):
    """Takes what no backbone has."""

    takes: ClassVar[Any] = "TASTE"


class NoEncoder:
    """Not one at all."""

    def __init__(self, options: Mapping[str, Any], width: int) -> None:
        pass


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {"tasteless": f"{__name__}:Tasteless", "none": f"{__name__}:NoEncoder"}
    install(monkeypatch, GROUP, {"letters": "task_fixtures:Letters"} | odd)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("nothing", {}, "encoder.name: no installed package registers an encoder 'nothing'; registered: letters, none"),
        ("letters", {}, "the encoder 'letters' .* cannot be made: KeyError"),
        ("none", {}, "is not a CustomEncoder"),
        ("tasteless", {"most": 3}, "'tasteless' takes 'TASTE'"),
    ],
)
def test_what_is_wrong_with_a_package_is_named(
    backbone: Backbone, name: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(TaskRefused, match=match):
        Task("odd", backbone, encoder=PluginEncoder(name, options), decoder=Classifier()).fit(
            *labelled(8), progress=False
        )
