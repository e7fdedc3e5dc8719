"""What one request asked and was answered: for keys whose owner was told that it is written down, and for no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Content:
    """A request that has ended.

    `at`: Unix time in nanoseconds.  `status` and `reason`: how it ended.  `body`: what was asked, as it was parsed;
    None when it was not JSON.  `answer`: the bytes that the client was sent, without vectors and tokens, and not more
    than are kept (`whole`: all of them).  `size`: about the bytes that this holds.
    """

    request_id: str
    at: int
    endpoint: str
    key: str
    key_name: str
    user: str
    team: str
    model: str
    adapter: str
    status: int
    reason: str
    body: Mapping[str, Any] | None
    answer: tuple[bytes, ...]
    whole: bool
    size: int
