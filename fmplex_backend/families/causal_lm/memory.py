"""Who has which blocks of the memory for keys and values, and who gives them up. Standard library only.

A request that runs a step has blocks for all tokens so far. The scheduler asks for each, in the order of fairness,
whether the next step has room (`has_room`). Where blocks are lacking, a request gives up all of its own, and computes
its tokens again later:

* One that has begun and needs a block more takes it from the newest request of the vFM furthest ahead of its share,
  which may be itself.
* One that has not begun waits until there are enough for all of its tokens, and those behind it wait too, so that short
  ones do not pass it by for ever. It takes them from vFMs ahead of its own only where these keep no less, by weight,
  than its own then has: such changes make the shares more even, so that no two requests take turns at it.

Copies (`Vfm.spare`) have a tag of their own that says nothing beside others': they give up theirs first, to anybody
else, and take from copies alone.

A vFM may have limits of its own: `max_running` of its requests have blocks at a time, and `max_kv_share` of all blocks.
One that has not begun waits for its own vFM then, and nobody else with it; one that grows takes a block from the newest
of its own vFM. Blocks that can be found (`blocks.py`) are taken from nobody, and go before anybody loses his own.

So in each vFM's queue those that have blocks stand before those that have none, and of all that have blocks one at
least runs in every step: a request that can have all blocks for itself ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from fmplex_backend.families.causal_lm.blocks import Blocks, FullBlock
from fmplex_backend.types import Kept, Request, Vfm


class Memory:
    """The blocks of requests that run, or have run a step. The engine thread.

    Args:
        size: tokens of a block.
        tokens_of: a request's tokens so far; when its next step has run, there must be room for so many.
        moved: gets a request whose next step begins elsewhere, and where: at 0 where it has lost its blocks, behind
            those of its tokens that were found in memory where it begins.
        keeps: whether full blocks are kept to be found.
        locality_s: seconds by which a vFM may be ahead of its turn when one of its requests begins: one that begins
            takes blocks only from vFMs further ahead of its own.
    """

    def __init__(
        self,
        count: int,
        size: int,
        tokens_of: Callable[[Request], Sequence[int]],
        moved: Callable[[Request, int], None],
        *,
        keeps: bool = True,
        locality_s: float = 0.0,
    ) -> None:
        self.blocks, self.size = Blocks(count), size
        self.locality_s = locality_s
        self.tokens_of, self.moved, self.keeps = tokens_of, moved, keeps
        self.blocks_of: dict[Request, list[int]] = {}  # in the order in which they began
        self.running: Counter[Vfm] = Counter()  # how many requests of each vFM have blocks
        # How many blocks they have, those that several hold counted once: they are of one version, and so of one vFM.
        self.held: Counter[Vfm] = Counter()
        self.preempted = 0
        self._full: dict[Request, list[FullBlock]] = {}  # of these blocks the first ones, that others may find
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
        has = self._grow(request) if request in self.blocks_of else self._admit(request)
        if has:
            self._placed.add(request)
        return has

    def kept(self, request: Request) -> Kept | None:
        """What a request that has no blocks would find; None where it has some."""
        if request in self.blocks_of:
            return None
        vfm, found = request.vfm, self._find(request)
        new = self._blocks_for(request) - len(found)
        lacking = new + sum(not block.holders for block in found)
        is_full = vfm.max_running is not None and self.running[vfm] >= vfm.max_running
        waits = self._waits or is_full or self._is_over_share(request, lacking)
        # Those that have begun may need a block more each before anybody ends.
        fits = not waits and lacking + len(self.blocks_of) <= self.blocks.free
        return Kept(len(found) * self.size, fits, displaces=new > self.blocks.empty)

    def keep(self, request: Request, computed: int) -> None:
        """Let others find those of a request's blocks that are full, when it has computed so many tokens."""
        own, full = self.blocks_of[request], self._full[request]
        while self.keeps and (len(full) + 1) * self.size <= computed:
            start = len(full) * self.size
            tokens = tuple(self.tokens_of(request)[start : start + self.size])
            block = self.blocks.keep(request.extensions, full, own[len(full)], tokens)
            if block.number != own[len(full)]:  # another's in the place of its own
                self.held[request.vfm] -= block.holders > 1
                own[len(full)] = block.number
            full.append(block)

    def release(self, request: Request) -> None:
        """Free a request's blocks, if it has any."""
        if request in self.blocks_of:
            vfm, full = request.vfm, self._full.pop(request)
            own = self.blocks_of.pop(request)[len(full) :]
            self.blocks.give_back(own)
            self.held[vfm] -= len(own) + self.blocks.let_go(full)
            self.running[vfm] -= 1
            if not self.running[vfm]:
                del self.running[vfm], self.held[vfm]  # it may be gone for good
        self._placed.discard(request)

    def _grow(self, request: Request) -> bool:
        lacking = self._blocks_for(request) - len(self.blocks_of[request])
        if lacking <= 0:
            return True
        while (within := self._is_over_share(request, lacking)) or self.blocks.free < lacking:
            losers = (each for each in self._unplaced() if not within or each.vfm is request.vfm)
            loser = max(losers, key=_last_to_keep)
            self._preempt(loser)
            if loser is request:
                request.vfm.held_back = within
                return False
        self.blocks_of[request] += self.blocks.take(lacking)
        self.held[request.vfm] += lacking
        return True

    def _is_over_share(self, request: Request, lacking: int) -> bool:
        """Whether its vFM would have more than its limit; one sequence may always run."""
        vfm = request.vfm
        if vfm.max_kv_share is None or self.running[vfm] == (request in self.blocks_of):
            return False
        return self.held[vfm] + lacking > vfm.max_kv_share * self.blocks.count

    def _admit(self, request: Request) -> bool:
        vfm, found = request.vfm, self._find(request)
        new = self._blocks_for(request) - len(found)
        lacking = new + sum(not block.holders for block in found)
        is_full = vfm.max_running is not None and self.running[vfm] >= vfm.max_running
        if is_full or self._is_over_share(request, lacking):
            vfm.held_back = True  # those behind it need not wait with it
            return False
        losers = None if self._waits else self._losers_to(request, lacking)
        if losers is None:
            self._waits = self._waits or not vfm.spare
            return False
        for loser in losers:
            self._preempt(loser)
        self.held[vfm] += self.blocks.hold(found) + new
        self.blocks_of[request] = [block.number for block in found] + self.blocks.take(new)
        self._full[request] = found
        self.running[vfm] += 1
        if found:
            self.moved(request, len(found) * self.size)
        return True

    def _find(self, request: Request) -> list[FullBlock]:
        """Blocks with its first tokens; not the last one's, which is computed in any case: the next follows from it."""
        tokens = self.tokens_of(request)
        return self.blocks.find(request.extensions, tokens, self.size, (len(tokens) - 1) // self.size)

    def _losers_to(self, request: Request, lacking: int) -> list[Request] | None:
        """Who gives way to one that begins; None where it has to wait."""
        free = self.blocks.free
        if free >= lacking:
            return []
        held = Counter(self.held)
        wanted = (held[request.vfm] + lacking) / request.vfm.weight
        losers: list[Request] = []
        spared = {request.vfm}
        for loser in sorted(self._unplaced(), key=_last_to_keep, reverse=True):
            vfm, freed = loser.vfm, self._freed_by(loser)
            if vfm in spared:
                continue
            if vfm.spare != request.vfm.spare:
                if not vfm.spare:
                    continue
            elif not self._is_ahead(vfm, request.vfm):
                continue
            elif (held[vfm] - freed) / vfm.weight < wanted:
                spared.add(vfm)  # its older ones, too: else one without blocks would stand before one that has some
                continue
            losers.append(loser)
            held[vfm] -= freed
            free += freed
            if free >= lacking:
                return losers
        return None

    def _is_ahead(self, vfm: Vfm, of: Vfm) -> bool:
        ahead = vfm.start - of.start
        return ahead > 0 and ahead * vfm.weight > self.locality_s

    def _unplaced(self) -> list[Request]:
        return [request for request in self.blocks_of if request not in self._placed]

    def _freed_by(self, loser: Request) -> int:
        full = self._full[loser]
        return len(self.blocks_of[loser]) - sum(block.holders > 1 for block in full)

    def _preempt(self, loser: Request) -> None:
        self.preempted += 1
        self.release(loser)
        self.moved(loser, 0)

    def _blocks_for(self, request: Request) -> int:
        return -(-len(self.tokens_of(request)) // self.size)


def _last_to_keep(request: Request) -> tuple[bool, float, int]:
    """The largest goes first: copies, then the newest of the vFM furthest ahead."""
    return request.vfm.spare, request.vfm.start, request.admission_number
