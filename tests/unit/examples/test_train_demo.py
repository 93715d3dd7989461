"""The demo's readers and its training script, on sentences of this file's own and a tiny backbone."""

from __future__ import annotations

import gzip
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from task_fixtures import BASE, tiny_repository

sys.path.insert(0, str(Path(__file__).parents[3] / "clients" / "examples"))

import demo_data
import train_demo
from demo_data import DataSet, Example
from demo_tasks import TASKS, DemoTask

from fmplex import LoRA
from fmplex_backend.repository.config import load_task_config
from fmplex_backend.repository.writer import ModelRepository


def put(file: Path, text: str, *, zipped: bool = False, encoding: str = "utf-8") -> None:
    """Write a file, or its gzipped twin."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if zipped:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(text.encode(encoding)))
    else:
        file.write_bytes(text.encode(encoding))


def test_sentiment_reads_plain_and_gzipped_files(tmp_path: Path) -> None:
    put(tmp_path / "sst2_trec" / "stsa.binary.train", "1 a warm bath\n0 cold soup , twice\n", zipped=True)
    put(tmp_path / "sst2_trec" / "stsa.binary.test", "0 my shoe is wet\n\n")
    data = demo_data.sentiment(tmp_path)
    assert data.train == [Example("a warm bath", (1,)), Example("cold soup , twice", (0,))]
    assert data.held_out == [Example("my shoe is wet", (0,))]


def test_question_is_latin_1(tmp_path: Path) -> None:
    put(tmp_path / "sst2_trec" / "TREC.train.all", "4 Where is the caf\u00e9 ?\n", encoding="latin-1")
    put(tmp_path / "sst2_trec" / "TREC.test.all", "5 How many forks ?\n", encoding="latin-1")
    data = demo_data.question(tmp_path)
    assert data.train == [Example("Where is the caf\u00e9 ?", (4,))]
    assert data.labels[data.held_out[0].target[0]] == "number"


def test_emotion_keeps_rows_together_across_odd_line_separators(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(tmp_path / "tweeteval_emotion" / f"{split}_text.txt", "one\u2028still one\x85 too \nsecond\n")
        put(tmp_path / "tweeteval_emotion" / f"{split}_labels.txt", "1\n3\n")
    data = demo_data.emotion(tmp_path)
    assert [row.target for row in data.train] == [(1,), (3,)]
    assert data.train[1].text == "second"


def test_texts_without_a_class_are_refused() -> None:
    with pytest.raises(ValueError, match="1 texts but 2 classes"):
        demo_data.parallel_lines(["alone"], ["0", "1"])


def test_topic_holds_out_every_fourth_row_and_mends_backslashes(tmp_path: Path) -> None:
    rows = "".join(f'"{n % 4 + 1}","Head {n}","first\\second, ""quoted"""\n' for n in range(8))
    put(tmp_path / "ag_news_test" / "test.csv", rows, zipped=True)
    data = demo_data.topic(tmp_path)
    assert [row.text.split()[1] for row in data.held_out] == ["3", "7"]
    assert len(data.train) == 6
    assert data.train[0] == Example('Head 0 first second, "quoted"', (0,))


def test_intent_labels_are_sorted_and_lines_inside_quotes_stay_in_one_row(tmp_path: Path) -> None:
    put(tmp_path / "banking77" / "train.csv", 'text,category\n"Lost it,\nagain",lost_card\nHow old,age\n')
    put(tmp_path / "banking77" / "test.csv", "text,category\nWhere is it,lost_card\n")
    data = demo_data.intent(tmp_path)
    assert data.labels == ("age", "lost_card")
    assert data.train[0] == Example("Lost it, again", (1,))
    assert data.held_out == [Example("Where is it", (1,))]


def wnut(folder: Path) -> None:
    """Two posts, with the separators the real files hold: a bare tab and an empty line."""
    put(folder / "wnut17_ner" / "wnut17train.conll", "Ada\tB-person\nLo\tI-person\nran\tO\n\t\nOslo\tB-location\n\n")
    put(folder / "wnut17_ner" / "emerging.test.annotated", "to\tO\nOslo\tB-location\n\n")


def test_entities_name_each_words_place_in_the_text(tmp_path: Path) -> None:
    wnut(tmp_path)
    data = demo_data.entities(tmp_path)
    assert data.labels == ("O", "B-location", "I-location", "B-person", "I-person")
    first = data.train[0]
    assert first == Example("Ada Lo ran", (3, 4, 0), ((0, 3), (4, 6), (7, 10)))
    assert [first.text[begin:end] for begin, end in first.words] == ["Ada", "Lo", "ran"]


def test_mentions_mark_every_kind_of_name(tmp_path: Path) -> None:
    wnut(tmp_path)
    data = demo_data.mentions(tmp_path)
    assert data.labels == ("location", "person")
    assert [row.target for row in data.train] == [(0, 1), (1, 0)]


def test_routing_takes_as_many_held_out_rows_of_each_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(count: int) -> demo_data.DataSet:
        rows = [Example(f"{count} {number}", (9,)) for number in range(count)]
        return demo_data.DataSet(("a",), rows, rows, "made up")

    monkeypatch.setattr(demo_data, "ROUTES", {"small": lambda _: read(3), "large": lambda _: read(40)})
    data = demo_data.routing(None, per_route=3)
    assert data.labels == ("small", "large")
    assert [row.target for row in data.held_out] == [(0,)] * 3 + [(1,)] * 3
    assert len(data.train) == 43


def test_without_a_directory_the_hub_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str, revision: str | None) -> list[dict[str, object]]:
        asked.append((name, split, revision))
        return [{"text": " so glad ", "label": 1}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert demo_data.emotion(None).train == [Example("so glad", (1,))]
    assert asked == [("cardiffnlp/tweet_eval", "train", None), ("cardiffnlp/tweet_eval", "test", None)]


def test_a_missing_datasets_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit, match="--data"):
        demo_data.sentiment(None)


PAIRS = [demo_data.SentencePair("w1 w2", f"w{number} w3", float(number)) for number in range(5)]


@pytest.mark.parametrize(
    "task",
    [pytest.param(task, marks=[] if task.name == "sentiment" else [pytest.mark.slow], id=task.name) for task in TASKS],
)
def test_every_task_is_made_fitted_and_saved(task: DemoTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole script, over a tiny backbone and rows of this file's own."""
    monkeypatch.setattr(train_demo, "BACKBONE", BASE)
    monkeypatch.setattr(train_demo, "sentence_pairs", lambda data: PAIRS)
    monkeypatch.setattr(train_demo, "LENGTH", 16)
    monkeypatch.setattr(train_demo, "EMBEDDED_LENGTH", 32)
    root = tiny_repository(tmp_path)
    rows = [Example(f"w{n} w{n + 1} w{n + 2}", (n % 2,)) for n in range(40)]
    labels: tuple[str, ...] = ("left", "right")
    if task.decoder.kind == "token-classification":
        labels = ("O", "B-x")
        rows = [replace(row, target=(0, 1, 0), words=word_places(row.text)) for row in rows]
    if task.decoder.kind == "multi-label":
        rows = [replace(row, target=(n % 2, 1)) for n, row in enumerate(rows)]
    own = replace(task, read=task.read and (lambda data: DataSet(labels, rows, rows[:10], "own rows")))
    if own.adapter:
        own = replace(own, adapter=LoRA(r=2, targets=["query"]))
    monkeypatch.setattr(train_demo, "TASKS", (own,))
    for _ in range(2):  # a second time it takes the place of the first
        train_demo.main(repository=root, threads=1)
    backbone, spec = ModelRepository(root).task(task.name)
    assert (backbone, spec.version.number) == (BASE, 1)
    config = load_task_config(spec.version.path / "task.json")
    assert (config.decoder.kind, config.description) == (task.decoder.kind, task.description)
    assert config.metrics["test_set"]
    assert ("head_only_accuracy" in config.metrics) == bool(task.adapter)
    assert spec.weight == task.terms.get("weight", 1.0)
    figures = {name for name in config.metrics if f"bfloat16_{name}" in config.metrics}
    assert figures
    for name in figures:
        assert config.metrics[f"bfloat16_{name}"] == pytest.approx(config.metrics[name], abs=0.2)
    assert figures >= {name.removeprefix("head_only_") for name in config.metrics if name.startswith("head_only_")}

    whole = (spec.version.path / "task.json").read_bytes()
    train_demo.main(repository=root, threads=1, measured_only=True)
    assert (spec.version.path / "task.json").read_bytes() == whole
    assert ModelRepository(root).task(task.name)[1].version.number == 1


def word_places(text: str) -> tuple[tuple[int, int], ...]:
    """Of words with one space between."""
    places, at = [], 0
    for word in text.split():
        places.append((at, at + len(word)))
        at += len(word) + 1
    return tuple(places)


def test_rows_are_thinned_evenly() -> None:
    rows = [Example(str(n), (0,)) for n in range(100)]
    assert [row.text for row in train_demo.thinned(rows, 4)] == ["0", "25", "50", "75"]
    assert train_demo.thinned(rows, None) == rows


def test_tasks_that_are_not_there_are_named() -> None:
    with pytest.raises(typer.BadParameter, match="no such task: nonsense"):
        train_demo.chosen_tasks("topic, nonsense")
    assert [task.name for task in train_demo.chosen_tasks("topic")] == ["topic"]
