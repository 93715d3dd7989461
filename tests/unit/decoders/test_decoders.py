"""Every decoder against the same formula in torch, and what is refused of its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_fixtures import write_head
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from fmplex_backend.decoders import KINDS
from fmplex_backend.decoders.decoder import Encoded, LoadedDecoder
from fmplex_backend.errors import TaskRefused
from fmplex_backend.section import FROM_FILE

HIDDEN = 32
BUILT_IN = [kind for kind in KINDS if kind != "plugin"]


def load(directory: Path, **section: Any) -> LoadedDecoder:
    kind: TypeAdapter[Any] = TypeAdapter(KINDS[section["kind"]])
    decoder = kind.validate_python(section, context=FROM_FILE)
    loaded: LoadedDecoder = decoder.load(directory, HIDDEN)
    assert decoder.sizes(directory, HIDDEN) == loaded.sizes
    return loaded


def refused(directory: Path, **section: Any) -> TaskRefused:
    with pytest.raises(TaskRefused) as caught:
        load(directory, **section)
    assert caught.value.remedy
    return caught.value


def pooled(rows: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))


def encoded(vectors: Tensor) -> Encoded:
    return Encoded(vectors.numpy(), [], [], np.zeros((len(vectors), 1), dtype=bool))


def close(have: Any, want: Tensor) -> None:
    assert have.dtype == np.float32
    np.testing.assert_allclose(have, want.numpy(), rtol=1e-5, atol=1e-6)


def labels(decoded: dict[str, Any]) -> list[list[str]]:
    found: list[list[str]] = decoded["LABEL"].tolist()
    return found


# -- each kind


def test_an_embedding_may_tell_how_many_tokens_were_read(tmp_path: Path) -> None:
    decoder = load(tmp_path, kind="embedding", count_tokens=True)
    vectors = Encoded(pooled(2).numpy(), [], [], np.zeros((2, 1), dtype=bool), lengths=[3, 11])
    assert decoder.decode(vectors)["num_input_tokens"].tolist() == [[3], [11]]
    assert decoder.sizes == {"EMBEDDING": HIDDEN, "num_input_tokens": 1}
    assert load(tmp_path, kind="embedding").decode(vectors).keys() == {"EMBEDDING"}


@pytest.mark.parametrize("normalize", [True, False])
def test_embedding(tmp_path: Path, normalize: bool) -> None:
    decoder = load(tmp_path, kind="embedding", normalize=normalize, pooling="cls")
    x = pooled()
    close(decoder.decode(encoded(x))["EMBEDDING"], functional.normalize(x) if normalize else x)
    assert (decoder.sizes, decoder.reads) == ({"EMBEDDING": HIDDEN}, "cls")


def test_the_zero_vector_stays_zero(tmp_path: Path) -> None:
    decoder = load(tmp_path, kind="embedding")
    assert not decoder.decode(encoded(torch.zeros(1, HIDDEN)))["EMBEDDING"].any()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "gelu", "relu"])
@pytest.mark.parametrize("layers", [(), (16,), (16, 8)])
def test_classification(tmp_path: Path, normalize: bool, activation: str, layers: tuple[int, ...]) -> None:
    weights = write_head(tmp_path / "decoder.safetensors", 3, HIDDEN, *layers)
    names = ["no", "maybe", "yes"]
    decoder = load(tmp_path, kind="classification", labels=names, normalize=normalize, activation=activation)
    x = pooled()
    logits = head(functional.normalize(x) if normalize else x, weights, activation)
    decoded = decoder.decode(encoded(x))
    close(decoded["SCORES"], logits.softmax(-1))
    assert labels(decoded) == [[names[best]] for best in logits.argmax(-1)]
    assert decoder.sizes == {"SCORES": 3, "LABEL": 1}


def head(x: Tensor, weights: dict[str, Tensor], activation: str) -> Tensor:
    prefixes = [""] if "weight" in weights else [f"{n}." for n in range(len(weights) // 2)]
    for position, prefix in enumerate(prefixes):
        x = getattr(torch, activation, getattr(functional, activation))(x) if position else x
        x = functional.linear(x, weights[f"{prefix}weight"], weights[f"{prefix}bias"])
    return x


def test_scores_of_far_out_logits_are_finite(tmp_path: Path) -> None:
    save_file({"weight": torch.eye(HIDDEN)[:2] * 1e4, "bias": torch.zeros(2)}, tmp_path / "decoder.safetensors")
    x = torch.zeros(2, HIDDEN)
    x[0, 0], x[1, 1] = 1e3, -1e3
    for kind in ("classification", "multi-label"):
        scores = load(tmp_path, kind=kind, labels=["a", "b"]).decode(encoded(x))["SCORES"]
        assert np.isfinite(scores).all()
        assert scores[0, 0] == 1


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
def test_multi_label(tmp_path: Path, threshold: float) -> None:
    weights = write_head(tmp_path / "decoder.safetensors", 4, HIDDEN)
    names = ["a", "b", "c", "d"]
    decoder = load(tmp_path, kind="multi-label", labels=names, threshold=threshold)
    x = pooled()
    scores = head(x, weights, "tanh").sigmoid()
    decoded = decoder.decode(encoded(x))
    close(decoded["SCORES"], scores)
    for row, found in zip(scores, labels(decoded), strict=True):
        best_first = [names[k] for k in row.argsort(descending=True) if row[k] >= threshold]
        assert found == best_first + [""] * (4 - len(best_first))
    assert decoder.sizes == {"SCORES": 4, "LABEL": 4}


def test_regression(tmp_path: Path) -> None:
    weights = write_head(tmp_path / "other.safetensors", 2, HIDDEN, 8)
    decoder = load(tmp_path, kind="regression", weights="other.safetensors", activation="gelu")
    x = pooled()
    decoded = decoder.decode(encoded(x))
    close(decoded["SCORES"], head(x, weights, "gelu"))
    assert decoded.keys() == {"SCORES"}
    assert decoder.sizes == {"SCORES": 2}


def test_token_classification(tmp_path: Path) -> None:
    weights = write_head(tmp_path / "decoder.safetensors", 3, HIDDEN)
    names = ["O", "B", "I"]
    decoder = load(tmp_path, kind="token-classification", labels=names)
    tokens = [pooled(4).numpy(), pooled(0).numpy(), pooled(2, seed=1).numpy()]
    offsets = [np.arange(2 * len(rows), dtype=np.int32).reshape(-1, 2) for rows in tokens]
    decoded = decoder.decode(Encoded(None, tokens, offsets, np.zeros((3, 1), dtype=bool)))
    for item, (rows, spans) in enumerate(zip(tokens, offsets, strict=True)):
        scores, length = head(torch.from_numpy(rows), weights, "tanh").softmax(-1), len(rows)
        close(decoded["TOKEN_SCORES"][item, :length], scores)
        assert not decoded["TOKEN_SCORES"][item, length:].any()
        assert labels(decoded)[item] == [names[k] for k in scores.argmax(-1)] + [""] * (4 - length)
        assert np.array_equal(decoded["OFFSETS"][item, :length], spans)
        assert (decoded["OFFSETS"][item, length:] == -1).all()
    assert decoder.sizes == {"TOKEN_SCORES": 3, "LABEL": None, "OFFSETS": 2}
    assert decoder.reads == "tokens"
    assert decoded["OFFSETS"].dtype == np.int32


def test_texts_without_any_token(tmp_path: Path) -> None:
    write_head(tmp_path / "decoder.safetensors", 3, HIDDEN)
    decoder = load(tmp_path, kind="token-classification", labels=["O", "B", "I"])
    nothing = np.zeros((0, 2), dtype=np.int32)
    decoded = decoder.decode(Encoded(None, [pooled(0).numpy()] * 2, [nothing] * 2, np.zeros((2, 1), dtype=bool)))
    assert {name: value.shape for name, value in decoded.items()} == {
        "TOKEN_SCORES": (2, 0, 3),
        "LABEL": (2, 0),
        "OFFSETS": (2, 0, 2),
    }


def test_similarity(tmp_path: Path) -> None:
    vectors = pooled(3, seed=7)
    save_file({"vectors": vectors}, tmp_path / "decoder.safetensors")
    decoder = load(tmp_path, kind="similarity", labels=["x", "y", "z"])
    x = pooled()
    scores = functional.cosine_similarity(x[:, None], vectors[None], dim=-1)
    decoded = decoder.decode(encoded(x))
    close(decoded["SCORES"], scores)
    assert labels(decoded) == [["xyz"[best]] for best in scores.argmax(-1)]
    assert decoder.sizes == {"SCORES": 3, "LABEL": 1}


def test_weights_in_half_precision_are_read_as_float32(tmp_path: Path) -> None:
    save_file({"weight": pooled(2).bfloat16(), "bias": torch.zeros(2).bfloat16()}, tmp_path / "decoder.safetensors")
    scores = load(tmp_path, kind="regression").decode(encoded(pooled()))["SCORES"]
    close(scores, pooled() @ pooled(2).bfloat16().float().T)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_a_decoder_gives_what_the_interface_says(tmp_path: Path, kind: str) -> None:
    labelled = {"vectors": pooled(2), "labels": torch.tensor([0, 1])}
    save_file(labelled, tmp_path / "vectors.safetensors")
    write_head(tmp_path / "decoder.safetensors", 2, HIDDEN)
    options: dict[str, Any] = {} if kind in ("embedding", "regression") else {"labels": ["a", "b"]}
    if kind in ("similarity", "nearest"):
        options["weights"] = "vectors.safetensors"
    decoder = load(tmp_path, kind=kind, **options)
    rows = [vector[None] for vector in pooled(2).numpy()]
    spans = [np.zeros((1, 2), dtype=np.int32)] * 2
    decoded = decoder.decode(Encoded(pooled(2).numpy(), rows, spans, np.zeros((2, 1), dtype=bool)))
    specs = {spec.name: spec for spec in KINDS[kind].gives}
    assert decoder.sizes.keys() == specs.keys() == decoded.keys()
    for name, value in decoded.items():
        assert len(value) == 2
        assert value.ndim == 1 + len(specs[name].dims)
        assert decoder.sizes[name] in (None, value.shape[-1])


# -- what is refused


@pytest.mark.parametrize("kind", ["classification", "multi-label", "token-classification", "similarity"])
def test_no_weights(tmp_path: Path, kind: str) -> None:
    error = refused(tmp_path, kind=kind, labels=["a", "b"])
    assert error.file == str(tmp_path / "decoder.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"weight": (2, HIDDEN)},
        {"weight": (2, HIDDEN), "bias": (2,), "more": (1,)},
        {"0.weight": (2, HIDDEN), "0.bias": (2,), "2.weight": (2, 2), "2.bias": (2,)},
        {"dense.weight": (2, HIDDEN), "dense.bias": (2,)},
        {"vectors": (2, HIDDEN)},
    ],
)
def test_names_that_are_no_heads(tmp_path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "decoder.safetensors")
    error = refused(tmp_path, kind="classification", labels=["a", "b"])
    assert "a head holds weight and bias" in error.problem


@pytest.mark.parametrize(
    ("tensors", "field"),
    [
        ({"weight": (3, HIDDEN), "bias": (3,)}, "weight"),  # two labels
        ({"weight": (2, 31), "bias": (2,)}, "weight"),
        ({"weight": (2, HIDDEN), "bias": (3,)}, "bias"),
        ({"weight": (HIDDEN,), "bias": (2,)}, "weight"),
        ({"weight": (2, HIDDEN), "bias": ()}, "bias"),
        ({"0.weight": (8, HIDDEN), "0.bias": (8,), "1.weight": (2, 9), "1.bias": (2,)}, "1.weight"),
        ({"0.weight": (8, HIDDEN), "0.bias": (8,), "1.weight": (3, 8), "1.bias": (3,)}, "1.weight"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, tensors: dict[str, tuple[int, ...]], field: str) -> None:
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "decoder.safetensors")
    assert refused(tmp_path, kind="classification", labels=["a", "b"]).field == field


def test_similarity_wants_one_vector_per_label(tmp_path: Path) -> None:
    file = tmp_path / "decoder.safetensors"
    save_file({"weight": pooled(2)}, file)
    assert refused(tmp_path, kind="similarity", labels=["a", "b"]).field == "vectors"
    save_file({"vectors": pooled(3)}, file)
    assert "[3, 32]" in refused(tmp_path, kind="similarity", labels=["a", "b"]).problem


# -- numbers that are none, and sizes that nobody has


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.uint8, torch.int64])
@pytest.mark.parametrize(("kind", "name"), [("regression", "weight"), ("similarity", "vectors")])
def test_what_is_no_float_is_not_cast(tmp_path: Path, kind: str, name: str, dtype: torch.dtype) -> None:
    tensors = {"weight": pooled(2), "bias": torch.zeros(2)} if name == "weight" else {"vectors": pooled(2)}
    save_file({**tensors, name: tensors[name].to(dtype)}, tmp_path / "decoder.safetensors")
    options = {"labels": ["a", "b"]} if kind == "similarity" else {}
    assert refused(tmp_path, kind=kind, **options).field == name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_are_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"weight": pooled(2).to(dtype), "bias": torch.zeros(2, dtype=dtype)}, tmp_path / "decoder.safetensors")
    have = load(tmp_path, kind="regression").decode(encoded(pooled(3)))["SCORES"]
    np.testing.assert_allclose(have, (pooled(3) @ pooled(2).to(dtype).float().T).numpy(), rtol=1e-5, atol=1e-5)


def test_a_float64_that_float32_does_not_hold(tmp_path: Path) -> None:
    weight = pooled(2).double()
    weight[1, 1] = 1e300
    save_file({"weight": weight, "bias": torch.zeros(2)}, tmp_path / "decoder.safetensors")
    error = refused(tmp_path, kind="regression")
    assert (error.field, error.problem) == ("weight", "it holds numbers that float32 does not hold")


@pytest.mark.parametrize("kind", ["classification", "multi-label", "regression", "token-classification"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_head_that_overflows(tmp_path: Path, kind: str, name: str) -> None:
    tensors = write_head(tmp_path / "decoder.safetensors", 2, HIDDEN)
    tensors["weight"] = tensors["weight"] * 1e33
    tensors[name].view(-1)[0] = 3.4e38
    save_file(tensors, tmp_path / "decoder.safetensors")
    error = refused(tmp_path, kind=kind, **({} if kind == "regression" else {"labels": ["a", "b"]}))
    assert (error.field, "overflow" in error.problem) == ("weight", True)


@pytest.mark.parametrize(("activation", "is_refused"), [("tanh", False), ("relu", True), ("gelu", True)])
def test_layers_that_overflow_together(tmp_path: Path, activation: str, is_refused: bool) -> None:
    tensors = write_head(tmp_path / "decoder.safetensors", 1, HIDDEN, 8)
    save_file({name: tensor * 1e18 for name, tensor in tensors.items()}, tmp_path / "decoder.safetensors")
    if is_refused:
        assert refused(tmp_path, kind="regression", activation=activation).field == "1.weight"
    else:
        assert np.isfinite(load(tmp_path, kind="regression").decode(encoded(pooled() * 10))["SCORES"]).all()


@pytest.mark.parametrize("scale", [1e30, 1e-10, 3e37])
def test_vectors_of_any_length_are_directions(tmp_path: Path, scale: float) -> None:
    save_file({"vectors": pooled(2) * scale}, tmp_path / "decoder.safetensors")
    have = load(tmp_path, kind="similarity", labels=["a", "b"]).decode(encoded(pooled(3, 1)))
    close(have["SCORES"], functional.normalize(pooled(3, 1), dim=-1) @ functional.normalize(pooled(2), dim=-1).T)


@pytest.mark.parametrize(
    ("shape", "field"), [((2, 1 << 29), "weight"), ((1 << 29, HIDDEN), "bias")], ids=["too wide", "too many outputs"]
)
def test_a_sparse_file_is_not_read(tmp_path: Path, shape: tuple[int, int], field: str) -> None:
    """It would take gigabytes of memory, where it takes none on disk."""
    size = shape[0] * shape[1] * 4
    header = {
        "weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]},
        "bias": {"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]},
    }
    text = json.dumps(header).encode()
    with (tmp_path / "decoder.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + size + 8)
    assert refused(tmp_path, kind="regression").field == field
