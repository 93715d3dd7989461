"""Time-series models of packages that FMplex's extras name, with random weights, saved as the packages save them.

No trained weights are at hand. `CHRONOS_BOLT` is the shape that chronos-bolt-tiny (9 million weights) is published in,
`CHRONOS_BOLT_SMALL` what differs in chronos-bolt-small (48 million), `MOMENT` the shape of MOMENT-1-small (37.9 million
weights), with the fields of its config.json.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import T5Config

LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
CHRONOS_BOLT: dict[str, Any] = {
    "d_model": 256,
    "d_ff": 1024,
    "d_kv": 64,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_heads": 4,
    "vocab_size": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "dense_act_fn": "relu",
    "feed_forward_proj": "relu",
    "initializer_factor": 0.2,
    "is_encoder_decoder": True,
    "chronos_pipeline_class": "ChronosBoltPipeline",
    "chronos_config": {
        "context_length": 2048,
        "prediction_length": 64,
        "input_patch_size": 16,
        "input_patch_stride": 16,
        "quantiles": LEVELS,
        "use_reg_token": True,
    },
}
CHRONOS_BOLT_SMALL = {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8}
MOMENT: dict[str, Any] = {
    "task_name": "reconstruction",
    "model_name": "MOMENT",
    "transformer_type": "encoder_only",
    "d_model": None,
    "seq_len": 512,
    "patch_len": 8,
    "patch_stride_len": 8,
    "device": "cpu",
    "transformer_backbone": "google/flan-t5-small",
    "model_kwargs": {},
    "t5_config": {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 1024,
        "d_kv": 64,
        "d_model": 512,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "n_positions": 512,
        "num_decoder_layers": 8,
        "num_heads": 6,
        "num_layers": 8,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 32128,
    },
}
_TINY = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}


def save_chronos_bolt(
    directory: Path,
    seed: int = 0,
    *,
    tiny: bool = False,
    sizes: Mapping[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """A model of this shape, or of two small layers and a context of 64 steps.

    Args:
        sizes: that differ.
        changed: of its `chronos_config`.
    """
    from chronos.chronos_bolt import ChronosBoltModelForForecasting

    own = CHRONOS_BOLT["chronos_config"]
    if tiny:
        own = own | {"context_length": 64, "prediction_length": 12, "input_patch_size": 8, "input_patch_stride": 8}
    own_sizes = _TINY if tiny else dict(sizes or {})
    torch.manual_seed(seed)
    config = T5Config(**CHRONOS_BOLT | own_sizes | {"chronos_config": own | changed})
    ChronosBoltModelForForecasting(config).eval().save_pretrained(directory)
    return directory


def save_moment(directory: Path, seed: int = 0, *, tiny: bool = False, steps: int = 512) -> Path:
    """A model of this shape, or of two small layers, with a context of so many steps."""
    config = MOMENT | {"seq_len": steps}
    if tiny:
        config |= {"t5_config": MOMENT["t5_config"] | _TINY | {"vocab_size": 8}}
    torch.manual_seed(seed)
    whole = moment_of(config)
    torch.nn.init.normal_(whole.patch_embedding.mask_embedding, std=0.5)  # the package starts it at 0
    whole.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def moment_of(source: Path | Mapping[str, Any], **model_kwargs: Any) -> Any:
    """A `MOMENTPipeline` in eval mode: what its package loads out of a directory, or makes of a config.

    Args:
        model_kwargs: as its `from_pretrained` takes them, e.g. its task.
    """
    from momentfm import MOMENTPipeline

    with warnings.catch_warnings():  # those of a head without weights, and of transformers' deprecations
        warnings.simplefilter("ignore")
        if isinstance(source, Path):
            found = MOMENTPipeline.from_pretrained(source, model_kwargs=dict(model_kwargs))
        else:
            found = MOMENTPipeline(config=dict(source), model_kwargs=dict(model_kwargs))
        found.init()
    return found.eval()
