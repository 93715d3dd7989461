"""The demo's public data sets, read from a directory of their original files or from the Hugging Face hub.

A directory holds one folder per set (`sst2_trec`, `tweeteval_emotion`, ...) with the files as their authors
publish them; any of them may be gzipped. Without a directory the `datasets` package fetches the same sets.
"""

from __future__ import annotations

import csv
import gzip
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

TREC_CLASSES = ("description", "entity", "abbreviation", "person", "location", "number")
TREC_CODES = {"DESC": 0, "ENTY": 1, "ABBR": 2, "HUM": 3, "LOC": 4, "NUM": 5}
EMOTIONS = ("anger", "joy", "optimism", "sadness")
NEWS_TOPICS = ("world", "sports", "business", "sci/tech")
NEWS_HOLD_OUT_EVERY = 4  # AG News is used without its train file: every fourth row of the test file is held out
OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Example:
    """One text. `target` is a class, or 0/1 for every label, or a label for each of `words`, given as [start, end)."""

    text: str
    target: tuple[int, ...]
    words: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class DataSet:
    """Rows to train on and rows held out; `held_out_name` says which rows those are."""

    labels: tuple[str, ...]
    train: list[Example]
    held_out: list[Example]
    held_out_name: str


@dataclass(frozen=True, slots=True)
class SentencePair:
    """Two sentences, and their similarity as people rated it, 0 to 5."""

    left: str
    right: str
    score: float


class HubRows(Protocol):
    """One split of a set on the hub, as far as the readers below use it."""

    features: Any

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


def open_text(file: Path, encoding: str = "utf-8") -> TextIO:
    """`file`, or `file`.gz where only that exists, as text with its line ends as they are."""
    zipped = file.with_name(f"{file.name}.gz")
    if zipped.exists() and not file.exists():
        return gzip.open(zipped, "rt", encoding=encoding, newline="\n")
    return file.open(encoding=encoding, newline="\n")


def lines_of(file: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text. Only a line feed ends one: `splitlines` would cut tweets at other characters."""
    with open_text(file, encoding) as lines:
        for line in lines:
            yield line.removesuffix("\n").removesuffix("\r")


def csv_rows(file: Path) -> list[list[str]]:
    """The rows of a csv file; a quoted field may hold line ends."""
    with open_text(file) as lines:
        return list(csv.reader(lines))


def hub_rows(name: str, split: str, config: str | None = None, revision: str | None = None) -> HubRows:
    """One split of a set on the hub. `revision` names the parquet branch of sets that publish a script."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise SystemExit(
            "Reading the hub needs the extra 'train' (pip install 'fmplex[train]'); "
            "or give --data, a directory with the sets' files"
        ) from None
    return cast(HubRows, datasets.load_dataset(name, config, split=split, revision=revision))


def numbered_lines(lines: Iterable[str]) -> list[Example]:
    """Lines of a class number, a blank and the text (SST-2, TREC)."""
    examples = []
    for line in lines:
        number, _, text = line.partition(" ")
        if text.strip():
            examples.append(Example(text.strip(), (int(number),)))
    return examples


def parallel_lines(texts: Iterable[str], classes: Iterable[str]) -> list[Example]:
    """A file of texts beside a file of class numbers (TweetEval)."""
    numbers = [line for line in classes if line.strip()]
    rows = list(texts)[: len(numbers)]
    if len(rows) != len(numbers):
        raise ValueError(f"{len(rows)} texts but {len(numbers)} classes")
    return [Example(text.strip(), (int(number),)) for text, number in zip(rows, numbers, strict=True)]


def news_text(title: str, description: str) -> str:
    """Title and description as one text; the files write a lost line break as a backslash."""
    return " ".join(f"{title} {description}".replace("\\", " ").split())


def split_news(rows: Sequence[tuple[str, int]]) -> tuple[list[Example], list[Example]]:
    """Every fourth row is held out."""
    examples = [Example(text, (topic,)) for text, topic in rows]
    held_out = examples[NEWS_HOLD_OUT_EVERY - 1 :: NEWS_HOLD_OUT_EVERY]
    train = [row for index, row in enumerate(examples) if (index + 1) % NEWS_HOLD_OUT_EVERY]
    return train, held_out


def conll_sentences(lines: Iterable[str]) -> list[list[tuple[str, str]]]:
    """Sentences of (word, tag); a line without a word ends a sentence, whatever white space it holds."""
    sentences: list[list[tuple[str, str]]] = [[]]
    for line in lines:
        word, _, tag = line.partition("\t")
        if word.strip():
            sentences[-1].append((word.strip(), tag.strip()))
        elif sentences[-1]:
            sentences.append([])
    return [sentence for sentence in sentences if sentence]


def tagged_example(sentence: Sequence[tuple[str, str]], labels: Sequence[str]) -> Example:
    """The words with a blank between them, as a client sends them, and where each stands in that text."""
    spans, start = [], 0
    for word, _ in sentence:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    text = " ".join(word for word, _ in sentence)
    return Example(text, tuple(labels.index(tag) for _, tag in sentence), tuple(spans))


def mentions_example(sentence: Sequence[tuple[str, str]], labels: Sequence[str]) -> Example:
    """The same text with 0 or 1 for every kind of entity: whether the text names one."""
    kinds = {tag[2:] for _, tag in sentence if tag != OUTSIDE}
    return Example(" ".join(word for word, _ in sentence), tuple(int(label in kinds) for label in labels))


def sentiment(data: Path | None) -> DataSet:
    """SST-2: film reviews, negative or positive."""
    if data:
        train = numbered_lines(lines_of(data / "sst2_trec" / "stsa.binary.train"))
        test = numbered_lines(lines_of(data / "sst2_trec" / "stsa.binary.test"))
    else:
        train, test = (
            [Example(row["text"], (int(row["label"]),)) for row in hub_rows("SetFit/sst2", split)]
            for split in ("train", "test")
        )
    return DataSet(("negative", "positive"), train, test, "SST-2 test")


def emotion(data: Path | None) -> DataSet:
    """TweetEval emotion: four feelings in tweets."""
    if data:
        folder = data / "tweeteval_emotion"
        train, test = (
            parallel_lines(lines_of(folder / f"{split}_text.txt"), lines_of(folder / f"{split}_labels.txt"))
            for split in ("train", "test")
        )
    else:
        train, test = (
            [Example(row["text"].strip(), (int(row["label"]),)) for row in rows]
            for rows in (hub_rows("cardiffnlp/tweet_eval", split, "emotion") for split in ("train", "test"))
        )
    return DataSet(EMOTIONS, train, test, "TweetEval emotion test")


def question(data: Path | None) -> DataSet:
    """TREC: what kind of answer a question asks for."""
    if data:
        folder = data / "sst2_trec"
        train, test = (numbered_lines(lines_of(folder / f"TREC.{split}.all", "latin-1")) for split in ("train", "test"))
    else:
        train, test = (
            [Example(row["text"], (TREC_CODES[row["label_coarse_original"]],)) for row in rows]
            for rows in (hub_rows("SetFit/TREC-QC", split) for split in ("train", "test"))
        )
    return DataSet(TREC_CLASSES, train, test, "TREC test")


def topic(data: Path | None) -> DataSet:
    """AG News: four sections of a newspaper."""
    if data:
        lines = csv_rows(data / "ag_news_test" / "test.csv")
        rows = [(news_text(title, description), int(number) - 1) for number, title, description in lines]
    else:
        hub = hub_rows("fancyzhx/ag_news", "test")
        rows = [(news_text(row["text"], ""), int(row["label"])) for row in hub]
    train, held_out = split_news(rows)
    return DataSet(NEWS_TOPICS, train, held_out, "AG News, every 4th row of its test file")


def intent(data: Path | None) -> DataSet:
    """BANKING77: what a customer of a bank wants."""
    if data:
        folder = data / "banking77"
        named = [[(text, name) for text, name in csv_rows(folder / f"{split}.csv")[1:]] for split in ("train", "test")]
    else:
        named = []
        for split in ("train", "test"):
            rows = hub_rows("PolyAI/banking77", split, revision="refs/convert/parquet")
            names = rows.features["label"].names
            named.append([(row["text"], names[row["label"]]) for row in rows])
    labels = tuple(sorted({name for _, name in named[0]}))
    train, test = ([Example(" ".join(text.split()), (labels.index(name),)) for text, name in rows] for rows in named)
    return DataSet(labels, train, test, "BANKING77 test")


def _wnut(data: Path | None) -> tuple[list[list[tuple[str, str]]], list[list[tuple[str, str]]]]:
    if data:
        folder = data / "wnut17_ner"
        return (
            conll_sentences(lines_of(folder / "wnut17train.conll")),
            conll_sentences(lines_of(folder / "emerging.test.annotated")),
        )
    splits = []
    for split in ("train", "test"):
        rows = hub_rows("leondz/wnut_17", split, revision="refs/convert/parquet")
        tags = rows.features["ner_tags"].feature.names
        sentences = [(row["tokens"], [tags[number] for number in row["ner_tags"]]) for row in rows]
        splits.append([list(zip(words, names, strict=True)) for words, names in sentences])
    return splits[0], splits[1]


def _kinds(sentences: Iterable[Sequence[tuple[str, str]]]) -> list[str]:
    return sorted({tag[2:] for sentence in sentences for _, tag in sentence if tag != OUTSIDE})


def entities(data: Path | None) -> DataSet:
    """WNUT17: names of six kinds in posts, in BIO tags."""
    train, test = _wnut(data)
    labels = (OUTSIDE, *(f"{mark}-{kind}" for kind in _kinds(train) for mark in "BI"))
    return DataSet(
        labels,
        [tagged_example(sentence, labels) for sentence in train],
        [tagged_example(sentence, labels) for sentence in test],
        "WNUT17 test",
    )


def mentions(data: Path | None) -> DataSet:
    """WNUT17 again: which of the six kinds of names a post holds, none or several."""
    train, test = _wnut(data)
    labels = tuple(_kinds(train))
    return DataSet(
        labels,
        [mentions_example(sentence, labels) for sentence in train],
        [mentions_example(sentence, labels) for sentence in test],
        "WNUT17 test",
    )


ROUTES: dict[str, Callable[[Path | None], DataSet]] = {
    "sentiment": sentiment,
    "emotion": emotion,
    "question": question,
    "topic": topic,
    "intent": intent,
}


def routing(data: Path | None, per_route: int = 500) -> DataSet:
    """Which of the demo's tasks a text is for: the set a text comes from is its label."""
    train: list[Example] = []
    held_out: list[Example] = []
    for number, read in enumerate(ROUTES.values()):
        rows = read(data)
        train += [Example(row.text, (number,)) for row in rows.train]
        step = max(1, len(rows.held_out) // per_route)
        held_out += [Example(row.text, (number,)) for row in rows.held_out[::step][:per_route]]
    return DataSet(tuple(ROUTES), train, held_out, f"{per_route} held-out rows of each of {len(ROUTES)} sets")


def sentence_pairs(data: Path | None) -> list[SentencePair]:
    """STS-B test: pairs of sentences with their similarity."""
    if data:
        rows = csv_rows(data / "stsb_en" / "stsb-en-test.csv")
        return [SentencePair(left, right, float(score)) for left, right, score in rows]
    return [
        SentencePair(row["sentence1"], row["sentence2"], float(row["score"]))
        for row in hub_rows("sentence-transformers/stsb", "test")
    ]
