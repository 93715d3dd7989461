"""Starts one of PROGRAMS from an archive of `benchmarks.gpu.pack`, on a Python that has torch and transformers.

    python benchmarks/gpu/start.py ARCHIVE run|passes|tests ARGUMENTS...

Standard library only. Unpacks the archive beside itself and makes a venv that finds the archive's packages first, then
those of the running Python: the server's stub takes its packages from the venv on PATH. Then it executes the program in
its own place.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The server's stub reads arrays of numpy 1 only, with which what is built for numpy 2 alone cannot be imported. Nothing
# of ours needs these; transformers takes them where it finds them.
HIDDEN = ("numpy", "scipy", "scikit", "sklearn", "pandas", "numba", "jax", "flax", "librosa", "tensorflow")
PROGRAMS = {"run": "benchmarks.gpu.run", "passes": "benchmarks.gpu.passes", "tests": "pytest"}


def main(archive: Path, program: str, arguments: list[str]) -> None:
    """Unpack if the archive is new, then run."""
    if program not in PROGRAMS:
        raise SystemExit(f"there is no {program}: one of {', '.join(PROGRAMS)}")
    if not archive.is_file():
        raise SystemExit(f"there is no {archive}: run `make bench-gpu-pack` on a machine with a network")
    folder = archive.resolve().with_suffix("").with_suffix("")
    unpacked = folder / ".unpacked"
    if not unpacked.is_file() or unpacked.stat().st_mtime < archive.stat().st_mtime:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        unpacked.touch()
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(venv)], check=True)
    python = venv / "bin" / "python"
    line = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip())
    paths = [folder / "site", ROOT, ROOT / "controller", ROOT / "clients", link_packages(folder / "theirs")]
    (own / "bench.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(map(str, paths))), encoding="utf-8")
    variables = dict(os.environ)
    binaries = [venv / "bin", folder / "triton" / "bin", folder / "site" / "bin"]
    variables["PATH"] = os.pathsep.join([*map(str, binaries), variables["PATH"]])
    libraries = [str(folder / "triton" / "lib"), variables.get("LD_LIBRARY_PATH", ""), libpython(folder / "libpython")]
    variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    os.chdir(ROOT)
    tokenizer = [] if program == "tests" else ["--tokenizer", str(folder / "tokenizer")]
    os.execve(python, [str(python), "-m", PROGRAMS[program], *arguments, *tokenizer], variables)


def link_packages(into: Path) -> Path:
    """A folder of links to the running Python's packages, without HIDDEN ones."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    for folder in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
        for each in Path(folder).iterdir():
            if not each.name.lower().startswith(HIDDEN) and not (into / each.name).exists():
                (into / each.name).symlink_to(each)
    return into


def libpython(packed: Path) -> str:
    """The folder of the packed libpython where this Python has no shared one, else ""."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    for own in (name, str(Path(sysconfig.get_config_var("LIBDIR") or "", name))):
        try:
            ctypes.CDLL(own)
        except OSError:
            continue
        return str(Path(own).parent) if "/" in own else ""
    if not (packed / name).is_file():
        raise SystemExit(
            f"this Python has no shared libpython, and the archive has no {name}: pack it with --libpython"
        )
    print(f"this Python has no shared libpython: {packed / name} is used", flush=True)
    return str(packed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
