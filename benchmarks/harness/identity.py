"""A model that does nothing, for the load generator's ceiling: Triton's Python backend, one answer for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers every request of one text with the same scores and label."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer at once."""
        scores = pb_utils.Tensor("SCORES", np.zeros((1, 2), dtype=np.float32))
        label = pb_utils.Tensor("LABEL", np.array([[b"positive"]], dtype=np.object_))
        return [pb_utils.InferenceResponse([scores, label]) for _ in requests]
