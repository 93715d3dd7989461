"""Every block of README.md and docs/ is well-formed; those of docs/extend.md that are files do what the page says.

Blocks that are commands and programs are run by tests/triton/test_docs.py.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tomllib
from doc_blocks import BLOCKS, COMMANDS, LANGUAGES, NOT_RUN, PROGRAM, ROOT, Block, Step, blocks_of, says
from google.protobuf import text_format
from task_fixtures import labelled
from tritonclient.grpc import model_config_pb2

from fmplex import Backbone, Classifier, Embedder, Task, TaskProblem, Values
from fmplex.client.versions import VersionRow
from fmplex_backend import families
from fmplex_backend.families.text_encoder.spec import TextEncoders
from fmplex_backend.interface import tag_name
from fmplex_backend.repository import config as config_module
from fmplex_backend.repository.config import config_of, load_backbone_config
from fmplex_backend.repository.configs import Terms, backbone_parameters
from fmplex_backend.repository.writer import ModelRepository, Pipeline, write_config
from fmplex_backend.serving.intake import Call
from fmplex_backend.serving.service import Service
from fmplex_backend.types import Answer, Reply
from testing.repositories import write_backbone

FILES = {block.file: block.text for block in BLOCKS if block.file}
ENCODER_FILES = [f"fmplex_backend/families/text_encoder/{name}.py" for name in ("categories", "category_vectors")]
ADDED = ["fmplex_backend/decoders/probability.py", *ENCODER_FILES, "sums/spec.py", "sums/runtime.py"]


def check_commands(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.commands, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def check_program(block: Block) -> None:
    """It compiles, and what it imports of this project is there; of a file, that is checked where it is used."""
    tree = ast.parse(block.text)
    for node in [] if block.file else ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(compile(ast.Module([node], []), block.place, "exec"), {})


CHECKS = {
    **dict.fromkeys(COMMANDS, check_commands),
    PROGRAM: check_program,
    "json": lambda block: json.loads(block.text),
    "toml": lambda block: tomllib.loads(block.text),
    "pbtxt": lambda block: text_format.Parse(block.text, model_config_pb2.ModelConfig()),
    "text": lambda block: None,
}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_every_block_says_what_it_is_and_is_well_formed(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block.place}: begin the block with ``` and one of {', '.join(LANGUAGES)}"
    CHECKS[block.language](block)


def test_what_a_page_says_is_printed_is_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ one\nfirst ... line\n# exit status 3\n$ two\n```\n"
        "```python\nprint(1)\n```\n\nIt prints:\n\n```text\n1\n```\n\n```text\n2\n```\n"
    )
    console, program, *others = blocks_of(page)
    assert console.steps == [Step("one", "first ... line\n", 3), Step("two", "", 0)]
    assert [program.prints, *(each.prints for each in others)] == ["1\n", None, None]
    assert says("first ... line\n", "first or second\n  line\n")
    assert not says("first ... line\n", "first line, and more\n")
    assert not says("", "more\n")


def test_what_is_not_run_is_there_once() -> None:
    found = {key: sum(key[0] == block.page and key[1] in block.text for block in BLOCKS) for key in NOT_RUN}
    assert found == dict.fromkeys(NOT_RUN, 1)


def test_extras_that_are_installed_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        name.strip()
        for block in BLOCKS
        for each in re.findall(r"(?:\.|fmplex)\[([\w, ]+)\]", block.text if block.language in COMMANDS else "")
        for name in each.split(",")
    }
    assert {"server", "demo"} <= named <= extras.keys()


def test_the_table_of_versions_that_are_tried_has_every_column() -> None:
    text = (ROOT / "docs" / "watch.md").read_text(encoding="utf-8")
    (rows,) = re.findall(r"^\| column \|.*\n\|[- |]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    columns = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in rows.splitlines()))
    assert columns == list(VersionRow.model_fields)


def test_every_file_of_a_page_is_tried_here() -> None:
    assert sorted(FILES) == sorted(ADDED)


@pytest.fixture(autouse=True)
def _registries_read_again() -> Iterator[None]:
    """What a process knows of families is read once."""
    yield
    read_registries_again()


def read_registries_again() -> None:
    for each in (*vars(families).values(), *vars(config_module).values()):
        if hasattr(each, "cache_clear"):
            each.cache_clear()


def built_in(folder: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> ModuleType:
    """A file of the page, as if it stood in the package."""
    path = folder / Path(file).name
    path.write_text(FILES[file], encoding="utf-8")
    name = file.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_a_decoder_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> None:
    kind = built_in(tmp_path, monkeypatch, "fmplex_backend/decoders/probability.py").Probability
    monkeypatch.setattr(TextEncoders, "decoders", (*TextEncoders.decoders, kind))
    read_registries_again()
    texts, labels = labelled(80)
    task = Task("spam", backbone, decoder=kind())
    task.fit(texts, [label == "spam" for label in labels], progress=False)
    (found, *_) = results = task.predict(texts)
    assert isinstance(found, Values)
    said = [each.value > 0.5 for each in results if isinstance(each, Values)]
    assert np.mean([one == (label == "spam") for one, label in zip(said, labels, strict=True)]) > 0.9
    again = Task.load(task.save(), backbone)
    assert np.array_equal(again.outputs("w1")[0]["SCORES"], task.outputs("w1")[0]["SCORES"])
    assert "dims: 1" in (backbone.repository / "spam" / "config.pbtxt").read_text()


def test_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> None:
    folder = "fmplex_backend/families/text_encoder"
    built_in(tmp_path, monkeypatch, f"{folder}/category_vectors.py")
    kind = built_in(tmp_path, monkeypatch, f"{folder}/categories.py").Categories
    monkeypatch.setattr(TextEncoders, "encoders", (*TextEncoders.encoders, kind))
    read_registries_again()
    rows = [[first, second] for first in range(4) for second in range(4)] * 6
    labels = ["same" if first % 2 == second % 2 else "other" for first, second in rows]
    task = Task("pairs", backbone, encoder=kind(2, 4), decoder=Classifier())
    task.fit(rows, labels, epochs=40, learning_rate=1e-2, progress=False)
    assert task.evaluate(rows, labels)["accuracy"] > 0.9
    again = Task.load(task.save(), backbone)
    assert again.encoder == kind(2, 4)
    assert np.array_equal(again.outputs(rows[:3])[0]["SCORES"], task.outputs(rows[:3])[0]["SCORES"])
    with pytest.raises(TaskProblem, match="categories beyond 0 to 3"):
        task.fit([[1, 4]] * 4, ["same", "other"] * 2, progress=False)
    assert Task("texts", backbone, decoder=Embedder()).encoder.kind == "text"


def test_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("sums/spec.py", "sums/runtime.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(FILES[file], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(families.FAMILIES, "sums", "sums.spec:Sums")
    read_registries_again()
    root = tmp_path / "repository"
    root.mkdir()
    write_backbone(root, "adder", model="none", family="sums", max_batch_size=8)
    config = config_of("sums").model_validate({"family": "sums", "decoder": {"kind": "total", "factor": 2}})
    pipeline = Pipeline(config, "NUMBERS", None, {"TOTAL": 1}, lambda path: write_config(path, config))
    saved = ModelRepository(root).save("twice", "adder", pipeline, Terms())
    assert "NUMBERS" in (root / "twice" / "config.pbtxt").read_text()
    answers = ask(root, saved.vfm, np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32))
    assert answers["TOTAL"].tolist() == [[12.0], [30.0]]


def ask(root: Path, tag: int, numbers: Any) -> Any:
    """One request to a backbone that serves the repository."""
    config = load_backbone_config(root / "adder" / "config.pbtxt", backbone_parameters(root, "adder") or {})
    replies: list[Reply] = []
    answered = threading.Event()

    def send(reply: Reply, final: bool) -> None:
        replies.append(reply)
        answered.set()

    spec = families.family(config.family)
    service = Service(root, "adder", config, 8, lambda cost: spec.make_runtime(config, root, "cpu", 8, cost.predict))
    service.start()
    try:
        service.submit(Call({"NUMBERS": numbers}, ["TOTAL", tag_name(tag)], {}, send))
        assert answered.wait(timeout=20)
    finally:
        service.stop()
    (reply,) = replies
    assert isinstance(reply, Answer), reply
    return reply.tensors
