"""The state of a fitting: what a checkpoint holds of it, and what comes back."""

from __future__ import annotations

import json

import torch
from torch import nn

from fmplex.training.state import History, State


def made(seed: int) -> State:
    torch.manual_seed(seed)
    named = {"head.weight": nn.Parameter(torch.rand(2, 3)), "head.bias": nn.Parameter(torch.rand(2))}
    optimizer = torch.optim.AdamW(named.values(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 / (update + 1))
    return State(named, optimizer, schedule, History())


def step(state: State) -> None:
    weight, bias = state.named.values()
    torch.nn.functional.linear(torch.ones(4, 3), weight, bias).square().sum().backward()
    state.update()
    state.history.steps.append(1.0)
    state.batch += 1


def weights(state: State) -> list[torch.Tensor]:
    return [each.detach().clone() for each in state.named.values()]


def test_a_restored_state_goes_on_as_the_first_would_have() -> None:
    first = made(0)
    for _ in range(3):
        step(first)
    first.keep_best(1, 0.5)
    tensors, numbers = first.tensors(), json.loads(json.dumps(first.numbers()))
    other = made(1)
    other.fill(tensors, numbers)
    assert (other.batch, other.best_loss, other.history) == (3, 0.5, first.history)
    assert other.optimizer.param_groups[0]["lr"] == first.optimizer.param_groups[0]["lr"]
    for state in (first, other):
        step(state)
    assert all(torch.equal(*pair) for pair in zip(weights(first), weights(other), strict=True))


def test_the_best_weights_come_back() -> None:
    state = made(0)
    state.keep_best(0, 0.9)
    before = weights(state)
    step(state)
    assert not torch.equal(weights(state)[0], before[0])
    state.restore_best()
    assert all(torch.equal(*pair) for pair in zip(weights(state), before, strict=True))
    assert (state.best_loss, state.history.best_epoch) == (0.9, 0)


def test_what_is_noted_of_a_history() -> None:
    assert History(training=[0.5, 0.4], seconds=1.25).notes() == {"epochs": 2, "train_seconds": 1.2}
    noted = History(training=[0.5, 0.4], validation=[0.61234, 0.7], best_epoch=1).notes()
    assert (noted["validation_loss"], noted["best_epoch"]) == (0.6123, 1)
