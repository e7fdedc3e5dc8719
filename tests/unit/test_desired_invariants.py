"""Whatever is asked for in whatever order, a record is consistent, or the move is refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.controlplane.desired import (
    AdapterRecord,
    CanaryRecord,
    VersionRecord,
    added,
    awaited,
    canaried,
    configured,
    judged,
    promoted,
    removed,
    rolled_back,
)
from gateway.domain.errors import GatewayError

DIGESTS = [f"{n:x}" * 64 for n in range(6)]
Move = Callable[[AdapterRecord | None], AdapterRecord | None]

digests = st.sampled_from(DIGESTS)
weights = st.one_of(st.floats(), st.integers(-1, 101), st.sampled_from([0.0, 12.5, 33.4, 50.0, 100.0]))


def version(digest: str, watched: bool = False) -> VersionRecord:
    return VersionRecord(digest, "upload", watched, "base", 8, 1, ("",), 1)


def on(move: Callable[..., AdapterRecord | None], *values: object, **settings: object) -> Move:
    """The move, on an adapter that is there."""
    return lambda record: None if record is None else move(record, *values, **settings)


def adding(digest: str, watched: bool, promote: bool, keep: int) -> Move:
    return lambda record: added(record, "pirate", version(digest, watched), promote=promote, keep=keep)


additions = st.builds(adding, digests, st.booleans(), st.booleans(), st.integers(1, 5))
moves = st.one_of(
    additions,
    st.builds(lambda digest: on(promoted, digest), digests),
    st.builds(lambda digest: on(awaited, digest), digests),
    st.just(on(rolled_back)),
    st.builds(lambda digest, weight: on(canaried, digest, weight), digests, weights),
    st.builds(lambda digest: on(removed, digest), digests),
    st.builds(lambda digest, fits: on(judged, digest, tuple(fits)), digests, st.lists(st.text())),
    st.builds(
        lambda names: on(configured, upstreams=None if names is None else tuple(names)),
        st.none() | st.lists(st.sampled_from("xyz")),
    ),
    st.builds(
        lambda pinned, load: on(configured, pinned=pinned, load=load), st.booleans(), st.just("lazy") | st.none()
    ),
)


def check(record: AdapterRecord) -> None:
    """The invariants, in other words than the code's."""
    held = [v.digest for v in record.versions]
    others = [digest for digest in held if digest != record.current]
    assert sorted(set(held)) == sorted(held)
    assert held.count(record.current) == 1
    assert all(record.history.count(digest) == 1 and digest in others for digest in record.history)
    assert all(canary.digest in others and 0 < canary.weight <= 100 for canary in record.canaries)
    assert len({canary.digest for canary in record.canaries}) == len(record.canaries)
    assert sum(canary.weight for canary in record.canaries) <= 100 + 1e-6
    assert (record.salt != "") == (record.canaries != ())
    assert record.next is None or record.next in others
    assert record.upstreams is None or len(record.upstreams) > 0


def run(sequence: list[Move]) -> list[AdapterRecord]:
    """What was there one after the other; refused moves leave it as it was."""
    record, seen = None, []
    for move in sequence:
        try:
            record = move(record)
        except GatewayError:
            continue
        if record is not None:
            seen.append(record)
    return seen


@given(st.lists(moves, max_size=40))
def test_any_sequence_of_moves_keeps_a_record_consistent(sequence: list[Move]) -> None:
    for record in run(sequence):
        check(record)


@given(st.lists(moves, max_size=40))
def test_no_move_moves_more_than_it_says(sequence: list[Move]) -> None:
    for before, after in pairwise(run(sequence)):
        gone = {v.digest for v in before.versions} - {v.digest for v in after.versions}
        if before.current != after.current and before.current not in gone:  # promoted, or rolled back
            assert before.current in after.history or after.current == before.history[-1]
        if after.canaries and before.canaries and before.salt != after.salt:  # all ended before others began
            pytest.fail("a running canary was dealt to other people")


@given(st.lists(moves, max_size=30), digests)
def test_a_rollback_undoes_a_promotion(sequence: list[Move], digest: str) -> None:
    for before in run(sequence):
        if digest in {v.digest for v in before.versions} - {before.current}:
            after = rolled_back(promoted(before, digest))
            assert after.current == before.current
            assert after.history == tuple(d for d in before.history if d != digest)


@given(st.lists(moves, max_size=30), digests, st.integers(1, 5), st.booleans())
def test_adding_twice_is_adding_once(sequence: list[Move], digest: str, keep: int, promote: bool) -> None:
    for before in run(sequence):
        once = added(before, "pirate", version(digest), promote=promote, keep=keep)
        assert added(once, "pirate", version(digest), promote=promote, keep=keep) == once


@given(st.lists(additions, max_size=30), st.integers(1, 5))
def test_versions_are_bounded_by_what_points_to_them(sequence: list[Move], keep: int) -> None:
    for before in run(sequence):
        after = added(before, "pirate", version(DIGESTS[0]), promote=False, keep=keep)
        pointed = {after.current, after.next, DIGESTS[0], *after.history[-1:], *(c.digest for c in after.canaries)}
        assert len(after.versions) <= max(keep, len(pointed - {None}))


A, B = DIGESTS[:2]
WHOLE = AdapterRecord("pirate", (version(A), version(B)), A)


@pytest.mark.parametrize(
    "damage",
    [
        {"versions": ()},
        {"versions": (version(A), version(A))},
        {"current": DIGESTS[2]},
        {"history": (A,)},
        {"history": (B, B)},
        {"history": (DIGESTS[2],)},
        {"canaries": (CanaryRecord(B, 10),)},
        {"canaries": (CanaryRecord(A, 10),), "salt": "s"},
        {"canaries": (CanaryRecord(B, 10), CanaryRecord(B, 10)), "salt": "s"},
        {"canaries": (CanaryRecord(B, 0),), "salt": "s"},
        {"canaries": (CanaryRecord(B, float("nan")),), "salt": "s"},
        {"canaries": (CanaryRecord(B, 100.1),), "salt": "s"},
        {"salt": "s"},
        {"next": A},
        {"next": DIGESTS[2]},
        {"upstreams": ()},
    ],
    ids=repr,
)
def test_a_record_that_contradicts_itself_cannot_be_made(damage: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="the record of adapter pirate is damaged"):
        replace(WHOLE, **damage)


def test_canaries_cannot_get_more_than_everything() -> None:
    versions = tuple(map(version, DIGESTS[:3]))
    canaries = (CanaryRecord(DIGESTS[1], 60), CanaryRecord(DIGESTS[2], 41))
    with pytest.raises(ValueError, match="more than all traffic"):
        AdapterRecord("pirate", versions, A, canaries=canaries, salt="s")
