"""Measurements of FMplex: `python -m benchmarks`."""

import warnings

warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by deprecated names
