"""What can be done with a key, and what cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from gateway.api import bodies
from gateway.controlplane.keys import ENDPOINTS, RIGHTS, KeyRecord, configured, revoked, rotated
from gateway.domain.errors import Conflict
from gateway.domain.limits import Budget, Limits

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))
KEY = KeyRecord("k3J9xQ2b", "anna", ONE, "pepper", 1000)


def rotated_once(grace: int) -> KeyRecord:
    return rotated(KEY, TWO, "pepper", now=1000, grace=grace)


def test_a_key_lets_in_whom_it_names() -> None:
    record = configured(
        KEY, team="blue", models=("m", "support-*"), endpoints=("/v1/embeddings",), allow=("priority",), expires=2000,
        limits=Limits(requests_per_minute=5), budgets=(Budget(None, 5, "day"),), metadata={"a": "b"},
    )  # fmt: skip
    ((digest, who),) = record.principals()
    assert digest == ONE
    assert (who.name, who.key, who.team, who.models, who.expires) == (
        "anna", "k3J9xQ2b", "blue", ("m", "support-*"), 2000,
    )  # fmt: skip
    assert (who.allow, who.endpoints) == (frozenset({"priority"}), frozenset({"/v1/embeddings"}))
    assert (who.limits, who.budgets, who.metadata) == (record.limits, record.budgets, {"a": "b"})


def test_after_a_rotation_only_the_new_secret_lets_in() -> None:
    assert [digest for digest, _ in rotated_once(0).principals()] == [TWO]
    assert rotated_once(0).live(1000) == {1}


def test_with_a_grace_the_one_before_lets_in_until_it_ends() -> None:
    record = rotated_once(60)
    assert {digest: who.expires for digest, who in record.principals()} == {TWO: None, ONE: 1060}
    assert (record.live(1059), record.live(1060)) == ({0, 1}, {1})
    assert dict(replace(record, expires=1010).principals())[ONE].expires == 1010


def test_a_second_rotation_ends_what_was_before_the_first() -> None:
    record = rotated(rotated_once(60), THREE, "pepper", now=1001, grace=60)
    assert {digest: who.rotation for digest, who in record.principals()} == {THREE: 2, TWO: 1}


def test_a_secret_of_another_pepper_has_no_grace() -> None:
    assert [digest for digest, _ in rotated(KEY, TWO, "other", now=1000, grace=60).principals()] == [TWO]


def test_a_revoked_key_lets_nobody_in_and_stays_revoked() -> None:
    record = revoked(rotated_once(60), now=1005)
    assert (list(record.principals()), record.live(1005), record.revoked) == ([], frozenset(), 1005)
    assert revoked(record, now=2000) is record
    with pytest.raises(Conflict, match="for good"):
        rotated(record, THREE, "pepper", now=2000, grace=0)
    with pytest.raises(Conflict, match="for good"):
        configured(record, owner="x")


def test_an_expired_key_lets_nobody_in() -> None:
    assert configured(KEY, expires=999).live(1000) == frozenset()
    assert configured(KEY, expires=1000).live(999) == {0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Anna"}, {"name": ""}, {"name": "a b"}, {"owner": "x" * 257}, {"owner": "a\nb"}, {"team": "\x00"},
        {"models": ()}, {"models": ("a b",)}, {"models": ("",)}, {"models": ("x",) * 257}, {"models": ("x" * 257,)},
        {"endpoints": ("/v1/chat",)}, {"allow": ("root",)}, {"budgets": (Budget(1, None, "day"),) * 9},
        {"metadata": {"a b": "c"}}, {"metadata": {"a": "x" * 257}}, {"metadata": {str(n): "" for n in range(17)}},
        {"digest": b"short"}, {"previous": b"short"},
    ],
    ids=str,
)  # fmt: skip
def test_a_key_that_cannot_be_is_not_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        replace(KEY, **wrong)


@pytest.mark.parametrize("value", [0, -1, 2**53 + 1])
def test_a_limit_is_a_number_from_one_on(value: int) -> None:
    with pytest.raises(ValueError):
        Limits(tokens_per_minute=value)


@pytest.mark.parametrize("budget", [(None, None, "day"), (-1, None, "day"), (1, -1, "day"), (1, 1, "year")])
def test_a_budget_is_of_something_and_for_a_time(budget: Any) -> None:
    with pytest.raises(ValueError):
        Budget(*budget)


def test_the_api_knows_the_same_endpoints_and_rights() -> None:
    assert set(get_args(bodies.Endpoint)) == ENDPOINTS
    assert set(get_args(bodies.Right)) == RIGHTS
