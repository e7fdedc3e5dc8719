"""What each move makes of an adapter's record, and what people are told when it cannot be made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.controlplane.desired import (
    AdapterRecord,
    CanaryRecord,
    VersionRecord,
    added,
    awaited,
    canaried,
    configured,
    find,
    judged,
    promoted,
    removed,
    rolled_back,
)
from gateway.domain.errors import Conflict, InvalidRequest, NotFound

A, B, C, D = (digit * 64 for digit in "abcd")


def version(digest: str, **changes: object) -> VersionRecord:
    return replace(VersionRecord(digest, "upload", False, "base", 8, 1 << 20, ("",), 1000), **changes)


def adapter(*digests: str, **changes: object) -> AdapterRecord:
    """An adapter with these versions, the first of which is current."""
    return replace(AdapterRecord("pirate", tuple(map(version, digests)), digests[0]), **changes)


def held(record: AdapterRecord | None) -> str:
    """The versions, as a word: "abc"."""
    return "".join(v.digest[0] for v in record.versions) if record else ""


def test_the_first_version_is_current_at_once() -> None:
    assert added(None, "pirate", version(A), promote=False, keep=3) == adapter(A)


def test_a_later_version_becomes_current_when_it_is_ready_if_it_is_to() -> None:
    beside = added(adapter(A), "pirate", version(B), promote=False, keep=3)
    assert beside == adapter(A, B)
    assert added(beside, "pirate", version(C), promote=True, keep=3) == adapter(A, B, C, next=C)


def test_the_oldest_versions_go_that_nothing_points_to() -> None:
    full = adapter(A, B, C, D)
    assert held(added(full, "pirate", version("e" * 64), promote=False, keep=4)) == "acde"
    assert held(added(full, "pirate", version("e" * 64), promote=False, keep=2)) == "ae"
    assert held(added(replace(full, next=B), "pirate", version("e" * 64), promote=False, keep=2)) == "abe"
    pointed = replace(full, current=D, history=(C, A), canaries=(CanaryRecord(B, 1),), salt="s")
    assert held(added(pointed, "pirate", version("e" * 64), promote=False, keep=1)) == "abde"


def test_a_version_that_is_dropped_leaves_the_history() -> None:
    record = added(adapter(C, A, B, history=(A, B)), "pirate", version(D), promote=False, keep=3)
    assert (held(record), record.history) == ("cbd", (B,))


def test_adding_the_same_content_again_keeps_its_place_and_takes_the_new_judgement() -> None:
    again = version(A, source="hf://org/repo@1", fits=("new",), added=2000)
    record = added(adapter(A, B), "pirate", again, promote=True, keep=3)
    assert record == replace(adapter(A, B), versions=(replace(again, added=1000), version(B)))


def test_a_folder_that_goes_back_to_the_current_content_calls_off_the_next_one() -> None:
    assert added(adapter(A, B, next=B), "pirate", version(A), promote=True, keep=3).next is None


def test_what_somebody_added_by_hand_does_not_become_a_watched_folders() -> None:
    found = version(A, watched=True, source="folder adapters.d/pirate")
    assert added(adapter(A), "pirate", found, promote=False, keep=3) == adapter(A)
    was_found = replace(adapter(A), versions=(found,))
    assert added(was_found, "pirate", version(A), promote=False, keep=3) == adapter(A)


def test_two_versions_of_one_short_name_cannot_be() -> None:
    alike = A[:12] + B[12:]
    with pytest.raises(Conflict, match=f"pirate@{A[:12]} is another version already"):
        added(adapter(A), "pirate", version(alike), promote=False, keep=3)


def test_promote_and_rollback_are_the_same_move_in_both_directions() -> None:
    record = promoted(promoted(adapter(A, B, C), B), C)
    assert (record.current, record.history) == (C, (A, B))
    record = rolled_back(record)
    assert (record.current, record.history) == (B, (A,))
    assert rolled_back(record) == adapter(A, B, C)


def test_a_name_that_goes_back_and_forth_has_a_short_history() -> None:
    record = adapter(A, B)
    for digest in (B, A) * 500:
        record = promoted(record, digest)
    assert (record.current, record.history) == (A, (B,))


def test_promoting_the_current_version_changes_nothing_but_what_was_to_come() -> None:
    assert promoted(adapter(A, B, history=(B,), next=B), A) == adapter(A, B, history=(B,))


def test_a_rollback_and_a_promotion_call_off_the_version_that_was_to_come() -> None:
    waits = adapter(A, B, C, history=(B,), next=C)
    assert rolled_back(waits) == adapter(A, B, C, current=B)
    assert promoted(waits, B).next is None


def test_a_rollback_without_a_past_names_the_alternatives() -> None:
    with pytest.raises(Conflict, match=f"no version before {A[:12]} of pirate: promote one of {A[:12]}, {B[:12]}"):
        rolled_back(adapter(A, B))


def test_the_version_to_come_can_be_named_and_called_off() -> None:
    assert awaited(adapter(A, B), B) == adapter(A, B, next=B)
    assert awaited(adapter(A, B, next=B), A) == adapter(A, B)


def test_a_promoted_canary_is_one_no_longer_and_the_others_go_on() -> None:
    both = canaried(canaried(adapter(A, B, C), B, 10), C, 20)
    after = promoted(both, B)
    assert (after.canaries, after.salt) == ((CanaryRecord(C, 20),), both.salt)
    assert promoted(after, C).salt == ""


def test_canaries_keep_their_order_and_their_salt_while_their_weights_change() -> None:
    record = canaried(canaried(adapter(A, B, C), B, 10), C, 20)
    assert canaried(record, B, 30).canaries == (CanaryRecord(B, 30), CanaryRecord(C, 20))
    only = canaried(record, B, 0)
    assert (only.canaries, only.salt) == ((CanaryRecord(C, 20),), record.salt)
    assert canaried(only, C, 0) == adapter(A, B, C)
    assert canaried(adapter(A, B, C), C, 0) == adapter(A, B, C)


def test_a_canary_begun_again_meets_the_same_people_and_another_one_others() -> None:
    begun = canaried(adapter(A, B, C), B, 10)
    assert canaried(canaried(begun, B, 0), B, 10) == begun
    assert canaried(adapter(A, B, C), C, 10).salt != begun.salt
    assert replace(begun, name="json").salt != canaried(replace(adapter(A, B, C), name="json"), B, 10).salt


def test_decimal_weights_may_fill_the_whole() -> None:
    record = adapter("0" * 64, *(f"{n:x}" * 64 for n in range(1, 11)))
    for n in range(1, 11):
        record = canaried(record, f"{n:x}" * 64, 9.1 if n > 1 else 18.1)
    assert len(record.canaries) == 10


@pytest.mark.parametrize("weight", [-0.1, 100.1, float("nan"), float("inf"), 10**400])
def test_a_weight_that_is_no_percentage_is_refused(weight: float) -> None:
    with pytest.raises(InvalidRequest, match="weight must be a percentage from 0 to 100") as told:
        canaried(adapter(A, B), B, weight)
    assert told.value.param == "weight"
    assert len(told.value.message) < 200


def test_more_than_everything_cannot_be_given_away() -> None:
    with pytest.raises(Conflict, match=rf"pirate would get 110 % of its traffic: {B[:12]} gets 60 % already"):
        canaried(canaried(adapter(A, B, C), B, 60), C, 50)


@pytest.mark.parametrize("weight", [0, 10])
def test_the_current_version_is_no_canary(weight: float) -> None:
    with pytest.raises(Conflict, match="it gets what its canaries leave"):
        canaried(adapter(A, B), A, weight)


def test_without_its_current_version_a_name_points_to_the_one_before_or_to_the_newest() -> None:
    assert removed(adapter(C, A, B, history=(B, A)), C) == adapter(A, B, history=(B,))
    assert removed(adapter(A, B, C), A) == replace(adapter(B, C), current=C)
    assert removed(adapter(A, B, next=B), A) == adapter(B)
    assert removed(adapter(A), A) is None


def test_a_removed_version_is_nowhere_any_more() -> None:
    record = canaried(adapter(A, B, C, history=(C, B), next=B), B, 10)
    assert removed(record, B) == adapter(A, C, history=(C,))


def test_settings_that_are_not_named_stay() -> None:
    record = configured(adapter(A), pinned=True, load="lazy")
    assert record == adapter(A, pinned=True, load="lazy")
    assert configured(record, load=None, upstreams=("x", "y", "x")) == adapter(A, pinned=True, upstreams=("x", "y"))
    with pytest.raises(InvalidRequest, match="at least one upstream"):
        configured(record, upstreams=())


def test_a_new_judgement_of_one_version_leaves_the_others() -> None:
    assert judged(adapter(A, B), B, ("x", "y")).versions == (version(A), version(B, fits=("x", "y")))


def test_a_version_is_found_by_twelve_or_more_of_its_digits() -> None:
    near = A[:12] + "0" * 52
    record = adapter(near, B)
    assert find(record, A[:12]).digest == find(record, A[:12].upper()).digest == find(record, near).digest == near
    for text in (A[:11], A[:13], near + "0", "", "*", "aaaaaaaaaaaa\n"):
        with pytest.raises(NotFound, match=f"it has {A[:12]}, {B[:12]}"):
            find(record, text)


def test_a_sentence_about_versions_is_short() -> None:
    record = adapter(*(f"{n:064x}"[::-1] for n in range(1, 200)))
    with pytest.raises(NotFound) as told:
        find(record, "f" * 10_000)
    assert len(told.value.message) < 300


@pytest.mark.parametrize("move", [awaited, promoted, removed])
def test_every_move_names_a_version_that_is_not_there(move: object) -> None:
    with pytest.raises(NotFound, match=f"pirate has no version {D}; it has {A[:12]}, {B[:12]}"):
        move(adapter(A, B), D)


def test_a_client_is_not_made_to_repeat_a_conflict() -> None:
    with pytest.raises(Conflict) as told:
        rolled_back(adapter(A))
    assert told.value.status == 409
    assert told.value.headers() == [(b"x-should-retry", b"false")]
