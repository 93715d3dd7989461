"""Where the backbones of tests run, as environment variables say: FMPLEX_TEST_KIND and FMPLEX_TEST_DTYPE."""

from __future__ import annotations

import os


def instance_kind() -> str:
    """The kind of the instance group: KIND_CPU, or what FMPLEX_TEST_KIND says."""
    return os.environ.get("FMPLEX_TEST_KIND") or "KIND_CPU"


def torch_device() -> str:
    """The same device as torch names it."""
    return "cuda:0" if instance_kind() == "KIND_GPU" else "cpu"


def dtype() -> str:
    """The dtype of backbones whose test names none: float32, in which answers are compared to 1e-4, by default."""
    return os.environ.get("FMPLEX_TEST_DTYPE") or "float32"
