"""What was worked out before, for as long as it still holds."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Inputs = TypeVar("_Inputs")
_Result = TypeVar("_Result")


class Memo(Generic[_Key, _Inputs, _Result]):
    """A pure function's last result for each key, made anew only when its inputs are others (`==`).

    It works in rounds: what one round does not ask for, the next one has forgotten, so it never holds more than two
    rounds' worth.
    """

    def __init__(self, make: Callable[[_Key, _Inputs], _Result]) -> None:
        self._make = make
        self._before: dict[_Key, tuple[_Inputs, _Result]] = {}
        self._now: dict[_Key, tuple[_Inputs, _Result]] = {}

    def begin(self) -> None:
        """Starts a round.  One that was broken off costs its results and nothing else."""
        self._before, self._now = self._now, {}

    def get(self, key: _Key, inputs: _Inputs) -> _Result:
        """The result of these inputs: the very object of the round before, where they are the same."""
        kept = self._before.get(key)
        if kept is None or kept[0] != inputs:
            kept = (inputs, self._make(key, inputs))
        self._now[key] = kept
        return kept[1]
