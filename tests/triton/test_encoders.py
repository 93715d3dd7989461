"""Encoders other than BERT, made here, with adapters in the same batches, against Transformers and PEFT."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from asking import ask_grpc
from reference import Reference, difference
from sentences import WORDS, mixture
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from testing.adapters import lora
from testing.clients import Answer, Question
from testing.repositories import Task, write_backbone, write_task
from testing.servers import Serving, serving

pytestmark = pytest.mark.slow  # four more processes; tests/unit compares the same encoders in one

TEXTS = mixture(26, seed=5, longest=120)
TINY = 32  # hidden size of the encoders made here


@dataclass(frozen=True)
class Encoders:
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
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoders]:
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
    with serving(repository, folder) as server:
        assert not server.refused
        yield Encoders(server, tuple(references), references)


def test_encoders_other_than_bert(encoders: Encoders) -> None:
    questions = shuffled(encoders.tasks, seed=3)
    answers = ask_grpc(encoders.serving.grpc_url, questions)
    encoders.check(questions, answers)
    assert_mixed(questions, answers)
