"""A real browser without a display: the Chromium that the package kaleido carries for drawing plots.

kaleido runs one function of a script, "plotly", on its own page. The script here opens the page under test in a frame
and runs what a test asks for beside it. The browser is started without the same-origin policy, which is what lets the
script read the frame; policies that the page itself sends stay in force.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import kaleido

FOLDER = Path(kaleido.__file__).parent / "executable"
ANSWER_S = 60.0
FLAGS = ("--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage", "--disable-web-security")
SCRIPT = """
const Run = Object.getPrototypeOf(async function () {}).constructor;
let frame = null;
async function open(url) {
  if (frame) frame.remove();
  frame = document.createElement("iframe");
  frame.width = 1200; frame.height = 900;
  const loaded = new Promise((done) => { frame.onload = done; });
  frame.src = url;
  document.body.append(frame);
  await loaded;
}
async function run(asked) {
  if (asked.url) await open(asked.url);
  const value = await new Run("page", "view", asked.script)(frame.contentDocument, frame.contentWindow);
  return value === undefined ? null : value;
}
window.Plotly = {
  version: "2.0.0",
  toImage: (figure) => run(figure.data[0]).then(
    (value) => JSON.stringify({ value }), (error) => JSON.stringify({ error: String(error.stack || error) })),
};
"""


@contextlib.contextmanager
def framed(url: str) -> Iterator[str]:
    """Another address of a site: GETs are passed on, and its pages may be shown in a frame; all else is as it was."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                with urllib.request.urlopen(f"{url}{self.path}", timeout=10) as answer:
                    status, headers, body = answer.status, answer.headers, answer.read()
            except urllib.error.HTTPError as error:
                status, headers, body = error.code, error.headers, error.read()
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


class Browser:
    """One window, which shows one page.

    Args:
        folder: for its script.
    """

    def __init__(self, folder: Path) -> None:
        script = folder / "browser.js"
        script.write_text(SCRIPT)
        variables = {
            "LD_LIBRARY_PATH": str(FOLDER / "lib"),
            "FONTCONFIG_PATH": str(FOLDER / "etc" / "fonts"),
            "XDG_DATA_HOME": str(FOLDER / "xdg"),
        }
        self._process = subprocess.Popen(
            [FOLDER / "bin" / "kaleido", "plotly", f"--plotlyjs={script}", *FLAGS],
            cwd=FOLDER,
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started = self._answer()
        assert started["code"] == 0, started

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, script: str, url: str = "") -> Any:
        """The value that the body of an async function returns, of `page`, its document, and `view`, its window.

        Args:
            url: what is opened first.
        """
        assert self._process.stdin is not None
        figure = {"data": [{"url": url, "script": script}], "layout": {}}
        asked = {"data": figure, "format": "svg", "width": 1, "height": 1, "scale": 1}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer["code"] == 0, answer
        found = json.loads(answer["result"])
        assert "error" not in found, found["error"]
        return found["value"]

    def _answer(self) -> dict[str, Any]:
        """A line of JSON, which an empty line may come before."""
        assert self._process.stdout is not None
        limit = threading.Timer(ANSWER_S, self._process.kill)
        limit.start()
        try:
            for line in self._process.stdout:
                if line.strip():
                    found: dict[str, Any] = json.loads(line)
                    return found
        finally:
            limit.cancel()
        raise AssertionError("the browser has ended, or did not answer")
