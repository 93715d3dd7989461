"""The demo's tasks: data set, parts, training options, weight and SLO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo_data import DataSet, emotion, entities, intent, mentions, question, routing, sentiment, topic

from fmplex import Classifier, Embedder, LoRA, MultiLabel, Similarity, TokenClassifier

EVERY_LINEAR = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


@dataclass(frozen=True, slots=True)
class DemoTask:
    """A task of the demo. `fit` are options of Task.fit, `terms` its weight and SLO."""

    name: str
    description: str
    decoder: Any
    read: Callable[[Path | None], DataSet] | None = None  # None: the embedding, which needs no training
    adapter: LoRA | None = None
    fit: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)


TASKS = (  # in the order of their tags
    DemoTask("embed", "Sentence embedding: 384 numbers, length 1", Embedder()),
    DemoTask(
        "sentiment",
        "Is a film review negative or positive (SST-2)",
        Classifier(),
        sentiment,
        LoRA(r=8, targets=("query", "value")),
        {"epochs": 2, "learning_rate": 2e-3},
        {"weight": 3.0, "slo_ms": 500.0},
    ),
    DemoTask(
        "emotion",
        "Which feeling a tweet shows (TweetEval emotion)",
        Classifier(),
        emotion,
        LoRA(r=16, targets=EVERY_LINEAR),
        {"epochs": 3, "learning_rate": 5e-4},
    ),
    DemoTask("question", "What kind of answer a question asks for (TREC)", Classifier(), question),
    DemoTask("topic", "Which section of a newspaper a story belongs to (AG News)", Classifier(), topic),
    DemoTask(
        "intent",
        "Which of 77 things a bank's customer wants (BANKING77)",
        Classifier(),
        intent,
        # The head alone does about as well on this set; the adapter adds a third rank and other modules to the demo.
        LoRA(r=4, targets=("value", "intermediate.dense")),
        {"epochs": 1, "learning_rate": 2e-3},
    ),
    DemoTask(
        "entities",
        "Names in a post, as BIO tags (WNUT17); a word's tag is the one of its first token",
        TokenClassifier(),
        entities,
        LoRA(r=8, targets=("query", "value")),
        {"epochs": 2, "learning_rate": 2e-3},
    ),
    DemoTask(
        "routing",
        "Which task of this demo a text is for, by the nearest of five mean embeddings",
        Similarity(per_label=64),
        routing,
    ),
    DemoTask(
        "mentions",
        "Which kinds of names a post holds, none or several (WNUT17)",
        MultiLabel(threshold=0.4),
        mentions,
    ),
)
