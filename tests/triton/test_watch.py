"""What a controller tells of a real server: its API, its page in a real browser, events, and bills that add up.

The controller is a process of its own here, because it is killed.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import psutil
import pytest
from browser import framed, run_in_browser
from dashboard import FILE, PANELS
from watching import HOSTILE, TASKS, Load, Rig

from fmplex import Client, ServerProblem
from fmplex_controller.api.options import ApiOptions
from fmplex_controller.records.journal import Journal
from fmplex_controller.records.usage import Usage, read_usage
from fmplex_controller.server.process import free_ports
from fmplex_controller.sidecar.process import SidecarProcess
from testing.adapters import lora
from testing.repositories import Task, write_backbone, write_task
from testing.servers import eventually, serving

# A killed process takes along what it did after its last sample, which is a second and a probe old at most; `first` is
# read some moments before, on a busy machine.
LOST_S = 3.0
PROMETHEUS_YML = FILE.with_name("prometheus.yml")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("watch")
    repository, records = folder / "repository", folder / "records"
    write_backbone(repository, threads="1")
    for tag, name in enumerate(TASKS):
        write_task(repository, Task(name, tag, adapter=lora() if name == "adapted" else None, seed=tag))
    with serving(repository, folder, extra=("--exit-timeout-secs=3",)) as server:
        assert not server.refused
        api = ApiOptions(port=free_ports(1)[0])
        journal = Journal.of_server(records, repository, server.grpc_url)
        sidecar = SidecarProcess(
            server.server, journal=journal, options=["--records", str(records), *api.arguments], variables=api.variables
        )
        sidecar.start()
        try:
            rig = Rig(server, sidecar, api, records)
            eventually(rig.tells, "the controller tells", 60)
            yield rig
        finally:
            sidecar.stop()
            journal.close()


# A stub that is killed while it holds a lock of the memory it shares with tritonserver 2.51 can end that, too: rarely,
# but then no test here has a server any more.
@pytest.mark.slow
def test_bills_add_up_over_the_ends_of_processes(rig: Rig) -> None:
    """The bill is compared with what the backbones' processes said themselves, last before each end."""
    counted_before, before = rig.status().busy_s, billed(rig)
    with Load(rig.server) as load:
        eventually(lambda: load.answers > 20, "they are answered", 60)
        first, stub = rig.status().busy_s - counted_before, rig.server.stub()
        stub.send_signal(signal.SIGKILL)
        eventually(lambda: not rig.server.has(TASKS[0]), "its end is found")
        at_its_end = billed(rig)
        eventually(lambda: rig.is_back(stub.pid), "it is back", 60)
        answers = load.answers
        eventually(lambda: load.answers > answers + 10, "they are answered again", 60)
        assert rig.sidecar._process is not None
        controller = psutil.Process(rig.sidecar._process.pid)
        controller.kill()
        answers = load.answers
        eventually(lambda: load.answers > answers + 10, "nobody records, and they are answered", 60)
        eventually(lambda: (rig.sidecar.keep() or True) and rig.tells(), "another controller", 60)
        answers = load.answers
        eventually(lambda: load.answers > answers + 10, "they are answered on", 60)
    eventually(lambda: rig.status().queued + rig.status().running == 0, "nothing is left to do")
    second = rig.status()
    eventually(lambda: billed(rig) - at_its_end > 0.999 * second.busy_s, "the last sample")
    bill, usage = billed(rig), read_usage(rig.records)
    assert {row.task for row in usage.tasks} == set(TASKS)
    assert sum(row.seconds for row in usage.tasks) == pytest.approx(bill, rel=0.01)
    assert bill - at_its_end == pytest.approx(second.busy_s, rel=0.01)
    assert first - LOST_S <= at_its_end - before <= first + LOST_S
    of_second = {task.name: task.requests for task in second.tasks}
    for row in usage.tasks:
        assert row.requests >= of_second[row.task]
        assert row.seconds > 0
    printed = rig.command("usage", "--csv", "--since", "1h")
    assert sum(float(line.rsplit(",", 4)[1]) for line in printed.splitlines()[1:]) == pytest.approx(
        sum(row.seconds for row in usage.tasks), abs=1e-5
    )
    assert Usage.model_validate(rig.get("/v1/usage")) == usage


def billed(rig: Rig) -> float:
    """Seconds of the backbone."""
    return sum(backbone.busy_s for backbone in read_usage(rig.records).backbones)


@pytest.mark.slow
def test_events_say_what_was_done_and_why(rig: Rig) -> None:
    """Of the test before."""
    lines = [json.loads(line) for line in rig.command("events", "--json").splitlines()]
    happened = [(line["kind"], line["model"]) for line in lines]
    for kind in ("dead", "unloaded", "loaded", "back"):
        assert (kind, "minilm") in happened
    assert happened.count(("controller-started", "")) == happened.count(("controller-ended", "")) + 1
    order = [happened.index(each) for each in (("dead", "minilm"), ("unloaded", "plain"), ("unloaded", "minilm"))]
    assert order == sorted(order)
    dead = next(line for line in lines if line["kind"] == "dead")
    assert "its process " in dead["reason"]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    shown = rig.command("events", "plain", "--since", "1h").splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d unloaded plain: its backbone 'minilm': .*", shown[0])


def test_status_shows_shares_and_queues(rig: Rig) -> None:
    with Load(rig.server) as load:
        eventually(lambda: load.answers > 10, "they are answered", 60)
        found = json.loads(rig.command("status", "--json"))
        told = rig.get("/v1/status")
    for document in (found, told):
        (backbone,) = document["backbones"]
        assert backbone["state"] == "serving"
        assert 0 < backbone["busy"] <= 1
        rows = {row["task"]: row for row in document["tasks"]}
        assert set(rows) == set(TASKS)
        assert sum(row["share_total"] for row in rows.values()) == pytest.approx(1.0)
        assert all(row["state"] == "serving" and row["requests"] > 0 for row in rows.values())
    assert found["events"]
    plain = rig.command("status").splitlines()
    assert plain[0].startswith("backbone\tstate\ttasks")


def test_a_task_is_unloaded_and_loaded_by_the_api(rig: Rig) -> None:
    path = f"/v1/tasks/{quote(HOSTILE)}"
    assert rig.post(f"{path}/unload") == {"task": HOSTILE, "loaded": False}
    eventually(lambda: not rig.server.has(HOSTILE), "it is unloaded")

    def state() -> str:
        return str(next(row["state"] for row in rig.get("/v1/status")["tasks"] if row["task"] == HOSTILE))

    eventually(lambda: state() == "not served", "its state says so")
    rig.post(f"{path}/load")
    eventually(lambda: rig.server.has(HOSTILE), "it is loaded")


def test_metrics_of_its_own(rig: Rig) -> None:
    with urllib.request.urlopen(f"{rig.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'fmplex_controller_actions_total{kind="loaded",outcome="done"}' in text
    assert re.search(r"^fmplex_controller_backbones_dead 0\.0$", text, re.MULTILINE)
    (last,) = re.findall(r"^fmplex_controller_last_round_timestamp_seconds (\S+)$", text, re.MULTILINE)
    assert abs(float(last) - time.time()) < 10


PAGE = """
const deadline = Date.now() + 15000;
const text = (id) => page.getElementById(id).innerText;
while (!(page.querySelector("main") && !page.querySelector("main").hidden && text("events").includes("loaded"))) {
  if (Date.now() > deadline) throw new Error("not shown: " + page.body.innerText);
  await new Promise((done) => setTimeout(done, 100));
}
const cells = (row) => [...row.cells].map((cell) => cell.innerText);
const rows = (id) => [...page.getElementById(id).rows].slice(1).map(cells);
const found = { title: page.title, backbones: rows("backbones"), tasks: rows("tasks"), events: rows("events"),
  images: page.images.length, bars: page.querySelectorAll("#tasks rect.own").length, state: text("state"),
  loaded: view.performance.getEntriesByType("resource").map((each) => each.name) };
"""
ATTACK = """
const refused = [];
page.addEventListener("securitypolicyviolation", (found) => refused.push(found.blockedURI));
const script = page.createElement("script");
script.textContent = "document.title = 'broken'";
const image = page.createElement("img");
image.src = "https://elsewhere.example/x";
page.body.append(script, image);
const later = Date.now() + 10000;
while (refused.length < 2 && Date.now() < later) await new Promise((done) => setTimeout(done, 50));
return [found, { title: page.title, refused: refused.sort() }];
"""


def test_the_page_in_a_browser(rig: Rig, tmp_path: Path) -> None:
    with framed(rig.url) as url:
        found, attacked = run_in_browser(PAGE + ATTACK, url, tmp_path)
    assert found["title"] == "FMplex"
    assert [row[:2] for row in found["backbones"]] == [["minilm", "serving"]]
    assert sorted(row[0] for row in found["tasks"]) == sorted(TASKS)
    assert (found["images"], found["bars"]) == (0, len(TASKS))
    assert {row[1] for row in found["events"]} >= {"loaded", "unloaded", "controller-started"}
    assert found["loaded"], "it asks the API"
    assert all(each.startswith(url) for each in found["loaded"])
    assert attacked["title"] == "FMplex"
    assert attacked["refused"] == ["https://elsewhere.example/x", "inline"]


@contextlib.contextmanager
def prometheus(rig: Rig, folder: Path) -> Iterator[str]:
    """The address of one that reads both ports as docker/prometheus.yml says, but every second."""
    config = PROMETHEUS_YML.read_text().replace("5s", "1s")
    config = config.replace("localhost:8002", f"127.0.0.1:{rig.server.server.options.metrics_port}")
    (folder / "prometheus.yml").write_text(config.replace("localhost:8003", f"127.0.0.1:{rig.api.port}"))
    (port,) = free_ports(1)
    line = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (
        (folder / "prometheus.log").open("w") as log,
        subprocess.Popen([*line, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log) as process,
    ):
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="there is no prometheus here (Debian's package has it)")
def test_every_panel_of_the_dashboard_shows_something(rig: Rig, tmp_path: Path) -> None:
    empty: dict[str, str] = {}

    def all_show() -> bool:
        empty.clear()
        for panel in PANELS:
            question = urlencode({"query": panel.with_variables()})
            try:
                with urllib.request.urlopen(f"{address}/api/v1/query?{question}", timeout=10) as answer:
                    if not json.load(answer)["data"]["result"]:
                        empty[panel.title] = "no series"
            except urllib.error.HTTPError as error:
                empty[panel.title] = error.read().decode()
            except OSError as error:  # it is starting
                empty[panel.title] = str(error)
        return not empty

    with Load(rig.server), prometheus(rig, tmp_path) as address, Client(rig.server.grpc_url, retries=0) as client:
        with pytest.raises(ServerProblem, match="slo_ms"):  # for the panel of failures
            client.predict("plain", ["a text"], slo_ms=-1.0)
        try:
            eventually(all_show, "every panel has a series", 60, period=0.5)
        finally:
            assert not empty, (tmp_path / "prometheus.log").read_text()[-2000:]
