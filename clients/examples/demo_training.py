"""Fitting an adapter and its head together on the frozen backbone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from demo_data import Example
from demo_model import Encoder, features, loss, targets
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

WARM_UP = 0.1  # of all steps
POOL_BATCHES = 40  # texts are sorted by length within so many batches' worth at a time
HEAD_DROPOUT = 0.1


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA adapter's shape and how long and how fast it is trained."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    epochs: int
    learning_rate: float
    batch_size: int = 32

    def config(self) -> LoraConfig:
        """As PEFT's configuration."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.targets),
            bias="none",
        )


def batches_of_like_length(examples: Sequence[Example], size: int, generator: random.Random) -> Iterator[list[Example]]:
    """Shuffled batches whose texts are of about one length, so that little of a batch is padding."""
    order = list(examples)
    generator.shuffle(order)
    batches = []
    for start in range(0, len(order), size * POOL_BATCHES):
        pool = sorted(order[start : start + size * POOL_BATCHES], key=lambda example: len(example.text))
        batches += [pool[at : at + size] for at in range(0, len(pool), size)]
    generator.shuffle(batches)
    yield from batches


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to nothing."""
    warm = max(1, int(steps * WARM_UP))
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


def train_lora(
    encoder: Encoder,
    decoder: str,
    recipe: Lora,
    examples: Sequence[Example],
    start: dict[str, Tensor],
    seed: int,
) -> tuple[PeftModel, dict[str, Tensor]]:
    """The backbone wrapped in a trained adapter, and the head that goes with it.

    The head sets out from `start`, the one fitted on the bare backbone: the adapter, which adds nothing at
    first, then has a direction to follow from the first step on. The backbone's own dropout stays off: it
    would take a fifth of the time, and adapters this small hardly overfit in one to three epochs.
    """
    torch.manual_seed(seed)
    generator = random.Random(seed)
    model = get_peft_model(encoder.model, recipe.config()).eval()
    head = {name: nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([*trained, *head.values()], lr=recipe.learning_rate, weight_decay=0.01)
    steps = recipe.epochs * -(-len(examples) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    for _ in range(recipe.epochs):
        for batch in batches_of_like_length(examples, recipe.batch_size, generator):
            values, found = features(encoder.around(model), batch)
            values = nn.functional.dropout(values, HEAD_DROPOUT)
            scores = values @ head["weight"].T + head["bias"]
            loss(decoder, scores, targets(decoder, batch, found)).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_([*trained, *head.values()], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model, {name: tensor.detach().contiguous() for name, tensor in head.items()}
