"""The demo's tasks: what each reads, learns and answers, and its account on the backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo_data import DataSet, emotion, entities, intent, mentions, question, routing, sentiment, topic
from demo_training import Lora

BACKBONE_TASK = "minilm"
BACKBONE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TRAINED_LENGTH = 64  # tokens of a training text; longer ones cost time and hold little more for these sets
SERVED_LENGTH = 128  # tokens of a held-out text, and `encoder.max_length` of the task
EMBEDDED_LENGTH = 256  # what the model's authors set for sentence embeddings
EVERY_LINEAR = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


@dataclass(frozen=True, slots=True)
class DemoTask:
    """What a task is, what it learns from, and its entry's account. `headline` names its main figure."""

    name: str
    vfm: int
    description: str
    decoder: str
    headline: str
    read: Callable[[Path | None], DataSet] | None = None  # None: the embedding, which needs no training
    lora: Lora | None = None
    weight: float = 1.0
    slo_ms: float | None = None
    decay: float = 3e-3  # of the head fitted on fixed features
    threshold: float | None = None  # of a multi-label head
    per_label: int | None = None  # examples in a prototype


TASKS = (
    DemoTask("embed", 0, "Sentence embedding: 384 numbers, length 1", "embedding", "spearman"),
    DemoTask(
        "sentiment",
        1,
        "Is a film review negative or positive (SST-2)",
        "classification",
        "accuracy",
        sentiment,
        Lora(rank=8, alpha=16, targets=("query", "value"), epochs=2, learning_rate=2e-3),
        weight=3.0,
        slo_ms=500.0,
    ),
    DemoTask(
        "emotion",
        2,
        "Which feeling a tweet shows (TweetEval emotion)",
        "classification",
        "macro_f1",
        emotion,
        Lora(rank=16, alpha=32, targets=EVERY_LINEAR, epochs=3, learning_rate=5e-4),
    ),
    DemoTask(
        "question",
        3,
        "What kind of answer a question asks for (TREC)",
        "classification",
        "accuracy",
        question,
    ),
    DemoTask(
        "topic",
        4,
        "Which section of a newspaper a story belongs to (AG News)",
        "classification",
        "accuracy",
        topic,
    ),
    DemoTask(
        "intent",
        5,
        "Which of 77 things a bank's customer wants (BANKING77)",
        "classification",
        "accuracy",
        intent,
        # The head alone does as well on this set; the adapter adds a third rank and other modules to the demo.
        Lora(rank=4, alpha=8, targets=("value", "intermediate.dense"), epochs=1, learning_rate=2e-3),
        decay=1e-3,
    ),
    DemoTask(
        "entities",
        6,
        "Names in a post, as BIO tags (WNUT17); a word's tag is the one of its first token",
        "token-classification",
        "entity_f1",
        entities,
        Lora(rank=8, alpha=16, targets=("query", "value"), epochs=2, learning_rate=2e-3),
    ),
    DemoTask(
        "routing",
        7,
        "Which task of this demo a text is for, by the nearest of five mean embeddings",
        "similarity",
        "accuracy",
        routing,
        per_label=64,
    ),
    DemoTask(
        "mentions",
        8,
        "Which kinds of names a post holds, none or several (WNUT17)",
        "multi-label",
        "micro_f1",
        mentions,
        decay=3e-3,
        threshold=0.4,
    ),
)
