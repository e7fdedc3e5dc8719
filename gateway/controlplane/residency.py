"""Which adapters an engine holds when there are more of them than it has room for.  Pure.

Like a cache that forgets what was used least recently, with three differences: some are pinned, requests wait for what
is not there, and what a request uses stays until it has ended.  So that nobody waits for ever behind adapters that are
always in use, each may be used undisturbed for a turn only; then, while others wait, it gives way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Wish:
    """One version that may be on an engine.  Times are seconds of one monotonic clock.

    `eager`: loaded without being asked for, while there is room.  `asked`: when a request last named it, -inf for
    never.  `waiting`: since when a request waits for it, until that was sent or left.  `in_use`: requests that were
    admitted to it on this engine.  `since`: since when the engine lists it.  `refused`: the engine does not take it; it
    is tried again where nobody else wants the place.
    """

    adapter: str
    path: str
    digest: str
    pinned: bool = False
    eager: bool = False
    asked: float = -inf
    waiting: float | None = None
    in_use: int = 0
    since: float | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Residency:
    """What an engine is to hold.  `adapters`: in the order to load.  `changes_at`: when time alone may change that."""

    adapters: tuple[str, ...]
    changes_at: float | None


def room(capacity: int, others: int) -> int:
    """The places for the gateway's adapters on an engine that also holds those of `others`; 0: as many as it likes.

    At least one: an engine takes more than it has memory for, and then reads again what it has forgotten.
    """
    return max(1, capacity - others) if capacity else 0


def residents(wishes: Sequence[Wish], room: int, now: float, *, idle: float | None, turn: float) -> Residency:
    """What an engine with so much room (0: without a limit) is to hold.

    First the pinned ones, then those that somebody waits for, the longest wait first, then those in use, then by the
    time of the last request, then the eager ones in the order given.  One that is neither pinned, eager, in use nor
    waited for leaves `idle` seconds after its last request; None: when its place is needed.

    What is in use keeps its place, unless somebody has waited longer than `turn` seconds: then the one that was held
    longest gives way, though none before it was held for `turn` seconds itself.  So whoever is at position p of those
    that wait, where R places are not pinned, waits at most for ⌈p / R⌉ rounds, each of a turn, the longest request
    and R + 1 loads; and what was loaded serves at least those who waited for it.
    """
    places = room or len(wishes)
    taken = [wish for wish in wishes if not wish.refused]
    pinned = sorted((wish for wish in taken if wish.pinned), key=lambda wish: wish.since is None)[:places]
    others = [wish for wish in taken if not wish.pinned]
    queue = sorted((wish for wish in others if wish.waiting is not None), key=_waiting)
    busy = sorted((wish for wish in others if _busy(wish)), key=_held)
    rest = sorted((wish for wish in others if wish.waiting is None and not _busy(wish)), key=_by_use)
    placed, changes_at = _take_turns(
        queue, busy[max(0, len(pinned) + len(busy) - places) :], places - len(pinned), now, turn
    )
    chosen = [*pinned, *placed]
    spare = [wish for wish in (*rest, *(wish for wish in wishes if wish.refused)) if _leaves_at(wish, idle) > now]
    chosen += spare[: places - len(chosen)]
    moments = [changes_at, *(_leaves_at(wish, idle) for wish in chosen[len(pinned) + len(placed) :])]
    return Residency(tuple(wish.adapter for wish in chosen), min((at for at in moments if at < inf), default=None))


def _take_turns(
    queue: Sequence[Wish], busy: Sequence[Wish], places: int, now: float, turn: float
) -> tuple[list[Wish], float]:
    """Who has a place, of those that wait and those in use, and when time alone changes that (inf: never).

    `busy` begins with the one that was held longest, and fits.  Whoever gives way stays in it until its last request
    has ended, so that the same answer comes out until then.
    """
    gone = 0
    for number, wish in enumerate(queue):
        if number < places - len(busy) + gone:
            continue
        if gone == len(busy):
            return [*queue[:number]], inf
        ripe_at = max(_waiting(wish), _held(busy[gone])) + turn
        if ripe_at > now:
            return [*queue[:number], *busy[gone:]], ripe_at
        gone += 1
    return [*queue, *busy[gone:]], inf


def _leaves_at(wish: Wish, idle: float | None) -> float:
    """When it leaves by itself, inf for never, -inf for one that nobody has asked for."""
    if wish.pinned or wish.eager or wish.waiting is not None:
        return inf
    touched = wish.asked if wish.since is None else max(wish.asked, wish.since)
    return touched + idle if idle is not None else inf if touched > -inf else -inf


def _by_use(wish: Wish) -> tuple[float, bool]:
    """By the last request, newest first.  Without one: first what is there, which cost a load, but for the eager ones,
    which have their own order."""
    return -wish.asked, wish.eager or wish.since is None


def _busy(wish: Wish) -> bool:
    return wish.waiting is None and wish.in_use > 0 and wish.since is not None


def _waiting(wish: Wish) -> float:
    return inf if wish.waiting is None else wish.waiting


def _held(wish: Wish) -> float:
    return inf if wish.since is None else wish.since
