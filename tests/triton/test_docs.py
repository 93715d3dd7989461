"""Every block of README.md and docs/ that is a command or a program, as it stands, on a real server.

The blocks run in the order of the pages, in a folder where the demo's repository is `model_repository`; a page's
programs share their names. Nothing but the server's addresses is changed. What a page says that is printed has to be
printed, without a traceback, and every error has a remedy.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import BLOCKS, PROGRAM, Block, Step, says
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_wine
from text_encoder_case import LABELS, PRIZES, TEXTS
from transformers import AutoModelForSequenceClassification

from fmplex import Client, Label
from fmplex_controller.api.options import ApiOptions
from fmplex_controller.openai.options import OpenAiOptions
from fmplex_controller.openai.process import OpenAiProcess
from fmplex_controller.server.process import free_ports
from fmplex_controller.sidecar.process import SidecarProcess
from testing.models import minilm
from testing.repositories import copy_repository
from testing.servers import Serving, eventually, serving

ROOT = Path(__file__).parents[2]
RUN = [block for block in BLOCKS if block.runs]
ADDRESS = re.compile(r"\b(?:localhost|127\.0\.0\.1):(8000|8001|8002|8003|9000)\b")
WITH_CONTROLLER = "watch.md"  # the last page, about the controller that `fmplex serve` runs beside the server
WITH_OPENAI = "serve-openai.md"
DOCTOR = "fmplex doctor"  # looks at the ports 8000 to 8002, which something else may hold
ERROR = re.compile(r"^(?:fmplex: |Error: )", re.MULTILINE)
REMEDY = re.compile(r"[.:?] (?:[A-Z`]|fmplex |call |docs/)|^Try '", re.MULTILINE)  # what to do: a sentence of its own


@dataclass
class Desk:
    """Where a reader sits: a folder with data and the server's repository."""

    served: Serving
    folder: Path
    names: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(lambda: {"__name__": "__main__"}))
    api: ApiOptions | None = None  # of the controller, once it runs
    controller: SidecarProcess | None = None
    openai: OpenAiProcess | None = None

    @property
    def ports(self) -> dict[str, int]:
        """Those of the server that runs, by those of the pages."""
        options = self.served.server.options
        ports = {"8000": options.http_port, "8001": options.grpc_port, "8002": options.metrics_port}
        more = {"8003": self.api, "9000": self.openai and self.openai.api}
        return ports | {usual: options.port for usual, options in more.items() if options is not None}

    def start_openai(self) -> None:
        """Once, and wait until it listens."""
        if self.openai is None:
            self.openai = OpenAiProcess(self.served.server, OpenAiOptions(free_ports(1)[0]))
            self.openai.start()
            assert self.openai.wait_ready()

    def start_controller(self) -> None:
        """Once, and wait until it tells of the backbone."""
        if self.controller is not None:
            return
        self.api = ApiOptions(port=free_ports(1)[0])
        options = ["--records", str(self.folder / "records"), *self.api.arguments]
        self.controller = SidecarProcess(self.served.server, options=options)
        self.controller.start()
        with Client(self.served.grpc_url) as client:
            client.predict("sentiment", ["Something to put on a bill"])
        eventually(self._has_usage, "the controller records", 60)

    def _has_usage(self) -> bool:
        try:
            with urllib.request.urlopen(self.addressed("http://localhost:8003/v1/usage"), timeout=10) as answer:
                return bool(json.load(answer)["tasks"])
        except OSError:
            return False

    def addressed(self, text: str) -> str:
        """With the addresses of the server that runs."""
        return ADDRESS.sub(lambda found: f"127.0.0.1:{self.ports[found[1]]}", text)

    def as_on_a_page(self, printed: str) -> str:
        """With the addresses of the pages."""
        for usual, port in self.ports.items():
            printed = printed.replace(f"127.0.0.1:{port}", f"localhost:{usual}")
        return printed

    def run_commands(self, block: Block) -> None:
        """Every line has to succeed; curl fails for an HTTP error too."""
        done = self._run(block.commands)
        assert done.returncode == 0, done.stdout

    def run_step(self, step: Step) -> None:
        """A command has to end and to print as the page says, and to say what helps where it fails."""
        done = self._run(step.command)
        printed = self.as_on_a_page(done.stdout)
        what = f"$ {step.command}\n{printed}# exit status {done.returncode}"
        assert done.returncode == step.status, what
        assert says(step.printed, printed), f"the page says:\n{step.printed}\nprinted is:\n{what}"
        assert "Traceback" not in printed, what
        assert step.status == 0 or not ERROR.search(printed) or REMEDY.search(printed), f"no remedy: {what}"

    def run_program(self, block: Block) -> None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(self.addressed(block.text), block.place, "exec"), self.names[block.page])
        if block.prints is not None:
            assert says(block.prints, self.as_on_a_page(printed.getvalue())), printed.getvalue()

    def _run(self, commands: str) -> subprocess.CompletedProcess[str]:
        """Stdout and stderr together."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        variables = os.environ | {"PATH": path, "CURL_HOME": str(self.folder), "FMPLEX_SERVER": self.served.grpc_url}
        variables["FMPLEX_RECORDS"] = str(self.folder / "records")
        http, grpc, metrics = free_ports(3)
        doctor = f"{DOCTOR} --http-port {http} --grpc-port {grpc} --metrics-port {metrics}"
        line = ["bash", "-euo", "pipefail", "-c", self.addressed(commands).replace(DOCTOR, doctor)]
        return subprocess.run(
            line,
            cwd=self.folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


def write_data(folder: Path) -> None:
    """What the pages take for granted: labelled rows, and an adapter that PEFT has trained."""
    for name, rows in (("held_out", slice(8)), ("spam", slice(8, None))):
        lines = [f'"{text}",{label}\n' for text, label in zip(TEXTS[rows], LABELS[rows], strict=True)]
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    outside = "".join(f"the weather of day {number},oos\n" for number in range(16))
    (folder / "intents.csv").write_text((folder / "spam.csv").read_text() + outside)
    (folder / "reviews.csv").write_text("id,text\n1,A warm and funny film\n2,What a waste of time\n")
    wine = load_wine()
    lines = [
        ",".join([*map(str, row), f"grade {kind}"]) for row, kind in zip(wine.data[::3], wine.target[::3], strict=True)
    ]
    (folder / "wine.csv").write_text("\n".join([",".join([*wine.feature_names, "grade"]), *lines, ""]))
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)
    adapter = get_peft_model(model, LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS"))
    adapter.save_pretrained(str(folder / "my-adapter"))
    (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    (folder / ".venv").symlink_to(sys.prefix)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("docs")
    repository = copy_repository(ROOT / "model_repository", folder / "model_repository")
    write_data(folder)
    with serving(repository, folder) as served:
        assert not served.refused
        desk = Desk(served, folder)
        try:
            yield desk
        finally:
            for beside in (desk.controller, desk.openai):
                if beside is not None:
                    beside.stop()


@pytest.mark.timeout(900)  # a block of ten commands that import and train, on a busy machine
@pytest.mark.parametrize(
    "block",
    [pytest.param(each, marks=[pytest.mark.slow] if each.is_slow else [], id=each.place) for each in RUN],
)
def test_the_block_runs(desk: Desk, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.folder)
    if block.page == WITH_CONTROLLER:
        desk.start_controller()
    if block.page == WITH_OPENAI:
        desk.start_openai()
    if block.language == PROGRAM:
        desk.run_program(block)
    elif not block.steps:
        desk.run_commands(block)
    for step in block.steps:
        desk.run_step(step)


def test_what_the_readme_trains_is_served(desk: Desk) -> None:
    with Client(desk.served.grpc_url) as client:
        (found,) = client.predict("spam", PRIZES[0])
    assert isinstance(found, Label)
    assert found.label == "spam"
    assert (desk.folder / "predicted.csv").read_text().startswith("text,label,predicted_label,score,")
