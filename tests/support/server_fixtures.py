"""A Triton installation laid out as files that run nothing."""

from __future__ import annotations

from pathlib import Path

from fmplex_controller.server import installation as inst

THIS_PYTHON = inst.python_version()


def install(root: Path, stub_python: str = THIS_PYTHON) -> Path:
    """Files laid out as a Triton installation of its own has them."""
    python = root / "backends" / "python"
    python.mkdir(parents=True)
    (root / "backends" / "onnxruntime").mkdir()
    (root / "bin").mkdir()
    (root / "bin" / "tritonserver").write_text("#!/bin/sh\necho no such option >&2\nexit 3\n")
    (root / "bin" / "tritonserver").chmod(0o755)
    for name in (inst.PYTHON_BACKEND, "triton_python_backend_utils.py"):
        (python / name).write_text(name)
    (python / inst.STUB).write_bytes(b"\x7fELF...libpython%s.so.1.0\0" % stub_python.encode())
    return root
