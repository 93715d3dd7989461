"""From a task's parts and labelled rows to a `Trainer`: checks, examples, the split, the head and the class weights.

What cannot be fitted raises TaskProblem here, before the first step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmplex.task.adapters import fresh
from fmplex.task.backbone import Backbone
from fmplex.training.checkpoints import Checkpoint
from fmplex.training.examples import Examples, in_portions, split
from fmplex.training.options import FitOptions
from fmplex.training.progress import Progress
from fmplex.training.sequences import SequenceTraining, sequence_examples
from fmplex.training.state import History
from fmplex.training.trained import TrainedWeights, Training
from fmplex.training.trainer import Trainer
from fmplex_backend.adapters.kinds import IA3, Adapter, LoRA
from fmplex_backend.decoders import Decoder
from fmplex_backend.decoders.rows import IGNORED, Rows, is_ignored
from fmplex_backend.decoders.trainable import TrainableHead
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.spec import Features, FittingInputs, SequenceInputs

HEAD_LEARNING_RATE = 1e-3


@dataclass(frozen=True, slots=True)
class TaskParts:
    """What a task is made of, with the weights it has so far."""

    name: str
    backbone: Backbone
    encoder: Any
    adapter: Adapter | None
    decoder: Decoder
    weights: TrainedWeights


def prepare(
    parts: TaskParts, rows: Rows, validation: Rows | float | None, options: FitOptions, progress: Progress
) -> Training:
    """A fitting that can begin; raises TaskProblem.

    Args:
        validation: rows of their own, or a fraction of `rows`; the weights that do best on them are kept.
    """
    check_fittable(parts, options)
    decoder = parts.decoder.with_labels_of(rows)
    checkpoint = None
    if options.checkpoint is not None and decoder.learns in ("gradient", "sequences"):
        checkpoint = Checkpoint(options.checkpoint, _digest(parts, decoder, rows, options))
        checkpoint.check()
    progress.phase("loading the backbone")
    if decoder.learns == "sequences":
        return _sequence_training(parts, decoder, rows, validation, options, checkpoint, progress)
    decoder = parts.backbone.completed(decoder)
    inputs = parts.backbone.fitting_inputs(parts.encoder, parts.weights.encoder, options.seed)
    examples = _examples(decoder, inputs, rows)
    training, held = _split(decoder, inputs, rows, examples, validation, options.seed)
    training, outside = _apart(training)
    if held is not None:
        held, more = _apart(held)
        outside = Examples([*outside.inputs, *more.inputs], [*outside.targets, *more.targets])
    if not parts.weights.encoder:
        inputs.observe(training.inputs)
    class_weights = _class_weights(decoder, options.class_weights, training)
    if decoder.learns == "vectors":
        return VectorTraining(decoder, inputs, parts, training, progress)
    trainer = _trainer(parts, decoder, inputs, training, held, class_weights, options)
    trainer.outside, trainer.checkpoint, trainer.progress = outside, checkpoint, progress
    return trainer


@dataclass
class VectorTraining:
    """A fitting with no steps: the decoder's tensors are computed from the vectors of the training rows."""

    decoder: Decoder
    inputs: FittingInputs
    parts: TaskParts
    training: Examples
    progress: Progress
    history: History = field(default_factory=History)
    compares: bool = False
    alone: dict[str, Tensor] = field(default_factory=dict)

    @property
    def work(self) -> float:
        """All of `run`, in rows through the backbone."""
        return len(self.training)

    def run(self) -> TrainedWeights:
        """Compute the decoder's tensors; adapter and encoder stay as they are."""
        weights = self.parts.weights
        bare = self.parts.backbone.for_training()
        model = weights.adapter.around(bare).eval() if weights.adapter else bare
        self.progress.phase("features")
        features = self.inputs.features(model, model, self.decoder.reads)
        vectors = in_portions(features.fixed, self.training, self.progress).cpu()
        head = self.decoder.from_vectors(vectors, self.training.targets)
        return TrainedWeights(weights.adapter, head, weights.encoder)

    def notes(self) -> dict[str, float | int | str]:
        """For the metrics of task.json."""
        return {"train_rows": len(self.training)}


def check_fittable(parts: TaskParts, options: FitOptions) -> None:
    """Raise TaskProblem where the task's parts cannot be fitted in this way; the backbone is not loaded for it."""
    which, encoder, decoder = options.parts, parts.encoder, parts.decoder
    if which == "encoder" and encoder.learns == "nothing":
        raise TaskProblem(f"a {encoder.kind} encoder has no weights to fit. Fit the adapter, the decoder, or both")
    if which == "adapter" and parts.adapter is None:
        raise TaskProblem("the task has no adapter to fit. Attach one: task.attach('adapter', LoRA(r=8))")
    if decoder.learns == "nothing":
        raise TaskProblem(
            f"the {decoder.kind} decoder has no weights to fit. Fit a Classifier or a Similarity, or save the "
            "task as it is"
        )
    if decoder.learns == "sequences":
        _check_sequences(parts, options)
    elif which in ("adapter", "encoder") and not parts.weights.head:
        raise TaskProblem(f"the decoder is not fitted yet, and is fitted together with the {which}. Give parts='both'")
    try:
        parts.backbone.family.check(parts)
    except ValueError as error:
        raise TaskProblem(f"{error}. Attach another encoder, or another decoder") from None
    fits_encoder = which == "both" and decoder.learns == "gradient"
    if encoder.learns == "always" and not parts.weights.encoder and not fits_encoder:
        raise TaskProblem("the encoder is not fitted yet. Fit it with a decoder that learns, and parts='both'")


def _check_sequences(parts: TaskParts, options: FitOptions) -> None:
    """Of a decoder that has no tensors of its own."""
    kind = parts.decoder.kind
    if options.parts not in ("both", "adapter"):
        raise TaskProblem(f"a {kind} decoder has no weights of its own to fit. Fit the adapter: parts='adapter'")
    if parts.adapter is None:
        raise TaskProblem(
            f"a {kind} task is fitted by its adapter, and it has none. Attach one: task.attach('adapter', LoRA(r=8)), "
            "or save the task as it is"
        )
    if options.class_weights is not None:
        parts.decoder.balanced_weights([])


def _sequence_training(
    parts: TaskParts,
    decoder: Decoder,
    rows: Rows,
    validation: Rows | float | None,
    options: FitOptions,
    checkpoint: Checkpoint | None,
    progress: Progress,
) -> Training:
    inputs = parts.backbone.sequence_inputs(parts.encoder, decoder)
    examples = sequence_examples(inputs, decoder, rows)
    training, held = examples, None
    if isinstance(validation, Rows):
        held = sequence_examples(inputs, decoder, validation)
    elif validation is not None:
        training, held = (
            examples.pick(own) for own in split(len(examples), validation, [""] * len(examples), options.seed)
        )
    model = _adapted_model(parts, options.seed)
    losses, rate = inputs.losses(model, options.pack_tokens), _sequence_rate(parts, inputs, options)
    return SequenceTraining(decoder, losses, rate, options, training, held, checkpoint, progress)


def _sequence_rate(parts: TaskParts, inputs: SequenceInputs, options: FitOptions) -> float:
    """The family's own rate is that of low-rank adapters; scales are learned at a rate of another size."""
    assert parts.adapter is not None
    own = None if isinstance(parts.adapter, IA3) else inputs.learning_rate
    return options.learning_rate or own or parts.adapter.learning_rate


def _examples(decoder: Decoder, inputs: FittingInputs, rows: Rows) -> Examples:
    targets = decoder.targets(rows)
    examples = inputs.examples(rows, reads=decoder.reads)
    if not decoder.by_token:
        return Examples(examples, targets)
    cut = [
        [target if word >= 0 else IGNORED for target, word in zip(row, each.words, strict=True)]
        for row, each in zip(targets, examples, strict=True)
    ]
    kept = [place for place, each in enumerate(examples) if any(word >= 0 for word in each.words)]
    return Examples(examples, cut).pick(kept)


def _split(
    decoder: Decoder,
    inputs: FittingInputs,
    rows: Rows,
    examples: Examples,
    validation: Rows | float | None,
    seed: int,
) -> tuple[Examples, Examples | None]:
    if validation is None:
        return examples, None
    if isinstance(validation, Rows):
        return examples, _examples(decoder, inputs, validation)
    if (chosen := decoder.split(rows, validation)) is not None:
        return examples.pick(chosen[0]), examples.pick(chosen[1])
    whole = len(examples) == len(rows) and decoder.stratified
    groups = [str(value) for value in rows.labels] if whole else [""] * len(examples)
    training, held = split(len(examples), validation, groups, seed)
    return examples.pick(training), examples.pick(held)


def _apart(examples: Examples) -> tuple[Examples, Examples]:
    """The rows to be learned, and those that are to be rejected, whose target is IGNORED."""
    outside = [place for place, target in enumerate(examples.targets) if is_ignored(target)]
    if not outside:
        return examples, Examples([], [])
    inside = sorted(set(range(len(examples))) - set(outside))
    return examples.pick(inside), examples.pick(outside)


def _trainer(
    parts: TaskParts,
    decoder: Decoder,
    inputs: FittingInputs,
    training: Examples,
    held: Examples | None,
    class_weights: Tensor | None,
    options: FitOptions,
) -> Trainer:
    weights, which = parts.weights, options.parts
    model = _adapted_model(parts, options.seed)
    fitted: dict[str, nn.Parameter] = {}
    if model is not None and which in ("both", "adapter"):
        fitted = {f"adapter.{name}": each for name, each in model.named_parameters() if each.requires_grad}
    if inputs.module is not None and which in ("both", "encoder"):
        inputs.module.requires_grad_(True)
        fitted |= {f"encoder.{name}": each for name, each in inputs.module.named_parameters()}
    head = _head(parts, decoder, class_weights, options.seed)
    keeps_adapter = model is not None and (weights.adapter or which in ("decoder", "encoder"))
    bare = model if keeps_adapter else parts.backbone.for_training()
    comparable = inputs.module is None and head.linear is not None
    adapter_rate = LoRA.learning_rate if parts.adapter is None else parts.adapter.learning_rate
    return Trainer(
        decoder,
        _features(inputs, bare, model, head),
        head,
        inputs,
        fitted,
        train_head=which in ("both", "decoder"),
        warm_start=not weights.head,
        adapted=model is not None,
        compares=model is not None and not keeps_adapter and not weights.head and comparable,
        learning_rate=options.learning_rate or (adapter_rate if fitted else HEAD_LEARNING_RATE),
        options=options,
        training=training,
        validation=held,
    )


def _features(inputs: FittingInputs, bare: Any, model: Any, head: TrainableHead) -> Features:
    return inputs.features(bare, bare if model is None else model, head.reads)


def _adapted_model(parts: TaskParts, seed: int) -> Any:
    """The backbone's modules with the adapter in them, new or as it was fitted before; None without an adapter."""
    if parts.adapter is None:
        return None
    if parts.weights.adapter is not None:
        model = parts.weights.adapter.around(parts.backbone.for_training())
    else:
        assert isinstance(parts.adapter, (LoRA, IA3))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = fresh(parts.adapter, parts.backbone)
    return model.eval()


def _head(parts: TaskParts, decoder: Decoder, class_weights: Tensor | None, seed: int) -> TrainableHead:
    """A new head, with the weights of the former one where their shapes are the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = decoder.trainable(parts.backbone.width_of(decoder.reads), class_weights)
    if parts.weights.head:
        head.fill(parts.weights.head)
    head.module.to(parts.backbone.runtime.device)
    return head


def _class_weights(decoder: Decoder, wanted: str | Mapping[str, float] | None, examples: Examples) -> Tensor | None:
    if wanted is None:
        return None
    balanced = decoder.balanced_weights(examples.targets)  # raises for kinds that take no weights
    if isinstance(wanted, str):
        if wanted != "balanced":
            raise TaskProblem(f"class_weights is {wanted!r}; it must be 'balanced' or a weight by label")
        return balanced
    labels = list(decoder.label_names)
    unknown = set(wanted) - set(labels)
    if unknown:
        raise TaskProblem(f"class_weights names {', '.join(sorted(unknown))}, the labels are {', '.join(labels)}")
    return torch.tensor([float(wanted.get(label, 1.0)) for label in labels])


def _digest(parts: TaskParts, decoder: Decoder, rows: Rows, options: FitOptions) -> str:
    """A digest of the data and of all that the trained weights depend on."""
    about = {
        "options": options.shaping(),
        "backbone": parts.backbone.runtime.fingerprint,
        "encoder": repr(parts.encoder),
        "adapter": repr(parts.adapter),
        "decoder": repr(decoder),
    }
    sha = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for item, label in zip(rows.items, rows.labels, strict=True):
        is_array = isinstance(label, np.ndarray) or hasattr(label, "getbands")  # PIL's, whose text is an address
        content = np.asarray(label).tobytes() if is_array else f"{label}\0".encode()
        sha.update(f"{item}\0".encode() + content)
    return sha.hexdigest()
