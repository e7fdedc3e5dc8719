"""How much a key, a team or a user may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_MAX = 2**53  # what every reader of JSON takes for the number that it is


@dataclass(frozen=True, slots=True)
class Limits:
    """At most so much at any time; None: without limit.  Raises ValueError for what is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None

    def __post_init__(self) -> None:
        for value in (self.requests_per_minute, self.tokens_per_minute, self.concurrent):
            if value is not None and not 1 <= value <= _MAX:
                raise ValueError("a limit is a whole number from 1 on")


@dataclass(frozen=True, slots=True)
class Budget:
    """At most so much in a period: money in millionths of the currency, or tokens, or both.  Raises ValueError for what
    is no budget."""

    money: int | None
    tokens: int | None
    period: Literal["day", "month", "total"]

    def __post_init__(self) -> None:
        for value in (self.money, self.tokens):
            if value is not None and not 0 <= value <= _MAX:
                raise ValueError("a budget is a whole number from 0 on")
        if self.money is None and self.tokens is None:
            raise ValueError("a budget is of money, of tokens or of both")
        if self.period not in ("day", "month", "total"):
            raise ValueError("a budget is for a day, a month or in total")
