"""The blocks of the memory for keys and values, and what full ones hold. Standard library only.

A full block can be found again by the tokens before it and in it, for requests of the same version of the same task: a
tree for each version, whose edges are the tokens of a block. Tokens are compared, not hashes of them. A block that
nobody holds is free, and keeps what is in it until it is needed: the longest unused goes first. Who holds a block holds
all before it, and lets go of the last one first, so that of a version's blocks none goes before those behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Tokens = tuple[int, ...]


@dataclass(eq=False, slots=True)
class FullBlock:
    """A node of a version's prefix tree: a block whose tokens are all computed, behind those of `parent`.

    The root is no block: its number is 0, and it is held as long as its version may find what is behind it.
    """

    number: int
    parent: FullBlock | None
    tokens: Tokens
    holders: int = 0
    children: dict[Tokens, FullBlock] = field(default_factory=dict)


class Blocks:
    """Which blocks are free, and what can be found in them.

    Block 0 is nobody's. What pads contexts is read from there: masked, but a NaN of a request's that went wrong would
    spread all the same.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._empty = list(range(count, 0, -1))
        self._unheld: OrderedDict[FullBlock, None] = OrderedDict()  # full; the longest unused first
        self._roots: dict[int, FullBlock] = {}  # by the id of a version that is attached

    @property
    def free(self) -> int:
        """How many nobody holds."""
        return len(self._empty) + len(self._unheld)

    @property
    def unheld(self) -> int:
        """Of these, how many can be found."""
        return len(self._unheld)

    @property
    def empty(self) -> int:
        """How many hold nothing that can be found."""
        return len(self._empty)

    def take(self, count: int) -> list[int]:
        """So many of them, to be written; what was kept in them is lost."""
        return [self._empty.pop() if self._empty else self._evict() for _ in range(count)]

    def give_back(self, blocks: Iterable[int]) -> None:
        """Free blocks that are not full."""
        self._empty.extend(blocks)

    def find(self, version: Any, tokens: Sequence[int], size: int, most: int) -> list[FullBlock]:
        """The blocks, up to `most`, that hold the first tokens of a sequence of a version; not held by that."""
        found: list[FullBlock] = []
        block = self._roots.get(id(version))
        while block is not None and len(found) < most:
            start = len(found) * size
            block = block.children.get(tuple(tokens[start : start + size]))
            if block is not None:
                found.append(block)
        return found

    def hold(self, blocks: Sequence[FullBlock]) -> int:
        """One more holds these; returns how many nobody has held before."""
        for block in blocks:
            block.holders += 1
            self._unheld.pop(block, None)
        return sum(block.holders == 1 for block in blocks)

    def let_go(self, blocks: Sequence[FullBlock]) -> int:
        """One fewer holds these, a sequence's from its first on; returns how many nobody holds any more."""
        root = blocks[0].parent if blocks else None
        is_dropped = root is not None and not root.holders
        for block in reversed(blocks):
            block.holders -= 1
            if not block.holders:
                self._unheld[block] = None
                if is_dropped:
                    self._remove(block)
        return sum(not block.holders for block in blocks)

    def keep(self, version: Any, before: Sequence[FullBlock], number: int, tokens: Tokens) -> FullBlock:
        """Let a block be found whose tokens are computed; held by who has computed them.

        Args:
            before: the sequence's blocks that can be found, all up to this one.

        Returns:
            Where another has computed the same meanwhile, that one's block; `number` is then free.
        """
        parent = before[-1] if before else self._roots.setdefault(id(version), FullBlock(0, None, (), holders=1))
        block = parent.children.get(tokens)
        if block is None:
            block = parent.children[tokens] = FullBlock(number, parent, tokens)
        else:
            self.give_back([number])
        self.hold([block])
        return block

    def drop(self, version: Any) -> None:
        """Let nothing be found for a version any more: it is detached, or has computed what is no number.

        Its blocks are empty, where sequences still hold them as soon as they let go.
        """
        root = self._roots.pop(id(version), None)
        if root is None:
            return
        root.holders = 0
        for block in list(_descendants(root)):
            if block in self._unheld:
                self._remove(block)

    def _evict(self) -> int:
        block = next(iter(self._unheld))
        self._remove(block)
        return self._empty.pop()

    def _remove(self, block: FullBlock) -> None:
        """Empty one that nobody holds."""
        assert block.parent is not None
        del self._unheld[block], block.parent.children[block.tokens]
        self._empty.append(block.number)


def _descendants(block: FullBlock) -> Iterator[FullBlock]:
    """All nodes below one, at any depth."""
    left = [block]
    while left:
        children = left.pop().children.values()
        left += children
        yield from children
