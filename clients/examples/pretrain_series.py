"""Pretrain the demo's small PatchTST: patches of series are masked, and filled in from the others.

    python clients/examples/pretrain_series.py --data DIR    DIR/servegen has ServeGen's files, see series_data.py

Half of the series are generated, half are request rates, without the days that the demo's tasks are tested on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from series_data import HELD_OUT, Array, request_rates, waves
from transformers import PatchTSTConfig, PatchTSTForPretraining

CONTEXT, PATCH = 288, 12  # two days, in parts of two hours
SAID_EVERY = 100


def small() -> PatchTSTForPretraining:
    """Some 300,000 weights."""
    config = PatchTSTConfig(
        num_input_channels=1,
        context_length=CONTEXT,
        patch_length=PATCH,
        patch_stride=PATCH,
        d_model=96,
        num_attention_heads=4,
        num_hidden_layers=4,
        ffn_dim=192,
        random_mask_ratio=0.4,
        attention_dropout=0.0,
        ff_dropout=0.1,
        do_mask_input=True,
    )
    return PatchTSTForPretraining(config)


def batch(rng: np.random.Generator, rates: list[Array], rows: int) -> torch.Tensor:
    """[rows, CONTEXT, 1]."""
    parts = []
    for place in range(rows):
        if place % 2:
            parts.append(waves(rng, CONTEXT)[:, None])
        else:
            own = rates[rng.integers(len(rates))]
            start = rng.integers(len(own) - HELD_OUT - CONTEXT)
            parts.append(own[start : start + CONTEXT])
    return torch.from_numpy(np.stack(parts))


def main(
    data: Annotated[Path, typer.Option(help="Directory with the folder servegen.")],
    out: Annotated[Path, typer.Option(help="Where the model is saved.")] = Path("model_repository/patchtst/1"),
    steps: Annotated[int, typer.Option(help="Training steps.")] = 700,
    rows: Annotated[int, typer.Option(help="Series of a step.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Cores to use.")] = 1,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Pretrain and save."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng, rates, model = np.random.default_rng(seed), request_rates(data), small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    start, losses = time.monotonic(), []
    for step in range(1, steps + 1):
        loss = model(past_values=batch(rng, rates, rows)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % SAID_EVERY == 0:
            mean = np.mean(losses[-SAID_EVERY:])
            print(f"step {step} of {steps}: loss {mean:.4f}, {time.monotonic() - start:.0f} s", flush=True)
    model.eval().save_pretrained(out)
    print(f"{sum(each.numel() for each in model.parameters()):,} weights in {out}")


if __name__ == "__main__":
    typer.run(main)
