"""How patient tests are: no promise is about speed, and a machine that stands still for a second is no fault."""

from __future__ import annotations

#: Seconds.  By so much may anything be late; what does not come by then, does not come.  Where a time-out is what is
#: tested, every other one is far longer than this, so that it cannot be taken for the right one.
LATE = 10.0


def near(took: float, seconds: float) -> bool:
    """Whether what is due after so many seconds came then: not before, for `took` holds at least all of the wait, and
    not because something else ended it."""
    return seconds - 0.05 < took < seconds + LATE
