"""One row of the ledger: what one request was, used and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, get_args


@dataclass(slots=True)  # nobody changes one; to make it frozen takes ten times as long, and one is made a request
class Entry:
    """Money is in micros (domain/money.py), times in microseconds.  "" and 0 stand for what there is not, or is not
    known (yet)."""

    request_id: str  # ours (`req_…`)
    started: int  # Unix time
    endpoint: str
    model: str  # a public name that exists
    adapter: str  # name@version
    upstream: str  # the last one that was tried
    key: str  # the id of the key that was used
    key_name: str  # what people call it
    team: str
    user: str
    task: str  # Open WebUI's background task
    attempts: int
    status: int  # of the answer
    reason: str  # a word of domain.errors.Reason
    prompt: int
    completion: int
    cached: int  # of `prompt`
    reasoning: int  # of `completion`
    estimated: bool
    cost: int
    price: str  # the words of the price that it was computed with
    first_byte: int | None  # from `started`
    duration: int


#: What usage can be asked for by.
By = Literal["day", "key", "team", "user", "model", "adapter", "upstream"]
BY: Final[tuple[str, ...]] = get_args(By)
#: What is added up: the field in a report → the field of an entry; `requests` counts them.
SUMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "prompt_tokens": "prompt",
        "completion_tokens": "completion",
        "cached_tokens": "cached",
        "reasoning_tokens": "reasoning",
        "cost_micros": "cost",
    }
)
