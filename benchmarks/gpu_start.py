"""Starts `benchmarks.gpu` from an archive of `benchmarks.gpu_pack`, on a Python that has torch and transformers.

Standard library only. Unpacks the archive beside itself, makes a venv whose packages are the archive's, then the
running Python's (the server's stub takes its packages from the venv that PATH leads to), and becomes the benchmark.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(archive: Path, arguments: list[str]) -> None:
    """Unpack once, then run."""
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
    theirs = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    paths = [folder / "site", ROOT, ROOT / "controller", ROOT / "clients", *theirs]
    (own / "bench.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(map(str, paths))), encoding="utf-8")
    variables = dict(os.environ)
    binaries = [venv / "bin", folder / "triton" / "bin", folder / "site" / "bin"]
    variables["PATH"] = os.pathsep.join([*map(str, binaries), variables["PATH"]])
    libraries = [str(folder / "triton" / "lib"), variables.get("LD_LIBRARY_PATH", "")]
    variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    os.chdir(ROOT)
    tokenizer = ["--tokenizer", str(folder / "tokenizer")]
    os.execve(python, [str(python), "-m", "benchmarks.gpu", *arguments, *tokenizer], variables)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
