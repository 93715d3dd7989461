"""A task: encoder, adapter and decoder on a backbone, fitted, tried, saved and served as one object."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from fmplex import inputs, metrics
from fmplex.adapters import AdapterState, Imported, import_adapter
from fmplex.backbone import Backbone
from fmplex.client import Client
from fmplex.configs import Terms
from fmplex.curve import draw
from fmplex.errors import TaskProblem
from fmplex.fitting import Fitted, Fitting, How, Which, settings_of
from fmplex.parts import (
    Adapter,
    Classifier,
    Decoder,
    Encoder,
    Pretrained,
    Projection,
    Text,
    decoder_of,
    encoder_of,
)
from fmplex.repository import ModelRepository, Pipeline, Saved, write_config
from fmplex.results import Result, results
from fmplex.state import History
from fmplex_backend.config import TaskConfig, load_task_config
from fmplex_backend.extensions.weights import read_safetensors
from fmplex_backend.interface import FAMILY_OUTPUTS
from fmplex_backend.runtime.text_encoder import Extensions

FAMILY = "text-encoder"
PARTS = ("encoder", "adapter", "decoder")
CURVE = "training.png"
CLOSE = 0.02  # how near a served score comes to this process's, whatever the dtype


class Task:
    """What a client calls by name.

    Args:
        name: where it is served.
        backbone: the model it shares with others.
        adapter: LoRA, DoRA, IA3, Pretrained, or none.
        decoder: Classifier, MultiLabel, Regressor, TokenClassifier, Embedder, Similarity or Plugin.
        encoder: Text (how texts become tokens), Projection (of rows of numbers) or PluginEncoder.
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
        encoder: Encoder | None = None,
        weight: float | None = None,
        slo_ms: float | None = None,
        max_queue: int | None = None,
        description: str = "",
    ) -> None:
        self.name, self.backbone, self.description = name, backbone, description
        self.encoder: Encoder = encoder or Text()
        self.adapter: Adapter | None = None
        self.decoder: Decoder = decoder
        self.terms = Terms(weight, slo_ms, max_queue)
        self.metrics: dict[str, float | int | str] = {}
        self.history: History | None = None
        self.evaluation: metrics.Evaluation | None = None
        self.fitted = Fitted()
        self._loaded: Extensions | None = None
        self._source: Path | None = None  # the version it was loaded from, while nothing has changed
        if adapter is not None:
            self.attach("adapter", adapter)

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {self.backbone!r}, adapter={self.adapter!r}, decoder={self.decoder!r})"

    @property
    def has_head(self) -> bool:
        """Whether its decoder is fitted."""
        return bool(self.fitted.head)

    # -- its parts

    def attach(self, part: str, what: Any) -> Task:
        """Put in an encoder, adapter or decoder; what was fitted of the former one is gone."""
        if part == "encoder":
            self.encoder, self.fitted = what, replace(self.fitted, encoder={})
        elif part == "adapter":
            self.adapter, self.fitted = what, replace(self.fitted, adapter=None)
            if isinstance(what, Pretrained):
                self._take_imported(import_adapter(what, self.backbone))
        elif part == "decoder":
            self.decoder, self.fitted = what, replace(self.fitted, head={})
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
        self.fitted = replace(self.fitted, adapter=imported.adapter)
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
            self.fitted = replace(self.fitted, head=imported.head)

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
        text: inputs.Columns = "text",
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
            text, label: names of columns; text may be those of the numbers, for an encoder that takes numbers.
            checkpoint: a folder to go on from where a killed fitting was.
            settings: see fmplex.training.Settings.
        """
        found, checked = inputs.rows_of(self.encoder, rows, labels, text, label), settings_of(settings)
        fitting = Fitting(self.name, self.backbone, self.encoder, self.adapter, self.decoder, self.fitted, checked.seed)
        folder = None if checkpoint is None else Path(checkpoint)
        how = How(parts, class_weights, text, label, folder, progress)
        self.history = fitting.run(found, validation, checked, how)
        self.decoder, self.fitted, self.metrics = fitting.decoder, fitting.fitted, fitting.metrics
        self._changed()
        return self.history

    # -- trying

    def outputs(self, rows: Any) -> list[dict[str, Any]]:
        """The output tensors of each text (or row of numbers), as the server would send them."""
        return [
            {("SCORES" if name == "TOKEN_SCORES" else name): value for name, value in each.items()}
            for each in self.backbone.outputs(self._extensions(), inputs.values_of(self.encoder, rows))
        ]

    def predict(self, rows: Any) -> list[Result]:
        """What the task says to each text (or row of numbers), computed in this process by the server's own code."""
        several = inputs.values_of(self.encoder, rows)
        found = self.outputs(several)
        said: list[Result] = []
        for row, each in zip(several, found, strict=True):
            tensors = {name: value[None] for name, value in each.items()}
            said += results(self.decoder.kind, self.decoder.labels, [row], tensors)
        return said

    def evaluate(
        self, rows: Any, labels: Any = None, *, text: inputs.Columns = "text", label: str = "label"
    ) -> metrics.Evaluation:
        """Figures on rows that were held out; they are stored with the task."""
        found = inputs.rows_of(self.encoder, rows, labels, text, label)
        if self.decoder.kind in ("embedding", "plugin"):
            raise TaskProblem(f"there are no figures for a {self.decoder.kind} decoder. Compare its outputs yourself")
        self.evaluation = metrics.evaluate(self.decoder.kind, self.decoder.labels, found, self.outputs(found.texts))
        self.metrics |= {"test_rows": len(found), **self.evaluation.figures}
        return self.evaluation

    def check(self) -> None:
        """Load it and run it once, as a server does; raises what a server would refuse it for."""
        self._probed()

    def _probed(self) -> tuple[list[Any], dict[str, Any]]:
        """An input that it answers, and the answer."""
        asked = inputs.probe(self._extensions().encoder)
        return asked, self.outputs(asked)[0]

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
        if self.adapter is not None and self.fitted.adapter is None:
            raise TaskProblem(f"the adapter of {self.name!r} is not fitted yet. Call fit first")
        if not self.fitted.head and self.decoder.kind not in ("embedding", "plugin"):
            raise TaskProblem(f"the decoder of {self.name!r} is not fitted yet. Call fit first")
        if isinstance(self.encoder, Projection) and not self.fitted.encoder:
            raise TaskProblem(f"the encoder of {self.name!r} is not fitted yet. Call fit first")
        if self.fitted.adapter is not None:
            self.fitted.adapter.write(path / "adapter", self._model_name())
        if self.fitted.head:
            save_file(self.fitted.head, path / "decoder.safetensors")
        if self.fitted.encoder:
            save_file(self.fitted.encoder, path / "encoder.safetensors")
        if self.history is not None and self.history.steps:
            draw(self.history, path / CURVE)
        write_config(path, self.config())

    def save(self, repository: str | Path | None = None) -> Path:
        """Into a model repository: a new task with a free tag, or the next version of the one that is there."""
        return self._save(repository).path

    def _save(self, repository: str | Path | None) -> Saved:
        extensions = self._extensions()  # what the server would refuse is refused here
        shown = {spec.name: spec.client_name for spec in FAMILY_OUTPUTS[FAMILY]}
        sizes = {shown[name]: size for name, size in extensions.decoder.sizes().items()}
        if extensions.encoder.features is not None:
            sizes["FEATURES"] = extensions.encoder.features
        gives = extensions.decoder.gives if self.decoder.kind == "plugin" else ()
        pipeline = Pipeline(self.config(), tuple(sizes.items()), gives, self.write, extensions.takes)
        return ModelRepository(repository or self.backbone.repository).save(
            self.name, self.backbone.name, pipeline, self.terms
        )

    def deploy(
        self, server: str = "localhost:8001", repository: str | Path | None = None, *, timeout: float = 60.0
    ) -> Path:
        """Save into the repository that a server runs on, load, and wait until it answers with this version."""
        asked, answer = self._probed()
        saved = self._save(repository)
        with Client(server) as client:
            client.load(self.name)
            client.wait_for(self.name, lambda: _agree(client.outputs(self.name, asked), answer), timeout)
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
        task = cls(
            name,
            backbone,
            decoder=decoder_of(config.decoder, outputs=outputs, hidden=hidden),
            encoder=encoder_of(config.encoder),
            weight=terms.weight,
            slo_ms=terms.slo_ms,
            max_queue=terms.max_queue,
            description=config.description,
        )
        weights = path / getattr(config.encoder, "weights", "encoder.safetensors")
        encoder = read_safetensors(weights) if weights.is_file() else {}
        task.fitted, task.metrics = Fitted(None, head, encoder), dict(config.metrics)
        if config.adapter is not None:
            task.fitted = replace(task.fitted, adapter=AdapterState.read(path / config.adapter.path))
            task.adapter = Pretrained(path / config.adapter.path)
        task._source = path
        return task


def _agree(served: Sequence[Mapping[str, Any]], here: Mapping[str, Any]) -> bool:
    """Whether the server answers with this version's weights."""
    (there,) = served
    return all(
        name not in there
        or (there[name].shape == value.shape and bool(np.allclose(there[name], value, atol=CLOSE, rtol=CLOSE)))
        for name, value in here.items()
        if np.issubdtype(value.dtype, np.floating)
    )
