"""How far an answer may be from what is expected of it: a matter of the device and the dtype of the backbone.

References are computed in float32 on the CPU. The same in float32 differs because sums are taken in another order, on a
GPU by about twice as much (torch leaves TF32 off for matrix products; with it the difference would be 1e-3).
bfloat16 rounds to 8 bits at every step, which adds up over a model's layers: on random weights of MiniLM's shape to a
hundredth of the largest score, and to a twentieth of the largest number of a regression. Labels then need not be those
of the reference where two scores lie closer than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from testing import device
from testing.clients import Outputs


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What is allowed of each number."""

    answers: float  # against the reference
    again: float  # between two computations of the same version on the same device, in other batches
    relative: float = 0.0  # against the reference, times the largest number of a row
    labels_may_differ: bool = False  # where the reference's scores are close

    def of(self, want: npt.NDArray[Any]) -> float:
        """For one row of a tensor, against the reference."""
        return self.answers + self.relative * float(np.abs(want).max(initial=0.0))

    def settles(self, expected: Outputs) -> bool:
        """Whether a row's LABEL follows from scores that are right within the tolerance."""
        if not self.labels_may_differ:
            return True
        scores, labels = expected["SCORES"], expected["LABEL"]
        if labels.shape != scores.shape[:-1] and labels.shape != (1,):  # several labels, in the order of their scores
            return False
        two = np.sort(scores, axis=-1)[..., -2:]
        return bool((two[..., 1] - two[..., 0] > 2 * self.of(scores)).all())


FLOAT32_CPU = Tolerance(answers=1e-4, again=1e-5)
FLOAT32_GPU = Tolerance(answers=1e-4, again=2e-4, relative=2e-4)
BFLOAT16 = Tolerance(answers=0.01, again=0.05, relative=0.1, labels_may_differ=True)


def tolerance() -> Tolerance:
    """Of the backbones that tests write."""
    if device.dtype() in ("bfloat16", "float16"):
        return BFLOAT16
    return FLOAT32_GPU if device.instance_kind() == "KIND_GPU" else FLOAT32_CPU
