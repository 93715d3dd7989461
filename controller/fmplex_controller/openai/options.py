"""Where OpenAI's API listens, who may ask, and how much."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fmplex_backend.errors import PortInUse, SetupProblem
from fmplex_controller.openai.keys import ApiKeys
from fmplex_controller.server.addresses import bind_problem, is_loopback

DEFAULT_PORT = 9000
DEFAULT_TIMEOUT_S = 600.0
DEFAULT_BODY_MIB = 4.0


@dataclass(frozen=True, slots=True)
class OpenAiOptions:
    """Without `keys`, a file with API keys, everyone who reaches the port may ask, as at Triton's own ports."""

    port: int = DEFAULT_PORT
    host: str = "127.0.0.1"
    keys: Path | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S  # of a request, from its arrival to the last of its answer
    body_mib: float = DEFAULT_BODY_MIB  # of a request, at most

    @property
    def is_local(self) -> bool:
        """Whether only this host reaches it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """Where it is, for clients' `base_url`."""
        host = self.host if ":" not in self.host or self.host.startswith("[") else f"[{self.host}]"
        return f"http://{host}:{self.port}/v1"

    def check(self) -> None:
        """Raise SetupProblem where libraries are missing, the keys cannot be read, or the port is taken."""
        missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
        if missing:
            raise SetupProblem(f"OpenAI's API needs {', '.join(missing)}. Install fmplex[openai]")
        ApiKeys(self.keys).check()
        if problem := bind_problem(self.host, self.port):
            raise PortInUse(
                f"OpenAI's API cannot listen on {self.host}:{self.port}: {problem.strerror}. Choose another port"
            ) from problem

    @property
    def arguments(self) -> list[str]:
        """For the command line of its process."""
        line = ["--host", self.host, "--port", str(self.port)]
        line += ["--timeout", str(self.timeout_s), "--body-mib", str(self.body_mib)]
        return line if self.keys is None else [*line, "--keys", str(self.keys.resolve())]
