"""Finds a Triton Inference Server and composes the backend directory it starts with.

Two kinds exist: a server of its own (an NGC container's /opt/tritonserver) and the one inside the
`nvidia-pytriton` wheel, whose Python package is located but never imported.
"""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fmplex_backend.errors import SetupProblem

NGC_ROOT = Path("/opt/tritonserver")
WHEEL = "nvidia-pytriton"
WHEEL_LIBRARIES = "nvidia_pytriton.libs"
PYTHON_BACKEND = "libtriton_python.so"
STUB = "triton_python_backend_stub"
BACKEND = "fmplex"
# glibc's malloc by default gives a pass's large blocks back to the kernel as soon as they are free, and the kernel
# then has to zero them for the next pass: 5 to 9% of a forward of MiniLM. And every task that is added to a running
# server leaves 0.26 MiB in the arenas of Triton's many threads, which none of them reuses: 0.08 MiB in four.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "4",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
}


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver on this machine and what it needs around it."""

    binary: Path
    backends: Path
    stub: Path
    libraries: tuple[Path, ...] = ()
    numpy_1_only: bool = False  # a stub that turns numpy 2 arrays into empty tensors

    @property
    def python_backend(self) -> Path:
        """The folder of Triton's own Python backend."""
        return self.backends / "python"


def python_version() -> str:
    """The running Python, as stubs are named: "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def find_tritonserver() -> Installation:
    """A server on PATH or in /opt/tritonserver, else the wheel's."""
    for root in _system_roots():
        backends = root / "backends"
        if (backends / "python" / PYTHON_BACKEND).is_file():
            return Installation(root / "bin" / "tritonserver", backends, backends / "python" / STUB)
    wheel = _wheel_root()
    if wheel is None:
        raise SetupProblem(
            f"no tritonserver: neither on PATH, nor in {NGC_ROOT}, nor installed as {WHEEL}. "
            'Install one with `pip install "fmplex[server]"`, or run inside an NGC Triton container'
        )
    return Installation(
        binary=wheel / "bin" / "tritonserver",
        backends=wheel / "backends",
        stub=wheel / "python_backend_stubs" / python_version() / STUB,
        libraries=(_wheel_libraries(wheel),),
        numpy_1_only=True,
    )


def _system_roots() -> Iterator[Path]:
    on_path = shutil.which("tritonserver")
    if on_path:
        yield Path(on_path).resolve().parent.parent
    if (NGC_ROOT / "bin" / "tritonserver").is_file():
        yield NGC_ROOT


def _wheel_root() -> Path | None:
    spec = find_spec("pytriton")
    for folder in (spec and spec.submodule_search_locations) or ():
        root = Path(folder) / "tritonserver"
        if (root / "bin" / "tritonserver").is_file():
            return root
    return None


def wheel_libraries() -> Path | None:
    """The folder of the libraries that came with the wheel's server; None without the wheel."""
    wheel = _wheel_root()
    return _wheel_libraries(wheel) if wheel else None


def _wheel_libraries(root: Path) -> Path:
    return root.parent.parent / WHEEL_LIBRARIES


def check(installation: Installation) -> None:
    """Raise SetupProblem where this Python or its packages do not fit the server."""
    check_stub(installation)
    check_numpy(installation)
    libpython_folder()


def check_stub(installation: Installation) -> None:
    """Raise SetupProblem where the server's Python backend does not run this Python."""
    if not installation.stub.is_file():
        raise SetupProblem(
            f"the server at {installation.binary} has no Python {python_version()} stub ({installation.stub} "
            f"is missing). Run FMplex with a Python the server supports"
        )
    wanted = stub_python(installation.stub)
    if wanted not in (None, python_version()):
        raise SetupProblem(
            f"the stub {installation.stub} runs Python {wanted}, FMplex is installed in Python "
            f"{python_version()}. Install FMplex with python{wanted}"
        )


def check_numpy(installation: Installation) -> None:
    """Raise SetupProblem where the server's Python backend cannot read arrays of this numpy."""
    if installation.numpy_1_only and int(metadata.version("numpy").split(".")[0]) >= 2:
        raise SetupProblem(
            f"numpy {metadata.version('numpy')} is installed, and the tritonserver of {WHEEL} turns every "
            'output tensor of numpy 2 into an empty one. Run `pip install "numpy<2"`'
        )


def stub_python(stub: Path) -> str | None:
    """The Python version a stub is linked to, "3.11"."""
    found = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes())
    return found.group(1).decode() if found else None


def libpython_folder() -> Path | None:
    """Where the shared libpython lies; None where the loader finds it unaided."""
    name = f"libpython{python_version()}.so.1.0"
    library = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    named = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    for folder in (library, library / multiarch, Path(sys.base_prefix) / "lib", *named):
        if (folder / name).is_file():
            return folder
    if ctypes.util.find_library(f"python{python_version()}"):
        return None
    raise SetupProblem(
        f"there is no {name} in {library}, in LD_LIBRARY_PATH or on the loader's path, and Triton's Python stub is "
        f"linked to it. On Debian and Ubuntu: `apt install libpython{python_version()}`; with pyenv: reinstall this "
        "Python with PYTHON_CONFIGURE_OPTS=--enable-shared"
    )


def missing_libraries(installation: Installation) -> list[str]:
    """What the loader does not find for the server, its Python backend and the stub (lines of ldd's output)."""
    files = (installation.binary, installation.python_backend / PYTHON_BACKEND, installation.stub)
    missing: dict[str, None] = {}
    for file in files:
        command = ["ldd", str(file)]
        done = subprocess.run(command, env=environment(installation), capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        missing.update((line.strip(), None) for line in lines if "not found" in line)
    return list(missing)


def environment(installation: Installation, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables tritonserver and its stubs run with: this Python, its packages and libraries."""
    variables = ALLOCATOR | dict(os.environ if base is None else base)
    libpython = libpython_folder()
    # The user's own libraries come before Python's folder, which may be a system folder that holds much else.
    folders = [*map(str, installation.libraries), variables.get("LD_LIBRARY_PATH", "")]
    variables["LD_LIBRARY_PATH"] = _joined([*folders, str(libpython or "")])
    # The stub asks PATH which Python it belongs to; without this it takes another Python's packages.
    variables["PATH"] = _joined([str(Path(sys.executable).parent), variables.get("PATH", os.defpath)])
    if sys.prefix != sys.base_prefix:
        variables["VIRTUAL_ENV"] = sys.prefix
    variables["PYTHONPATH"] = _joined([variables.get("PYTHONPATH", ""), *map(str, package_folders())])
    # Triton reloads a model when its directory changes, and a __pycache__ is a change.
    variables["PYTHONDONTWRITEBYTECODE"] = "1"
    return variables


def _joined(folders: list[str]) -> str:
    return os.pathsep.join(dict.fromkeys(folder for folder in folders if folder))


def package_folders() -> list[Path]:
    """Where the stub imports from: the folder of fmplex_backend (a checkout, if editable), site-packages."""
    names = ("purelib", "platlib")
    folders = [backend_package().parent, *(Path(sysconfig.get_path(name)) for name in names)]
    return list(dict.fromkeys(folders))


def backend_package() -> Path:
    """The installed fmplex_backend, found without importing it."""
    spec = find_spec("fmplex_backend")
    for folder in (spec and spec.submodule_search_locations) or ():
        return Path(folder)
    raise SetupProblem("fmplex_backend is not installed. Run `pip install fmplex`")


def install_backend(directory: Path, *, create: bool = False) -> Path:
    """Write the backend into a server's backend directory; raises SetupProblem where it is none, unless `create`."""
    known = (directory / BACKEND / "model.py").is_file() or any(directory.glob("*/libtriton_*.so"))
    if not create and not known:
        problem = "holds no backend of Triton's" if directory.is_dir() else "does not exist"
        raise SetupProblem(
            f"{directory} {problem}. Name the server's backend directory, such as {NGC_ROOT / 'backends'}, or create "
            "one with --create"
        )
    return _write_backend(directory)


def _write_backend(directory: Path) -> Path:
    """Write `directory`/fmplex/model.py, which is all that Triton needs of a Python-based backend."""
    folder = directory / BACKEND
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(backend_package() / "model.py", folder / "model.py"))


def compose_backends(installation: Installation, into: Path) -> Path:
    """Fill `into` with FMplex's backend beside the server's own; it becomes --backend-directory."""
    into.mkdir(parents=True, exist_ok=True)
    for backend in installation.backends.iterdir():
        if backend.is_dir() and backend.name not in ("python", BACKEND):
            (into / backend.name).symlink_to(backend)
    if installation.stub.parent == installation.python_backend:
        (into / "python").symlink_to(installation.python_backend)
    else:
        _compose_python(installation, into / "python")
    _write_backend(into)
    return into


def _compose_python(installation: Installation, into: Path) -> None:
    """Copy the files: Triton refuses a backend library that links out of the backend's directory."""
    shutil.copytree(installation.python_backend, into, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(installation.stub, into / STUB)
