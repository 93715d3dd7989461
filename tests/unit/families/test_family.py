"""The registry, and what every family's spec must say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import fake_family_installed

from fmplex_backend import families
from fmplex_backend.families.spec import Family
from fmplex_backend.interface import STATUS, TASK


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[None]:
    """The fake family, as an installed package brings it."""
    with fake_family_installed(tmp_path):
        yield


@pytest.fixture(params=[*families.names(), "fake"])
def spec(request: pytest.FixtureRequest, installed: None) -> Family:
    return families.family(request.param)


def test_an_installed_package_brings_a_family(tmp_path: Path) -> None:
    before = families.names()
    with fake_family_installed(tmp_path):
        assert families.names() == sorted([*before, "fake"])
        assert families.family("fake").streams
        assert "count" in families.decoders()
    assert families.names() == before
    assert families.input_named("WORDS") is None


def test_a_shipped_family_is_no_packages_to_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "fake", "fmplex_backend.families.text_encoder.spec:TextEncoders")
    with fake_family_installed(tmp_path):
        assert families.family("fake").name == "text-encoder"


def test_encoders_and_decoders_of_every_family_are_imported_from_fmplex(spec: Family) -> None:
    import fmplex

    for section in (*spec.encoders, *spec.decoders):
        assert getattr(fmplex, section.__name__) is section
        assert (section.__name__ in fmplex.__all__) == (spec.name in families.FAMILIES)
    with pytest.raises(LookupError, match=r"no family has 'Sorcery'$"):
        families.section_named("Sorcery")
    with pytest.raises(AttributeError, match="no attribute 'Sorcery'"):
        _ = fmplex.Sorcery


def test_a_package_whose_family_cannot_be_imported_breaks_no_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import fmplex

    monkeypatch.setattr(families, "specs", lambda: {**families.FAMILIES, "broken": "no_such_package.spec:Broken"})
    assert not hasattr(fmplex, "Sorcery")
    with pytest.raises(AttributeError, match=r"no attribute 'Sorcery'.*broken .*No module named 'no_such_package'"):
        _ = fmplex.Sorcery


def test_a_name_that_is_nowhere_imports_no_shipped_family() -> None:
    said = (
        "import sys, fmplex; hasattr(fmplex, 'Sorcery');"
        "print([name for name in sys.modules if name.startswith('fmplex_backend.families.')])"
    )
    told = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_a_family_is_known_by_its_own_name() -> None:
    assert {name: families.family(name).name for name in families.names()} == {name: name for name in families.names()}
    assert families.DEFAULT in families.names()
    with pytest.raises(KeyError):
        families.family("sorcery")


def test_every_decoder_has_outputs_that_its_backbone_has(spec: Family) -> None:
    for decoder in spec.decoders:
        assert {*decoder.gives, *spec.common_outputs} <= {*spec.outputs}
        shown = [each.client_name for each in (*decoder.gives, *spec.common_outputs)]
        assert len(set(shown)) == len(shown)
        assert spec.decoder(families.kind_of(decoder)) is decoder


def test_token_scores_are_shown_as_scores() -> None:
    gives = families.decoders()["token-classification"].gives
    assert {each.client_name for each in gives} == {"SCORES", "LABEL", "OFFSETS"}


def test_an_input_is_found_by_its_tensor(spec: Family) -> None:
    for each in spec.inputs:
        found = families.input_named(each.tensor.name)
        assert found is not None
        items, *shape = found.array([each.probe(3)]).shape
        assert items == 1
        assert all(dim in (-1, size) for dim, size in zip(each.tensor.dims, shape, strict=True))
        assert each.tensor.dims[-1] >= 0 or shape[-1] == 3
    assert families.input_named("SMELL") is None


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (("EMBEDDING",), "embedding"),
        (("SCORES", "LABEL", "TRUNCATED"), "classification"),
        (("SCORES",), "regression"),
        (("SCORES", "LABEL", "OFFSETS"), "token-classification"),
        (("SMELL",), None),
    ],
)
def test_a_kind_is_told_by_its_outputs(outputs: tuple[str, ...], kind: str | None) -> None:
    found = families.decoder_giving(outputs)
    assert (None if found is None else families.kind_of(found)) == kind


def test_names_that_every_backbone_has_are_no_familys(spec: Family) -> None:
    assert TASK.name not in {each.tensor.name for each in spec.inputs}
    assert STATUS.name not in {each.name for each in spec.outputs}


def test_a_model_of_nothing_is_of_no_family(spec: Family) -> None:
    assert not spec.takes_model({})
