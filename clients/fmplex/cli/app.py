"""The command line: `fmplex serve`, `demo`, `predict`, `task`, `group`, `backbone`, `doctor` and others."""

from __future__ import annotations

import gc
import sys
from enum import Enum
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fmplex.cli import (
    backbones,
    chat,
    controlling,
    doctor,
    events,
    groups,
    importing,
    keys,
    openai,
    planning,
    profiling,
    rebinding,
    status,
    usage,
)
from fmplex.cli import predict as prediction
from fmplex.cli import tasks as task_commands
from fmplex.cli.events import Records
from fmplex.cli.shown import errors_shown
from fmplex_backend.errors import SetupProblem

PASSED_ON = "fmplex.passed_on"

app = typer.Typer(
    help="One foundation model in one Triton server, shared by many tasks.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(task_commands.app, name="task")
app.add_typer(groups.app, name="group")
app.add_typer(backbones.app, name="backbone")
app.command("doctor")(doctor.doctor)
app.command("predict")(prediction.predict)
app.command("import")(importing.import_)
app.command("control-key")(keys.control_key)
app.command("chat")(chat.chat)
app.command("openai")(openai.openai)
app.command("plan")(planning.plan)
app.command("profile")(profiling.profile)
app.command("rebind")(rebinding.rebind)
app.command("controller")(controlling.controller)
app.command("status")(status.status)
app.command("events")(events.events)
app.command("usage")(usage.usage)


class Control(str, Enum):
    """How the server picks up changes in its repository."""

    explicit = "explicit"
    poll = "poll"


class PassesOn(TyperCommand):
    """A command that passes everything after `--` on to another program."""

    # Any: typer's context is click's in its older versions and its own in newer ones.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Hide what follows `--` from the parser, which would take it for this command's arguments."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[PASSED_ON] = tuple(args[at + 1 :])
        return super().parse_args(ctx, args[:at])


Repository = Annotated[Path, typer.Argument(help="A Triton model repository.", file_okay=False)]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")]
HttpPort = Annotated[int, typer.Option(min=1, max=65535, help="Port for HTTP.")]
GrpcPort = Annotated[int, typer.Option(min=1, max=65535, help="Port for gRPC.")]
MetricsPort = Annotated[int, typer.Option(min=1, max=65535, help="Port for /metrics.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fmplex {metadata.version('fmplex')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """One foundation model in one Triton server, shared by many tasks."""
    # Commands that import torch and transformers make 400,000 objects that stay. Collections at every 700 of them, the
    # default, take a sixth of that time.
    gc.set_threshold(20_000, 10, 10)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files may hold what the terminal's encoding does not have
            stream.reconfigure(errors="backslashreplace")


@app.command(cls=PassesOn)
def serve(
    ctx: typer.Context,
    repository: Repository = Path("model_repository"),
    host: Host = "127.0.0.1",
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    control: Annotated[
        Control, typer.Option(help="Load models on request (explicit), or whenever their files change (poll).")
    ] = Control.explicit,
    control_key: keys.Given = None,
    control_key_file: keys.GivenFile = None,
    everyone: keys.Open = False,
    shared_memory: keys.SharedMemory = False,
    allow_links: Annotated[
        list[Path] | None,
        typer.Option(
            help="A directory that links in tasks' version directories may lead into; may be given several times.",
            metavar="ROOT",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    controller: Annotated[
        bool,
        typer.Option(
            "--controller/--no-controller",
            help="Run the controller beside the server: the repository's changes are taken up, what dies is started "
            "again. With --control poll there is none.",
        ),
    ] = True,
    records: Records = None,
    api: controlling.Api = True,
    api_host: controlling.ApiHost = "127.0.0.1",
    api_port: controlling.ApiPort = None,
    api_token_file: controlling.ApiTokenFile = None,
    openai_port: openai.ServePort = None,
    openai_host: openai.ServeHost = "127.0.0.1",
    openai_keys: openai.ServeKeys = None,
    elastic: controlling.Elastic = False,
    elastic_start: controlling.ElasticStart = True,
    elastic_moves: controlling.ElasticMoves = None,
    elastic_idle: controlling.ElasticIdle = None,
    elastic_memory: controlling.ElasticMemory = None,
    elastic_parallel: controlling.ElasticParallel = None,
) -> None:
    """Serve a model repository until SIGTERM or Ctrl-C.

    Prints `ready` on stdout when every model is loaded or refused; logs go to stderr.
    Without a key given, one is made that this user's clients on this host find by themselves.
    Arguments after `--` are passed to tritonserver.
    """
    from fmplex_controller.server import foreground
    from fmplex_controller.server.options import ServerOptions
    from fmplex_controller.server.process import Server

    with errors_shown():
        options = ServerOptions(
            repository=repository,
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            control=control.value,
            control_key=keys.chosen(control_key, control_key_file, everyone),
            open=everyone,
            shared_memory=shared_memory,
            allow_links=tuple(allow_links or ()),
            extra=ctx.meta[PASSED_ON],
        )
        server = Server(options)
        beside = openai.beside(server, openai_port, openai_host, openai_keys)

        def ready() -> None:
            print(f"fmplex: {keys.told(server)}", file=sys.stderr, flush=True)
            openai.tell_ready(beside)
            print("ready", flush=True)

        may = controlling.elastic_options(
            elastic, elastic_start, elastic_moves, elastic_idle, elastic_memory, elastic_parallel
        )
        companion = None
        if controller and control is Control.explicit:
            asked = controlling.api_options(api, api_host, api_port, api_token_file)
            companion = controlling.companion(server, asked, records, may)
        elif may is not None:
            raise SetupProblem("--elastic needs the controller: leave out --no-controller and --control poll")
        raise typer.Exit(foreground.serve(server, ready, companion=companion, beside=beside))


@app.command()
def demo(
    repository: Repository = Path("model_repository"),
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    once: Annotated[bool, typer.Option("--once", help="Stop the server afterwards.")] = False,
) -> None:
    """Serve a model repository and send example requests to every task in it, over HTTP and gRPC."""
    from fmplex.cli import demo as demonstration
    from fmplex_controller.server.options import ServerOptions

    with errors_shown():
        options = ServerOptions(repository, http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port)
        raise typer.Exit(demonstration.run(options, once=once))


@app.command(cls=PassesOn, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def perf(ctx: typer.Context) -> None:
    """Run NVIDIA's perf_analyzer with the arguments after `--`: fmplex perf -- -m sentiment -i grpc."""
    from fmplex.cli import perf as perf_analyzer

    with errors_shown():
        perf_analyzer.run([*ctx.args, *ctx.meta[PASSED_ON]])


@app.command()
def install_backend(
    directory: Annotated[Path, typer.Argument(help="Triton's backend directory.", file_okay=False)],
    create: Annotated[bool, typer.Option("--create", help="Also into a directory with no other backends.")] = False,
) -> None:
    """Install the backend into a Triton server's backend directory, such as /opt/tritonserver/backends."""
    from fmplex_controller.server import installation

    with errors_shown():
        print(installation.install_backend(directory, create=create))
