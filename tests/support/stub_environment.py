"""An environment of the backbone's process that a test has prepared.

The stub takes its packages from the virtual environment that it finds on PATH, so a test makes one that sees everything
of the running one and adds to it: other packages, or code that runs when a module of the backend has been imported.
"""

from __future__ import annotations

import os
import site
import sys
import textwrap
import venv
from pathlib import Path

HOOK = """
import importlib.abc
import importlib.util
import os
import sys


def patch(module):
{patch}


class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Hook())
"""


def site_packages(folder: Path) -> Path:
    """Where the environment's own packages go."""
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def make_environment(folder: Path) -> dict[str, str]:
    """The variables of a server whose stubs live in a fresh environment."""
    venv.create(folder, with_pip=False, symlinks=True)
    # addsitedir, not plain paths: it honours the .pth files there, such as those of editable installs.
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (site_packages(folder) / "outer.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(folder)}


def patch_module(folder: Path, module: str, patch: str) -> None:
    """Let `patch`, the body of a function of `module`, run in the stub once it has imported that."""
    body = textwrap.indent(textwrap.dedent(patch), "    ")
    hook = site_packages(folder) / "hook_of_a_test.py"  # not sitecustomize: some systems have one, which comes first
    hook.write_text(HOOK.format(module=module, patch=body), encoding="utf-8")
    hook.with_suffix(".pth").write_text(f"import {hook.stem}\n", encoding="utf-8")
