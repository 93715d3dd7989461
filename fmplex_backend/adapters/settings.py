"""An adapter_config.json, read and checked: what PEFT would do by it, or why it cannot be served.

PEFT reads such a file into classes that take values of any type; here each field that the backbone goes by has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from peft import PeftConfig
from peft.utils import constants
from peft.utils.constants import DUMMY_TARGET_MODULES
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fmplex_backend.adapters import patterns
from fmplex_backend.errors import TaskRefused
from fmplex_backend.files import read_json, refused

SUPPORTED = "LoRA (with rsLoRA), DoRA and IA3"
# Initialisations that also rewrite the backbone's weights.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# PEFT's variants of LoRA that may be set: DoRA is applied here, VeLoRA only changes training.
ACCEPTED_VARIANTS = {"use_dora", "velora_config"}
MAX_SETTINGS = 1 << 20  # bytes
AGAIN = "Save the adapter again with PEFT"


def _not_zero(alpha: float) -> float:
    if not alpha:
        raise ValueError("an alpha of 0 switches the adapter off")
    return alpha


Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_not_zero)]
Names = str | list[str] | None


class Settings(BaseModel):
    """The fields that are gone by, with PEFT's defaults."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    peft_type: str
    r: Rank = 8
    lora_alpha: Alpha = 8.0
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    target_modules: Names = None
    exclude_modules: Names = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Names = None
    feedforward_modules: Names = None
    modules_to_save: list[str] | None = None


def read_settings(file: Path, model_type: str) -> Settings:
    """Read an adapter_config.json; raises TaskRefused.

    Args:
        model_type: of the backbone, for the modules that PEFT takes by default.
    """
    try:
        # Not by PEFT, which opens whatever has this name, and as ASCII where that is the locale's encoding.
        document = read_json(file, MAX_SETTINGS)
    except OSError as error:
        raise refused(file, error, missing="Put there what PeftModel.save_pretrained wrote") from None
    except ValueError as error:
        raise TaskRefused(file, "(whole file)", f"PEFT cannot read it: {error}", AGAIN) from None
    try:
        config: Any = PeftConfig.from_peft_type(**document)  # type: ignore[no-untyped-call]
        kind = str(getattr(config.peft_type, "value", config.peft_type))
    except Exception as error:  # PEFT raises whatever its classes raise
        problem = f"PEFT cannot read it: {type(error).__name__}: {error}"
        raise TaskRefused(file, "(whole file)", problem, AGAIN) from None
    if kind not in ("LORA", "IA3"):  # not by class: AdaLoraConfig is a LoraConfig
        raise TaskRefused(file, "peft_type", f"{kind} adapters are not supported", f"Supported: {SUPPORTED}")
    _refuse_options(file, config)
    _refuse_variants(file, config)
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"{first['msg'][0].lower()}{first['msg'][1:]} (got {str(first.get('input'))[:80]!r})"
        raise TaskRefused(file, str(first["loc"][0]), problem, AGAIN) from None
    return settings.model_copy(update=_defaults(file, settings, model_type))


def _defaults(file: Path, settings: Settings, model_type: str) -> dict[str, Sequence[str]]:
    """The modules that PEFT takes where the file names none; raises TaskRefused where it knows none either."""
    updates = {}
    wanted = {"target_modules": f"TRANSFORMERS_MODELS_TO_{settings.peft_type}_TARGET_MODULES_MAPPING"}
    if settings.peft_type == "IA3":
        wanted["feedforward_modules"] = "TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING"
    for field, mapping in wanted.items():
        if getattr(settings, field) is None:
            known: Any = getattr(constants, mapping)
            if model_type not in known:
                problem = f"it names none, and PEFT has none by default for a {model_type}"
                raise TaskRefused(file, field, problem, "Name the modules that were trained")
            updates[field] = known[model_type]
    return updates


def _refuse_options(file: Path, config: Any) -> None:
    init = str(getattr(config, "init_lora_weights", "")).lower()
    unsupported = {
        "bias": getattr(config, "bias", "none") != "none",
        "lora_bias": getattr(config, "lora_bias", False),
        "layer_replication": getattr(config, "layer_replication", None),
        "target_parameters": getattr(config, "target_parameters", None),
        "trainable_token_indices": getattr(config, "trainable_token_indices", None),
        "fan_in_fan_out": getattr(config, "fan_in_fan_out", False),
        "init_lora_weights": init.startswith(CHANGES_BASE),
    }
    for option, used in unsupported.items():
        if used:
            raise TaskRefused(
                file,
                option,
                f"{option}={str(getattr(config, option))[:200]!r} changes weights that the tasks share",
                "Train with it unset (an adapter from PiSSA, OLoRA, CorDA or LoftQ can be saved as plain "
                "LoRA: path_initial_model_for_weight_conversion)",
            )


def _refuse_variants(file: Path, config: Any) -> None:
    """Variants that compute something else from the same tensors, e.g. LoRA from an invocation token on."""
    names = {each.name for each in fields(config) if each.metadata.get("is_lora_variant")} - ACCEPTED_VARIANTS
    for option in sorted({*names, "use_qalora"}):
        if getattr(config, option, None):
            raise TaskRefused(
                file,
                option,
                f"{option} changes what is computed from LoRA's weights",
                f"Train with it unset. Supported: {SUPPORTED}",
            )


# -- which modules a file means


def targeted(file: Path, settings: Settings, names: Sequence[str]) -> set[str]:
    """The Linear modules among `names` that PEFT would put the adapter into; raises TaskRefused."""
    if settings.target_modules == DUMMY_TARGET_MODULES:  # modules_to_save alone
        return set()
    field = "exclude_modules"
    try:
        excluded = patterns.named(settings.exclude_modules, names)
        field, target = "target_modules", settings.target_modules
        if isinstance(target, str) and target.lower() == "all-linear":
            return set(names) - excluded
        found = patterns.named(target, names)
        field, layers = "layers_pattern", settings.layers_to_transform
        if not isinstance(target, str) and layers is not None and layers != []:
            whole = found & set(target or ())  # a module's full name is taken in whatever layer it lies
            found = whole | patterns.in_layers(layers, settings.layers_pattern, found)
    except patterns.BadPattern as error:
        raise _bad_pattern(file, field, error) from None
    return found - excluded


def by_pattern(file: Path, field: str, values: dict[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
    """The values of a rank_pattern or an alpha_pattern, by the names of modules; raises TaskRefused."""
    if not values:
        return {}
    try:
        return {name: values[key] for name, key in patterns.with_pattern(list(values), names).items()}
    except patterns.BadPattern as error:
        raise _bad_pattern(file, field, error) from None


def feedforward(file: Path, settings: Settings, names: Sequence[str]) -> set[str]:
    """The modules whose input an IA3 adapter scales, not their output; raises TaskRefused."""
    try:
        return patterns.ending(settings.feedforward_modules, names)
    except patterns.BadPattern as error:
        raise _bad_pattern(file, "feedforward_modules", error) from None


def _bad_pattern(file: Path, field: str, error: patterns.BadPattern) -> TaskRefused:
    return TaskRefused(file, field, str(error), "Name the modules in a list, without patterns")
