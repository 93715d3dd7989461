"""A task: encoder, adapter and decoder on a backbone, fitted, tried, saved and served as one object."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fmplex import data, heads, metrics
from fmplex.adapters import AdapterState, Imported, fresh, import_adapter
from fmplex.backbone import Backbone
from fmplex.checkpoints import Checkpoint
from fmplex.client import Client
from fmplex.curve import draw
from fmplex.errors import TaskProblem
from fmplex.features import WORDS, Encoded, Features, first_tokens
from fmplex.parts import (
    IA3,
    Adapter,
    Classifier,
    Decoder,
    Embedder,
    LoRA,
    Plugin,
    Pretrained,
    Regressor,
    Similarity,
    Text,
    TokenClassifier,
    decoder_of,
)
from fmplex.progress import Progress
from fmplex.repository import ModelRepository, Pipeline, Saved, Terms, write_config
from fmplex.results import Result, results
from fmplex.training import Examples, Fit, History, Settings, split
from fmplex_backend.config import TaskConfig, load_task_config
from fmplex_backend.extensions.weights import read_safetensors
from fmplex_backend.interface import FAMILY_OUTPUTS
from fmplex_backend.runtime.text_encoder import Extensions

FAMILY = "text-encoder"
PARTS = ("encoder", "adapter", "decoder")
RATES = {"IA3": 5e-3, "head": 1e-3}  # learning rates by what is fitted; LORA for all else
LORA_RATE = 1e-3
CURVE = "training.png"
PROBE = "is it there yet"
CLOSE = 0.02  # how near a served score comes to this process's, whatever the dtype

Which = Literal["both", "adapter", "decoder", "encoder"]


class Task:
    """What a client calls by name.

    Args:
        name: where it is served.
        backbone: the model it shares with others.
        adapter: LoRA, DoRA, IA3, Pretrained, or none.
        decoder: Classifier, MultiLabel, Regressor, TokenClassifier, Embedder, Similarity or Plugin.
        encoder: how texts become tokens.
        weight: its share of the backbone; slo_ms: the latency it asks for; max_queue: requests that may wait. None
            leaves what a saved task has.
    """

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        *,
        adapter: Adapter | None = None,
        decoder: Decoder,
        encoder: Text | None = None,
        weight: float | None = None,
        slo_ms: float | None = None,
        max_queue: int | None = None,
        description: str = "",
    ) -> None:
        self.name, self.backbone, self.description = name, backbone, description
        self.encoder = encoder or Text()
        self.adapter: Adapter | None = None
        self.decoder: Decoder = decoder
        self.terms = Terms(weight, slo_ms, max_queue)
        self.metrics: dict[str, float | int | str] = {}
        self.history: History | None = None
        self.evaluation: metrics.Evaluation | None = None
        self._adapter_state: AdapterState | None = None
        self._head: dict[str, Tensor] = {}
        self._loaded: Extensions | None = None
        self._source: Path | None = None  # the version it was loaded from, while nothing has changed
        if adapter is not None:
            self.attach("adapter", adapter)

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {self.backbone!r}, adapter={self.adapter!r}, decoder={self.decoder!r})"

    @property
    def has_head(self) -> bool:
        """Whether its decoder is fitted."""
        return bool(self._head)

    # -- its parts

    def attach(self, part: str, what: Any) -> Task:
        """Put in an encoder, adapter or decoder; what was fitted of the former one is gone."""
        if part == "encoder":
            self.encoder = what
        elif part == "adapter":
            self.adapter, self._adapter_state = what, None
            if isinstance(what, Pretrained):
                self._take_imported(import_adapter(what, self.backbone))
        elif part == "decoder":
            self.decoder, self._head = what, {}
        else:
            raise TaskProblem(f"a task has no part {part!r}. Its parts are {', '.join(PARTS)}")
        self._changed()
        return self

    def detach(self, part: str) -> Task:
        """Take the adapter out, or put the plain encoder back."""
        if part == "decoder":
            raise TaskProblem("a task needs a decoder. Attach another one, e.g. Embedder()")
        return self.attach(part, Text() if part == "encoder" else None)

    def _take_imported(self, imported: Imported) -> None:
        self._adapter_state = imported.adapter
        if imported.head and isinstance(self.decoder, Classifier) and self.decoder.kind == "classification":
            last = max(imported.head, key=lambda name: (name.endswith("weight"), name))
            outputs, width = imported.head[last].shape[0], imported.head[last].shape[1]
            if self.decoder.labels and len(self.decoder.labels) != outputs:
                raise TaskProblem(
                    f"the adapter's score head has {outputs} outputs, {len(self.decoder.labels)} labels are given. "
                    "Give its labels in its order"
                )
            names = self.decoder.labels or [f"LABEL_{number}" for number in range(outputs)]
            hidden = (width,) if len(imported.head) > 2 else ()
            self.decoder = replace(
                self.decoder, labels=names, hidden=hidden, activation=imported.activation, pooling=imported.pooling
            )
            self._head = imported.head

    def _changed(self) -> None:
        self._source = None
        if self._loaded is not None:
            self.backbone.detach(self._loaded)
            self._loaded = None

    # -- fitting

    def fit(
        self,
        rows: Any,
        labels: Any = None,
        *,
        validation: Any = None,
        parts: Which = "both",
        class_weights: str | Mapping[str, float] | None = None,
        text: str = "text",
        label: str = "label",
        checkpoint: str | Path | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> History:
        """Fit the adapter and the decoder; the backbone's weights stay as they are.

        Args:
            rows: texts (with `labels`), pairs, a table or a file (see fmplex.data).
            validation: a part of the rows, or rows of their own as a pair (texts, labels), a table or a file; the
                weights of the epoch that does best on them are kept.
            parts: what is fitted.
            class_weights: "balanced", or a weight by label.
            text, label: names of columns.
            checkpoint: a folder to go on from where a killed fitting was.
            settings: see fmplex.training.Settings.
        """
        found = data.rows_of(rows, labels, text=text, label=label)
        chosen = _settings(settings)
        self._check_fittable(parts)
        self._learn_labels(found)
        examples = self._examples(found)
        training, held = self._split(found, examples, validation, chosen, text, label)
        if isinstance(self.decoder, Similarity):
            return self._fit_similarity(training)
        fitting = self._fitting(parts, chosen, training, held, self._class_weights(class_weights, training), progress)
        if checkpoint is not None:
            fitting.checkpoint = Checkpoint(Path(checkpoint), self._digest(found, chosen, parts))
        self.history = fitting.run()
        self._keep(fitting)
        self.metrics = {"train_rows": len(training), "seed": chosen.seed} | self.history.notes()
        return self.history

    def _check_fittable(self, which: Which) -> None:
        if which not in ("both", "adapter", "decoder", "encoder"):
            raise TaskProblem(f"parts is {which!r}; it must be both, adapter, decoder or encoder")
        if which == "encoder":
            raise TaskProblem("a text encoder has no weights to fit. Fit the adapter, the decoder, or both")
        if which == "adapter" and self.adapter is None:
            raise TaskProblem("the task has no adapter to fit. Attach one: task.attach('adapter', LoRA(r=8))")
        if isinstance(self.decoder, Embedder):
            raise TaskProblem(
                "an embedding has nothing to fit to labels. Fit a Classifier or a Similarity, or save it as it is"
            )
        if which == "adapter" and not self._head:
            raise TaskProblem("the decoder is not fitted yet, and fits together with the adapter. Say parts='both'")

    def _learn_labels(self, rows: data.Rows) -> None:
        decoder = self.decoder
        if isinstance(decoder, (Classifier, TokenClassifier, Similarity)) and not decoder.labels:
            self.decoder = replace(decoder, labels=data.labels_in(decoder.kind, rows))

    def _examples(self, rows: data.Rows) -> Examples:
        if isinstance(self.decoder, Plugin):
            targets: list[Any] = list(rows.labels)
        else:
            outputs = self.decoder.outputs if isinstance(self.decoder, Regressor) else 1
            targets = data.targets(self.decoder.kind, self.decoder.labels, rows, outputs)
        encoded = self._encoded(rows)
        if rows.words and self.decoder.kind == "token-classification":
            targets = [
                [number if word >= 0 else data.IGNORED for number, word in zip(row, each.words, strict=True)]
                for row, each in zip(targets, encoded, strict=True)
            ]
            kept = [place for place, each in enumerate(encoded) if any(word >= 0 for word in each.words)]
            return Examples(encoded, targets).pick(kept)
        return Examples(encoded, targets)

    def _encoded(self, rows: data.Rows) -> list[Encoded]:
        tokenizer, section = self.backbone.runtime.tokenizer, self.encoder.section()
        by_word = self.decoder.kind == "token-classification"
        found = []
        for place, text in enumerate(rows.texts):
            windows = tokenizer.encode(text, section, spans=by_word)
            words = first_tokens(windows[0], rows.words[place]) if by_word else []
            found.append(Encoded(windows, words))
        return found

    def _split(
        self, rows: data.Rows, examples: Examples, validation: Any, settings: Settings, text: str, label: str
    ) -> tuple[Examples, Examples | None]:
        if validation is None:
            return examples, None
        if isinstance(validation, float):
            whole = len(examples) == len(rows) and self.decoder.kind in ("classification", "similarity")
            groups = [str(value) for value in rows.labels] if whole else [""] * len(examples)
            training, held = split(len(examples), validation, groups, settings.seed)
            return examples.pick(training), examples.pick(held)
        own = isinstance(validation, tuple) and len(validation) == 2
        other = data.rows_of(*validation) if own else data.rows_of(validation, text=text, label=label)
        return examples, self._examples(other)

    def _fitting(
        self,
        which: Which,
        settings: Settings,
        training: Examples,
        held: Examples | None,
        weights: Tensor | None,
        progress: bool,
    ) -> Fit:
        runtime, fitted = self.backbone.runtime, self._adapter_state
        model = None
        named: dict[str, Any] = {}
        if self.adapter is not None:
            model = fitted.around(self.backbone.for_training()) if fitted else self._fresh(settings)
            model.eval()
            for name, module in model.named_modules():
                module.train("lora_dropout" in name)
            if which != "decoder":
                named = {name: each for name, each in model.named_parameters() if each.requires_grad}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            head = heads.trainable(self.decoder, self.backbone.hidden, weights)
        if self._head and self._head_fits(head):
            heads.fill(head.module, self._head)
        head.module.to(runtime.device)
        fixed = model if model is not None and (fitted or which == "decoder") else self.backbone.for_training()
        pooling = WORDS if self.decoder.kind == "token-classification" else self._pooling(head)
        return Fit(
            Features(fixed, model or fixed, pooling, runtime.pad, runtime.device),
            head,
            named,
            train_head=which != "adapter",
            warm=not self._head,
            rate=settings.learning_rate or self._rate(named),
            settings=settings,
            training=training,
            validation=held,
            progress=Progress(self.name, shown=progress),
        )

    def _fresh(self, settings: Settings) -> Any:
        assert isinstance(self.adapter, (LoRA, IA3))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return fresh(self.adapter, self.backbone)

    def _head_fits(self, head: heads.Head | heads.PluginHead) -> bool:
        own = heads.tensors_of(head.module)
        return {name: each.shape for name, each in own.items()} == {n: each.shape for n, each in self._head.items()}

    def _pooling(self, head: heads.Head | heads.PluginHead) -> str:
        return head.module.pooling if isinstance(head, heads.PluginHead) else str(self.decoder.pooling)  # type: ignore[union-attr]

    def _rate(self, named: Mapping[str, Any]) -> float:
        if not named:
            return RATES["head"]
        return RATES["IA3"] if isinstance(self.adapter, IA3) else LORA_RATE

    def _class_weights(self, wanted: str | Mapping[str, float] | None, examples: Examples) -> Tensor | None:
        if wanted is None:
            return None
        labels = list(self.decoder.labels)
        if self.decoder.kind not in ("classification", "multi-label", "token-classification"):
            raise TaskProblem(f"class_weights do nothing for a {self.decoder.kind} decoder. Leave them out")
        if isinstance(wanted, str):
            if wanted != "balanced":
                raise TaskProblem(f"class_weights is {wanted!r}; it must be 'balanced' or a weight by label")
            return _balanced(self.decoder.kind, len(labels), examples)
        unknown = set(wanted) - set(labels)
        if unknown:
            raise TaskProblem(f"class_weights names {', '.join(sorted(unknown))}, the labels are {', '.join(labels)}")
        return torch.tensor([float(wanted.get(label, 1.0)) for label in labels])

    def _fit_similarity(self, training: Examples) -> History:
        assert isinstance(self.decoder, Similarity)
        missing = set(range(len(self.decoder.labels))) - set(training.targets)
        if missing:
            names = ", ".join(self.decoder.labels[number] for number in sorted(missing))
            raise TaskProblem(f"there is no text for the labels {names}. Give some, or leave the labels out")
        bare = self.backbone.for_training()
        model = self._adapter_state.around(bare).eval() if self._adapter_state else bare
        runtime = self.backbone.runtime
        features = Features(model, model, self.decoder.pooling, runtime.pad, runtime.device)
        vectors = features.fixed(training.encoded).cpu()
        self._head = heads.prototypes(vectors, training.targets, self.decoder.labels, self.decoder.per_label)
        self.history, self.metrics = History(), {"train_rows": len(training)}
        self._changed()
        return self.history

    def _keep(self, fitting: Fit) -> None:
        if self.adapter is not None:
            self._adapter_state = AdapterState.of(fitting.features.model)
        self._head = heads.tensors_of(fitting.head.module)
        self._changed()

    def _digest(self, rows: data.Rows, settings: Settings, which: str) -> str:
        pipeline = {"encoder": repr(self.encoder), "adapter": repr(self.adapter), "decoder": repr(self.decoder)}
        about = {
            "settings": asdict(settings),
            "parts": which,
            "backbone": self.backbone.runtime.fingerprint,
            **pipeline,
        }
        sha = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for text, label in zip(rows.texts, rows.labels, strict=True):
            sha.update(f"{text}\0{label}\0".encode())
        return sha.hexdigest()

    # -- trying

    def outputs(self, texts: Any) -> list[dict[str, Any]]:
        """The output tensors of each text, as the server would send them."""
        return [
            {("SCORES" if name == "TOKEN_SCORES" else name): value for name, value in each.items()}
            for each in self.backbone.outputs(self._extensions(), data.texts_of(texts))
        ]

    def predict(self, texts: Any) -> list[Result]:
        """What the task says to each text, computed in this process by the server's own code."""
        several = data.texts_of(texts)
        found = self.outputs(several)
        if not found:
            return []
        return [
            results(
                self.decoder.kind, self.decoder.labels, [text], {name: value[None] for name, value in each.items()}
            )[0]
            for text, each in zip(several, found, strict=True)
        ]

    def evaluate(
        self, rows: Any, labels: Any = None, *, text: str = "text", label: str = "label"
    ) -> metrics.Evaluation:
        """Figures on rows that were held out; they are stored with the task."""
        found = data.rows_of(rows, labels, text=text, label=label)
        if self.decoder.kind in ("embedding", "plugin"):
            raise TaskProblem(f"there are no figures for a {self.decoder.kind} decoder. Compare its outputs yourself")
        self.evaluation = metrics.evaluate(self.decoder.kind, self.decoder.labels, found, self.outputs(found.texts))
        self.metrics |= {"test_rows": len(found), **self.evaluation.figures}
        return self.evaluation

    def _extensions(self) -> Extensions:
        if self._loaded is None:
            with tempfile.TemporaryDirectory() as folder:
                if self._source is None:
                    self.write(Path(folder))
                self._loaded = self.backbone.load(self._source or Path(folder))
            self.backbone.attach(self._loaded)
        return self._loaded

    # -- keeping

    def config(self) -> TaskConfig:
        """Its task.json."""
        document: dict[str, Any] = {
            "family": FAMILY,
            "description": self.description,
            "backbone": {"model": self._model_name(), "fingerprint": self.backbone.runtime.fingerprint},
            "encoder": self.encoder.section(),
            "adapter": {"kind": "peft"} if self.adapter else None,
            "decoder": self.decoder.section(),
            "metrics": self.metrics,
        }
        return TaskConfig.model_validate(document)

    def _model_name(self) -> str:
        model = self.backbone.config.model
        return Path(model).name if Path(model).is_absolute() else model  # no path of this machine

    def write(self, path: Path) -> None:
        """The files of a version into a directory; raises TaskProblem where something is not fitted yet."""
        if self.adapter is not None and self._adapter_state is None:
            raise TaskProblem(f"the adapter of {self.name!r} is not fitted yet. Call fit first")
        if not self._head and self.decoder.kind not in ("embedding", "plugin"):
            raise TaskProblem(f"the decoder of {self.name!r} is not fitted yet. Call fit first")
        if self._adapter_state is not None:
            self._adapter_state.write(path / "adapter", self._model_name())
        if self._head:
            save_file(self._head, path / "decoder.safetensors")
        if self.history is not None and self.history.steps:
            draw(self.history, path / CURVE)
        write_config(path, self.config())

    def save(self, repository: str | Path | None = None) -> Path:
        """Into a model repository: a new task with a free tag, or the next version of the one that is there."""
        return self._save(repository).path

    def _save(self, repository: str | Path | None) -> Saved:
        extensions = self._extensions()  # what the server would refuse is refused here
        shown = {spec.name: spec.client_name for spec in FAMILY_OUTPUTS[FAMILY]}
        sizes = tuple((shown[name], size) for name, size in extensions.decoder.sizes().items())
        gives = extensions.decoder.gives if self.decoder.kind == "plugin" else ()
        pipeline = Pipeline(self.config(), sizes, gives, self.write)
        return ModelRepository(repository or self.backbone.repository).save(
            self.name, self.backbone.name, pipeline, self.terms
        )

    def deploy(
        self, server: str = "localhost:8001", repository: str | Path | None = None, *, timeout: float = 60.0
    ) -> Path:
        """Save into the repository that a server runs on, load, and wait until it answers with this version."""
        probe = self.outputs([PROBE])[0]
        saved = self._save(repository)
        with Client(server) as client:
            client.load(self.name)
            client.wait_for(self.name, lambda: _agree(client.outputs(self.name, [PROBE]), probe), timeout)
        return saved.path

    def rollback(self, repository: str | Path | None = None, *, server: str = "") -> int:
        """Serve the version before the one that is served; its number."""
        saved = ModelRepository(repository or self.backbone.repository).rollback(self.name)
        if server:
            with Client(server) as client:
                client.load(self.name)
        return saved.version

    @classmethod
    def load(cls, directory: str | Path, backbone: Backbone | None = None) -> Task:
        """A task's directory (the version that is served) or a version's, as it was saved."""
        path = Path(directory).resolve()
        name, terms = path.name, Terms()
        if not (path / "task.json").is_file():
            bound, spec = ModelRepository(path.parent).task(path.name)
            backbone = backbone or Backbone(bound, repository=path.parent)
            slo_ms = None if spec.slo is None else spec.slo * 1000
            path, terms = spec.version.path, Terms(spec.weight, slo_ms, spec.max_queue)
        elif path.name.isdigit():
            name = path.parent.name
        config = load_task_config(path / "task.json")
        if backbone is None:
            raise TaskProblem(f"say on which backbone {path} is: Task.load(DIR, Backbone(...))")
        return cls._of(name, backbone, config, path, terms)

    @classmethod
    def _of(cls, name: str, backbone: Backbone, config: TaskConfig, path: Path, terms: Terms) -> Task:
        file = getattr(config.decoder, "weights", "")
        head = read_safetensors(path / file) if file and (path / file).is_file() else {}
        layers = [each for key, each in sorted(head.items()) if key.endswith("weight") and each.dim() == 2]
        hidden = tuple(each.shape[0] for each in layers[:-1])
        outputs = layers[-1].shape[0] if layers else 1
        known = config.encoder.model_dump(exclude={"kind"})
        task = cls(
            name,
            backbone,
            decoder=decoder_of(config.decoder, outputs=outputs, hidden=hidden),
            encoder=Text(**known),
            weight=terms.weight,
            slo_ms=terms.slo_ms,
            max_queue=terms.max_queue,
            description=config.description,
        )
        task._head, task.metrics = head, dict(config.metrics)
        if config.adapter is not None:
            task._adapter_state = AdapterState.read(path / config.adapter.path)
            task.adapter = Pretrained(path / config.adapter.path)
        task._source = path
        return task


def _settings(given: Mapping[str, Any]) -> Settings:
    try:
        settings = Settings(**given)
    except TypeError:
        known = ", ".join(Settings.__dataclass_fields__)
        unknown = ", ".join(sorted(set(given) - set(Settings.__dataclass_fields__)))
        raise TaskProblem(f"fit knows no {unknown}. Its settings are {known}") from None
    settings.check()
    return settings


def _balanced(kind: str, labels: int, examples: Examples) -> Tensor:
    """Each label as heavy as any other in sum; of several labels, the weight of what is there against what is not."""
    if kind == "multi-label":
        flags = np.array(examples.targets)
        present = flags.sum(axis=0)
        return torch.tensor((len(flags) - present) / np.maximum(present, 1), dtype=torch.float32).clamp(1.0, 100.0)
    flat = np.array([n for each in examples.targets for n in (each if isinstance(each, list) else [each])])
    counts = np.bincount(flat[flat >= 0], minlength=labels)
    return torch.tensor(counts.sum() / (labels * np.maximum(counts, 1)), dtype=torch.float32)


def _agree(served: Sequence[Mapping[str, Any]], here: Mapping[str, Any]) -> bool:
    """Whether the server answers with this version's weights."""
    (there,) = served
    return all(
        name not in there
        or (there[name].shape == value.shape and bool(np.allclose(there[name], value, atol=CLOSE, rtol=CLOSE)))
        for name, value in here.items()
        if np.issubdtype(value.dtype, np.floating)
    )
