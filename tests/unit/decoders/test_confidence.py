"""Rejection: by the highest score, by features, or learned from out-of-scope rows; served as it is predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from task_fixtures import labelled, sentence, spam

from fmplex import Backbone, Classifier, Label, LoRA, Task, TaskProblem, TaskRefused
from fmplex.cli.rows import short
from fmplex.client.results import as_json_value
from fmplex_backend.decoders.confidence import Confidence, Sample, fit_confidence
from fmplex_backend.decoders.figures import compare_rejecting
from fmplex_backend.decoders.rows import IGNORED

LABELS, WIDTH = 6, 24


def clouds(count: int, seed: int, *, known: bool = True) -> tuple[Sample, np.ndarray[Any, Any]]:
    """Vectors around the labels' means, or between them, and values as of a head that knows the means."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(0)
    means = fixed.normal(size=(LABELS, WIDTH)) * 2
    stretch = fixed.uniform(0.2, 3.0, size=WIDTH)  # the same in every cloud, and unlike in the directions
    targets = rng.integers(LABELS, size=count)
    centers = means[targets] if known else (means[targets] + means[(targets + 1) % LABELS]) / 2
    vectors = (centers + rng.normal(size=(count, WIDTH)) * stretch).astype(np.float32)
    return Sample(vectors, (vectors @ means.T.astype(np.float32)) / 4), targets


def area(confidence: Confidence, inside: Sample, outside: Sample) -> float:
    sure = np.concatenate([confidence(each.vectors, each.values) for each in (inside, outside)])
    return float(roc_auc_score(np.repeat([1, 0], [len(inside.vectors), len(outside.vectors)]), sure))


def test_features_tell_more_than_the_highest_score() -> None:
    (training, targets), (held, _), (learned, _) = clouds(600, 1), clouds(200, 2), clouds(60, 3, known=False)
    (inside, _), (outside, _) = clouds(400, 4), clouds(400, 5, known=False)
    exponents = [np.exp(each.values - each.values.max(axis=1, keepdims=True)) for each in (inside, outside)]
    highest = np.concatenate([(each / each.sum(axis=1, keepdims=True)).max(axis=1) for each in exponents])
    softmax = float(roc_auc_score(np.repeat([1, 0], 400), highest))
    by_features = fit_confidence(training, targets, held, None)
    by_rows = fit_confidence(training, targets, held, learned)
    assert softmax < area(by_features, inside, outside)
    assert softmax < area(by_rows, inside, outside)
    sure = by_features(inside.vectors, inside.values)
    assert np.mean(sure < 0.1) == pytest.approx(0.1, abs=0.06)  # a tenth of in-scope items is beyond nine tenths
    kinds = [by_rows(each.vectors, each.values) > 0.5 for each in (inside, outside)]
    assert np.mean(kinds[0]) > 0.7 > 0.3 > np.mean(kinds[1])


def test_the_distances_are_those_of_whole_covariances() -> None:
    (training, targets), (other, _) = clouds(600, 1), clouds(50, 5, known=False)
    evidence = fit_confidence(training, targets, other, None).evidence(other.vectors, other.values)
    vectors, places = training.vectors.astype(np.float64), other.vectors.astype(np.float64)
    center = vectors.mean(axis=0)
    means = np.stack([vectors[targets == label].mean(axis=0) for label in range(LABELS)])
    inner = vectors - means[targets]
    within = inner.T @ inner / len(vectors)
    shrunk = 0.95 * within + 0.05 * np.trace(within) / WIDTH * np.eye(WIDTH)
    between = (means - center).T @ ((means - center) * np.bincount(targets)[:, None]) / len(vectors)

    def squared(rows: Any, covariance: Any) -> Any:
        return np.einsum("...i,ij,...j->...", rows, np.linalg.inv(covariance), rows)

    nearest = squared(places[:, None] - means, shrunk).min(axis=1)
    relative = nearest - squared(places - center, shrunk + between)
    assert evidence[:, 0] - evidence[:, 1] == pytest.approx(relative, rel=1e-3, abs=1e-2)


def test_a_share_goes_on_falling_and_few_rows_do() -> None:
    (training, targets), (held, _) = clouds(600, 1), clouds(200, 2)
    confidence = fit_confidence(training, targets, held, None)
    far = Sample(np.stack([training.vectors[0] * factor for factor in (1, 20, 40)]), training.values[:3])
    shares = confidence(far.vectors, far.values)
    assert shares[0] > shares[1] >= shares[2] >= 0
    few, numbers = clouds(20, 7)
    assert np.isfinite(fit_confidence(few, numbers, None, None)(held.vectors, held.values)).all()
    with pytest.raises(TaskProblem, match="too few rows"):
        fit_confidence(Sample(few.vectors[:2], few.values[:2]), numbers[:2], None, None)


# -- as a decoder


def outside(count: int) -> tuple[list[str], list[str]]:
    """Texts of both labels' words and of none's."""
    import random

    rng = random.Random(9)
    return [sentence(rng, 20, 35) for _ in range(count)], ["oos"] * count


def both(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    texts, labels = labelled(count, seed)
    more, names = outside(count // 4)
    return [*texts, *more], [*labels, *names]


@pytest.mark.parametrize("adapter", [None, LoRA(r=2)])
@pytest.mark.parametrize("settings", [{"reject_label": "oos"}, {"confidence": "features", "reject_below": 0.3}])
def test_a_task_rejects_and_stays_what_it_is_when_saved(
    root: Path, backbone: Backbone, settings: dict[str, Any], adapter: Any
) -> None:
    task = Task("spam", backbone, adapter=adapter, decoder=Classifier(**settings))
    rows = both(80) if "reject_label" in settings else labelled(80)
    told: list[Any] = []
    task.fit(*rows, validation=0.2, epochs=1, progress=told.append)
    assert told[-1].done == pytest.approx(1.0)
    assert list(task.decoder.label_names) == ["ham", "spam"]
    found = task.predict([*labelled(20, 3)[0], *outside(20)[0]])
    sure = [each.confidence for each in found]  # type: ignore[attr-defined]
    assert all(isinstance(each, Label) and 0 <= each.confidence <= 1 for each in found)  # type: ignore[operator]
    threshold = task.decoder.threshold  # type: ignore[attr-defined]
    assert [each.label == "" for each in found] == [each < threshold for each in sure]  # type: ignore[attr-defined]
    assert 0 < sum(each.rejected for each in found) < len(found)  # type: ignore[attr-defined]
    task.save()
    entry = (root / "spam" / "config.pbtxt").read_text()
    assert 'name: "CONFIDENCE"' in entry
    again = Task.load(root / "spam", backbone)
    kept = [each.confidence for each in again.predict([*labelled(20, 3)[0], *outside(20)[0]])]  # type: ignore[attr-defined]
    assert kept == sure
    again.save()  # with its tensors
    assert (root / "spam" / "2" / "confidence.safetensors").is_file()


def test_figures_say_what_is_rejected(backbone: Backbone) -> None:
    task = Task("spam", backbone, adapter=LoRA(r=2), decoder=Classifier(reject_label="oos"))
    task.fit(*both(80), epochs=1, test=both(40, 1))
    assert task.evaluation is not None
    names = ["accuracy", "macro_f1", "rejected", "accepted_accuracy", "out_of_scope_rejected", "out_of_scope_auroc"]
    assert list(task.evaluation.figures) == names
    assert task.metrics["head_only_accuracy"] > 0  # type: ignore[operator]
    plain = Task("spam", backbone, decoder=Classifier(reject_below=0.7))
    plain.fit(*labelled(80))
    assert list(plain.evaluate(*labelled(20, 1)).figures) == names[:4]


def test_the_arithmetic_of_the_figures() -> None:
    found = compare_rejecting(
        ["a", "b"], [0, 1, 1, IGNORED], [0, 1, 0, 1], [False, False, True, True], [0.9, 0.8, 0.1, 0.2]
    )
    assert found.figures["accuracy"] == 0.6667
    assert (found.figures["rejected"], found.figures["accepted_accuracy"]) == (0.3333, 1.0)
    assert (found.figures["out_of_scope_rejected"], found.figures["out_of_scope_auroc"]) == (1.0, 0.6667)
    assert found.rows == 4


def test_a_saved_classifier_rejects_when_its_file_says_so(root: Path, backbone: Backbone) -> None:
    task = spam(backbone)
    task.fit(*labelled(60))
    path = task.save()
    document = json.loads((path / "task.json").read_text())
    assert not {"reject_below", "reject_label", "confidence"} & document["decoder"].keys()
    before = task.predict(labelled(20, 1)[0])
    document["decoder"]["reject_below"] = 0.999
    (path / "task.json").write_text(json.dumps(document))
    after = Task.load(path, backbone).predict(labelled(20, 1)[0])
    assert [each.scores for each in after] == [each.scores for each in before]  # type: ignore[attr-defined]
    assert [each.confidence for each in after] == [max(each.scores.values()) for each in after]  # type: ignore[attr-defined]
    assert any(each.rejected for each in after)  # type: ignore[attr-defined]
    assert before[0].confidence is None  # type: ignore[attr-defined]


def test_broken_tensors_are_refused_by_name(root: Path, backbone: Backbone) -> None:
    task = Task("spam", backbone, decoder=Classifier(confidence="features"))
    task.fit(*labelled(60))
    path = task.save()
    file = path / "confidence.safetensors"
    good = load_file(file)
    for name, tensor, said in (
        ("means", good["means"][:1], "its shape is"),
        ("spread", -good["spread"], "not above 0"),
        ("quantiles", good["quantiles"].flip(0), "they do not ascend"),
        ("more", good["means"], "a confidence has the tensors"),
    ):
        save_file({**good, name: tensor.clone()}, file)
        with pytest.raises(TaskRefused, match=said) as raised:
            Task.load(path, backbone).predict("w1")
        assert raised.value.field == name
    file.unlink()
    with pytest.raises(TaskRefused, match=r"confidence\.safetensors"):
        Task.load(path, backbone)


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValidationError, match="one of the labels"):
        Classifier(["a", "oos"], reject_label="oos")
    with pytest.raises(ValidationError, match="learns nothing"):
        Classifier(reject_label="oos", confidence="score")
    with pytest.raises(ValidationError):
        Classifier(reject_below=1.5)


def test_rows_to_learn_it_from_are_there(backbone: Backbone) -> None:
    with pytest.raises(TaskProblem, match="no row has the label 'oos', from which rejection is learned"):
        Task("spam", backbone, decoder=Classifier(reject_label="oos")).fit(*labelled(20))


def test_people_see_it() -> None:
    rejected = Label("", {"a": 0.6, "b": 0.4}, confidence=0.2)
    assert (rejected.rejected, rejected.score) == (True, 0.6)
    assert '"confidence": 0.2' in short(as_json_value(rejected))
    assert "confidence" not in as_json_value(Label("a", {"a": 1.0}))
