"""What `fmplex doctor` looks at beside the server: packages, GPU, model repository and control key."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from fmplex_backend import families
from fmplex_backend.control_key import VARIABLE, check_key, kept_key, key_file
from fmplex_backend.errors import FmplexError, SetupProblem
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.repository.configs import CONFIG, backbone_parameters
from fmplex_backend.repository.reader import RepositoryReader
from fmplex_controller.server.addresses import listens
from fmplex_controller.server.health import Finding

EXTRA = "backend"  # of our own package: what a backbone's process needs
SMI_S = 20.0  # nvidia-smi hangs where a driver does


def packages() -> Iterator[Finding]:
    """Each package that a backbone needs, against the versions that FMplex supports."""
    try:
        from packaging.requirements import Requirement  # comes with transformers
    except ImportError:
        yield Finding("packages", "bad", f'what a server needs is missing. Run `pip install "fmplex[{EXTRA}]"`')
        return
    needed = [Requirement(line) for line in metadata.requires("fmplex") or ()]
    for each in needed:
        if each.marker is not None and each.marker.evaluate({"extra": EXTRA}):
            yield _package(each.name, f"{each.name}{each.specifier}", each.specifier.contains)


def _package(name: str, requirement: str, fits: Callable[..., bool]) -> Finding:
    remedy = f'Run `pip install "{requirement}"`'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "bad", f"it is not installed. {remedy}")
    if not fits(version, prereleases=True):
        return Finding(name, "bad", f"{version} is installed, {requirement} is needed. {remedy}")
    return Finding(name, "ok", version)


def gpu() -> Finding:
    """Whether there is one, and whether torch uses it."""
    seen = _smi()
    torch = _torch()
    usable = torch is not None and torch.cuda.is_available()
    if usable:
        return Finding("GPU", "ok", f"{torch.cuda.device_count()} of {torch.cuda.get_device_name(0)}")
    if seen:
        build = "is not installed" if torch is None else f"{torch.__version__} does not see it"
        remedy = "Install a torch built for CUDA that this driver runs: https://pytorch.org/get-started/locally"
        return Finding("GPU", "warn", f"{seen}, but torch {build}: backbones run on the CPU. {remedy}")
    return Finding("GPU", "ok", "none; backbones run on the CPU")


def dtype() -> Iterator[Finding]:
    """What a backbone computes in on this machine where its config does not say it."""
    torch = _torch()
    if torch is None:
        return
    from fmplex_backend.families.precision import chosen_dtype, dtype_name

    name, device = ("GPU", "cuda:0") if torch.cuda.is_available() else ("CPU", "cpu")
    taken = dtype_name(chosen_dtype("auto", torch.device(device), None))
    has = "has" if taken == "bfloat16" else "does not have"
    yield Finding("dtype", "ok", f"{taken} where a backbone says auto: this {name} {has} bfloat16 in hardware")


def _smi() -> str:
    """What nvidia-smi says of the first GPU; "" where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    line = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi is here and fails"
    return (done.stdout.strip().splitlines() or [""])[0]


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch


def repository(root: Path) -> Iterator[Finding]:
    """Whether it can be read, and whether each backbone's model is there."""
    reader = RepositoryReader(root)
    try:
        tasks, backbones = reader.tasks(), reader.backbones()
    except (FmplexError, OSError) as error:
        yield Finding("repository", "bad", f"{root} cannot be read: {error}. Name it with --repository")
        return
    if not backbones:
        remedy = "Add one: fmplex backbone add NAME MODEL"
        yield Finding("repository", "bad", f"{root} has no backbone. {remedy}")
        return
    yield Finding("repository", "ok", f"{root}: {len(backbones)} backbones, {len(tasks)} tasks")
    for name in backbones:
        yield _backbone(root / name / CONFIG, backbone_parameters(root, name) or {})


def _backbone(file: Path, parameters: dict[str, str]) -> Finding:
    check = f"backbone {file.parent.name}"
    try:
        config = load_backbone_config(file, parameters)
        width = families.family(config.family).hidden_width(config, file)
    except FmplexError as error:
        return Finding(check, "bad", str(error))
    return Finding(check, "ok", f"{config.model} ({config.family}{f', {width} wide' if width else ''})")


def control_key(port: int) -> Finding:
    """Whether this user's clients have the key of the server that runs here, or of the one that will."""
    given = os.environ.get(VARIABLE, "")
    file = key_file(port)
    if given:
        try:
            check_key(given, VARIABLE)
        except SetupProblem as error:
            return Finding("control key", "bad", str(error))
        return Finding("control key", "ok", f"{VARIABLE} is set")
    if kept_key(port):
        return Finding("control key", "ok", f"in {file}, of the server that this user has started")
    if file.exists():
        return Finding("control key", "warn", f"{file} cannot be read. Remove it, and start the server again")
    if listens("127.0.0.1", port):
        reason = f"no key of the server on port {port} is kept for this user: it was given one, or others started it"
        return Finding("control key", "warn", f"{reason}. Give it as {VARIABLE}, unless the server is open")
    return Finding("control key", "ok", "none yet: `fmplex serve` makes one")


def python() -> Finding:
    """Where this command runs."""
    return Finding("environment", "ok", f"Python {sys.version.split()[0]} in {sys.prefix}")
