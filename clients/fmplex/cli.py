"""The command line: `fmplex serve`, `demo`, `predict`, `task`, `perf` and `install-backend`."""

from __future__ import annotations

from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fmplex import task_commands
from fmplex.shown import errors_shown

PASSED_ON = "fmplex.passed_on"

app = typer.Typer(
    help="One foundation model in one Triton server, shared by many tasks.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(task_commands.app, name="task")
app.command("predict")(task_commands.predict)


class Control(str, Enum):
    """How the server takes up changes of its repository."""

    explicit = "explicit"
    poll = "poll"


class PassesOn(TyperCommand):
    """A command that hands everything after `--` to another program, itself never reading it."""

    # Any: typer's context is click's in its older versions and its own in newer ones.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what follows `--` from the parser, which would take it for this command's arguments."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[PASSED_ON] = tuple(args[at + 1 :])
        return super().parse_args(ctx, args[:at])


Repository = Annotated[Path, typer.Argument(help="A Triton model repository.", file_okay=False)]
Host = Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for every one.")]
HttpPort = Annotated[int, typer.Option(min=1, max=65535)]
GrpcPort = Annotated[int, typer.Option(min=1, max=65535)]
MetricsPort = Annotated[int, typer.Option(min=1, max=65535)]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fmplex {metadata.version('fmplex')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """One foundation model in one Triton server, shared by many tasks."""


@app.command(cls=PassesOn)
def serve(
    ctx: typer.Context,
    repository: Repository = Path("model_repository"),
    host: Host = "127.0.0.1",
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    control: Annotated[
        Control, typer.Option(help="Load on request (explicit), or whatever changes on disk (poll).")
    ] = Control.explicit,
    control_key: Annotated[
        str, typer.Option(envvar="FMPLEX_CONTROL_KEY", help="Close model control to clients without it.")
    ] = "",
) -> None:
    """Serve a model repository until SIGTERM or Ctrl-C.

    Prints `ready` on stdout when every model is loaded or refused; all else goes to stderr.
    What follows `--` goes to tritonserver as it is.
    """
    from fmplex_controller import foreground
    from fmplex_controller.options import ServerOptions
    from fmplex_controller.server import Server

    options = ServerOptions(
        repository=repository,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        control=control.value,
        control_key=control_key,
        extra=ctx.meta[PASSED_ON],
    )
    with errors_shown():
        raise typer.Exit(foreground.serve(Server(options), lambda: print("ready", flush=True)))


@app.command()
def demo(
    repository: Repository = Path("model_repository"),
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    once: Annotated[bool, typer.Option("--once", help="Stop after the questions.")] = False,
) -> None:
    """Serve a model repository and ask every task in it something, over HTTP and gRPC."""
    from fmplex import demo as demonstration
    from fmplex_controller.options import ServerOptions

    options = ServerOptions(repository=repository, http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port)
    with errors_shown():
        raise typer.Exit(demonstration.run(options, once=once))


@app.command(cls=PassesOn, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def perf(ctx: typer.Context) -> None:
    """Run NVIDIA's perf_analyzer with the arguments after `--`: fmplex perf -- -m sentiment -i grpc."""
    from fmplex import perf as perf_analyzer

    with errors_shown():
        perf_analyzer.run([*ctx.args, *ctx.meta[PASSED_ON]])


@app.command()
def install_backend(
    directory: Annotated[Path, typer.Argument(help="Triton's backend directory.", file_okay=False)],
) -> None:
    """Install the backend where a Triton of your own looks for it, such as /opt/tritonserver/backends."""
    from fmplex_controller import installation

    with errors_shown():
        print(installation.install_backend(directory))
