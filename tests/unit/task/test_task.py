"""Tasks made, fitted, tried and kept, on a tiny backbone; every decoder, every kind of adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_fixtures import (
    fitted,
    labelled,
    numbered,
    several,
    spam,
    tagged,
    tiny_backbone,
    tiny_repository,
)

from fmplex import (
    Backbone,
    Classifier,
    Embedder,
    Label,
    Labels,
    LoRA,
    MultiLabel,
    Regressor,
    Similarity,
    Spans,
    Task,
    TaskProblem,
    TokenClassifier,
    Values,
    Vector,
)
from fmplex_backend.decoders.decoder import WEIGHTS
from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.configs import Terms
from fmplex_backend.repository.writer import ModelRepository
from fmplex_backend.server_variables import ALLOW_LINKS

KINDS: dict[str, tuple[Any, Callable[[int, int], Any], str, float]] = {
    "classification": (Classifier(), labelled, "accuracy", 0.9),
    "deep": (Classifier(hidden=(8,), activation="gelu"), labelled, "accuracy", 0.9),
    "multi-label": (MultiLabel(), several, "micro_f1", 0.8),
    "regression": (Regressor(), numbered, "r2", 0.3),
    "token-classification": (TokenClassifier(), tagged, "entity_f1", 0.45),
    "similarity": (Similarity(), labelled, "accuracy", 0.7),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_learns_and_comes_back_as_it_was(root: Path, backbone: Backbone, kind: str) -> None:
    decoder, rows, figure, reached = KINDS[kind]
    adapter = None if kind == "similarity" else LoRA(r=4, targets=["query", "value"])
    task = Task("own", backbone, adapter=adapter, decoder=decoder)
    fitted(task, rows(400, 0), validation=0.2, epochs=10, learning_rate=5e-3, batch_size=16)
    found = task.evaluate(*rows(60, 1))
    assert found[figure] >= reached, found
    path = task.save()
    texts, _ = rows(9, 2)
    asked = [" ".join(words) for words in texts] if kind == "token-classification" else texts
    for again in (Task.load(root / "own", backbone), Task.load(path, tiny_backbone(root))):
        for one, other in zip(task.outputs(asked), again.outputs(asked), strict=True):
            assert one.keys() == other.keys()
            for name in one:
                assert np.array_equal(one[name], other[name]), name
        assert again.decoder == replace(task.decoder, **({} if kind != "similarity" else {"per_label": 64}))
        assert again.metrics == task.metrics


def test_results_are_typed(backbone: Backbone) -> None:
    (label,) = fitted(spam(backbone), labelled(60)).predict("w1 w2 w3")
    assert isinstance(label, Label)
    assert label.label in ("ham", "spam")
    assert set(label.scores) == {"ham", "spam"}
    assert label.score == max(label.scores.values())
    (labels,) = fitted(Task("m", backbone, decoder=MultiLabel()), several(60)).predict("w1 w50")
    assert isinstance(labels, Labels)
    (value,) = fitted(Task("r", backbone, decoder=Regressor()), numbered(60)).predict("w1")
    assert isinstance(value, Values)
    assert value.value == pytest.approx(float(value.values[0]))
    (vector,) = Task("e", backbone, decoder=Embedder()).predict("w1")
    assert isinstance(vector, Vector)
    assert np.linalg.norm(vector.vector) == pytest.approx(1, abs=1e-5)
    (spans,) = fitted(Task("t", backbone, decoder=TokenClassifier()), tagged(80)).predict("w1 w50 w2")
    assert isinstance(spans, Spans)
    assert all("w1 w50 w2"[span.start : span.end] == span.text for span in spans.spans)


# -- its terms


def test_its_terms_are_kept(root: Path, backbone: Backbone) -> None:
    terms = Terms(weight=3.0, slo_ms=20.0, max_queue=5, max_queue_bytes=4096, cache=True)
    fitted(spam(backbone, **terms.given()), labelled(20)).save()
    again = Task.load(root / "spam", backbone)
    assert again.terms == terms
    again.save()
    _, saved = ModelRepository(root).task("spam")
    assert (saved.weight, saved.max_queue, saved.max_queue_bytes, saved.cache) == (3.0, 5, 4096, True)


# -- what cannot be done


def test_what_is_not_fitted_is_not_kept(backbone: Backbone) -> None:
    with pytest.raises(TaskProblem, match="decoder of 'spam' is not fitted"):
        spam(backbone).predict("w1")
    task = fitted(spam(backbone), labelled(20))
    with pytest.raises(TaskProblem, match="adapter of 'spam' is not fitted"):
        task.attach("adapter", LoRA(r=2)).save()
    task.detach("adapter").save()
    with pytest.raises(TaskProblem, match="needs a decoder"):
        task.detach("decoder")
    with pytest.raises(TaskProblem, match="no part 'head'"):
        task.attach("head", Classifier())
    with pytest.raises(TaskProblem, match="no weights to fit"):
        Task("e", backbone, decoder=Embedder()).fit(*labelled(20))


def test_it_is_checked_as_a_server_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link out of the version is refused, unless the operator allows it."""
    root = tiny_repository(tmp_path)
    task = Task("spam", tiny_backbone(root), decoder=Classifier())
    task.fit(*labelled(20), epochs=1, progress=False)
    path = task.save()
    Task.load(path.parent, tiny_backbone(root)).check()
    (path / WEIGHTS).rename(tmp_path / "elsewhere")
    (path / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    linked = Task.load(path.parent, tiny_backbone(root))
    with pytest.raises(TaskRefused, match="--allow-links"):
        linked.check()
    monkeypatch.setenv(ALLOW_LINKS, str(tmp_path))
    linked.check()
