"""How rows are cut: a batch of mixed lengths into passes, and a request that is larger than a batch into portions.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence

from fmplex_backend.types import PassShape, Predict

GRAIN = 8  # tokens; lengths are compared in steps of this size


def cut_into_portions(lengths: Sequence[int], *, max_rows: int, max_tokens: int) -> list[list[int]]:
    """Indices of `lengths` in groups: one where all are within both limits, else rows of like length together.

    A group then has at most half of the rows and an eighth of the tokens, or one row: others' rows have room beside it,
    and whoever arrives while it runs does not wait for long.
    """
    if len(lengths) <= max_rows and sum(lengths) <= max_tokens:
        return [list(range(len(lengths)))]
    max_rows, max_tokens = max(1, max_rows // 2), max_tokens // 8
    portions: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        tokens += lengths[index]
        if not portions or len(portions[-1]) == max_rows or tokens > max_tokens:
            portions.append([])
            tokens = lengths[index]
        portions[-1].append(index)
    return portions


def plan_passes(lengths: Sequence[int], predict: Predict) -> list[list[int]]:
    """Indices of `lengths` in groups, short ones first, with the least predicted total time (by dynamic programming).

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
