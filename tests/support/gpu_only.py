"""For tests of what only a GPU does."""

from __future__ import annotations

import pytest
import torch

DEVICE = "cuda:0"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
