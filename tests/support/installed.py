"""The fake family as an installed package: what an installer leaves of it, here and in the server's environment."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import invalidate_caches
from pathlib import Path

from fmplex_backend import families
from fmplex_backend.repository import config

PACKAGE = Path(__file__).parent / "fake_family"
ENTRY_POINTS = """
[fmplex.families]
fake = fake_family.spec:FakeFamily
"""


def install_fake_family(site_packages: Path) -> None:
    """The package and its one line in the registry of families."""
    shutil.copytree(PACKAGE, site_packages / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    _register(site_packages)


@contextmanager
def fake_family_installed(folder: Path) -> Iterator[None]:
    """The family is known to this process, whose tests can import the package anyway."""
    _register(folder)
    sys.path.insert(0, str(folder))
    _look_again()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        _look_again()


def _register(site_packages: Path) -> None:
    info = site_packages / "fake_family-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-family\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")


def _look_again() -> None:
    """A process looks for installed families once."""
    invalidate_caches()
    for cached in (families.specs, families.family, families.decoders, config.config_of):
        cached.cache_clear()
