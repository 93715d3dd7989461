"""Task directories as a careless or hostile hand leaves them; the same seed gives the same directory."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from testing.adapters import lora
from testing.breaking import CASES
from testing.clients import Outputs
from testing.repositories import Task, write_task
from testing.servers import Serving

Spoil = Callable[[random.Random, Path], None]  # of a sound task's directory
TEMPLATES = (
    Task("classes", 0, adapter=lora()),
    Task("tokens", 0, "token-classification", adapter=lora(4)),
    Task("vectors", 0, "embedding"),
    Task("alike", 0, "similarity"),
    Task("deep", 0, layers=3, adapter=lora(16, "query")),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63) - 1, 10**400),
    *(0.0, -0.0, 1e-320, 1e38, 3e38, 1e308, float("nan"), float("inf"), -float("inf")),
    *(
        "",
        " ",
        "\x00",
        "\n",
        "a" * 100_000,
        "\ud800",
        "é",
        "\U0001d518",
        "\u202e",
        "../../etc/passwd",
        "/etc/shadow",
        "~",
        ".",
    ),
    *("package:this.x", "package:os", "(a+)+$", "(.*a){20}", "{0.__class__}", "${HOME}", "%s%n", "float32", "cuda:7"),
    *([], {}, [[]], [None], ["a"] * 10_000, {"": ""}, {"kind": "peft"}, [[[[[[[[]]]]]]]]),
)
NAMES = (
    *(
        "tâche",
        "任務",
        "emoji-😀",
        "with space",
        "quote'\"",
        "semi;colon",
        "per%cent",
        "star*",
        "new\nline",
        "tab\tname",
    ),
    *(".hidden", ".swp", "~", "-rf", "--help", "a" * 255, "é" * 127, "CON", "null", "true", "1", "01", "dot.", "a.b.c"),
    *("back\\slash", "sentiment.bak", "minilm.bak", "\x7f", "\u202egnp", "e\u0301", "#", "?q=1", "&", "$(id)", "`id`"),
)
BAD_NAMES = (b"x\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\x80abc", b"latin\xe9")  # not UTF-8
VERSIONS = ("0", "01", "2", "-1", "+1", "1.5", "1e3", "x", " 1", "\uff11", "²", "9223372036854775807", ".1", "1.tmp")


@dataclass(frozen=True, slots=True)
class Hostile:
    """A directory that was put into a repository.

    `loadable`: whether Triton may be asked to load it. It may not where that ends or stops Triton 2.51 itself
    (docs/operate.md), where a protobuf string cannot hold the name, or where the tag is a served task's: neither is
    answered then until the newcomer is unloaded (docs/operate.md, Tags).
    """

    path: bytes
    what: str
    tag: int
    loadable: bool = True

    @property
    def name(self) -> str:
        """Its own, as a client writes it."""
        return os.fsdecode(os.path.basename(self.path))

    @property
    def is_quarantined(self) -> bool:
        """Whether a controller has written why it is not loaded."""
        return os.path.isfile(os.path.join(self.path, b"ERROR.txt"))

    def moved_to(self, folder: Path) -> Hostile:
        """The same one elsewhere on this file system; raises OSError where there is one of its name."""
        path = os.path.join(os.fsencode(folder), os.path.basename(self.path))
        os.rename(self.path, path)
        return replace(self, path=path)

    def remove(self) -> None:
        """Whatever it has become."""
        if os.path.isdir(self.path) and not os.path.islink(self.path):
            shutil.rmtree(self.path)
        else:
            os.unlink(self.path)


class Directories:
    """Makes hostile directories out of sound ones.

    Args:
        folder: where the sound ones are kept; on the file system of the repository.
        taken: tags of tasks that are served.
    """

    def __init__(self, folder: Path, taken: Sequence[int]) -> None:
        self.folder, self.taken = folder, taken
        self.sound = [write_task(folder / "sound", template) for template in TEMPLATES]

    def put(self, repository: Path, seed: int, tag: int) -> Hostile:
        """Build one aside and move it in; most have this tag, some one that is taken."""
        chance = random.Random(seed)
        what, spoil = chance.choice(KINDS)
        sound = chance.choice(self.sound)
        name: str | bytes = f"hostile-{seed}"
        loadable = what not in ("file", "version")
        if chance.random() < 0.1:
            tag, loadable = chance.choice(self.taken), False
        if what == "name":
            name = chance.choice((*NAMES, *BAD_NAMES))
            loadable = loadable and isinstance(name, str)
        with tempfile.TemporaryDirectory(dir=self.folder) as aside:
            built = Path(aside, "built")
            shutil.copytree(sound, built)
            self._name(built, sound.name, name, tag)
            spoil(chance, built)
            path = os.path.join(os.fsencode(repository), os.fsencode(name))
            os.rename(os.fsencode(built), path)
        return Hostile(path, what, tag, loadable)

    def _name(self, directory: Path, former: str, name: str | bytes, tag: int) -> None:
        config = directory / "config.pbtxt"
        shown = (name if isinstance(name, str) else name.decode(errors="replace")).replace("\\", "\\\\")
        shown = shown.replace('"', '\\"').replace("\n", "\\n")
        text = config.read_text().replace(f'name: "{former}"', f'name: "{shown}"', 1)
        config.write_text(text.replace('"VFM_0"', f'"VFM_{tag}"'), encoding="utf-8")


def has_its_reason(server: Serving, each: Hostile) -> bool:
    """It is served, or its ERROR.txt says why not; one that is hidden is no model's directory."""
    if each.name.startswith("."):
        return True
    if each.is_quarantined:
        return True
    with contextlib.suppress(UnicodeEncodeError, ValueError):
        return server.has(each.name)
    return False


def same_bits(one: Outputs, other: Outputs) -> bool:
    """Whether two answers are the same, receipts left out."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one if name != "usage")


def _files(directory: Path) -> list[Path]:
    return sorted(file for file in directory.rglob("*") if file.is_file())


# -- the ways


def as_known(chance: random.Random, directory: Path) -> None:
    """One of the cases whose messages are tested; what does not fit this task is left."""
    try:
        chance.choice(CASES).spoil(directory)
    except (OSError, AssertionError, KeyError, ValueError):
        (directory / "1" / "task.json").write_text("{")


def bytes_of_a_file(chance: random.Random, directory: Path) -> None:
    """Flipped, cut, doubled, zeroed or put before the file's own."""
    file = chance.choice(_files(directory))
    content = bytearray(file.read_bytes())
    at = chance.randrange(max(1, min(len(content), chance.choice((64, 4096, 10**9)))))
    match chance.randrange(6):
        case 0:
            for _ in range(chance.choice((1, 10, 1000))):
                content[chance.randrange(len(content))] = chance.randrange(256)
        case 1:
            del content[at:]
        case 2:
            content += bytes(content)
        case 3:
            content[at:] = bytes(len(content) - at)
        case 4:
            content[:0] = chance.randbytes(chance.choice((1, 8, 1000)))
        case _:
            content[at : at + 8] = chance.randbytes(8)
    file.write_bytes(content)


def value_in_json(chance: random.Random, directory: Path) -> None:
    """A value of a JSON file is another, has another type, or stands under another name."""
    file = chance.choice([file for file in _files(directory) if file.suffix == ".json"])
    document = json.loads(file.read_text())
    places = list(_places(document))
    for _ in range(chance.choice((1, 1, 1, 4))):
        section, key = chance.choice(places)
        value = chance.choice(VALUES)
        if isinstance(section, dict) and chance.random() < 0.2:
            section[chance.choice(("", "kind", "weights", "path", "\ud800", "x" * 1000))] = value
        elif isinstance(section, list) or key in section:
            section[key] = value
    text = json.dumps(document)
    if chance.random() < 0.1:
        text = "[" * 100_000 + text
    file.write_text(text)


def _places(section: Any) -> list[tuple[Any, Any]]:
    """(Section, key) of every value in it."""
    keys = list(section) if isinstance(section, dict) else range(len(section)) if isinstance(section, list) else ()
    return [place for key in keys for place in ((section, key), *_places(section[key]))]


def words_of_the_entry(chance: random.Random, directory: Path) -> None:
    """A word or a number of config.pbtxt is another, is gone, or is there twice."""
    file = directory / "config.pbtxt"
    words = file.read_text().split(" ")
    for _ in range(chance.choice((1, 1, 3))):
        at = chance.randrange(len(words))
        match chance.randrange(4):
            case 0:
                words[at] = str(chance.choice(("-1", "0", "1e-18", "nan", '"', "}", "[", "9" * 30, '"\\ud800"', "{ {")))
            case 1:
                words[at] = ""
            case 2:
                words[at] += " " + words[at]
            case _:
                words[at] = chance.choice(words)
    terms = ("weight", "slo_ms", "max_queue", "max_queue_bytes", "labels", "decoder", "tag")
    values = ("1e-18", "1e18", "-3", "nan", "inf", "", "abc", "\\ud800", "0", "9" * 400, "[", '[\\"a\\"]')
    if chance.random() < 0.5:
        key, value = chance.choice(terms), chance.choice(values)
        words.append(f'\nparameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')
    file.write_text(" ".join(words), encoding="utf-8")


def header_of_weights(chance: random.Random, directory: Path) -> None:
    """A safetensors header that lies about dtypes, shapes, offsets or its own length."""
    weights = [file for file in _files(directory) if file.suffix == ".safetensors"]
    if not weights:
        bytes_of_a_file(chance, directory)
        return
    file = chance.choice(weights)
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    tensor = header[chance.choice([name for name in header if name != "__metadata__"])]
    match chance.randrange(5):
        case 0:
            tensor["dtype"] = chance.choice(("F64", "I8", "BOOL", "F16", "BF16", "C64", "F8_E4M3", "I64", "X"))
        case 1:
            tensor["shape"] = chance.choice(([], [0], [-1], [2**63], [10**9, 10**9], [1] * 100, tensor["shape"][::-1]))
        case 2:
            tensor["data_offsets"] = chance.choice(([0, 0], [5, 1], [0, 2**64], [-4, 4], [0, len(data) * 2]))
        case 3:
            header[chance.choice(("", "\x00", "x" * 10_000, "base_model.model.evil.weight"))] = dict(tensor)
        case _:
            floats = len(data) // 4
            data = struct.pack("<f", chance.choice((float("nan"), float("inf"), 3e38, 1e30))) * floats
            data = data.ljust(len(content) - 8 - length, b"\0")
    text = json.dumps(header).encode()
    length = len(text) if chance.random() < 0.8 else chance.choice((0, 1, 2**63, 2**64 - 1, len(text) * 2))
    file.write_bytes(struct.pack("<Q", length) + text + data)


def no_regular_file(chance: random.Random, directory: Path) -> None:
    """A FIFO, a socket, a directory, a link or a file of many bytes in the place of one of its files."""
    place = chance.choice((*_files(directory), directory / "1"))
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    match chance.randrange(8):
        case 0:
            os.mkfifo(place)
        case 1:
            with socket.socket(socket.AF_UNIX) as listening:
                short = Path(tempfile.mkdtemp(), "s")
                listening.bind(str(short))
                shutil.move(short, place)
                short.parent.rmdir()
        case 2:
            place.mkdir()
        case 3:
            place.symlink_to(place.name)
        case 4:
            place.symlink_to("nowhere")
        case 5:
            place.symlink_to(chance.choice(("/etc/passwd", "/dev/zero", "/dev/random", "/proc/self/mem", "/", "..")))
        case 6:
            with place.open("wb") as file:
                file.truncate(4 << 30)
        case _:
            place.touch(mode=0)


def versions(chance: random.Random, directory: Path) -> None:
    """A version under another name, an empty one beside it, or none."""
    match chance.randrange(3):
        case 0:
            (directory / "1").rename(directory / chance.choice(VERSIONS))
        case 1:
            for name in chance.sample(VERSIONS, 3):
                (directory / name).mkdir(exist_ok=True)
        case _:
            shutil.rmtree(directory / "1")


def many_names(chance: random.Random, directory: Path) -> None:
    """Files beside the task's own, whose names no encoding knows."""
    for name in (*BAD_NAMES, *(os.fsencode(name) for name in chance.sample(NAMES, 5))):
        for folder in (directory, directory / "1"):
            with open(os.path.join(os.fsencode(folder), name), "wb") as file:
                file.write(b"x")


def nothing(chance: random.Random, directory: Path) -> None:
    """The task is sound: its name or its tag is what is wrong."""


KINDS: tuple[tuple[str, Spoil], ...] = (
    ("known", as_known),
    ("bytes", bytes_of_a_file),
    ("json", value_in_json),
    ("json", value_in_json),
    ("entry", words_of_the_entry),
    ("header", header_of_weights),
    ("file", no_regular_file),
    ("version", versions),
    ("names", many_names),
    ("name", nothing),
    ("sound", nothing),
)
