"""Which requests run next. Standard library only; time is passed in."""

from fmplex_backend.scheduling.bfq import Bfq
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.fifo import Fifo
from fmplex_backend.scheduling.locality import Locality
from fmplex_backend.scheduling.scheduler import Scheduler
from fmplex_backend.scheduling.stfq import Stfq

POLICIES: dict[str, type[Scheduler]] = {"bfq": Bfq, "stfq": Stfq, "fifo": Fifo}

__all__ = ["POLICIES", "Bfq", "CostModel", "Fifo", "Locality", "Scheduler", "Stfq"]
