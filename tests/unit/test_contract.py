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
from contract_cases import CASES
from family_cases import BACKBONE, FamilyCase
from imports import ROOT, circle, graph, modules, named_by, parsed

from fmplex_backend import families

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
    [
        "scheduling",
        "scheduling.bfq",
        "scheduling.simulator",
        "types",
        "errors",
        "files",
        "interface",
        "printable",
        "spreadsheet",
        "serving.engine",
        "families.passes",
        "fingerprint",
    ],
)
def test_the_core_stands_on_the_standard_library(module: str) -> None:
    assert packages(imported(f"fmplex_backend.{module}")) == {"fmplex_backend"}


@pytest.mark.parametrize(
    "module", ["fmplex_backend.scheduling", "fmplex_backend.scheduling.simulator", "fmplex_backend.types"]
)
def test_the_scheduler_knows_nothing_above_it(module: str) -> None:
    own = {name for name in imported(module) if name.startswith("fmplex_backend.")}
    allowed = {"fmplex_backend.types", "fmplex_backend.errors"}
    assert {name for name in own if not name.startswith("fmplex_backend.scheduling")} <= allowed


def test_the_fake_runtime_wants_numpy_and_no_more() -> None:
    found = packages(imported("fake_family.runtime", "import sys; sys.path.append('tests/support')"))
    assert found == {"fake_family", "fmplex_backend", "numpy"}


def test_the_boundary_imports_no_torch() -> None:
    """Triton imports it in a throw-away interpreter as well."""
    modules = packages(imported("fmplex_backend.triton", STUB))
    assert not modules & HEAVY
    assert packages(imported("fmplex_backend.model", STUB)) == modules


@pytest.mark.parametrize(
    "module",
    [
        "serving.service",
        "serving.intake",
        "serving.loader",
        "serving.watch",
        "serving.metrics",
        "repository.tasks",
        "repository.entry",
        "repository.config",
        "repository.writer",
    ],
)
def test_what_is_between_knows_neither_torch_nor_triton(module: str) -> None:
    assert not packages(imported(f"fmplex_backend.{module}")) & {*HEAVY, TRITON}


def named_in(file: Path) -> set[str]:
    """Top-level names of all that a file imports, wherever in it."""
    return {name.partition(".")[0] for node in ast.walk(parsed(file)) for name in named_by(node)}


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def test_one_file_names_the_servers_module() -> None:
    naming = [file for file in files("fmplex_backend", "controller", "clients") if TRITON in named_in(file)]
    assert [file.relative_to(ROOT).as_posix() for file in naming] == ["fmplex_backend/triton.py"]


def test_the_backend_needs_neither_client_nor_controller() -> None:
    assert len(files("fmplex_backend")) > 20
    for file in files("fmplex_backend"):
        assert not named_in(file) & {"fmplex", "fmplex_controller"}, file


def test_what_is_shipped_needs_no_helpers_of_tests_and_benchmarks() -> None:
    for file in files("fmplex_backend", "controller/fmplex_controller", "clients/fmplex"):
        assert not named_in(file) & {"testing", "benchmarks"}, file


def test_the_engine_names_no_family() -> None:
    for file in (*files("fmplex_backend/serving"), ROOT / "fmplex_backend" / "types.py"):
        assert not named_in(file) & HEAVY, file


# -- rooms: what may import what, wherever in a file it stands


def test_no_module_imports_itself_in_a_circle() -> None:
    assert not circle(graph(everywhere=False)), " -> ".join(circle(graph(everywhere=False)))


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b.c"}, "b.c": {"d"}, "d": {"a"}, "b": set()}) in (
        ["a", "b.c", "d", "a"],
        ["b.c", "d", "a", "b.c"],
        ["d", "a", "b.c", "d"],
    )
    assert circle({"a": {"b.c"}, "b": {"a"}, "b.c": set()}), "b is imported before b.c"
    assert not circle({"a": {"a.b"}, "a.b": {"a.c"}, "a.c": set()}), "inside a, a is being imported already"


GROUND = (
    "errors",
    "section",
    "interface",
    "types",
    "files",
    "printable",
    "safetensors_header",
    "weights",
    "plugins",
    "fingerprint",
)
ROOMS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "section": (),
    "interface": (),
    "printable": (),
    "spreadsheet": (),
    "status": (),
    "error_status": (),
    "shared_memory": (),
    "server_variables": (),
    "hardware": (),
    "profiles": ("errors", "files", "scheduling", "server_variables", "types"),
    "confinement": ("errors", "server_variables"),
    "files": ("errors", "confinement"),
    "safetensors_header": ("errors", "files"),
    "fingerprint": ("files", "safetensors_header"),
    "types": ("errors",),
    "state_folder": (),
    "control_key": ("errors", "state_folder"),
    "weights": ("errors", "safetensors_header"),
    "plugins": ("errors", "safetensors_header", "weights"),
    "scheduling": ("errors", "types"),
    "adapters": GROUND,
    "decoders": GROUND,
    "repository.parameters": ("confinement",),
    "families": (*GROUND, "adapters", "decoders", "hardware", "repository.parameters", "repository.config"),
    "repository": (*GROUND, "confinement", "repository.parameters", "families"),
    "serving": (
        "errors",
        "error_status",
        "confinement",
        "files",
        "hardware",
        "interface",
        "printable",
        "profiles",
        "server_variables",
        "status",
        "types",
        "scheduling",
        "repository",
        "repository.parameters",
    ),
    "triton": (
        "errors",
        "error_status",
        "files",
        "interface",
        "printable",
        "server_variables",
        "types",
        "scheduling",
        "repository",
        "families",
        "serving",
        "shared_memory",
    ),
    "model": ("triton",),
}


def room_of(module: str) -> str:
    """The room of fmplex_backend that a module is in; its own name, where it has one in ROOMS to itself."""
    name = module.removeprefix("fmplex_backend.")
    return name if name in ROOMS else name.partition(".")[0]


BACKEND = {module: used for module, used in graph(everywhere=True).items() if module.startswith("fmplex_backend.")}


@pytest.mark.parametrize("room", ROOMS)
def test_dependencies_point_one_way(room: str) -> None:
    own = {module: used for module, used in BACKEND.items() if room_of(module) == room}
    assert own, "an empty room"
    for module, used in own.items():
        wrong = {
            each
            for each in used
            if room_of(each) != room
            and each.removeprefix("fmplex_backend.") not in ROOMS[room]
            and room_of(each) not in ROOMS[room]
        }
        assert not wrong, module


def test_every_module_of_the_backend_is_in_a_room() -> None:
    assert {room_of(module) for module in BACKEND} == ROOMS.keys()


def test_clients_stand_on_what_is_below_serving() -> None:
    for module, used in graph(everywhere=True).items():
        rooms = {room_of(each) for each in used if each.startswith("fmplex_backend.")}
        if module.startswith("fmplex_controller"):
            own = {"errors", "control_key", "printable", "files", "status", "repository", "server_variables"}
            own |= {"state_folder", "profiles", "scheduling", "spreadsheet"}
            assert rooms <= own, module
            clients = {each for each in used if each.partition(".")[0] == "fmplex"}
            # What runs beside a server talks to it as any client does.
            is_beside = module.startswith(("fmplex_controller.sidecar", "fmplex_controller.openai"))
            assert all(is_beside and each.startswith("fmplex.client.") for each in clients), module
        elif module.partition(".")[0] == "fmplex":
            assert not rooms & {"serving", "triton", "model"}, module
            uses_controller = any(each.startswith("fmplex_controller") for each in used)
            assert not uses_controller or module.startswith("fmplex.cli."), module


# -- families


def own_package(family: str) -> str:
    """A family's folder, as a package; "" for one that an installed package brings."""
    module = type(families.family(family)).__module__
    return module.rpartition(".")[0] if module.startswith("fmplex_backend.families.") else ""


def is_in(package: str, module: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


@pytest.mark.parametrize("family", families.names())
def test_nobody_but_the_registry_names_a_family(family: str) -> None:
    """By its modules or by its name; `fmplex` itself has the names of a family's sections for users."""
    package = own_package(family) or "no package of ours"
    imports, files_of = graph(everywhere=True), modules()
    for module in files_of.keys() - {"fmplex_backend.families", "fmplex"}:
        if is_in(package, module):
            continue
        assert not [used for used in imports[module] if is_in(package, used)], module
        words = {node.value for node in ast.walk(parsed(files_of[module])) if isinstance(node, ast.Constant)}
        assert family not in words, module


@pytest.mark.parametrize("family", families.names())
def test_a_spec_imports_neither_torch_nor_triton(family: str) -> None:
    module = type(families.family(family)).__module__
    assert not packages(imported(module)) & {"torch", "transformers", "peft", "tokenizers", "sklearn", TRITON}


def test_serving_imports_no_training_code(tmp_path: Path) -> None:
    """Of every family, one after the other, every kind of adapter and decoder is loaded, and answers once."""
    roots = [write_repository(case, tmp_path / str(case.family) / "repository") for case in CASES]
    line = [sys.executable, ROOT / "tests" / "support" / "serve_alone.py", BACKBONE, *roots]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if line.startswith("[")]
    for case, imported_by_then in zip(CASES, printed, strict=True):
        found, package = set(json.loads(imported_by_then)), own_package(case.family)
        assert f"{package}.runtime" in found or not package
        training = {"fmplex_backend.decoders.trainable", "fmplex_backend.decoders.figures", "sklearn"}
        assert not found & {*training, f"{package}.fitting"}, case.family
        others = {module.partition(".")[0] for module in found}
        assert not others & {"fmplex", "fmplex_controller", "matplotlib"}, case.family


def write_repository(case: FamilyCase, root: Path) -> Path:
    """A backbone with a task of each variant that it serves."""
    root.mkdir(parents=True)
    case.write_backbone(root, BACKBONE, 32)
    for tag, variant in enumerate(case.served):
        case.write_task(root, variant, tag, variant)
    return root


@pytest.mark.parametrize(
    "module",
    [
        "fmplex",
        "fmplex_controller",
        "fmplex.cli.app",
        "fmplex_backend.repository.writer",
        "fmplex_backend.repository.configs",
        "fmplex.client.sync",
        "fmplex.client.aio",
        "fmplex.cli.tasks",
        "fmplex_controller.server.process",
        "fmplex_controller.sidecar.__main__",
        "fmplex_controller.api.serving",
        "fmplex_controller.openai.serving",
    ],
)
def test_client_and_controller_are_light(module: str) -> None:
    modules = packages(imported(module))
    assert not modules & {"torch", "transformers", "peft", "sklearn", TRITON}


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
