"""Encoders that make vectors, of numbers or by a package's code: fitted, saved, mixed with texts, and refused."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas
import pytest
import torch
from model_fixtures import save_tiny
from task_fixtures import install, labelled, tiny_backbone, tiny_repository, weights_of
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
    TokenClassifier,
)
from fmplex_backend.config import BackboneConfig, TextEncoder
from fmplex_backend.errors import InvalidRequest, TaskRefused
from fmplex_backend.extensions import encoders
from fmplex_backend.extensions.encoders import VectorEncoder
from fmplex_backend.repository import Repository, TaskSpec
from fmplex_backend.runtime.text_encoder import TextEncoderRuntime
from fmplex_backend.scheduling import CostModel
from fmplex_backend.types import Finished, Request
from fmplex_backend.vfm import Vfm

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

FLOWERS = ("long", "wide")


class Letters(CustomEncoder):
    """A vector for every letter of a text."""

    takes: ClassVar[Literal["FEATURES", "TEXT"]] = "TEXT"

    def __init__(self, options: Mapping[str, Any], width: int) -> None:
        super().__init__(options, width)
        self.table = torch.nn.Embedding(27, width)
        self.most = int(options["most"])

    def read(self, rows: Any) -> Tensor:
        """Numbers of letters, 0 for all else; the last is repeated."""
        if not all(rows):
            raise ValueError("a text with no letters")
        numbers = [[max(0, ord(letter) - 96) if "a" <= letter <= "z" else 0 for letter in row] for row in rows]
        return torch.tensor([(row * self.most)[: self.most] for row in numbers])

    def forward(self, x: Tensor) -> Tensor:
        """[n, letters] -> [n, letters, width]."""
        vectors: Tensor = self.table(x)
        return vectors


class Tasteless(Letters):
    """Takes what no backbone has."""

    takes: ClassVar[Any] = "TASTE"


class NoEncoder:
    """Not one at all."""

    def __init__(self, options: Mapping[str, Any], width: int) -> None:
        pass


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"letters": "Letters", "tasteless": "Tasteless", "none": "NoEncoder"}
    install(monkeypatch, encoders.GROUP, {name: f"{__name__}:{value}" for name, value in names.items()})


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    return tiny_backbone(tiny_repository(tmp_path))


def flowers(count: int, seed: int = 0) -> tuple[list[list[float]], list[str]]:
    """Length and width in very different units, and which is larger in its own."""
    rng = random.Random(seed)
    rows = [(rng.random(), rng.random()) for _ in range(count)]
    return [[1000 * a, b / 100 + 7] for a, b in rows], [FLOWERS[b > a] for a, b in rows]


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


def test_a_killed_fitting_goes_on(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted(backbone)
    task = Task("flower", backbone, encoder=Projection(2, tokens=3), decoder=Classifier())
    settings: dict[str, Any] = {"epochs": 25, "learning_rate": 2e-2, "progress": False, "checkpoint": tmp_path / "at"}

    from fmplex import training

    real, seen = training.Fit._end_epoch, []

    def killed(self: Any, state: Any, held: Any) -> None:
        real(self, state, held)
        seen.append(state.epoch)
        if len(seen) == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Fit, "_end_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            task.fit(*flowers(300), **settings)
    task = Task("flower", backbone, encoder=Projection(2, tokens=3), decoder=Classifier())
    task.fit(*flowers(300), **settings)
    for name, each in whole.fitted.encoder.items():
        assert torch.equal(each, task.fitted.encoder[name])


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
        request = Request(vfm, {vfm.extensions.takes: value}, (), 0.0, lambda request, reply: None)
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
    config = BackboneConfig(model=str(model), threads=1)
    runtime = TextEncoderRuntime(config, tmp_path / "config.pbtxt", torch.device("cpu"), 8, CostModel().predict)
    (tokens,) = runtime.tokenizer.encode("w1 w2 w3", TextEncoder(), spans=False)

    class Same(CustomEncoder):
        def forward(self, x: Tensor) -> Tensor:
            vectors: Tensor = runtime.model.get_input_embeddings()(x.long())
            return vectors

    ((given,),) = VectorEncoder(Same({}, 0), 64, 1).encode(np.array([tokens.ids]), spans=False)
    one, other = (runtime._forward([row], [None], {"mean"}).row(0, "mean", row) for row in (tokens, given))
    assert np.abs(one - other).max() < 1e-6


# -- what is refused


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (np.zeros((2, 3), np.float32), "rows of 3 numbers, not of 2"),
        (np.zeros((0, 2), np.float32), "a shape of .0, 2., rows of numbers have .n, 2."),
        (np.array([[1.0, np.nan]], np.float32), "NaN or infinite numbers"),
    ],
)
def test_numbers_that_cannot_be_read(backbone: Backbone, value: Any, match: str) -> None:
    encoder = VectorEncoder(encoders.Projection({"features": 2}, 32), 64, 1)
    with pytest.raises(InvalidRequest, match=f"FEATURES holds {match}"):
        encoder.encode(value, spans=False)


def test_a_request_with_the_other_input_says_which_is_wanted(backbone: Backbone) -> None:
    vfm = Vfm(0, "flower")
    vfm.extensions = fitted(backbone)._extensions()
    text = np.array([[b"a rose"]], dtype=np.object_)
    with pytest.raises(InvalidRequest, match="'flower' takes the input FEATURES, the request has TEXT"):
        backbone.runtime.prepare(Request(vfm, {"TEXT": text}, (), 0.0, lambda request, reply: None))


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
    module = encoders.Projection({"features": 2, "tokens": 5}, 32)
    with pytest.raises(InvalidRequest, match="made 5 tokens, the backbone takes 1 to 4"):
        VectorEncoder(module, 4, 1).encode(np.zeros((1, 2), np.float32), spans=False)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("nothing", {}, "encoder.name: no installed package registers an encoder 'nothing'; registered: letters, none"),
        ("letters", {}, "the encoder 'letters' .* cannot be made: KeyError"),
        ("none", {}, "is no CustomEncoder"),
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


@pytest.mark.parametrize(
    ("rows", "labels", "match"),
    [
        ([[1.0, 2.0]], ["a", "b"], "1 texts and 2 labels"),
        ([[1.0, "tall"]], ["a"], "row 0: .* is no row of numbers"),
        (["a rose", "a tulip"], ["a", "b"], "row 0: 'a rose' is no row of numbers"),
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
        (Embedder(), "both", "nothing to fit"),
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
        assert np.allclose(found.texts, rows)
        assert found.labels == labels
    assert np.allclose(inputs_rows(encoder, frame, None, ["width", "length"]).texts, np.array(rows)[:, ::-1])
    with pytest.raises(TaskProblem, match="no column 'height', but length, width, label"):
        inputs_rows(encoder, frame, None, ["height"])


def inputs_rows(encoder: Projection, form: Any, labels: Any, columns: Any = "text") -> Any:
    from fmplex import inputs

    return inputs.rows_of(encoder, form, labels, columns, "label")
