"""How a batch of mixed lengths is cut into passes: padding the short to the long costs more than a pass.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fmplex_backend.types import PassShape

Predict = Callable[[PassShape], float]
GRAIN = 8  # tokens: lengths this close are not worth telling apart


def plan_passes(lengths: Sequence[int], predict: Predict) -> list[list[int]]:
    """Positions of `lengths` in groups, short ones first, so that the predicted total of the passes is least.

    Exact for the sorted lengths (rounded up to GRAIN): cutting n lengths anywhere else than between neighbours
    in order only adds padding.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    if not order:
        return []
    if _cannot_gain(lengths, predict):
        return [order]
    ends = [i for i in range(1, len(order)) if _grain(lengths[order[i - 1]]) < _grain(lengths[order[i]])]
    bounds = [0, *ends, len(order)]
    best = [0.0] + [float("inf")] * (len(bounds) - 1)
    cut = [0] * len(bounds)
    for right in range(1, len(bounds)):
        longest = lengths[order[bounds[right] - 1]]
        for left in range(right):
            rows = bounds[right] - bounds[left]
            total = best[left] + predict(PassShape(rows * longest, longest, 0))
            if total < best[right]:
                best[right], cut[right] = total, left
    groups = []
    right = len(bounds) - 1
    while right:
        groups.append(order[bounds[cut[right]] : bounds[right]])
        right = cut[right]
    return groups[::-1]


def _grain(length: int) -> int:
    return -(-length // GRAIN)


def _cannot_gain(lengths: Sequence[int], predict: Predict) -> bool:
    """Whether one pass costs less than a second pass would, even with no padding left."""
    longest = max(lengths)
    if _grain(min(lengths)) == _grain(longest):
        return True
    one = predict(PassShape(len(lengths) * longest, longest, 0))
    empty = predict(PassShape(0, 0, 0))
    unpadded = sum(predict(PassShape(length, length, 0)) - empty for length in lengths)
    return one - empty - unpadded < empty
