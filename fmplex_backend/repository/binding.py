"""Which backbone of a repository a task is for, where its entry does not say it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from fmplex_backend.errors import BackboneRefused, FmplexError, TaskRefused
from fmplex_backend.families import family
from fmplex_backend.families.spec import Family
from fmplex_backend.repository.config import TaskConfig, TrainedOn, load_backbone_config
from fmplex_backend.repository.configs import CONFIG, backbone_parameters, is_backbone
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.repository.tags import claimed

AUTO = "auto"  # in the place of a backbone's name: any that fits


# Of several backbones that fit, the one that a planner would take; None where it does not know better.
Prefer = Callable[[Sequence[str]], str | None]


def choose_backbone(
    root: Path, names: Iterable[str], file: Path, task: TaskConfig, prefer: Prefer | None = None
) -> str:
    """Of the backbones that have the model the task was trained for, the preferred one, or that with the fewest tasks.

    Raises TaskRefused, naming the task's `file`, where there is none.
    """
    known = list(names)
    family_of = {name: config for name, config in _backbones(root, known).items() if config.family == task.family}
    fitting = [name for name, config in family_of.items() if fits(task.backbone, config, root / name / CONFIG)]
    if fitting:
        preferred = prefer(fitting) if prefer is not None and len(fitting) > 1 else None
        if preferred in fitting:
            return preferred
        return min(fitting, key=lambda name: (len(claimed(root, known, name)), name))
    if not family_of:
        problem = f"{root} has no backbone of this family"
        raise TaskRefused(file, "family", problem, "Add one with `fmplex backbone add NAME MODEL`")
    assert task.backbone is not None, "a task of no particular model fits each"
    raise TaskRefused(
        file,
        "backbone.model",
        f"it was trained for {task.backbone.model!r}, which none of the backbones {', '.join(family_of)} is",
        f"Add it with `fmplex backbone add NAME {task.backbone.model}`, or name a backbone in the task's {CONFIG}",
    )


def _backbones(root: Path, names: Iterable[str]) -> Mapping[str, BackboneConfig]:
    """Those whose parameters can be read."""
    found = {}
    for name in names:
        if is_backbone(root, name):
            try:
                found[name] = load_backbone_config(root / name / CONFIG, backbone_parameters(root, name) or {})
            except BackboneRefused:
                continue
    return found


def fits(trained: TrainedOn | None, config: BackboneConfig, file: Path) -> bool:
    """Whether a backbone, whose config.pbtxt is `file`, has the model that a task was trained for."""
    if trained is None or trained.model == config.model:
        return True
    own = family(config.family).fingerprint(config, file) if trained.fingerprint else None
    return own is not None and own == trained.fingerprint


def same_model(spec: Family, configs: tuple[BackboneConfig, BackboneConfig], files: tuple[Path, Path]) -> bool:
    """Whether two backbones of a family, whose config.pbtxt are `files`, have the same model."""
    first, second = configs
    if first.model == second.model:
        return True
    own = spec.fingerprint(first, files[0])
    return own is not None and own == spec.fingerprint(second, files[1])


def model_key(root: Path, backbone: str) -> str:
    """The same for two backbones of which a task may be on either; raises BackboneRefused."""
    file = root / backbone / CONFIG
    config = load_backbone_config(file, backbone_parameters(root, backbone) or {})
    try:
        mark = family(config.family).fingerprint(config, file)
    except (FmplexError, OSError):  # its files are not on this machine
        mark = None
    return f"{config.family} {mark or config.model} {config.dtype}"
