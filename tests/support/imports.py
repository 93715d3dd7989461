"""The import graph of our three packages, read from their source without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "fmplex_backend": ROOT / "fmplex_backend",
    "fmplex_controller": ROOT / "controller" / "fmplex_controller",
    "fmplex": ROOT / "clients" / "fmplex",
}
Graph = dict[str, set[str]]


def modules(packages: dict[str, Path] = PACKAGES) -> dict[str, Path]:
    """Every module by its dotted name; a package has the file of its __init__."""
    found = {}
    for package, folder in packages.items():
        for file in folder.rglob("*.py"):
            parts = (package, *file.relative_to(folder).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


@cache
def parsed(file: Path) -> ast.Module:
    """Its syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"))


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The import statements that run when the module is imported: none of functions, none under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_import(ast.Module(node.orelse, []))
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from at_import(node)


def named_by(node: ast.AST) -> Iterator[str]:
    """What an import statement names, a module or something in one."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"line {node.lineno}: imports are absolute"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_of(name: str, known: dict[str, Path]) -> str | None:
    """The longest beginning of a dotted name that is a module of ours."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def graph(packages: dict[str, Path] = PACKAGES, *, everywhere: bool) -> Graph:
    """Each module and those of ours that it imports: `everywhere` in it, or only while it is being imported itself."""
    known = modules(packages)
    found: Graph = {}
    for module, file in known.items():
        nodes = ast.walk(parsed(file)) if everywhere else at_import(parsed(file))
        targets = {_module_of(name, known) for node in nodes for name in named_by(node)}
        found[module] = {target for target in targets if target and target != module}
    return found


def _packages_around(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def circle(imports: Graph) -> list[str]:
    """Modules that import one another, in a row that ends with its first; empty where there are none.

    Importing a.b.c imports a and a.b before it, unless the importer lies in them, when that has begun already.
    """
    whole = {
        module: targets | (set().union(*map(_packages_around, targets)) - {module} - _packages_around(module))
        for module, targets in imports.items()
    }
    try:
        TopologicalSorter(whole).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]  # graphlib has what is imported before who imports it
    return []
