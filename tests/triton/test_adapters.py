"""Adapters of every kind in the same batches, against PEFT; and encoders other than BERT."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from asking import Answer, Question, ask_grpc, ask_http
from peft import IA3Config
from reference import Reference, difference
from sentences import WORDS, mixture, sentence
from serving import Serving, eventually, serving
from tasks import Task, lora, write_backbone, write_task
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

EVERY_LINEAR = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
TEXTS = mixture(26, seed=5, longest=120)
TINY = 32  # hidden size of the encoders made here


def ia3(*targets: str, feedforward: Sequence[str] = ()) -> IA3Config:
    """Random factors."""
    return IA3Config(
        target_modules=[*targets, *feedforward], feedforward_modules=list(feedforward), init_ia3_weights=False
    )


PATTERNS = {
    "rank_pattern": {"query": 3, "layer.2.attention.self.key": 20},
    "alpha_pattern": {"value": 64, "layer.4.attention.self.query": 1},
}
ZOO = (
    Task("none", 0, "embedding"),
    Task("none-head", 1, layers=3, options={"activation": "gelu", "pooling": "max"}),
    Task("lora1", 2, adapter=lora(1, "query")),
    Task("lora2", 3, "regression", adapter=lora(2, "value"), labels=5, options={"pooling": "cls"}),
    Task("lora4", 4, "multi-label", adapter=lora(4, "key", "output.dense"), labels=6),
    Task("lora8", 5, adapter=lora(8), labels=77, options={"normalize": True}),
    Task("lora8-too", 6, "embedding", adapter=lora(8), seed=6, options={"normalize": False, "pooling": "cls"}),
    Task("lora13", 7, "token-classification", adapter=lora(13, "intermediate.dense"), labels=9),
    Task("lora64", 8, adapter=lora(64, *EVERY_LINEAR), layers=2, options={"activation": "relu"}),
    Task("lora-dense", 9, "similarity", adapter=lora(16, "query", "dense"), labels=4),  # the pooler's too
    Task("patterns", 10, adapter=lora(8, "query", "key", "value", **PATTERNS)),
    Task("rslora", 11, adapter=lora(16, "query", "value", use_rslora=True)),
    Task("in-classifier", 12, adapter=lora(8, "query", "key"), classifier=True),
    Task("dora", 13, adapter=lora(8, use_dora=True)),
    Task("dora-too", 14, "token-classification", adapter=lora(4, "output.dense", use_dora=True), seed=14),
    Task("ia3", 15, adapter=ia3("key", "value", feedforward=["output.dense"])),
    Task("ia3-too", 16, "embedding", adapter=ia3("query"), seed=16),
    Task("prefixed", 17, adapter=lora(8), seed=17, encoder={"prefix": "query: ", "max_length": 24}),
    Task(
        "prefixed-tokens", 18, "token-classification", adapter=lora(8), encoder={"prefix": "tag é: ", "max_length": 16}
    ),
)


@dataclass(frozen=True)
class Zoo:
    """A server and what its tasks must answer."""

    serving: Serving
    tasks: tuple[str, ...]
    references: dict[str, Reference]

    def check(self, questions: Sequence[Question], answers: Sequence[Answer]) -> None:
        """Every row against the reference; all problems at once."""
        problems = {
            f"{question.task}: {problem}"
            for question, answer in zip(questions, answers, strict=True)
            for row, text in enumerate(question.texts)
            if (problem := difference(answer.good(), row, self.references[question.task](str(text))))
        }
        assert not problems


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """Every kind of adapter on one backbone."""
    folder = tmp_path_factory.mktemp("zoo")
    repository = folder / "repository"
    write_backbone(repository)
    references = {task.name: Reference(task.model, write_task(repository, task) / "1") for task in ZOO}
    yield from started(repository, references)


def started(repository: Path, references: dict[str, Reference]) -> Iterator[Zoo]:
    """A server on a repository of which everything must load."""
    with serving(repository, repository.parent) as server:
        assert not server.refused
        yield Zoo(server, tuple(references), references)


def shuffled(tasks: Sequence[str], seed: int) -> list[Question]:
    """Every text to every task, 1 to 5 in a request."""
    order = random.Random(seed)
    questions = []
    for task in tasks:
        left = list(TEXTS)
        order.shuffle(left)
        while left:
            size = order.choice((1, 1, 1, 2, 5))
            questions.append(Question(task, tuple(left[:size])))
            left = left[size:]
    order.shuffle(questions)
    return questions


def assert_mixed(questions: Sequence[Question], answers: Sequence[Answer]) -> None:
    """Most requests shared their batch."""
    shared = [answer.batch_items > len(question.texts) for question, answer in zip(questions, answers, strict=True)]
    assert sum(shared) > len(shared) / 2


def test_every_kind_in_the_same_batches(zoo: Zoo) -> None:
    questions = shuffled(zoo.tasks, seed=1)
    answers = ask_grpc(zoo.serving.grpc_url, questions)
    zoo.check(questions, answers)
    assert_mixed(questions, answers)


def test_every_kind_over_http(zoo: Zoo) -> None:
    questions = shuffled(zoo.tasks, seed=2)[: len(zoo.tasks) * 12]
    answers = ask_http(zoo.serving.http_url, questions)
    zoo.check(questions, answers)
    assert_mixed(questions, answers)


def test_one_at_a_time(zoo: Zoo) -> None:
    questions = [Question(task, (TEXTS[n % len(TEXTS)],)) for n, task in enumerate(zoo.tasks)]
    zoo.check(questions, ask_grpc(zoo.serving.grpc_url, questions, clients=1))


def test_adapters_change_answers(zoo: Zoo) -> None:
    """Else the tests above would prove nothing."""
    text = sentence(12, 3)
    for task in ZOO:
        if task.adapter is not None:
            version = zoo.serving.repository / task.name / "1"
            hidden = zoo.references[task.name].encode([101, *range(2000, 2010), 102])
            bare = zoo.references["none"].encode([101, *range(2000, 2010), 102])
            assert (hidden - bare).abs().max() > 0.01, version
            assert zoo.references[task.name](text)


def test_the_backbone_counts_its_adapters(zoo: Zoo) -> None:
    adapted = sum(task.adapter is not None for task in ZOO)
    eventually(lambda: zoo.serving.metric("backbone_vfms") == len(ZOO), "every vFM is counted")
    eventually(lambda: zoo.serving.metric("backbone_adapters") == adapted, "every adapter is counted")


# -- encoders that are not BERT, made here


def small_tokenizer() -> Tokenizer:
    """Byte-level BPE, as RoBERTa's and ModernBERT's, trained on our own words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


SHARED: dict[str, Any] = {"vocab_size": 600, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
SHAPE: dict[str, Any] = {"hidden_size": TINY, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
ENCODERS: dict[str, tuple[transformers.PretrainedConfig, tuple[str, ...]]] = {
    "roberta": (
        transformers.RobertaConfig(**SHARED, **SHAPE, max_position_embeddings=130, type_vocab_size=1),
        ("query", "value", "output.dense"),
    ),
    "distilbert": (
        transformers.DistilBertConfig(
            **SHARED, dim=TINY, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=128
        ),
        ("q_lin", "v_lin", "lin1"),
    ),
    "mpnet": (
        transformers.MPNetConfig(**SHARED, **SHAPE, max_position_embeddings=130),
        ("attn.q", "attn.v", "intermediate.dense"),
    ),
    "modernbert": (
        transformers.ModernBertConfig(
            **SHARED,
            **SHAPE,
            cls_token_id=0,
            sep_token_id=2,
            max_position_embeddings=128,
            local_attention=16,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
        ("Wqkv", "Wo"),
    ),
}


def save_encoder(folder: Path, kind: str) -> Path:
    """A random model with its tokenizer."""
    config, _ = ENCODERS[kind]
    directory = folder / f"model-{kind}"
    torch.manual_seed(3)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # fresh models hardly look at their input
    model.save_pretrained(directory)
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    rest = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=small_tokenizer(), model_max_length=128, **names, **rest
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """One backbone for each family, given as a path, with three tasks."""
    folder = tmp_path_factory.mktemp("encoders")
    repository = folder / "repository"
    references: dict[str, Reference] = {}
    for kind, (_, targets) in ENCODERS.items():
        model = save_encoder(folder, kind)
        write_backbone(repository, kind, model=str(model), threads="1")
        plain = Task(f"{kind}-plain", 0, "embedding", backbone=kind, model=model, hidden=TINY)
        low = replace(plain, name=f"{kind}-lora", vfm=1, decoder="classification", adapter=lora(4, *targets))
        tokens = replace(low, name=f"{kind}-tokens", vfm=2, decoder="token-classification", seed=2)
        dora = replace(low, name=f"{kind}-dora", vfm=3, adapter=lora(4, *targets, use_dora=True))
        for task in (plain, low, tokens, dora):
            references[task.name] = Reference(model, write_task(repository, task) / "1")
    yield from started(repository, references)


def test_encoders_other_than_bert(encoders: Zoo) -> None:
    questions = shuffled(encoders.tasks, seed=3)
    answers = ask_grpc(encoders.serving.grpc_url, questions)
    encoders.check(questions, answers)
    assert_mixed(questions, answers)
