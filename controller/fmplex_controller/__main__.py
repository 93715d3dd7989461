"""`python -m fmplex_controller`: checks that a Triton server can run here; prints its path, or what is missing."""

from __future__ import annotations

import sys

from fmplex_backend.errors import SetupProblem
from fmplex_controller.server.installation import check, find_tritonserver, missing_libraries


def main() -> int:
    """The exit status: 0 where a server can run, else 1."""
    try:
        installation = find_tritonserver()
        check(installation)
    except SetupProblem as problem:
        print(f"fmplex: {problem}", file=sys.stderr)
        return 1
    missing = missing_libraries(installation)
    if missing:
        lines = "".join(f"\n  {line}" for line in missing)
        print(
            f"fmplex: the loader does not find what {installation.binary} needs:{lines}\n"
            "Install the packages that hold these libraries; a GLIBC line means that this system is too old",
            file=sys.stderr,
        )
        return 1
    print(f"tritonserver: {installation.binary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
