"""The fenced blocks of README.md and docs/*.md, and how each is checked or run.

A block's language says what it is: `sh`, `bash` and `console` are commands, `python` is a program, `json`, `toml` and
`pbtxt` are parsed, and `text` is output or a drawing. Every block is run but those in NOT_RUN.

What a page says that is printed is compared with what is printed, stdout and stderr together:

* in a `console` block, the lines below a command (a line after "$ "), up to the next one. Where the last of them is
  `# exit status 1`, that is the command's exit status; else it is 0.
* the `text` block below a `python` block, with nothing between them but the line "It prints:".

`...` stands for anything, and any run of blanks and line ends for any other.
"""

from __future__ import annotations

import doctest
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMANDS, PROGRAM, DOCUMENTS, OUTPUT = ("sh", "bash", "console"), "python", ("json", "toml", "pbtxt"), "text"
LANGUAGES = (*COMMANDS, PROGRAM, *DOCUMENTS, OUTPUT)
FENCE = re.compile(r"^```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
STEP = re.compile(r"^\$ (?P<command>.*)\n(?P<printed>(?:(?!\$ ).*\n)*)", re.MULTILINE)
STATUS = re.compile(r"^# exit status (\d+)\n\Z", re.MULTILINE)
PRINTS = "\nIt prints:\n\n"  # between a program and its output
NOT_RUN_HERE = re.compile(r"<!-- not run: (?P<why>.+) -->\n\Z")  # before a block
WHOLE_PAGE = "<!-- make test-all runs this page -->"
FILE = re.compile(r"# (\S+\.py)\n")  # the first line of a block that is a file of a package

# By page and what the block contains: why it cannot run where tests run. A page may say it itself, see NOT_RUN_HERE.
NOT_RUN = {
    ("README.md", "make demo"): "sets up an environment of 2 GB, and serves until Ctrl-C; CI runs both commands",
    ("first-hour.md", "make demo"): "sets up an environment of 2 GB, and serves until Ctrl-C",
    ("serve.md", 'pip install ".[server,demo,gguf]"'): "installs 2 GB, and serves until Ctrl-C",
    ("serve.md", "fmplex serve --allow-links"): "serves until Ctrl-C; tests/unit/server/test_options.py has the option",
    ("serve.md", "tritonserver ..."): "is a pattern; tests/triton/test_closed.py has what it does",
    ("run-an-llm.md", "aiperf profile"): "minutes of load, and installs aiperf; test_openai.py runs perf_analyzer so",
    ("serve-openai.md", "fmplex serve --openai-port"): "serves until Ctrl-C; test_openai.py has what it does",
    ("sidecar.md", "--server triton:8001"): "runs until Ctrl-C; tests/triton/test_sidecar.py has what it does",
    ("sidecar.md", "--elastic"): "serves until Ctrl-C; tests/triton/test_rebind.py has what it does",
    ("sidecar.md", "docker run"): "needs Docker",
    ("run-an-llm.md", "backbone add qwen"): "fetches a model from the hub",
    ("run-an-llm.md", 'task.fit("answers.jsonl"'): "minutes of fitting; see tests/unit/training/test_sequences.py",
    ("run-an-llm.md", "fmplex task train desk"): "minutes of fitting; see tests/unit/training/test_sequences.py",
    ("serve.md", "docker compose"): "needs Docker",
    ("serve.md", "fmplex install-backend /opt/tritonserver"): "needs NVIDIA's container; see test_requests.py",
    ("serve.md", "--concurrency-range 1:64:4"): "minutes of load; test_demo.py runs perf_analyzer",
    ("serve.md", "--string-data"): "minutes of load; test_demo.py runs perf_analyzer",
    ("serve.md", "with Server(ServerOptions("): "starts a second server, on the ports 8000 to 8002",
}

# Pages of families say WHOLE_PAGE, since `make test` runs the families' contract and unit tests anyhow; the first hour
# says it because its commands are the README's and those of other pages, with mistakes in between.
SIXTEEN_COMMANDS = ("build-a-task.md", "fmplex task train letters")  # a minute and a half of imports, likewise


def says(page: str, printed: str) -> bool:
    """Whether what a page says is what was printed."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(page, printed, options)


@dataclass(frozen=True)
class Step:
    """A command of a `console` block, what the page says that it prints, and its exit status."""

    command: str
    printed: str
    status: int


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is where it starts, `prints` what the page says of a program's output."""

    page: str
    line: int
    language: str
    text: str
    prints: str | None = None
    own_excuse: str = ""  # as the page says it
    whole_page: bool = False  # the page is run by `make test-all` alone

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> str:
        """Of a block of commands: what a shell is given."""
        if self.language != "console":
            return self.text
        return "\n".join(step.command for step in self.steps)

    @property
    def steps(self) -> list[Step]:
        """Of a `console` block; of others none."""
        if self.language != "console":
            return []
        return [_step(found["command"], found["printed"]) for found in STEP.finditer(self.text)]

    @property
    def file(self) -> str:
        """Of a block that is a file of a package: its path; else empty."""
        found = FILE.match(self.text) if self.language == PROGRAM else None
        return found[1] if found else ""

    @property
    def excuse(self) -> str:
        """Why it is not run; empty where it is."""
        listed = (why for (page, part), why in NOT_RUN.items() if page == self.page and part in self.text)
        return self.own_excuse or next(listed, "")

    @property
    def is_slow(self) -> bool:
        """Whether `make test-all` alone runs it."""
        page, part = SIXTEEN_COMMANDS
        return self.whole_page or (self.page == page and part in self.text)

    @property
    def runs(self) -> bool:
        return self.language in (*COMMANDS, PROGRAM) and not self.excuse and not self.file


def _step(command: str, printed: str) -> Step:
    status = STATUS.search(printed)
    return Step(command, STATUS.sub("", printed), int(status[1]) if status else 0)


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    return [
        Block(
            page.name,
            text[: each.start()].count("\n") + 1,
            each["language"].strip(),
            each["text"],
            following["text"] if following and text[each.end() + 1 : following.start()] == PRINTS else None,
            excuse["why"] if (excuse := NOT_RUN_HERE.search(text, 0, each.start())) else "",
            WHOLE_PAGE in text,
        )
        for each, following in zip(found, [*found[1:], None], strict=True)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
