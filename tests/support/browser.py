"""A real browser without a display: the Chromium that the package kaleido carries for drawing plots.

kaleido runs one function of a script, "plotly", on its own page. The script here opens the page under test in a frame
and runs what a test asks for beside it. The browser is started without the same-origin policy, which is what lets the
script read the frame; policies that the page itself sends stay in force.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kaleido

FOLDER = Path(kaleido.__file__).parent / "executable"
FLAGS = ("--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage", "--disable-web-security")
ANSWER_S = 30.0
STARTS = 3  # of sixty starts one hangs before it answers anything
SCRIPT = """
const Run = Object.getPrototypeOf(async function () {}).constructor;
async function run(asked) {
  const frame = document.createElement("iframe");
  frame.width = 1200; frame.height = 900;
  const loaded = new Promise((done) => { frame.onload = done; });
  frame.src = asked.url;
  document.body.append(frame);
  await loaded;
  return new Run("page", "view", atob(asked.script))(frame.contentDocument, frame.contentWindow);
}
window.Plotly = {
  version: "2.0.0",
  toImage: (figure) => run(figure.layout.asked).then(
    (value) => JSON.stringify({ value }), (error) => JSON.stringify({ error: String(error.stack || error) })),
};
"""


def run_in_browser(script: str, url: str, folder: Path) -> Any:
    """What the body of an async function returns, in a browser that has opened a page.

    Args:
        script: of `page`, the page's document, and `view`, its window. It must end by itself within some seconds.
        folder: for files of the browser's.
    """
    for _ in range(STARTS):
        with _started(folder) as browser, contextlib.suppress(_Silent):
            assert _answer(browser)["code"] == 0
            asked = {"url": url, "script": b64encode(script.encode()).decode()}
            figure = {"data": [], "layout": {"asked": asked}}
            assert browser.stdin is not None
            browser.stdin.write(
                json.dumps({"data": figure, "format": "svg", "width": 1, "height": 1, "scale": 1}) + "\n"
            )
            browser.stdin.flush()
            answer = _answer(browser)
            assert answer["code"] == 0, answer
            found = json.loads(answer["result"])
            assert "error" not in found, found["error"]
            return found["value"]
    raise AssertionError(f"{STARTS} browsers have not answered within {ANSWER_S:g} s")


class _Silent(Exception):
    """A browser does not answer."""


@contextlib.contextmanager
def _started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    file = folder / "browser.js"
    file.write_text(SCRIPT)
    variables = {
        "LD_LIBRARY_PATH": str(FOLDER / "lib"),
        "FONTCONFIG_PATH": str(FOLDER / "etc" / "fonts"),
        "XDG_DATA_HOME": str(FOLDER / "xdg"),
    }
    with subprocess.Popen(
        [FOLDER / "bin" / "kaleido", "plotly", f"--plotlyjs={file}", *FLAGS],
        cwd=FOLDER,
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as browser:
        try:
            yield browser
        finally:
            os.killpg(browser.pid, signal.SIGKILL)  # and the processes of its pages


def _answer(browser: subprocess.Popen[str]) -> dict[str, Any]:
    """A line of JSON, which an empty line may come before."""
    assert browser.stdout is not None
    limit = threading.Timer(ANSWER_S, browser.kill)
    limit.start()
    try:
        for line in browser.stdout:
            if line.strip():
                found: dict[str, Any] = json.loads(line)
                return found
    finally:
        limit.cancel()
    raise _Silent


@contextlib.contextmanager
def framed(url: str) -> Iterator[str]:
    """Another address of a site: GETs are passed on, and its pages may be shown in a frame; all else is as it was."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                request = urllib.request.Request(f"{url}{self.path}")
                if token := self.headers.get("Authorization"):
                    request.add_header("Authorization", token)
                with urllib.request.urlopen(request, timeout=10) as answer:
                    status, headers, body = answer.status, answer.headers, answer.read()
            except urllib.error.HTTPError as error:
                status, headers, body = error.code, error.headers, error.read()
            with contextlib.suppress(OSError):  # the browser has ended
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                        self.send_header(name, value.replace("; frame-ancestors 'none'", ""))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
