"""Encoders that make vectors, of numbers or by a package's code: fitted, saved, mixed with texts, and refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from model_fixtures import save_tiny
from safetensors.torch import load_file, save_file
from task_fixtures import FLOWERS, flowers, install, labelled, tiny_backbone, tiny_repository, weights_of
from torch import Tensor

from fmplex import (
    Backbone,
    Classifier,
    CustomEncoder,
    Embedder,
    Label,
    LoRA,
    PluginEncoder,
    Projection,
    Regressor,
    Similarity,
    Task,
    TaskProblem,
    Text,
    TokenClassifier,
)
from fmplex.data.rows import rows_of
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import InvalidRequest, TaskRefused
from fmplex_backend.families.text_encoder.encoders import VectorEncoder
from fmplex_backend.families.text_encoder.parameters import TextEncoderConfig
from fmplex_backend.families.text_encoder.runtime import TextEncoderRuntime
from fmplex_backend.families.text_encoder.sections import GROUP
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.scheduling import CostModel
from fmplex_backend.types import Finished, Request, Vfm


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, GROUP, {"letters": "task_fixtures:Letters"})


def fitted(backbone: Backbone, adapter: LoRA | None = None) -> Task:
    task = Task("flower", backbone, adapter=adapter, encoder=Projection(2, tokens=3), decoder=Classifier())
    task.fit(*flowers(300), epochs=25, learning_rate=2e-2, progress=False)
    return task


@pytest.mark.parametrize("adapter", [None, LoRA(r=2, targets=["query"])])
def test_numbers_are_learned_and_the_round_trip_is_exact(backbone: Backbone, adapter: LoRA | None) -> None:
    before = weights_of(backbone)
    task = fitted(backbone, adapter)
    assert all(torch.equal(before[name], each) for name, each in weights_of(backbone).items())
    rows, labels = flowers(200, seed=1)
    assert task.evaluate(rows, labels).figures["accuracy"] >= 0.9
    (found,) = task.predict(rows[:1])
    assert isinstance(found, Label)
    path = task.save()
    spec = Repository(backbone.repository, backbone.name).read_task("flower")
    assert isinstance(spec, TaskSpec)
    assert spec.inputs == ("FEATURES",)
    assert "dims: 2" in spec.config.read_text()
    again = Task.load(path.parent, backbone)
    assert again.encoder == Projection(2, tokens=3)
    for one, other in zip(task.outputs(rows), again.outputs(rows), strict=True):
        assert np.array_equal(one["SCORES"], other["SCORES"])
    again.fit(*flowers(100), epochs=1, progress=False)  # goes on from there
    assert again.evaluate(rows, labels).figures["accuracy"] >= 0.85


def test_versions_may_take_different_inputs(backbone: Backbone) -> None:
    texts = Task("mixed", backbone, decoder=Classifier())
    texts.fit(*labelled(20), progress=False)
    texts.save()
    numbers = Task("mixed", backbone, encoder=Projection(2), decoder=Classifier())
    numbers.fit(*flowers(20), epochs=1, progress=False)
    root = numbers.save().parent
    assert Repository(backbone.repository, backbone.name).read_task("mixed").inputs == ("FEATURES",)  # type: ignore[union-attr]
    numbers.fit(*flowers(20), epochs=1, progress=False)
    numbers.save()
    numbers.rollback()
    assert "dims: 2" in (root / "config.pbtxt").read_text()
    assert "FEATURES" in (root / "config.pbtxt").read_text()
    numbers.rollback()
    assert Repository(backbone.repository, backbone.name).read_task("mixed").inputs == ("TEXT",)  # type: ignore[union-attr]
    assert Task.load(root, backbone).predict("w1")


def test_parts_are_fitted_one_at_a_time(backbone: Backbone) -> None:
    task = fitted(backbone)
    head, encoder = dict(task.fitted.head), dict(task.fitted.encoder)
    task.fit(*flowers(100), parts="encoder", epochs=1, progress=False)
    assert all(torch.equal(head[name], each) for name, each in task.fitted.head.items())
    assert not torch.equal(encoder["layers.0.weight"], task.fitted.encoder["layers.0.weight"])
    assert torch.equal(encoder["mean"], task.fitted.encoder["mean"])  # standardised as at first
    encoder = dict(task.fitted.encoder)
    task.fit(*flowers(100), parts="decoder", progress=False)
    assert all(torch.equal(encoder[name], each) for name, each in task.fitted.encoder.items())
    assert not torch.equal(head["weight"], task.fitted.head["weight"])


def test_a_packages_encoder(backbone: Backbone) -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choice(letters) for _ in range(8)) for letters in ("abc", "xyz") * 60]
    task = Task("letters", backbone, encoder=PluginEncoder("letters", {"most": 6}), decoder=Classifier())
    task.fit(texts, ["early", "late"] * 60, epochs=10, learning_rate=1e-2, progress=False)
    assert [each.label for each in task.predict(["abcabc", "zzyyxx"])] == ["early", "late"]  # type: ignore[union-attr]
    path = task.save()
    spec = Repository(backbone.repository, backbone.name).read_task("letters")
    assert isinstance(spec, TaskSpec)
    assert spec.inputs == ("TEXT",)
    again = Task.load(path.parent, backbone)
    assert np.array_equal(again.outputs(["abz"])[0]["SCORES"], task.outputs(["abz"])[0]["SCORES"])
    with pytest.raises(InvalidRequest, match="TEXT holds a text with no letters"):
        again.predict([""])


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "distilbert", "modernbert", "albert", "electra"])
def test_a_batch_of_texts_and_numbers_gives_what_each_gives_alone(tmp_path: Path, kind: str) -> None:
    backbone = tiny_backbone(tiny_repository(tmp_path, kind=kind))
    numbers = Task("flower", backbone, encoder=Projection(2, tokens=3), decoder=Regressor())
    numbers.fit([[1.0, 2.0], [2.0, 1.0]] * 8, [0.0, 1.0] * 8, epochs=1, progress=False)
    texts = Task("mail", backbone, decoder=Embedder())
    runtime = backbone.runtime
    requests = []
    for tag, (task, value) in enumerate(
        [
            (texts, np.array([[b"w1 w2 w3"], [b"w4 w5 w6 w7 w8 w9"]], dtype=np.object_)),
            (numbers, np.array([[3.0, 4.0], [0.0, -1.0]], dtype=np.float32)),
        ]
    ):
        vfm = Vfm(tag, task.name)
        vfm.extensions = task._extensions()
        request = Request(vfm, {vfm.extensions.takes: value}, (), 0.0, lambda reply, final: None)
        request.extensions = vfm.extensions
        runtime.prepare(request)
        requests.append(request)
    answers = {}
    for done in runtime.run(requests):
        for request, outcome in done.outcomes:
            assert isinstance(outcome, Finished)
            answers[request.vfm.name] = runtime.decode(request, outcome.value)
    alone = np.stack([each["EMBEDDING"] for each in texts.outputs(["w1 w2 w3", "w4 w5 w6 w7 w8 w9"])])
    assert np.abs(answers["mail"]["EMBEDDING"] - alone).max() < 1e-5
    alone = np.stack([each["SCORES"] for each in numbers.outputs([[3.0, 4.0], [0.0, -1.0]])])
    assert np.abs(answers["flower"]["SCORES"] - alone).max() < 1e-5


def test_vectors_of_tokens_are_as_good_as_tokens(tmp_path: Path) -> None:
    """What the model makes of ids itself, given as vectors, is answered alike."""
    model = save_tiny(tmp_path / "model", "bert")
    config = TextEncoderConfig(model=str(model), threads=1)
    runtime = TextEncoderRuntime(config, tmp_path / "config.pbtxt", "cpu", 8, CostModel().predict)
    (tokens,) = runtime.tokenizer.encode("w1 w2 w3", Text(), spans=False)

    class Same(CustomEncoder):
        def forward(self, x: Tensor) -> Tensor:
            vectors: Tensor = runtime.model.get_input_embeddings()(x.long())
            return vectors

    ((given,),) = VectorEncoder(Same({}, 0), 64, 1).encode(np.array([tokens.ids]), spans=False)
    one, other = (
        runtime.forward.launch([row], [None], {"mean"}).hidden().row(0, "mean", row) for row in (tokens, given)
    )
    assert np.abs(one - other).max() < 1e-6


# -- what is refused


def spoilt(
    backbone: Backbone, change: Callable[[dict[str, Tensor]], object] = lambda tensors: None, **section: Any
) -> TaskRefused:
    """The refusal of a projection whose tensors, or whose section in task.json, were changed."""
    task = Task("flower", backbone, encoder=Projection(2, tokens=3), decoder=Classifier())
    task.fit(*flowers(20), epochs=1, progress=False)
    path = task.save()
    file, weights = path / "task.json", path / "encoder.safetensors"
    document, tensors = json.loads(file.read_text()), load_file(weights)
    document["encoder"].update(section)
    change(tensors)
    file.write_text(json.dumps(document))
    save_file(tensors, weights)
    with pytest.raises(TaskRefused) as caught:
        backbone.load(path)
    return caught.value


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"features": 10_000, "hidden": [100_000]}, "layers"),
        ({"features": 1 << 40}, "deviation"),
        ({"features": 1 << 62}, "encoder"),
        ({"features": 10**30}, "encoder"),
        ({"hidden": [1 << 40]}, "layers"),
        ({"hidden": [4] * 65}, "encoder.hidden"),
        ({"hidden": [0]}, "encoder.hidden.0"),
    ],
)
def test_sizes_that_the_file_does_not_have_take_no_memory(
    backbone: Backbone, section: dict[str, Any], field: str
) -> None:
    assert spoilt(backbone, **section).field.startswith(field)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_weights_that_are_no_floats(backbone: Backbone, dtype: torch.dtype) -> None:
    error = spoilt(backbone, lambda tensors: tensors.update(mean=tensors["mean"].to(dtype)))
    assert error.field == "mean"


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [("deviation", 0.0, "deviation"), ("deviation", -1.0, "deviation"), ("layers.0.weight", 3e38, "layers")],
)
def test_weights_that_overflow(backbone: Backbone, name: str, value: float, field: str) -> None:
    assert spoilt(backbone, lambda tensors: tensors[name].fill_(value)).field == field


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (np.zeros((2, 3), np.float32), "rows of 3 numbers, not of 2"),
        (np.zeros((0, 2), np.float32), "a shape of .0, 2., rows of numbers have .n, 2."),
        (np.array([[1.0, np.nan]], np.float32), "NaN or infinite numbers"),
    ],
)
def test_numbers_that_cannot_be_read(backbone: Backbone, value: Any, match: str) -> None:
    encoder = VectorEncoder(Projection(2).make(32), 64, 1)
    with pytest.raises(InvalidRequest, match=f"FEATURES holds {match}"):
        encoder.encode(value, spans=False)


def test_a_request_with_the_other_input_says_which_is_wanted(backbone: Backbone) -> None:
    vfm = Vfm(0, "flower")
    vfm.extensions = fitted(backbone)._extensions()
    text = np.array([[b"a rose"]], dtype=np.object_)
    request = Request(vfm, {"TEXT": text}, (), 0.0, lambda reply, final: None, extensions=vfm.extensions)
    with pytest.raises(InvalidRequest, match="'flower' takes the input FEATURES, the request has TEXT"):
        backbone.runtime.prepare(request)


def test_more_vectors_than_the_backbone_takes(backbone: Backbone) -> None:
    most = backbone.runtime.tokenizer.max_length
    task = Task("flower", backbone, encoder=Projection(2, tokens=most + 1), decoder=Classifier())
    task.encoder = Projection(2, tokens=1)
    task.fit(*flowers(20), epochs=1, progress=False)
    path = task.save()
    file = path / "task.json"
    file.write_text(file.read_text().replace('"tokens": 1', f'"tokens": {most + 1}'))
    with pytest.raises(TaskRefused, match=f"encoder.tokens: {most + 1} is more than the backbone's {most}"):
        backbone.load(path)
    module = Projection(2, tokens=5).make(32)
    with pytest.raises(InvalidRequest, match="made 5 tokens, the backbone takes 1 to 4"):
        VectorEncoder(module, 4, 1).encode(np.zeros((1, 2), np.float32), spans=False)


@pytest.mark.parametrize(
    ("rows", "labels", "match"),
    [
        ([[1.0, 2.0]], ["a", "b"], "1 texts and 2 labels"),
        ([[1.0, "tall"]], ["a"], "row 0: .* is not a row of numbers"),
        (["a rose", "a tulip"], ["a", "b"], "row 0: 'a rose' is not a row of numbers"),
        ([[1.0, 2.0, 3.0]] * 4, ["a", "b"] * 2, "rows of 3 numbers, not of 2"),
        ([[1.0, 2.0], [1.0]] * 2, ["a", "b"] * 2, "Correct the rows"),
        ([[1.0, float("inf")]] * 4, ["a", "b"] * 2, "NaN or infinite"),
        ([1.0, 2.0], None, "labels are missing"),
    ],
)
def test_rows_that_cannot_be_fitted(backbone: Backbone, rows: Any, labels: Any, match: str) -> None:
    task = Task("flower", backbone, encoder=Projection(2), decoder=Classifier())
    with pytest.raises(TaskProblem, match=match):
        task.fit(rows, labels, progress=False)


@pytest.mark.parametrize(
    ("decoder", "parts", "match"),
    [
        (Similarity(FLOWERS), "both", "the encoder is not fitted yet"),
        (Classifier(FLOWERS), "decoder", "the encoder is not fitted yet"),
        (Classifier(FLOWERS), "encoder", "the decoder is not fitted yet"),
        (Embedder(), "both", "no weights to fit"),
    ],
)
def test_an_encoder_needs_a_decoder_that_learns(backbone: Backbone, decoder: Any, parts: Any, match: str) -> None:
    with pytest.raises(TaskProblem, match=match):
        Task("flower", backbone, encoder=Projection(2), decoder=decoder).fit(*flowers(8), parts=parts, progress=False)


def test_a_text_encoder_has_nothing_to_fit(backbone: Backbone) -> None:
    with pytest.raises(TaskProblem, match="a text encoder has no weights to fit"):
        Task("mail", backbone, decoder=Classifier()).fit(*labelled(8), parts="encoder", progress=False)


def test_an_encoder_that_was_never_fitted_is_not_saved(backbone: Backbone) -> None:
    task = Task("flower", backbone, encoder=Projection(2), decoder=Embedder())
    with pytest.raises(TaskProblem, match="the encoder of 'flower' is not fitted yet"):
        task.save()


def test_tokens_are_of_texts(backbone: Backbone) -> None:
    task = Task("flower", backbone, encoder=Projection(2), decoder=TokenClassifier(["O", "B-X"]))
    with pytest.raises(TaskProblem, match="a token-classification task reads text"):
        task.fit(*flowers(8), progress=False)


# -- forms of data


def test_every_form_gives_the_same_rows(backbone: Backbone, tmp_path: Path) -> None:
    rows, labels = flowers(6)
    frame = pandas.DataFrame({"length": [a for a, _ in rows], "width": [b for _, b in rows], "label": labels})
    frame.to_csv(tmp_path / "flowers.csv", index=False)
    frame.to_json(tmp_path / "flowers.jsonl", orient="records", lines=True, double_precision=15)
    forms: list[tuple[Any, ...]] = [
        (rows, labels),
        (np.array(rows), labels),
        (list(zip(rows, labels, strict=True)), None),
        (frame, None),
        (tmp_path / "flowers.csv", None),
        (tmp_path / "flowers.jsonl", None),
    ]
    encoder = Projection(2)
    for form, given in forms:
        found = inputs_rows(encoder, form, given)
        assert np.allclose(found.items, rows)
        assert found.labels == labels
    assert np.allclose(inputs_rows(encoder, frame, None, ["width", "length"]).items, np.array(rows)[:, ::-1])
    with pytest.raises(TaskProblem, match="no column 'height', but length, width, label"):
        inputs_rows(encoder, frame, None, ["height"])


def inputs_rows(encoder: Projection, form: Any, labels: Any, columns: Any = None) -> Rows:
    return rows_of(form, labels, encoder.reads(), columns=columns)
