"""The HTTP API over a source that only remembers: who may ask what, and how it is answered."""

from __future__ import annotations

import hashlib
import re
import socket
from base64 import b64encode
from datetime import datetime, timezone

import pytest
from api_source import EVENT, NAME, FakeSource
from starlette.testclient import TestClient

from fmplex_backend.errors import PortInUse, SetupProblem
from fmplex_controller.api import options as options_module
from fmplex_controller.api.app import make_app
from fmplex_controller.api.options import ApiOptions
from fmplex_controller.records.events import Event


def client(source: FakeSource, host: str = "127.0.0.1", token: str = "") -> TestClient:
    return TestClient(make_app(source, ApiOptions(host, 8003, token)), base_url=f"http://{host}:8003")


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_what_is_told() -> None:
    source = FakeSource()
    asked = client(source)
    assert asked.get("/v1/status").json()["tasks"][0]["task"] == NAME
    (event,) = asked.get("/v1/events?since=2026-01-31T00:00%2B00:00&model=a&limit=5").json()
    assert Event.model_validate(event) == EVENT
    assert source.calls == [(datetime(2026, 1, 31, tzinfo=timezone.utc), "a", 5)]
    assert asked.get("/v1/usage").json()["backbones"] == [{"backbone": "base", "busy_s": 1.5, "charged_s": 1.5}]
    table = asked.get("/v1/usage?format=csv")
    assert table.headers["content-type"].startswith("text/csv")
    assert table.text.splitlines()[1] == f"base,{NAME},1.500000,0.250000,2,3"
    assert "fmplex_controller_working" in asked.get("/metrics").text
    assert set(asked.get("/openapi.json").json()["paths"]) == {
        *("/v1/status", "/v1/events", "/v1/usage", "/metrics"),
        *("/v1/tasks/{task}/load", "/v1/tasks/{task}/unload"),
    }


def test_bad_questions() -> None:
    asked, source = client(source := FakeSource()), source
    said = asked.get("/v1/events?since=yesterday")
    assert said.status_code == 422
    assert said.json()["detail"].startswith("since: 'yesterday' is no time. Give a number with s, m, h, d or w")
    assert asked.get("/v1/events?limit=100000").status_code == 422
    assert asked.get("/docs").status_code == 404  # it would load its scripts from elsewhere
    source.problem = SetupProblem("nothing has been recorded")
    assert asked.get("/v1/usage").status_code == 404


def test_tasks_are_loaded_and_unloaded_with_the_control_key() -> None:
    source = FakeSource("s3cret")
    asked = client(source)
    path = "/v1/tasks/%3Cimg%20src=x%20onerror=alert(1)%3E"
    for headers in ({}, bearer("other"), {"Authorization": "Basic s3cret"}):
        refused = asked.post(f"{path}/unload", headers=headers)
        assert refused.status_code == 401
        assert "control key" in refused.json()["detail"]
    assert asked.post(f"{path}/unload", headers=bearer("s3cret")).json() == {"task": NAME, "loaded": False}
    assert asked.post(f"{path}/load", headers=bearer("s3cret")).status_code == 202
    assert source.calls == [(NAME, False), (NAME, True)]
    assert asked.post("/v1/tasks/other/unload", headers=bearer("s3cret")).status_code == 404
    assert asked.post("/v1/tasks/..%2Fbase/unload", headers=bearer("s3cret")).status_code == 404
    source.problem = PermissionError(13, "Permission denied")
    assert asked.post(f"{path}/load", headers=bearer("s3cret")).status_code == 409


def test_other_sites_cannot_ask_a_browser_to() -> None:
    asked = client(FakeSource())
    path = "/v1/tasks/%3Cimg%20src=x%20onerror=alert(1)%3E/unload"
    assert asked.post(path, headers={"Origin": "http://elsewhere.example"}).status_code == 403
    assert asked.post(path, headers={"Origin": "null"}).status_code == 403
    assert asked.post(path, headers={"Origin": "http://127.0.0.1:8003"}).status_code == 202
    assert asked.get("/v1/status", headers={"Host": "rebound.example:8003"}).status_code == 400


def test_beyond_this_host_everything_but_the_empty_page_wants_the_token() -> None:
    asked = client(FakeSource("k3y"), "10.0.0.1", "t0ken")
    for path in ("/v1/status", "/v1/events", "/v1/usage", "/metrics", "/openapi.json"):
        assert asked.get(path).status_code == 401
        assert asked.get(path, headers=bearer("")).status_code == 401
        assert asked.get(path, headers=bearer("t0ken")).status_code == 200
        assert asked.get(path, headers=bearer("k3y")).status_code == 200
    assert asked.get("/").status_code == 200
    assert asked.post("/v1/tasks/a/load", headers=bearer("t0ken")).status_code == 401
    is_open = client(FakeSource(), "10.0.0.1", "t0ken")  # a server without a control key
    assert is_open.post("/v1/tasks/a/load").status_code == 401
    assert is_open.post("/v1/tasks/a/load", headers=bearer("t0ken")).status_code == 404


def test_the_page_runs_its_own_script_and_loads_nothing() -> None:
    answer = client(FakeSource()).get("/")
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    policy = answer.headers["content-security-policy"]
    assert f"script-src 'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", answer.text)


@pytest.mark.parametrize(
    ("host", "token", "said"),
    [("0.0.0.0", "", "Give a token with --api-token-file"), ("203.0.113.1", "t", "cannot listen on 203.0.113.1:8003")],
)
def test_where_it_cannot_listen(host: str, token: str, said: str) -> None:
    with pytest.raises(SetupProblem, match=said):
        ApiOptions(host, 8003, token).check()
    with pytest.raises(SetupProblem, match=said):
        ApiOptions.of(host, None, token, print)


def test_a_port_that_nobody_asked_for_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        (_, port) = other.getsockname()
        monkeypatch.setattr(options_module, "DEFAULT_PORT", port)
        said: list[str] = []
        assert ApiOptions.of("127.0.0.1", None, "", said.append) is None
        assert f"127.0.0.1:{port}" in said[0]
        with pytest.raises(PortInUse, match="--api-port"):
            ApiOptions.of("127.0.0.1", port, "", said.append)
    monkeypatch.setattr(options_module, "find_spec", lambda name: None)
    with pytest.raises(SetupProblem, match=r"Install fmplex\[controller\]"):
        ApiOptions().check()


def test_what_the_controllers_process_is_given() -> None:
    options = ApiOptions("127.0.0.1", 8123, "t0ken")
    assert options.arguments == ["--api-host", "127.0.0.1", "--api-port", "8123"]
    assert ApiOptions.given("127.0.0.1", 8123, options.variables) == options
    assert "t0ken" not in repr(options)
