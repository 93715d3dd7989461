"""The encoder of time-series backbones: a section `encoder` of task.json, which the Task-API takes as it is."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fmplex_backend.families.spec import Input
from fmplex_backend.families.time_series.inputs import SERIES
from fmplex_backend.section import CHECKED


@dataclass(config=CHECKED, frozen=True)
class Window:
    """The backbone sees the last steps of a series.

    Args:
        steps: how many, at most; as many as the backbone takes by default.
        channels: what a series must have; by default any number, where the backbone takes that.
    """

    steps: Annotated[int | None, Field(ge=2)] = None
    channels: Annotated[int | None, Field(ge=1)] = None

    kind: Literal["window"] = field(default="window", kw_only=True, repr=False)
    learns: ClassVar[Literal["nothing", "optionally", "always"]] = "nothing"

    def reads(self) -> Input:
        return SERIES

    def size(self) -> int | None:
        return self.channels
