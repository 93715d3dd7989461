"""GGUF files: dequantised once, kept as safetensors in the user's cache directory. Imports torch only when it converts."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from fmplex_backend.errors import BackboneRefused

SAMPLE = 1 << 20  # bytes of a file that tell it from others, with its size
WAIT_S = 600.0  # for another process that converts the same file


def gguf_file(model: str, file: Path) -> Path | None:
    """The one GGUF file that a `model` parameter names (itself, its directory or its package); None for other models.

    Raises BackboneRefused where there are several. A directory with a config.json is none of GGUF.
    """
    place = _place(model, file)
    if place is None or not place.exists() or (place / "config.json").exists():
        return None
    if place.suffix == ".gguf":
        return place
    found = sorted(place.rglob("*.gguf")) if place.is_dir() else []
    if len(found) > 1:
        names = ", ".join(each.name for each in found[:5])
        raise BackboneRefused(
            file, "parameters.model", f"{place} holds several GGUF files: {names}", "Name one of them"
        )
    return found[0] if found else None


def _place(model: str, file: Path) -> Path | None:
    if not model.startswith("package:"):
        return Path(model) if Path(model).is_absolute() else file.parent / model
    name = model.removeprefix("package:")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    return next((Path(each) for each in (spec.submodule_search_locations or () if spec else ())), None)


def cache_directory() -> Path:
    """Where converted models are kept: outside every repository."""
    root = os.environ.get("FMPLEX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fmplex")
    return Path(root).expanduser() / "models"


def converted(source: Path, file: Path) -> Path:
    """The directory of a GGUF file's model as transformers saves it, made now if it is not there yet.

    Raises BackboneRefused. It takes a minute once, and 4 bytes a weight of disk.
    """
    target = cache_directory() / f"{source.stem}-{_digest(source)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock", timeout=WAIT_S):
        if not target.is_dir():
            aside = Path(tempfile.mkdtemp(dir=target.parent))
            try:
                _convert(source, aside)
                aside.rename(target)
            except Exception as error:
                raise BackboneRefused(
                    file,
                    "parameters.model",
                    f"transformers cannot read {source}: {type(error).__name__}: {error}",
                    'Install what it names: pip install "fmplex[gguf]"; or give a directory of safetensors',
                ) from error
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return target


def _convert(source: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # it would fill the server's log
    given = {"gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **given)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # save_pretrained refuses a model that says it is quantised
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    fresh.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source.parent, **given).save_pretrained(directory)


def _digest(source: Path) -> str:
    with source.open("rb") as stream:
        front = stream.read(SAMPLE)
        stream.seek(max(0, source.stat().st_size - SAMPLE))
        back = stream.read(SAMPLE)
    return hashlib.sha256(str(source.stat().st_size).encode() + front + back).hexdigest()[:16]
