"""A task: encoder, adapter and decoder on a backbone, fitted, tried, saved and served as one object."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fmplex.client.results import result
from fmplex.client.sync import Client
from fmplex.data.rows import Columns, items_of, rows_for
from fmplex.task.adapters import AdapterState, Imported, import_adapter
from fmplex.task.backbone import BATCH, Backbone
from fmplex.task.destination import check_destination, tag_holders
from fmplex.task.serving import load_and_wait, not_served
from fmplex.training.checks import check_rows
from fmplex.training.curve import draw
from fmplex.training.examples import PORTION
from fmplex.training.options import FitOptions
from fmplex.training.prepare import TaskParts, check_fittable, prepare
from fmplex.training.progress import Progress, Wanted, told
from fmplex.training.sequences import mean_loss
from fmplex.training.state import History
from fmplex.training.trained import TrainedWeights, Training
from fmplex_backend.adapters.kinds import Adapter, PeftAdapter, Pretrained
from fmplex_backend.confinement import Confinement
from fmplex_backend.decoders import Classifier, Decoder
from fmplex_backend.decoders.confidence import CONFIDENCE_WEIGHTS
from fmplex_backend.decoders.decoder import WEIGHTS
from fmplex_backend.decoders.figures import Evaluation
from fmplex_backend.decoders.results import Result
from fmplex_backend.decoders.rows import Rows, is_ignored
from fmplex_backend.errors import ServerProblem, TaskProblem
from fmplex_backend.repository.config import TaskConfig, config_of, load_task_config
from fmplex_backend.repository.configs import Terms
from fmplex_backend.repository.terms import TERMS
from fmplex_backend.repository.writer import ModelRepository, Pipeline, write_config
from fmplex_backend.types import Extensions
from fmplex_backend.weights import read_safetensors

PARTS = ("encoder", "adapter", "decoder")
CURVE = "training.png"


class Task:
    """What a client calls by name: a backbone with an encoder, an adapter and a decoder.

    Args:
        name: that of its directory in the model repository, which clients call.
        backbone: the model that it shares with other tasks.
        adapter: LoRA, DoRA, IA3, Pretrained, or none.
        decoder: Classifier, MultiLabel, Regressor, TokenClassifier, Embedder, Similarity or Plugin; of pictures also
            SegmentationMap or DepthMap; of series Forecaster, OwnForecaster, AnomalyDetector or Imputer; of language
            models Generator.
        encoder: of texts Text (how they become tokens), Projection (of rows of numbers) or PluginEncoder; of pictures
            ImageFile or ImageArray; of series Window.
        weight: of its fair share of the backbone. slo_ms: its latency objective. max_queue: requests that may wait.
            max_queue_bytes: bytes that they may take until they are answered. max_seconds: from a request's arrival to
            its last reply. max_running and max_kv_share (language models): sequences that run at a time, and the part
            of the memory for keys and values that they may have. cache: keep its answers, for requests that are equal
            in every byte. None keeps what a saved task has.
    """

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        *,
        adapter: Adapter | None = None,
        decoder: Decoder,
        encoder: Any = None,
        weight: float | None = None,
        slo_ms: float | None = None,
        max_queue: int | None = None,
        max_queue_bytes: int | None = None,
        max_seconds: float | None = None,
        max_running: int | None = None,
        max_kv_share: float | None = None,
        cache: bool | None = None,
        description: str = "",
    ) -> None:
        self.name, self.backbone, self.description = name, backbone, description
        self.encoder: Any = encoder or self._default_encoder()
        self.adapter: Adapter | None = None
        self.decoder: Decoder = decoder
        self.terms = Terms(
            weight, slo_ms, max_queue, max_queue_bytes, max_seconds, max_running, max_kv_share, cache=cache
        )
        self.terms.check()
        self.metrics: dict[str, float | int | str] = {}
        self.history: History | None = None
        self.evaluation: Evaluation | None = None
        self.remarks: list[str] = []  # what is odd about its rows, or about the adapter it was made from
        self.fitted = TrainedWeights(head=decoder.brought())
        self._loaded: Extensions | None = None
        self._source: Path | None = None  # the version it was loaded from, until a part changes
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
        """Put in an encoder, adapter or decoder; the fitted weights of the former one are dropped."""
        if part == "encoder":
            self.encoder, self.fitted = what, replace(self.fitted, encoder={})
        elif part == "adapter":
            self.adapter, self.fitted = what, replace(self.fitted, adapter=None)
            if isinstance(what, Pretrained):
                self._take_imported(import_adapter(what, self.backbone))
        elif part == "decoder":
            self.decoder, self.fitted = what, replace(self.fitted, head=what.brought(), confidence={})
        else:
            raise TaskProblem(f"a task has no part {part!r}. Its parts are {', '.join(PARTS)}")
        self._changed()
        return self

    def detach(self, part: str) -> Task:
        """Take the adapter out, or put the family's default encoder back."""
        if part == "decoder":
            raise TaskProblem("a task needs a decoder. Attach another one, e.g. Embedder()")
        return self.attach(part, self._default_encoder() if part == "encoder" else None)

    def _default_encoder(self) -> Any:
        return self.backbone.family.encoders[0]()

    def _take_imported(self, imported: Imported) -> None:
        self.fitted = replace(self.fitted, adapter=imported.adapter)
        if imported.head is None:
            return
        carried: Any = imported.head.decoder
        outputs = len(carried.labels)
        if not isinstance(self.decoder, Classifier):
            self.remarks.append(
                f"the adapter's score head ({outputs} outputs) is left out, for want of labels. To serve it, give them "
                "in its order: Classifier([...]), or --labels a,b,..."
            )
            return
        if self.decoder.labels and len(self.decoder.labels) != outputs:
            raise TaskProblem(
                f"the adapter's score head has {outputs} outputs, {len(self.decoder.labels)} labels are given. "
                "Give its labels in its order"
            )
        self.decoder = replace(
            self.decoder,
            labels=self.decoder.labels or carried.labels,
            hidden=carried.hidden,
            activation=carried.activation,
            pooling=carried.pooling,
        )
        self.fitted = replace(self.fitted, head=dict(imported.head.tensors))

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
        test: Any = None,
        text: Columns = None,
        label: str = "",
        checkpoint: str | Path | None = None,
        **options: Any,
    ) -> History:
        """Fit the adapter and the decoder; the backbone's weights stay as they are.

        Args:
            rows: texts, pictures or series (with `labels`), pairs, a table, a file or a folder (see fmplex.data.rows);
                for a decoder that forecasts, series without labels; for language models also conversations, lists of
                messages that end with the assistant's.
            validation: a fraction of the rows, or rows of their own as a pair (texts, labels), a table or a file; the
                weights of the epoch that does best on them are kept. None holds nothing out, but for a decoder that
                needs it (an AnomalyDetector: the last fifth).
            test: rows to evaluate on at the end, in the same forms; they are checked before the first step.
            text, label: names of columns, "text" (of pictures "image") and "label" by default, of language models
                "prompt" and "completion"; for an encoder that takes numbers, `text` names the numbers' (every column
                but the label's by default).
            checkpoint: a directory for checkpoints; an interrupted fitting resumes from it.
            options: see fmplex.training.options.FitOptions.
        """
        folder = None if checkpoint is None else Path(checkpoint)
        checked = FitOptions.of({**options, "checkpoint": folder})
        with told(checked.progress, self.name) as progress:
            progress.phase("reading the rows")
            found = self.rows(rows, labels, text=text, label=label)
            validation = self.decoder.holds_out if validation is None else validation
            if not (validation is None or isinstance(validation, float)):
                validation = self._held_out(validation, text, label)
            tested = None if test is None else self._held_out(test, text, label)
            parts = TaskParts(self.name, self.backbone, self.encoder, self.adapter, self.decoder, self.fitted)
            check_fittable(parts, checked)
            held = validation if isinstance(validation, Rows) else None
            self.remarks = check_rows(self.decoder, found, held, tested)
            training = prepare(parts, found, validation, checked, progress)
            if tested is not None and training.decoder.learns == "sequences":  # what is wrong is said before the steps
                self.backbone.sequence_inputs(self.encoder, training.decoder).examples(tested)
            self._train(training, tested, progress)
        return training.history

    def _train(self, training: Training, tested: Rows | None, progress: Progress) -> None:
        times = 1 + training.compares + (self.decoder.learns == "sequences")
        compared = 0 if tested is None else len(tested) * times
        progress.expect(training.work + compared)
        self.fitted = training.run()
        self.decoder, self.history, self.metrics = training.decoder, training.history, training.notes()
        self._changed()
        if tested is None:
            return
        progress.phase("test")
        self._evaluate(tested, progress)
        if training.alone and not self.decoder.plain.fits_confidence:
            progress.phase("test of the head alone")
            alone = Task(self.name, self.backbone, decoder=self.decoder.plain, encoder=self.encoder)
            alone.fitted = TrainedWeights(head=training.alone)
            wanted = self.decoder.targets(tested)
            known = tested.pick([place for place, target in enumerate(wanted) if not is_ignored(target)])
            found = alone._evaluate(known, progress)
            progress.skip(len(tested) - len(known))
            alone._changed()
            self.metrics |= {f"head_only_{name}": value for name, value in found.figures.items()}

    def rows(self, rows: Any, labels: Any = None, *, text: Columns = None, label: str = "") -> Rows:
        """Labelled rows in any form that `fit` takes, read once: `fit` and `evaluate` take them as they are.

        A decoder that forecasts makes them of series without labels.
        """
        return rows_for(self.decoder, rows, labels, self.encoder.reads(), columns=text, label=label)

    def _held_out(self, given: Any, text: Columns, label: str) -> Rows:
        own = isinstance(given, tuple) and len(given) == 2
        rows, labels = given if own else (given, None)
        return self.rows(rows, labels, text=text, label=label)

    # -- predicting and evaluating

    def outputs(self, rows: Any, *, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The output tensors of each text (or row of numbers), as the server would send them; of the whole reply.

        `parameters` are those of a request, as of `Client.predict`.
        """
        return self._outputs(items_of(rows, self.encoder.reads()), parameters)

    def _outputs(
        self, items: list[Any], parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        shown = {spec.name: spec.client_name for spec in self.backbone.family.outputs}
        replies = self.backbone.replies(self._extensions(), items, parameters)
        return [
            dict(self.decoder.joined([{shown[name]: value for name, value in part.items()} for part in parts]))
            for parts in replies
        ]

    def predict(self, rows: Any, *, parameters: Mapping[str, Any] | None = None) -> list[Result]:
        """The result for each text (or row of numbers), computed in this process by the server's own code.

        `parameters` are those of a request, as of `Client.predict`.
        """
        items = items_of(rows, self.encoder.reads())
        kind, labels = self.decoder.kind, self.decoder.label_names
        return [result(kind, labels, *each) for each in zip(items, self._outputs(items, parameters), strict=True)]

    def evaluate(
        self, rows: Any, labels: Any = None, *, text: Columns = None, label: str = "", progress: Wanted = False
    ) -> Evaluation:
        """Figures on rows that were held out; they are stored with the task. Arguments are those of `fit`."""
        found = self.rows(rows, labels, text=text, label=label)
        self.decoder.check_labels(found)
        with told(progress, self.name) as shown:
            shown.phase("evaluation")
            shown.expect(len(found) * (1 + (self.decoder.learns == "sequences")))
            return self._evaluate(found, shown)

    def _evaluate(self, found: Rows, progress: Progress) -> Evaluation:
        if not self.decoder.has_figures:
            raise TaskProblem(f"a {self.decoder.kind} decoder cannot be evaluated. Compare its outputs yourself")
        if self.decoder.learns == "sequences":
            self.evaluation = self._evaluate_sequences(found, progress)
        else:
            self.evaluation = self.decoder.figures(found, self._outputs_in_portions(found, progress))
        self.metrics |= {"test_rows": len(found), **self.evaluation.figures}
        return self.evaluation

    def _outputs_in_portions(
        self, found: Rows, progress: Progress, parameters: Sequence[Mapping[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        outputs, portion = [], PORTION if self.backbone.family.batched else BATCH
        for start in range(0, len(found), portion):
            own = None if parameters is None else parameters[start : start + portion]
            outputs += self._outputs(found.items[start : start + portion], own)
            progress.advance(min(portion, len(found) - start))
        return outputs

    def _evaluate_sequences(self, found: Rows, progress: Progress) -> Evaluation:
        """The figures that follow from the loss, and those of the answers to rows that can be asked."""
        inputs = self.backbone.sequence_inputs(self.encoder, self.decoder)
        examples, bare = inputs.examples(found), self.backbone.for_training()
        model = self.fitted.adapter.around(bare).eval() if self.fitted.adapter else bare
        figures = self.decoder.figures_of_loss(mean_loss(inputs.losses(model, 0), examples, progress))
        compared = inputs.compared(found)
        if asked := found.pick(compared):
            wishes = inputs.compared_by([examples[place] for place in compared])
            outputs = self._outputs_in_portions(asked, progress, wishes)
            figures |= self.decoder.figures(asked, outputs).figures
        return Evaluation(figures, len(found))

    def check(self) -> None:
        """Load it and run it once, as a server does; raises TaskRefused or TaskProblem where that fails."""
        if self._source is None:
            self._probed()
            return
        size = sum(file.stat().st_size for file in self._source.rglob("*") if file.is_file())
        confinement = Confinement.of(os.environ, self.backbone.config.max_version_bytes)
        with confinement.around(self._source, size):
            self._probed()

    def _probed(self) -> tuple[list[Any], dict[str, Any]]:
        """A valid input, and the task's output tensors for it."""
        asked = [self.encoder.reads().probe(self.encoder.size())]
        return asked, self.outputs(asked, parameters=self.backbone.family.probe_parameters)[0]

    def _extensions(self) -> Extensions:
        if self._loaded is None:
            with tempfile.TemporaryDirectory() as folder:
                if self._source is None:
                    self.write(Path(folder))
                self._loaded = self.backbone.load(self._source or Path(folder))
            self.backbone.attach(self._loaded)
        return self._loaded

    # -- saving and serving

    def config(self) -> TaskConfig:
        """Its task.json."""
        family = self.backbone.config.family
        document: dict[str, Any] = {
            "family": family,
            "description": self.description,
            "backbone": {"model": self._model_name(), "fingerprint": self.backbone.runtime.fingerprint},
            "encoder": self.encoder,
            "adapter": PeftAdapter() if self.adapter else None,
            "decoder": self.decoder,
            "metrics": self.metrics,
        }
        return config_of(family).model_validate(document)

    def _model_name(self) -> str:
        model = self.backbone.config.model
        if (self.backbone.file.parent / model).is_dir() and not Path(model).is_absolute():
            return self.backbone.name  # a path from the backbone's directory
        # a path of this machine means nothing on another
        return Path(model).name if Path(model).is_absolute() else model

    def write(self, path: Path) -> None:
        """Write the files of a version into a directory; raises TaskProblem where something is not fitted yet."""
        if self.adapter is not None and self.fitted.adapter is None:
            raise TaskProblem(f"the adapter of {self.name!r} is not fitted yet. Call fit first")
        if not self.fitted.head and self.decoder.needs_weights:
            raise TaskProblem(f"the decoder of {self.name!r} is not fitted yet. Call fit first")
        if self.encoder.learns == "always" and not self.fitted.encoder:
            raise TaskProblem(f"the encoder of {self.name!r} is not fitted yet. Call fit first")
        if self.fitted.adapter is not None:
            self.fitted.adapter.write(path / "adapter", self._model_name())
        if self.fitted.head:
            save_file(self.fitted.head, path / str(getattr(self.decoder, "weights", WEIGHTS)))
        if self.fitted.confidence:
            save_file(self.fitted.confidence, path / CONFIDENCE_WEIGHTS)
        if self.fitted.encoder:
            save_file(self.fitted.encoder, path / self.encoder.weights)
        if self.history is not None and self.history.steps:
            draw(self.history, path / CURVE)
        write_config(path, self.config())

    def save(
        self,
        repository: str | Path | None = None,
        *,
        held: bool = False,
        server: str = "",
        control_key: str | None = None,
    ) -> Path:
        """Save as a new task with a free tag, or as the next version of a task that exists; returns its directory.

        Args:
            held: whether the version that serves goes on, until this one is tried or promoted; see docs/canary.md.
            server: that runs on the repository: asked which task has a tag that entries of several have. Without one
                it is the one whose files are the oldest.
            control_key: the server's, as of `Client`.
        """
        extensions = self._extensions()  # what the server would refuse is refused here
        pipeline = Pipeline(self.config(), extensions.takes, self.encoder.size(), extensions.outputs, self.write)
        holders = tag_holders(server, self.backbone.name, control_key)
        models = ModelRepository(repository or self.backbone.repository)
        return models.save(self.name, self.backbone.name, pipeline, self.terms, held=held, holders=holders).path

    def deploy(
        self,
        server: str = "localhost:8001",
        repository: str | Path | None = None,
        *,
        timeout: float = 60.0,
        control_key: str | None = None,
    ) -> Path:
        """Save into the repository that a server runs on, load, and wait until it answers with this version.

        Place and server are checked first. Raises ServerProblem, which says where the task is saved, where the server
        does not take it. `control_key` is the server's, as of `Client`.
        """
        place = repository or self.backbone.repository
        check_destination(self.name, self.backbone.name, place, self.terms, server, control_key=control_key)
        path = self.save(repository, server=server, control_key=control_key)
        try:
            self.serve(server, timeout=timeout, control_key=control_key)
        except ServerProblem as error:
            raise not_served(error, self.name, server, path) from error
        return path

    def serve(self, server: str = "localhost:8001", *, timeout: float = 60.0, control_key: str | None = None) -> None:
        """Load what is saved on a server that runs on its repository; wait until that answers with these weights."""
        asked, answer = self._probed()
        if telling := [spec.client_name for spec in self.decoder.telling]:
            answer = {name: answer[name] for name in telling}
        parameters = self.backbone.family.probe_parameters
        load_and_wait(server, self.name, asked, answer, timeout, control_key, parameters)

    def rollback(
        self,
        repository: str | Path | None = None,
        *,
        to: int | None = None,
        server: str = "",
        control_key: str | None = None,
    ) -> int:
        """Serve the version before the one that is served, or the version `to`; returns its number.

        `control_key` is the server's.
        """
        saved = ModelRepository(repository or self.backbone.repository).rollback(self.name, to)
        if server:
            with Client(server, control_key=control_key) as client:
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
            values = {name: getattr(spec, name) for name in TERMS}
            path, terms = spec.version.path, Terms(**values, cache=spec.cache or None)
        elif path.name.isdigit():
            name = path.parent.name
        config = load_task_config(path / "task.json")
        if backbone is None:
            raise TaskProblem(f"{path} does not name its backbone. Give it: Task.load(DIR, Backbone(...))")
        return cls._of(name, backbone, config, path, terms)

    @classmethod
    def _of(cls, name: str, backbone: Backbone, config: TaskConfig, path: Path, terms: Terms) -> Task:
        head, encoder = _tensors(path, config.decoder), _tensors(path, config.encoder)
        task = cls(
            name,
            backbone,
            decoder=config.decoder.as_saved(head),
            encoder=config.encoder,
            description=config.description,
            **terms.given(),
        )
        sure = read_safetensors(path / CONFIDENCE_WEIGHTS) if config.decoder.fits_confidence else {}
        task.fitted, task.metrics = TrainedWeights(None, head, encoder, sure), dict(config.metrics)
        if config.adapter is not None:
            task.fitted = replace(task.fitted, adapter=AdapterState.read(path / config.adapter.path))
            task.adapter = Pretrained(path / config.adapter.path)
        task._source = path
        return task


def _tensors(path: Path, section: Any) -> dict[str, Any]:
    """The tensors of a section's weights file; empty where it has none."""
    file = path / getattr(section, "weights", "")
    return read_safetensors(file) if file.is_file() else {}
