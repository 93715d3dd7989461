"""The demo's readers, scores and file writing, on sentences of this file's own: no data set, no weights."""

from __future__ import annotations

import gzip
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
sys.path.insert(0, str(Path(__file__).parents[2] / "clients" / "examples"))

import demo_data  # noqa: E402
import demo_files  # noqa: E402
import demo_metrics  # noqa: E402
import demo_model  # noqa: E402
import demo_training  # noqa: E402
import train_demo  # noqa: E402
from demo_data import Example  # noqa: E402
from demo_tasks import TASKS, DemoTask  # noqa: E402

from fmplex_backend.config import load_task_config  # noqa: E402


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


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-x I-x O", {("x", 1, 3)}),
        ("B-x B-x", {("x", 0, 1), ("x", 1, 2)}),
        ("B-x I-y", {("x", 0, 1), ("y", 1, 2)}),
        ("O I-x", {("x", 1, 2)}),
        ("O O", set()),
    ],
)
def test_entity_spans(tags: str, spans: set[tuple[str, int, int]]) -> None:
    assert demo_metrics.entity_spans(tags.split()) == spans


def test_entity_f1_wants_both_ends_and_the_kind() -> None:
    wanted = [["B-x", "I-x", "O"], ["B-y", "O", "B-x"]]
    found = [["B-x", "O", "O"], ["B-y", "O", "B-y"]]
    assert demo_metrics.entity_f1(found, wanted) == pytest.approx(2 * 1 / (3 + 3))


def test_spearman_shares_ranks_of_equal_values() -> None:
    assert demo_metrics.ranks([5.0, 1.0, 5.0]).tolist() == [2.5, 1.0, 2.5]
    assert demo_metrics.spearman([1, 2, 3], [10, 20, 40]) == pytest.approx(1)
    assert demo_metrics.spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)


def test_macro_f1_weighs_classes_alike() -> None:
    assert demo_metrics.macro_f1([0, 0, 0, 0], [0, 0, 0, 1]) == pytest.approx((6 / 7 + 0) / 2)


def test_a_words_first_token_stands_for_it_and_missing_words_are_told() -> None:
    offsets = [(0, 0), (0, 2), (2, 5), (6, 7), (0, 0)]
    assert demo_model.first_tokens(offsets, [(0, 5), (6, 7), (8, 9)]) == [1, 3, -1]


def test_a_head_on_separable_features_separates_them() -> None:
    values = torch.tensor([[3.0, 100.0], [4.0, 90.0], [-3.0, 101.0], [-5.0, 95.0]])
    wanted = torch.tensor([1, 1, 0, 0])
    head = demo_model.fit_head("classification", values, wanted, 2, decay=1e-3)
    assert demo_model.head_scores(head, values).argmax(dim=1).tolist() == [1, 1, 0, 0]


def test_prototypes_are_directions_of_class_means() -> None:
    values = torch.tensor([[2.0, 0.0], [0.0, 9.0], [4.0, 0.0]])
    head = demo_model.prototypes(values, torch.tensor([0, 1, 0]), 2, per_label=1)
    assert head["vectors"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert demo_model.head_scores(head, values).argmax(dim=1).tolist() == [0, 1, 0]


def test_batches_hold_every_example_once() -> None:
    examples = [Example("x" * number, (0,)) for number in range(1, 100)]
    batches = list(demo_training.batches_of_like_length(examples, 8, random.Random(0)))
    assert sorted(len(row.text) for batch in batches for row in batch) == list(range(1, 100))
    assert max(len(batch[-1].text) - len(batch[0].text) for batch in batches) < 16


def test_the_rate_warms_up_and_ends_near_nothing() -> None:
    rates = [demo_training.rate(step, 100) for step in range(100)]
    assert max(rates) == rates[9] == 1
    assert rates[99] < 0.02


def test_a_failing_block_leaves_the_task_that_stood_there(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    with demo_files.staged(repository, "task") as place:
        (place / "config.pbtxt").write_text("first")

    def fail() -> None:
        with demo_files.staged(repository, "task") as half:
            (half / "config.pbtxt").write_text("second")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        fail()
    assert (repository / "task" / "config.pbtxt").read_text() == "first"
    with demo_files.staged(repository, "task") as place:
        (place / "config.pbtxt").write_text("third")
    assert (repository / "task" / "config.pbtxt").read_text() == "third"
    assert [entry.name for entry in tmp_path.iterdir()] == ["repository"]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: str(task.name))
def test_every_task_writes_files_the_server_reads(task: DemoTask, tmp_path: Path) -> None:
    labels = () if task.read is None else ("O", "left", "right")
    config = train_demo.task_config(task, labels, tmp_path)
    demo_files.write_weights(tmp_path, None, {}, "none")
    demo_files.write_entry(tmp_path, config, train_demo.entry_of(task, config, hidden=7))
    assert load_task_config(tmp_path / "1" / "task.json") == config
    text = (tmp_path / "config.pbtxt").read_text()
    assert f'"VFM_{task.vfm}"' in text
    assert ("dims: 7" in text) == (task.decoder == "embedding")


def test_tags_differ() -> None:
    assert len({task.vfm for task in TASKS}) == len({task.name for task in TASKS}) == len(TASKS)
