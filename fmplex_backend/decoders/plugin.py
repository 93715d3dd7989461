"""A decoder of an installed package, by the name of its entry point in the group fmplex.decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders.agreement import Agreed, alike, equal
from fmplex_backend.decoders.decoder import Decoder, Encoded, LoadedDecoder, Outputs, Weighted
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskRefused
from fmplex_backend.interface import EMBEDDING, LABEL, SCORES
from fmplex_backend.plugins import Options, make_plugin, with_weights
from fmplex_backend.section import CHECKED

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.custom import CustomDecoder
    from fmplex_backend.decoders.trainable import TrainableHead

GROUP = "fmplex.decoders"


@dataclass(config=CHECKED, frozen=True)
class _Named(Decoder):
    name: str  # a base of its own, so that it is the first positional argument


@dataclass(config=CHECKED, frozen=True)
class Plugin(Weighted, _Named):
    """A decoder of an installed package: the entry point `name` in the group fmplex.decoders, made with `options`."""

    options: Options = field(default_factory=dict)

    kind: Literal["plugin"] = field(default="plugin", kw_only=True, repr=False)
    gives = (EMBEDDING, SCORES, LABEL)  # a package's decoder has some of these
    needs_weights = False  # a package's may have none
    has_figures = False

    @property
    def label_names(self) -> Sequence[str]:
        labels = self.options.get("labels", [])
        return labels if isinstance(labels, list) else []

    def make(self, hidden: int, file: Path | str = "the decoder") -> CustomDecoder:
        """The package's decoder with its initial weights; raises TaskRefused that names `file`."""
        from fmplex_backend.decoders.custom import CustomDecoder

        module = make_plugin(GROUP, CustomDecoder, self.name, self.options, file, hidden)
        known = [spec.name for spec in self.gives]
        if not set(module.gives) <= set(known) or not module.gives:
            raise TaskRefused(
                file,
                "decoder.name",
                f"{self.name!r} gives {list(module.gives)}, a decoder gives some of {', '.join(known)}",
                "Set `gives`",
            )
        return module

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        import torch

        make = partial(self.make, hidden, directory / "task.json")
        module = with_weights(make, directory / self.weights, "decoder").eval()

        def decode(encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
            with torch.inference_mode():
                return module.outputs(module(torch.from_numpy(encoded.vectors)))

        return LoadedDecoder(module.pooling, _sizes(module), decode)

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return _sizes(self.make(hidden or 1, directory / "task.json"))

    @classmethod
    def agreed(cls, one: Outputs, other: Outputs, tolerance: float) -> Agreed:
        """By labels where it gives them, else by the vectors, else by the scores."""
        if "LABEL" in one and "LABEL" in other:
            return equal(one["LABEL"], other["LABEL"])
        if "EMBEDDING" in one and "EMBEDDING" in other:
            return alike(one["EMBEDDING"], other["EMBEDDING"], tolerance)
        return super().agreed(one, other, tolerance)

    def targets(self, rows: Rows) -> list[Any]:
        """The labels as they were given: the package's decoder turns them into a tensor."""
        return list(rows.labels)

    def trainable(self, hidden: int, class_weights: Tensor | None = None) -> TrainableHead:
        from fmplex_backend.decoders.trainable import TrainableHead

        module = self.make(hidden)
        return TrainableHead(module, reads=module.pooling, loss=module.loss, stack=module.targets)


def _sizes(module: CustomDecoder) -> dict[str, int | None]:
    sizes: Mapping[str, int] = module.sizes()
    return {name: sizes.get(name) for name in module.gives}
