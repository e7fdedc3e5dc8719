"""Which adapters an engine is to hold: the pure rules, over any wishes."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from gateway.controlplane.residency import Residency, Wish, residents, room

NOW, IDLE, TURN = 1000.0, 60.0, 2.0
past = st.integers(-8, 0).map(lambda steps: NOW + steps * 0.75)
long_past = st.one_of(st.just(-inf), st.integers(-10, 0).map(lambda steps: NOW + steps * 12.0))
some_wishes = st.lists(
    st.builds(
        Wish,
        adapter=st.just(""),
        path=st.just(""),
        digest=st.just(""),
        pinned=st.booleans(),
        eager=st.booleans(),
        asked=long_past,
        waiting=st.none() | past,
        in_use=st.integers(0, 2),
        since=st.none() | long_past.filter(lambda at: at > -inf),
        refused=st.sampled_from((False, False, True)),
    ),
    max_size=10,
).map(lambda wishes: [replace(wish, adapter=f"a{number}@{number:012}") for number, wish in enumerate(wishes)])
rooms = st.integers(0, 6)


def wish(name: str, **more: object) -> Wish:
    return replace(Wish(name, f"/store/{name}", name * 64), **more)  # type: ignore[arg-type]


def hold(*wishes: Wish, room: int = 0, now: float = NOW, idle: float | None = IDLE) -> list[str]:
    return list(residents(wishes, room, now, idle=idle, turn=TURN).adapters)


def answer(wishes: list[Wish], room: int, now: float = NOW) -> Residency:
    return residents(wishes, room, now, idle=IDLE, turn=TURN)


# ---- over any wishes


@given(some_wishes, rooms)
def test_there_is_an_answer_to_everything_that_fits_and_names_nothing_twice(wishes: list[Wish], room: int) -> None:
    found = answer(wishes, room)
    assert len(set(found.adapters)) == len(found.adapters) <= (room or len(wishes))
    assert set(found.adapters) <= {wish.adapter for wish in wishes}
    assert found.changes_at is None or found.changes_at > NOW
    assert found == answer(wishes, room)


@given(some_wishes, rooms, st.floats(0, 200))
def test_time_alone_changes_nothing_before_the_moment_that_is_told(wishes: list[Wish], room: int, later: float) -> None:
    found = answer(wishes, room)
    if found.changes_at is None or NOW + later < found.changes_at:
        assert answer(wishes, room, NOW + later).adapters == found.adapters


@given(some_wishes, rooms)
def test_a_pinned_one_gives_way_to_other_pinned_ones_only(wishes: list[Wish], room: int) -> None:
    pinned = [wish for wish in wishes if wish.pinned and not wish.refused]
    held = {wish.adapter for wish in pinned if wish.since is not None}
    found = answer(wishes, room).adapters
    assert len({wish.adapter for wish in pinned} & set(found)) == min(len(pinned), room or len(pinned))
    assert held <= set(found) or len(held) > room > 0


@given(some_wishes, rooms)
def test_what_is_in_use_is_given_up_only_for_a_pinned_one_or_for_somebody_whose_turn_it_is(
    wishes: list[Wish], room: int
) -> None:
    found = set(answer(wishes, room).adapters)
    gone = [w for w in wishes if w.in_use and w.since is not None and w.adapter not in found and w.waiting is None]
    gone = [w for w in gone if not w.refused and not w.pinned]
    unheld = sum(w.pinned and w.since is None and not w.refused for w in wishes)
    overdue = sum(w.waiting is not None and w.waiting + TURN <= NOW and not w.refused for w in wishes)
    held = sum(w.since is not None for w in wishes)
    if room == 0 or (held <= room and unheld == overdue == 0):
        assert not gone
    if held <= room and unheld == 0:
        assert all(w.since is not None and w.since + TURN <= NOW for w in gone)


@given(some_wishes, rooms)
def test_of_two_that_are_waited_for_the_one_that_waits_longer_comes_first(wishes: list[Wish], room: int) -> None:
    found = answer(wishes, room).adapters
    queue = [w for w in wishes if w.waiting is not None and not w.pinned and not w.refused]
    for first in queue:
        for second in queue:
            if first.waiting < second.waiting and second.adapter in found:  # type: ignore[operator]
                assert first.adapter in found
                assert found.index(first.adapter) < found.index(second.adapter)


@given(some_wishes, rooms)
def test_no_place_stays_empty_while_somebody_waits(wishes: list[Wish], room: int) -> None:
    found = answer(wishes, room).adapters
    waited = {w.adapter for w in wishes if w.waiting is not None}
    assert waited <= set(found) or len(found) == room


@given(some_wishes)
def test_without_a_limit_everybody_is_there_who_is_wanted(wishes: list[Wish]) -> None:
    wanted = {w.adapter for w in wishes if w.pinned or w.eager or w.waiting is not None}
    assert wanted <= set(answer(wishes, 0).adapters)


# ---- one rule after the other


def test_the_order_is_the_order_to_load() -> None:
    wishes = (
        wish("eager", eager=True),
        wish("asked", asked=NOW - 5),
        wish("later", eager=True, asked=NOW - 1),
        wish("used", in_use=1, asked=NOW - 9, since=NOW - 9),
        wish("second", waiting=NOW - 1),
        wish("first", waiting=NOW - 2),
        wish("pinned", pinned=True),
    )
    assert hold(*wishes) == ["pinned", "first", "second", "used", "later", "asked", "eager"]
    assert hold(*wishes, room=3) == ["pinned", "first", "used"]


def test_eager_ones_fill_the_room_in_their_order() -> None:
    assert hold(*(wish(name, eager=True) for name in "abc"), room=2) == ["a", "b"]


def test_a_lazy_one_is_loaded_when_it_is_asked_for_and_leaves_when_nobody_did_for_long() -> None:
    lazy = wish("lazy")
    assert hold(lazy) == []
    assert hold(replace(lazy, waiting=NOW)) == ["lazy"]
    held = replace(lazy, asked=NOW, since=NOW + 1)
    assert residents([held], 0, NOW + 2, idle=IDLE, turn=TURN) == Residency(("lazy",), NOW + 1 + IDLE)
    assert hold(held, now=NOW + 1 + IDLE) == []
    assert hold(replace(held, in_use=1), now=NOW + 1 + IDLE) == ["lazy"]
    assert hold(held, now=NOW + 10_000, idle=None) == ["lazy"]


def test_a_lazy_one_that_the_gateway_found_in_the_engine_is_not_thrown_out_at_once() -> None:
    assert hold(wish("found", since=NOW), wish("eager", eager=True), room=1) == ["found"]


def test_who_waits_takes_the_place_of_what_was_used_least_recently() -> None:
    held = [wish(name, asked=NOW - ago, since=NOW - 50) for name, ago in (("old", 40), ("new", 10), ("older", 45))]
    assert hold(*held, wish("next", waiting=NOW), room=3) == ["next", "new", "old"]


def test_what_is_in_use_stays_until_a_turn_has_passed_and_the_longest_held_goes_first() -> None:
    held = [wish(name, asked=NOW, in_use=1, since=NOW - ago) for name, ago in (("b", 10), ("a", 20))]
    waits = wish("next", waiting=NOW)
    assert residents([*held, waits], 2, NOW, idle=IDLE, turn=TURN) == Residency(("a", "b"), NOW + TURN)
    assert hold(*held, waits, room=2, now=NOW + TURN) == ["next", "b"]


def test_what_was_just_loaded_serves_for_a_turn() -> None:
    fresh = wish("fresh", asked=NOW, in_use=1, since=NOW - 0.5)
    waits = wish("next", waiting=NOW - 30)
    assert residents([fresh, waits], 1, NOW, idle=IDLE, turn=TURN) == Residency(("fresh",), NOW - 0.5 + TURN)
    assert hold(fresh, waits, room=1, now=NOW - 0.5 + TURN) == ["next"]


def test_what_was_loaded_for_somebody_stays_until_that_one_was_served() -> None:
    loaded = wish("loaded", waiting=NOW - 40, since=NOW - 35)  # listed, and its probe waits for a place
    assert hold(loaded, wish("next", waiting=NOW - 30), room=1) == ["loaded"]


def test_who_was_made_to_give_way_gets_new_requests_in_its_turn_and_not_before() -> None:
    drains = wish("drains", asked=NOW, in_use=1, since=NOW - 90, waiting=NOW)
    assert hold(drains, wish("next", waiting=NOW - 3), room=1) == ["next"]


def test_what_an_engine_refuses_displaces_nobody_and_is_tried_where_there_is_room() -> None:
    refused = wish("refused", refused=True, pinned=True, waiting=NOW - 30)
    kept = wish("kept", asked=NOW - 50, since=NOW - 55)
    assert hold(refused, kept, room=1) == ["kept"]
    assert hold(refused, kept, room=2) == ["kept", "refused"]


def test_others_adapters_take_room_but_not_all_of_it() -> None:
    assert [room(8, 0), room(8, 3), room(8, 8), room(8, 20), room(0, 5)] == [8, 5, 1, 1, 0]
