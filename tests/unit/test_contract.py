"""Dependencies point one way (design: the layout): what each package brings along when it is imported alone."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "peft", "tokenizers", "safetensors"}
TRITON = "triton_python_backend_utils"
STUB = f"""
import sys, types
from unittest.mock import MagicMock
stub = types.ModuleType({TRITON!r})
stub.__getattr__ = lambda name: MagicMock()
sys.modules[{TRITON!r}] = stub
"""


@cache
def imported(module: str, before: str = "") -> set[str]:
    """Every module that a fresh interpreter holds after importing one."""
    code = f"{before}\nimport json, sys\nimport {module}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@cache
def plain() -> set[str]:
    """What an interpreter of this environment holds anyway."""
    return imported("json")


def packages(modules: set[str]) -> set[str]:
    """Top-level names beyond the standard library's."""
    added = {module.partition(".")[0] for module in modules - plain()}
    ignored = sys.stdlib_module_names | {"cython_runtime"}  # numpy's own
    return {name for name in added if name not in ignored and not name.startswith("_")}


@pytest.mark.parametrize(
    "module",
    ["scheduling", "scheduling.bfq", "types", "errors", "vfm", "interface", "engine", "runtime.passes", "fingerprint"],
)
def test_the_core_stands_on_the_standard_library(module: str) -> None:
    assert packages(imported(f"fmplex_backend.{module}")) == {"fmplex_backend"}


@pytest.mark.parametrize("module", ["fmplex_backend.scheduling", "fmplex_backend.types"])
def test_the_scheduler_knows_nothing_above_it(module: str) -> None:
    own = {name for name in imported(module) if name.startswith("fmplex_backend.")}
    allowed = {"fmplex_backend.types", "fmplex_backend.vfm", "fmplex_backend.errors"}
    assert {name for name in own if not name.startswith("fmplex_backend.scheduling")} <= allowed


def test_the_fake_runtime_wants_numpy_and_no_more() -> None:
    assert packages(imported("fmplex_backend.runtime.fake")) == {"fmplex_backend", "numpy"}


def test_the_boundary_imports_no_torch() -> None:
    """Triton imports it in a throw-away interpreter as well."""
    modules = packages(imported("fmplex_backend.triton", STUB))
    assert not modules & HEAVY
    assert packages(imported("fmplex_backend.model", STUB)) == modules


@pytest.mark.parametrize("module", ["service", "loader", "metrics", "repository", "entries", "config"])
def test_what_is_between_knows_neither_torch_nor_triton(module: str) -> None:
    assert not packages(imported(f"fmplex_backend.{module}")) & {*HEAVY, TRITON}


def named_in(file: Path) -> set[str]:
    """Top-level names of all that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def test_one_file_names_the_servers_module() -> None:
    naming = [file for file in files("fmplex_backend", "controller", "clients") if TRITON in named_in(file)]
    assert [file.relative_to(ROOT).as_posix() for file in naming] == ["fmplex_backend/triton.py"]


def test_the_backend_needs_neither_client_nor_controller() -> None:
    assert len(files("fmplex_backend")) > 20
    for file in files("fmplex_backend"):
        assert not named_in(file) & {"fmplex", "fmplex_controller"}, file


def test_the_engine_names_no_family() -> None:
    for name in ("engine", "service", "loader", "types", "vfm"):
        assert not named_in(ROOT / "fmplex_backend" / f"{name}.py") & HEAVY


@pytest.mark.parametrize(
    "module",
    ["fmplex", "fmplex_controller", "fmplex.cli", "fmplex.repository", "fmplex.client", "fmplex_controller.server"],
)
def test_client_and_controller_are_light(module: str) -> None:
    modules = packages(imported(module))
    assert not modules & {"torch", "transformers", "peft", TRITON}


@pytest.mark.parametrize("folder", ["controller", "clients"])
def test_folders_are_no_packages(folder: str) -> None:
    """An editable install puts the root on the path, so the names are found; there is nothing in them to import."""
    assert not list((ROOT / folder).glob("*.py"))
    spec = importlib.util.find_spec(folder)
    assert spec is None or spec.origin is None


def test_the_wheel_holds_three_packages() -> None:
    (listed,) = re.findall(
        r"^packages = (\[.*fmplex_backend.*/.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert ast.literal_eval(listed) == ["fmplex_backend", "controller/fmplex_controller", "clients/fmplex"]


def test_the_public_api_is_what_it_says() -> None:
    """Every name of `__all__` is there, documented, and nothing else is public."""
    import fmplex

    names = fmplex.__all__
    assert len(set(names)) == len(names)
    assert set(names) == set(fmplex._MODULES) == set(dir(fmplex))
    for name in names:
        assert getattr(fmplex, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = fmplex.Nothing


def test_a_client_needs_no_torch() -> None:
    code = "import sys; from fmplex import Client, AsyncClient, LoRA, Classifier; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
