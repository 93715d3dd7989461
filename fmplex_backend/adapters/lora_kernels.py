"""LoRA of many adapters in two kernels per module, for devices that Triton (the compiler) generates code for.

As Punica's SGMV and vLLM's lora_shrink and lora_expand: each row of a pass reads its own slot of the stacked weights,
so nothing is gathered, and rows of slot 0 (no adapter) end at once. A launch from Python takes longer than either
kernel runs: they pay inside a CUDA graph, where nothing is launched from Python.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST_DOT = 16  # tl.dot takes no smaller dimension


@triton.jit  # type: ignore[untyped-decorator]
def _shrink(
    x: tl.tensor, a: tl.tensor, slots: tl.tensor, low: tl.tensor,
    tokens: tl.tensor, x_row: tl.tensor, x_token: tl.tensor, width: tl.constexpr,
    rank: tl.constexpr, block_rank: tl.constexpr, block_tokens: tl.constexpr, block_width: tl.constexpr,
    exact: tl.constexpr,
) -> None:  # fmt: skip
    """low[row] = x[row] @ a[slot of row].T for a block of tokens of one row."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    if slot != 0:
        token = tl.program_id(1) * block_tokens + tl.arange(0, block_tokens)
        rank_index = tl.arange(0, block_rank)
        column = tl.arange(0, block_width)
        inputs = x + row.to(tl.int64) * x_row + token[:, None] * x_token
        weights = a + slot * rank * width + rank_index[None, :] * width
        total = tl.zeros((block_tokens, block_rank), dtype=tl.float32)
        for start in range(0, width, block_width):
            at = start + column
            part = tl.load(inputs + at[None, :], mask=(token[:, None] < tokens) & (at[None, :] < width), other=0.0)
            own = tl.load(weights + at[:, None], mask=(rank_index[None, :] < rank) & (at[:, None] < width), other=0.0)
            total = tl.dot(part, own, total, input_precision="ieee" if exact else "tf32")
        target = low + (row * tokens + token[:, None]) * rank + rank_index[None, :]
        tl.store(target, total.to(low.dtype.element_ty), mask=(token[:, None] < tokens) & (rank_index[None, :] < rank))


@triton.jit  # type: ignore[untyped-decorator]
def _expand(
    low: tl.tensor, b: tl.tensor, slots: tl.tensor, y: tl.tensor,
    tokens: tl.tensor, y_row: tl.tensor, y_token: tl.tensor, width: tl.constexpr,
    rank: tl.constexpr, block_rank: tl.constexpr, block_tokens: tl.constexpr, block_width: tl.constexpr,
    exact: tl.constexpr,
) -> None:  # fmt: skip
    """y[row] += low[row] @ b[slot of row] for a block of tokens and columns of one row."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    if slot != 0:
        token = tl.program_id(1) * block_tokens + tl.arange(0, block_tokens)
        column = tl.program_id(2) * block_width + tl.arange(0, block_width)
        rank_index = tl.arange(0, block_rank)
        part = tl.load(
            low + (row * tokens + token[:, None]) * rank + rank_index[None, :],
            mask=(token[:, None] < tokens) & (rank_index[None, :] < rank),
            other=0.0,
        )
        own = tl.load(
            b + slot * rank * width + rank_index[:, None] * width + column[None, :],
            mask=(rank_index[:, None] < rank) & (column[None, :] < width),
            other=0.0,
        )
        product = tl.dot(part, own, input_precision="ieee" if exact else "tf32")
        target = y + row.to(tl.int64) * y_row + token[:, None] * y_token + column[None, :]
        inside = (token[:, None] < tokens) & (column[None, :] < width)
        before = tl.load(target, mask=inside, other=0.0)
        tl.store(target, (before.to(tl.float32) + product).to(y.dtype.element_ty), mask=inside)


def add_lora(x: Tensor, a: Tensor, b: Tensor, slots: Tensor, y: Tensor) -> None:
    """y += x @ a[slots].mT @ b[slots], row by row.

    Args:
        x: [n, t, in], the last dimension contiguous.
        a: [slots, r, in], contiguous.
        b: [slots, r, out], contiguous.
        slots: [n], integers; 0 adds nothing.
        y: [n, t, out], the last dimension contiguous; changes.
    """
    rows, tokens, width = x.shape
    rank, out = b.shape[1:]
    exact = x.dtype == torch.float32
    block_rank = max(LEAST_DOT, rank)
    low = x.new_empty(rows, tokens, rank)
    short = tokens <= LEAST_DOT
    block = LEAST_DOT if short else 32
    _shrink[(rows, triton.cdiv(tokens, block))](
        x, a, slots, low, tokens, x.stride(0), x.stride(1), width, rank, block_rank, block, 128, exact,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    block, columns = (LEAST_DOT, 128) if short else (64, 128)
    _expand[(rows, triton.cdiv(tokens, block), triton.cdiv(out, columns))](
        low, b, slots, y, tokens, y.stride(0), y.stride(1), out, rank, block_rank, block, columns, exact,
        num_warps=4, num_stages=1,
    )  # fmt: skip
