"""What third parties take for their models, by the package genai-prices (https://github.com/pydantic/genai-prices).

Its data lie in it, and nothing is fetched: they are as new as the package.  To load them takes up to a second and tens
of MB, so it is imported only where the file asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gateway.domain import money

if TYPE_CHECKING:
    from genai_prices.types import ConditionalPrice, Provider

AUTO = "auto"
_PACKAGE = "genai-prices"


class PriceList:
    """The prices of one provider, in US dollars, as they are on the day on which it is made."""

    def __init__(self, provider: Provider, all_providers: list[Provider]) -> None:
        self._provider = provider
        self._all = all_providers
        self._source = f"{_PACKAGE}={version(_PACKAGE)}"
        self._now = datetime.now(UTC)

    def price(self, model: str) -> money.Price | None:
        """What the provider takes for a model, by its own name; None where the package does not know it, or where it
        is not tokens alone that are paid for.  Of several prices, by the time of day, by the length of the prompt or
        for reasoning, the dearest: a budget is used up too early rather than too late."""
        found = self._provider.find_model(model, all_providers=self._all)
        if found is None:
            return None
        prices = [found.prices] if not isinstance(found.prices, list) else _in_force(found.prices, self._now)
        into, out, reasoning, cached, requests = (
            [_dearest(value) for price in prices if (value := getattr(price, name, None)) is not None]
            for name in ("input_mtok", "output_mtok", "output_reasoning_mtok", "cache_read_mtok", "requests_kcount")
        )
        if not into or requests:
            return None
        # Where only some have a price for cached tokens, they may cost what the others do.
        most_cached = max(cached) if len(cached) == len(prices) else None
        return money.Price(
            money.micros(max(into)),
            money.micros(max(out + reasoning, default=Decimal(0))),  # embeddings answer without tokens
            None if most_cached is None else money.micros(most_cached),
            self._source,
        )


def price_list(wanted: str, base_url: str) -> PriceList:
    """The list of a provider by its id in the package; for "auto" of the one who has this base URL.

    Raises LookupError where there is none, and ImportError where the package is not installed.
    """
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - see above

    snapshot = get_snapshot()
    provider = snapshot.find_provider(None, None if wanted == AUTO else wanted, base_url if wanted == AUTO else None)
    return PriceList(provider, snapshot.providers)


def providers() -> list[str]:
    """The ids that the package knows.  Raises ImportError."""
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - see above

    return [provider.id for provider in get_snapshot().providers]


def _in_force(conditional: Sequence[ConditionalPrice], now: datetime) -> list[Any]:
    """The last price that has begun, and those behind it that hold at some time of the day."""
    in_force: list[Any] = []
    for one in conditional:
        begins = getattr(one.constraint, "start_date", None)
        if begins is not None and begins > now.date():
            continue
        if one.constraint is None or begins is not None:
            in_force.clear()
        in_force.append(one.prices)
    return in_force


def _dearest(price: Any) -> Decimal:
    """Of a price with tiers (`base` and `tiers`)."""
    tiers: Iterable[Any] = getattr(price, "tiers", ())
    dearest: Decimal = max([getattr(price, "base", price), *(tier.price for tier in tiers)])
    return dearest
