"""Who has which blocks of the memory for keys and values, and who gives them up. Standard library only.

A request that runs a step has blocks for all tokens so far. The scheduler asks for each, in the order of fairness,
whether the next step has room (`has_room`). Where blocks are lacking, a request gives up all of its own, and computes
its tokens again later:

* One that has begun and needs a block more takes it from the newest request of the vFM furthest ahead of its share,
  which may be itself.
* One that has not begun waits until there are enough for all of its tokens, and those behind it wait too, so that short
  ones do not pass it by for ever. It takes them from vFMs ahead of its own only where these keep no less, by weight,
  than its own then has: such changes make the shares more even, so that no two requests take turns at it.

So in each vFM's queue those that have blocks stand before those that have none, and of all that have blocks one at
least runs in every step: a request that can have all blocks for itself ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fmplex_backend.types import Request, Vfm


class Blocks:
    """Numbers of the blocks that are free."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(reversed(range(count)))

    @property
    def free(self) -> int:
        """How many."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """So many of them."""
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: Iterable[int]) -> None:
        """Free them."""
        self._free.extend(blocks)


class Memory:
    """The blocks of requests that run, or have run a step. The engine thread.

    Args:
        size: tokens of a block.
        tokens_of: how many tokens a request must have room for when its next step has run.
        restart: gets a request that has lost its blocks.
    """

    def __init__(
        self, count: int, size: int, tokens_of: Callable[[Request], int], restart: Callable[[Request], None]
    ) -> None:
        self.blocks, self.size = Blocks(count), size
        self.tokens_of, self.restart = tokens_of, restart
        self.of: dict[Request, list[int]] = {}  # in the order in which they began
        self.preempted = 0
        self._placed: set[Request] = set()  # in the step that is being put together
        self._waits = False  # one that has not begun was refused in it

    @property
    def capacity(self) -> int:
        """Tokens for which there are blocks."""
        return self.blocks.count * self.size

    def begin(self) -> None:
        """The next request that asks is the first of another step."""
        self._placed.clear()
        self._waits = False

    def has_room(self, request: Request) -> bool:
        """Whether a request's next step has blocks, beside those that were placed before in this step."""
        own = self.of.get(request)
        lacking = -(-self.tokens_of(request) // self.size) - len(own or ())
        losers = self._losers_to_growing(lacking) if own else self._losers_to_beginning(request, lacking)
        if losers is None:
            self._waits = True
            return False
        for loser in losers:
            self.preempted += 1
            self.release(loser)
            self.restart(loser)
        if own and request not in self.of:  # it was the one to give way
            return False
        self.of.setdefault(request, []).extend(self.blocks.take(max(0, lacking)))
        self._placed.add(request)
        return True

    def release(self, request: Request) -> None:
        """Free a request's blocks, if it has any."""
        self.blocks.give_back(self.of.pop(request, ()))
        self._placed.discard(request)

    def _losers_to_growing(self, lacking: int) -> list[Request]:
        losers: list[Request] = []
        free = self.blocks.free
        for loser in sorted(self._unplaced(), key=_last_to_keep, reverse=True):
            if free >= lacking:
                break
            losers.append(loser)
            free += len(self.of[loser])
        return losers

    def _losers_to_beginning(self, request: Request, lacking: int) -> list[Request] | None:
        """None where it has to wait."""
        free = self.blocks.free
        if free >= lacking and not self._waits:
            return []
        if self._waits:
            return None
        held = self._held_by_vfm()
        wanted = (held.get(request.vfm, 0) + lacking) / request.vfm.weight
        losers: list[Request] = []
        for loser in sorted(self._unplaced(), key=_last_to_keep, reverse=True):
            vfm, size = loser.vfm, len(self.of[loser])
            if vfm is request.vfm or vfm.start <= request.vfm.start or (held[vfm] - size) / vfm.weight < wanted:
                continue
            losers.append(loser)
            held[vfm] -= size
            free += size
            if free >= lacking:
                return losers
        return None

    def _unplaced(self) -> list[Request]:
        return [request for request in self.of if request not in self._placed]

    def _held_by_vfm(self) -> dict[Vfm, int]:
        held: dict[Vfm, int] = {}
        for request, blocks in self.of.items():
            held[request.vfm] = held.get(request.vfm, 0) + len(blocks)
        return held


def _last_to_keep(request: Request) -> tuple[float, int]:
    """The largest goes first: the newest of the vFM furthest ahead."""
    return request.vfm.start, request.admission_number
