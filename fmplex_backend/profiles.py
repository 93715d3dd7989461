"""How long batches take on a machine, measured: JSON files outside of any model repository.

Whatever changes in a backbone's directory reloads it, so that they lie in a folder of the user's cache. A backbone's
cost model starts from the profile of its model, dtype and hardware; planners read the same.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmplex_backend.errors import TaskProblem
from fmplex_backend.files import read_text
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.server_variables import PROFILES
from fmplex_backend.types import PassShape


class Point(BaseModel):
    """A batch of `rows` rows of `tokens` tokens each, and the seconds it took (the median of `times` measurements)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    rows: int = Field(ge=1)
    tokens: float = Field(gt=0)
    seconds: float = Field(gt=0, allow_inf_nan=False)
    times: int = 1


class Profile(BaseModel):
    """A model on a machine."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    dtype: str
    hardware: str  # as `fmplex_backend.hardware` names it
    family: str = ""
    max_batch: int = Field(default=32, ge=1)  # rows
    memory: int = Field(default=0, ge=0)  # bytes of the backbone's process; 0: not known
    day: str = ""
    fmplex: str = ""  # the version it was measured with
    points: tuple[Point, ...] = Field(min_length=1)

    def passes(self) -> Iterator[tuple[PassShape, float]]:
        """For `CostModel.seed`."""
        for point in self.points:
            yield PassShape(round(point.rows * point.tokens), round(point.tokens), 0), point.seconds

    def cost(self) -> CostModel:
        """The cost model fitted to it."""
        cost = CostModel()
        cost.seed(self.passes())
        return cost

    def errors(self) -> list[float]:
        """For each point, by which part the fit is above (or below, negative) what was measured."""
        cost = self.cost()
        return [cost.predict(shape) / seconds - 1 for shape, seconds in self.passes()]


def folder() -> Path:
    """Where profiles lie: FMPLEX_PROFILES, else fmplex/profiles in the user's cache."""
    if given := os.environ.get(PROFILES):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmplex" / "profiles"


def file_of(model: str, dtype: str, hardware: str) -> Path:
    """The file of a model's profile on a machine, whether it is there or not."""
    mark = hashlib.sha256("\n".join((model, dtype, hardware)).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "-", Path(model.removeprefix("package:")).name)[:60]
    return folder() / f"{name}-{dtype}-{mark}.json"


def read_profile(file: Path) -> Profile:
    """Read a profile; raises TaskProblem, which names the file and what is wrong."""
    try:
        return Profile.model_validate_json(read_text(file))
    except FileNotFoundError:
        raise TaskProblem(f"there is no profile {file}. Measure one: fmplex profile BACKBONE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskProblem(f"{file} cannot be read: {error}. Measure it anew: fmplex profile BACKBONE") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole file)"
        message = f"{file}: {field}: {first['msg']}. Measure it anew: fmplex profile BACKBONE"
        raise TaskProblem(message) from None


def find_profile(model: str, dtype: str, hardware: str) -> Profile | None:
    """The profile of a model on a machine, None where none was measured; raises TaskProblem where it cannot be read."""
    file = file_of(model, dtype, hardware)
    return read_profile(file) if file.exists() else None


def write_profile(file: Path, profile: Profile) -> None:
    """Write it at once as a whole; raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(profile.model_dump_json(indent=2) + "\n", encoding="utf-8")
    aside.replace(file)
