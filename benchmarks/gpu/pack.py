"""Packs what `make bench-gpu` needs on a machine that can download nothing: `python -m benchmarks.gpu.pack`.

In the archive: tritonserver with the libraries it links to and one Python's stub (triton/), the Python packages that
machines with torch and transformers usually lack, for that Python (site/), a tokenizer (tokenizer/), and that Python's
shared libpython, where this machine has one: many Pythons are built without, and the stub is linked to it (libpython/).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness.repositories import model_directory
from fmplex_controller.server.installation import STUB, environment, find_tritonserver

LIMIT_MB = 60
# What the backend, the controller and the benchmarks import, without torch, transformers and their dependencies.
PACKAGES = (
    "annotated-types",
    "anyio",
    "brotli",
    "cachetools",
    "certifi",
    "gevent",
    "geventhttpclient",
    "greenlet",
    "grpcio",
    "hdrhistogram",
    "markdown-it-py",
    "mdurl",
    "numpy",
    "pbr",
    "peft",
    "accelerate",
    "protobuf",
    "psutil",
    "py-spy",
    "pydantic",
    "pydantic_core",
    "pygments",
    "python-rapidjson",
    "rich",
    "safetensors",
    "shellingham",
    "tritonclient",
    "typer",
    "typing-inspection",
    "typing_extensions",
    "zope.event",
    "zope.interface",
)
# constraints.txt's versions have no wheel for Python 3.12.
NEWER = {"geventhttpclient": "2.0.12"}
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LEFT_OUT = ("__pycache__", "tests", "perf_analyzer", "*.pyi", "*.a", "*.h")


def pack(target: Path, python: str, libpython: Path | None) -> float:
    """Write the archive; returns its size in MB."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy_triton(root / "triton", python)
        copy_libpython(root / "libpython", python, libpython)
        install_packages(root / "site", python)
        tokenizer = root / "tokenizer"
        tokenizer.mkdir()
        for file in model_directory().glob("*token*"):
            shutil.copy(file, tokenizer)
        shutil.copy(model_directory() / "vocab.txt", tokenizer)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f"{target.name}.part")
        with tarfile.open(aside, "w:xz") as archive:
            for each in sorted(root.iterdir()):
                archive.add(each, each.name)
        aside.replace(target)
    return target.stat().st_size / 1e6


def copy_triton(into: Path, python: str) -> None:
    """The server, its Python backend with one stub, and every library of the wheel that these link to."""
    found = find_tritonserver()
    stub = found.stub.parent.parent / python / STUB if found.stub.parent != found.python_backend else found.stub
    if not stub.is_file():
        raise SystemExit(f"the server at {found.binary} has no stub for Python {python}: {stub} is missing")
    backend = into / "backends" / "python"
    shutil.copytree(found.python_backend, backend, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copy2(stub, backend / STUB)
    (into / "bin").mkdir()
    shutil.copy2(found.binary, into / "bin")
    (into / "lib").mkdir()
    for library in sorted(linked([found.binary, *backend.glob("*.so"), stub], found.libraries[0])):
        shutil.copy2(library, into / "lib")
    if shutil.which("strip"):
        files = [into / "bin" / "tritonserver", *(into / "lib").iterdir()]
        subprocess.run(["strip", "--strip-unneeded", *map(str, files)], check=False, capture_output=True)


def copy_libpython(into: Path, python: str, file: Path | None) -> None:
    """The shared libpython, without symbols that only a debugger reads."""
    into.mkdir()
    name = f"libpython{python}.so.1.0"
    found = file or next(iter(sorted(Path.home().glob(f".pyenv/versions/{python}.*/lib/{name}"))), None)
    if found is None:
        print(f"without {name}: the machine's own Python must have it (--libpython FILE packs one)")
        return
    shutil.copy2(found, into / name)
    if shutil.which("strip"):
        subprocess.run(["strip", "--strip-unneeded", str(into / name)], check=False, capture_output=True)


def linked(files: list[Path], folder: Path) -> set[Path]:
    """The libraries in `folder` that `files` are linked to."""
    variables = environment(find_tritonserver())
    found: set[Path] = set()
    for file in files:
        line = subprocess.run(["ldd", str(file)], env=variables, capture_output=True, text=True, check=False)
        found |= {Path(path) for path in re.findall(r"=> (/\S+)", line.stdout)}
    return {path for path in found if path.parent.resolve() == folder.resolve() and "libpython" not in path.name}


def install_packages(into: Path, python: str) -> None:
    """Install PACKAGES, in the versions of constraints.txt, for Python `python`."""
    pins = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", Path("constraints.txt").read_text(encoding="utf-8")))
    known = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    known |= NEWER
    wanted = [f"{name}=={known[name.lower().replace('_', '-')]}" for name in PACKAGES if _pinned(name, known)]
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-compile"),
            *("--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms),
            *("--target", str(into), *wanted),
        ],
        check=True,
    )
    for pattern in LEFT_OUT:
        for path in sorted(into.rglob(pattern), reverse=True):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _pinned(name: str, known: dict[str, str]) -> bool:
    if name.lower().replace("_", "-") in known:
        return True
    raise SystemExit(f"constraints.txt has no version of {name}: add it, or take it out of PACKAGES")


def main(
    target: Annotated[Path, typer.Argument()] = Path(".build/bench-gpu.tar.xz"),
    python: Annotated[str, typer.Option(help="The Python of the machine with the GPU.")] = "3.12",
    libpython: Annotated[Path | None, typer.Option(help="Its shared libpython; by default pyenv's.")] = None,
) -> None:
    """Write the archive, and fail if it is larger than LIMIT_MB."""
    size = pack(target, python, libpython)
    print(f"{target}: {size:.1f} MB for Python {python}")
    if size > LIMIT_MB:
        raise SystemExit(f"that is more than {LIMIT_MB} MB: take something out of PACKAGES")


if __name__ == "__main__":
    typer.run(main)
