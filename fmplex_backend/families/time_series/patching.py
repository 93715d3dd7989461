"""How a backbone cuts its context into patches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Patching(NamedTuple):
    """How the backbone cuts its context, in steps."""

    patch: int
    stride: int
    extra: int  # tokens before those of patches
    tokens: int  # all of a channel

    def starts(self, context: int) -> list[int]:
        """Of the patches."""
        count = (context - self.patch) // self.stride + 1
        return [context - self.patch - self.stride * place for place in reversed(range(count))]


def whole_patches(observed: npt.NDArray[np.bool_], patch: int, stride: int) -> npt.NDArray[np.bool_]:
    """Which patches lack no value, counted from the last step: [steps, channels] -> [patches, channels]."""
    if len(observed) < patch:
        return np.zeros((0, observed.shape[1]), dtype=np.bool_)
    cut = np.lib.stride_tricks.sliding_window_view(observed, patch, axis=0)
    found: npt.NDArray[np.bool_] = cut[(len(observed) - patch) % stride :: stride].all(axis=-1)
    return found
