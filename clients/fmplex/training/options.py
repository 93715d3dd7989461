"""The options of `Task.fit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from fmplex.training.progress import Wanted
from fmplex_backend.errors import TaskProblem

Parts = Literal["both", "adapter", "decoder", "encoder"]
PARTS = ("both", "adapter", "decoder", "encoder")
PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What `Task.fit` takes besides rows.

    Args:
        parts: which parts are fitted; "both" is all that have weights.
        class_weights: "balanced", or a weight by label.
        checkpoint: a directory for checkpoints; an interrupted fitting resumes from it.
        progress: False for silence; True to show a bar on a terminal, and elsewhere a line every ten seconds; or a
            function that is called with a Status.
        epochs: at most; early stopping may end it sooner.
        learning_rate: of adapter and head; the default of the adapter's kind where it is None.
        batch_size: rows of a step; the gradients of `accumulation` steps make one update.
        pack_tokens: of whole sequences (language models), how many tokens of a step's rows are computed together:
            memory grows with it, what is learned does not depend on it. 0: chosen for the device.
        warmup: fraction of the updates in which the learning rate rises; it then falls to 0.
        patience: epochs without a better validation loss after which it ends.
        precision: "auto" is bfloat16 on a GPU, float32 elsewhere.
    """

    parts: Parts = "both"
    class_weights: str | Mapping[str, float] | None = None
    checkpoint: Path | None = None
    progress: Wanted = False
    epochs: int = 3
    learning_rate: float | None = None
    batch_size: int = 32
    accumulation: int = 1
    pack_tokens: int = 0
    warmup: float = 0.1
    weight_decay: float = 0.01
    patience: int = 2
    seed: int = 0
    precision: str = "auto"

    @staticmethod
    def of(given: Mapping[str, Any]) -> FitOptions:
        """From keyword arguments; raises TaskProblem where one is unknown or out of range."""
        unknown = set(given) - {each.name for each in fields(FitOptions)}
        if unknown:
            known = ", ".join(each.name for each in fields(FitOptions))
            raise TaskProblem(f"fit has no option {', '.join(sorted(unknown))}. Its options are {known}")
        options = FitOptions(**given)
        options.check()
        return options

    def check(self) -> None:
        """Raise TaskProblem where one is out of range."""
        if self.parts not in PARTS:
            raise TaskProblem(f"parts is {self.parts!r}. Say both, adapter, decoder or encoder")
        for name in ("epochs", "batch_size", "accumulation", "patience"):
            if getattr(self, name) < 1:
                raise TaskProblem(f"{name} is {getattr(self, name)}. Give at least 1")
        if self.pack_tokens < 0:
            raise TaskProblem(f"pack_tokens is {self.pack_tokens}. Give 0, or a number of tokens such as 1024")
        if not 0 <= self.warmup < 1:
            raise TaskProblem(f"warmup is {self.warmup}. Give a fraction of the updates, from 0 to less than 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise TaskProblem(f"learning_rate is {self.learning_rate}. Give a number between 0 and 1, such as 0.001")
        if self.precision not in PRECISIONS:
            raise TaskProblem(f"precision is {self.precision!r}. Say auto, bfloat16 or float32")

    def shaping(self) -> dict[str, Any]:
        """The options that the trained weights depend on: a checkpoint is valid for the same ones only."""
        without = ("checkpoint", "progress", "pack_tokens")
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in without}
