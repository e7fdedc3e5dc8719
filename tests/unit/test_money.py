"""Money is counted in whole millionths, to the last one."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.csvtext import csv_text
from gateway.domain.money import Price, amount, from_words, hourly, micros, price
from gateway.domain.usage import Usage

MICROS = st.integers(0, 10**12)
TOKENS = st.integers(0, 10**9)
PRICES = st.builds(Price, MICROS, MICROS, st.none() | MICROS, st.sampled_from(["", "genai-prices=0.2.3", "a=1 b=2"]))


@given(PRICES, st.builds(Usage, TOKENS, TOKENS, TOKENS))
def test_a_cost_is_exact_and_half_a_millionth_is_rounded_up(by: Price, used: Usage) -> None:
    cached = min(used.cached, used.prompt)
    of_cached = by.input if by.cached is None else by.cached
    exact = Fraction((used.prompt - cached) * by.input + cached * of_cached + used.completion * by.output, 10**6)
    assert by.cost(used) == floor(exact + Fraction(1, 2))


@given(PRICES)
def test_the_words_of_a_price_say_all_of_it(by: Price) -> None:
    assert from_words(by.words) == by


def test_no_words_are_no_price() -> None:
    assert from_words("") is None


@given(MICROS)
def test_an_amount_is_read_back_as_it_was(value: int) -> None:
    assert micros(float(amount(value))) == value or value > 2**50
    assert "e" not in amount(value)


@pytest.mark.parametrize(
    ("words", "given"),
    [("in=0.25 out=2", (0.25, 2)), ("in=0.1 out=10 cached=0.025", (0.1, 10, 0.025)), ("in=0 out=0", (0, 0.0000004))],
)
def test_prices_are_what_people_write(words: str, given: tuple[float, ...]) -> None:
    assert price(*given).words == words


@given(st.decimals(0, 1000, places=3), st.decimals("0.01", 100_000, places=2))
def test_a_machines_hour_is_spread_over_the_tokens_that_it_does_in_one(cost: Decimal, speed: Decimal) -> None:
    by = hourly(float(cost), float(speed))
    exact = Fraction(cost) / (3600 * Fraction(speed)) * 10**12
    assert by.input == by.output == floor(exact + Fraction(1, 2))
    assert abs(by.cost(Usage(prompt=1800, completion=1800)) - exact * 3600 / 10**6) <= 1


def test_the_words_of_a_machines_price_say_the_machine() -> None:
    assert hourly(2.5, 1800).words == "in=0.385802 out=0.385802 gpu_hour=2.5 tokens_per_second=1800"


def test_what_a_client_chose_does_not_become_a_formula() -> None:
    rows = [{"user": "=cmd|' /C calc'!A0", "cost": -3}, {"user": 'a "b", c\nd', "cost": None}]
    assert csv_text(rows) == 'user,cost\r\n\'=cmd|\' /C calc\'!A0,-3\r\n"a ""b"", c\nd",\r\n'
    assert csv_text([]) == ""
