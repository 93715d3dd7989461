"""The page in a browser where it needs more than to look at: a token, and a controller that comes and goes.

tests/triton/test_watch.py shows a real server on it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from api_source import GIVEN_UP, NAME, FakeSource
from browser import framed, run_in_browser

from fmplex_controller.api.app import make_app
from fmplex_controller.api.options import ApiOptions
from fmplex_controller.server.process import free_ports

SCRIPT = """
const at = (id) => page.getElementById(id);
const until = async (what, holds) => {
  const deadline = Date.now() + 10000;
  while (!holds()) {
    if (Date.now() > deadline) throw new Error(what + ": " + page.body.innerText);
    await new Promise((done) => setTimeout(done, 20));
  }
};
await until("it asks for the token", () => !at("door").hidden);
const before = [at("problem").innerText, page.querySelector("main").hidden];
at("token").value = "wrong";
at("enter").click();
await new Promise((done) => setTimeout(done, 2500));
const wrong = page.querySelector("main").hidden;
at("token").value = "t0ken";
at("enter").click();
await until("it shows the tasks", () => !page.querySelector("main").hidden);
const shown = at("tasks").rows[1].cells[0].innerText;
const backbone = [...at("backbones").rows[1].cells].map((cell) => cell.innerText);
const tried = [...at("versions").rows[1].cells].map((cell) => cell.innerText);
view.fetch = () => Promise.reject(new Error("gone"));
await until("it says that nobody answers", () => !at("problem").hidden);
return { before, wrong, shown, backbone, tried, problem: at("problem").innerText, door: at("door").hidden };
"""


@pytest.fixture
def url() -> Iterator[str]:
    """Of an API that wants a token."""
    (port,) = free_ports(1)
    app = make_app(FakeSource(), ApiOptions("127.0.0.1", port, "t0ken"))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_it_asks_for_a_token_and_says_when_nobody_answers(url: str, tmp_path: Path) -> None:
    with framed(url) as address:
        found = run_in_browser(SCRIPT, address, tmp_path)
    assert found["before"] == ["This controller wants its token.", True]
    assert found["wrong"]
    assert found["shown"] == NAME
    assert found["backbone"][:2] == ["base", "given up"]
    assert found["backbone"][-1] == GIVEN_UP.error
    assert found["tried"] == [NAME, "2", "shadow", "-", "-", "-", "-", "-", "50.0%", ""]
    assert found["problem"] == "The controller cannot be reached: gone"
    assert found["door"]
