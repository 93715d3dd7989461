"""The families of models that backbones serve: a folder each, and a line in FAMILIES. Imported when first used.

A family that an installed package brings has a line in that package's pyproject.toml, in the entry point group
fmplex.families, of the same form: name = "package.module:Class".
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmplex_backend.decoders import Decoder
    from fmplex_backend.families.spec import Family, Input

GROUP = "fmplex.families"
FAMILIES = {
    "causal-lm": "fmplex_backend.families.causal_lm.spec:CausalLms",
    "vision-encoder": "fmplex_backend.families.vision_encoder.spec:VisionEncoders",
    "time-series": "fmplex_backend.families.time_series.spec:TimeSeriesModels",
    "audio-encoder": "fmplex_backend.families.audio_encoder.spec:AudioEncoders",
    "text-encoder": "fmplex_backend.families.text_encoder.spec:TextEncoders",
}
DEFAULT = "text-encoder"  # of a backbone whose config names none


@cache  # looking through the installed packages takes tens of milliseconds
def specs() -> dict[str, str]:
    """Where the spec of each family is, as package.module:Class; a shipped family is no package's to replace."""
    return {point.name: point.value for point in entry_points(group=GROUP)} | FAMILIES


def names() -> list[str]:
    """Every family there is."""
    return sorted(specs())


@cache
def family(name: str) -> Family:
    """The family of that name, imported now; raises KeyError where there is none."""
    return EntryPoint(name, specs()[name], GROUP).load()()  # type: ignore[no-any-return]


def input_named(tensor: str) -> Input | None:
    """The input of that tensor name, of whichever family has it; None where none has."""
    every = (each for name in names() for each in family(name).inputs)
    return next((each for each in every if each.tensor.name == tensor), None)


def default_columns() -> list[str]:
    """Of every family's inputs the column of a table that is an item, where none is named."""
    every = (each.default_column for name in names() for each in family(name).inputs)
    return sorted({column for column in every if column})


@cache  # clients ask for every result
def decoders() -> dict[str, type[Decoder]]:
    """Every family's decoders by kind; a kind that several families have is one class."""
    return {kind_of(each): each for name in names() for each in family(name).decoders}


def decoder_giving(outputs: Collection[str]) -> type[Decoder] | None:
    """The first kind whose outputs are exactly these, for tasks whose entry does not name their kind."""
    for name in names():
        common = {spec.client_name for spec in family(name).common_outputs}
        for each in family(name).decoders:
            optional = {spec.client_name for spec in each.may_give}
            if {spec.client_name for spec in each.gives} == {*outputs} - common - optional:
                return each
    return None


def section_named(name: str) -> type[Any]:
    """The encoder or decoder whose class has that name, of a family that an installed package brings.

    Raises LookupError where none has, naming the families that cannot be imported and may have it.
    """
    broken = []
    for own in sorted(specs().keys() - FAMILIES.keys()):
        try:
            found = family(own)
        except Exception as error:  # whatever a package's import raises
            broken.append(f"{own} ({specs()[own]}: {type(error).__name__}: {error})")
            continue
        for each in (*found.encoders, *found.decoders):
            if each.__name__ == name:
                return each
    raise LookupError(f"no family has {name!r}" + "".join(f"; {each} cannot be imported" for each in broken))


def kind_of(section: type[Any]) -> str:
    """The kind that a section's class stands for in task.json."""
    return str(section.__dataclass_fields__["kind"].default)
