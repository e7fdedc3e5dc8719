"""Money: whole millionths of the currency ("micros"), so that sums are exact and the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal

from gateway.domain.usage import Usage

MILLION = 1_000_000
_AMOUNTS = ("in", "out", "cached")  # first in the words of a price, in this order


@dataclass(frozen=True, slots=True)
class Price:
    """Micros for a million tokens.  `cached`: for prompt tokens that the upstream had in its cache; None: as the rest
    of the prompt.  `source`: where it comes from, as `name=value`.  `words` says the price in the currency and its
    source (`in=0.25 out=2 cached=0.025 genai-prices=0.2.3`) and is what a row of the ledger keeps, so that another
    price changes no history."""

    input: int
    output: int
    cached: int | None = None
    source: str = ""
    words: str = field(init=False)

    def __post_init__(self) -> None:
        words = [f"in={amount(self.input)}", f"out={amount(self.output)}"]
        if self.cached is not None:
            words.append(f"cached={amount(self.cached)}")
        if self.source:
            words.append(self.source)
        object.__setattr__(self, "words", " ".join(words))

    def cost(self, usage: Usage) -> int:
        """Micros for these tokens; half a micro is rounded up."""
        cached = 0 if self.cached is None else min(usage.cached, usage.prompt)
        return self.of(usage.prompt - cached, usage.completion, cached)

    def of(self, prompt: int, completion: int, cached: int = 0) -> int:
        """The same; `cached` comes on top of `prompt`."""
        total = prompt * self.input + cached * (self.cached or 0) + completion * self.output
        return (2 * total + MILLION) // (2 * MILLION)


def price(input: float, output: float, cached: float | None = None) -> Price:
    """The price of a million tokens, given in the currency."""
    return Price(micros(input), micros(output), None if cached is None else micros(cached))


def hourly(cost: float, tokens_per_second: float) -> Price:
    """The price of a token, of prompts and of answers alike, on a machine that costs so much an hour and does so many
    a second."""
    million = micros(Decimal(str(cost)) * MILLION / (3600 * Decimal(str(tokens_per_second))))
    return Price(million, million, source=f"gpu_hour={cost:g} tokens_per_second={tokens_per_second:g}")


def from_words(words: str) -> Price | None:
    """The price that `words` says; None for "", which says none."""
    if not words:
        return None
    parts = words.split(" ")
    said = {name: text for name, _, text in (part.partition("=") for part in parts) if name in _AMOUNTS}
    into, out, cached = (micros(Decimal(said[name])) if name in said else None for name in _AMOUNTS)
    if into is None or out is None:
        raise ValueError(f"no price: {words}")
    return Price(into, out, cached, " ".join(parts[len(said) :]))


def micros(value: float | Decimal) -> int:
    """An amount in the currency; half a micro is rounded up."""
    return int((Decimal(str(value)) * MILLION).to_integral_value(ROUND_HALF_UP))


def amount(value: int) -> str:
    """Micros as an amount in the currency, without zeros that say nothing."""
    whole, rest = divmod(abs(value), MILLION)
    return f"{'-' if value < 0 else ''}{whole}" + (f".{rest:06}".rstrip("0") if rest else "")
