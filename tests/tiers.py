"""How often a test repeats itself: a little in every run, a lot in `make soak`."""

from __future__ import annotations

import pytest

_LONG = 1800  # seconds


def repeated(quick: int, long: int) -> pytest.MarkDecorator:
    """Gives the test its number of `repetitions`, once for each of the two runs."""
    soak = pytest.param(long, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(_LONG)])
    return pytest.mark.parametrize("repetitions", [pytest.param(quick, id="quick"), soak])
