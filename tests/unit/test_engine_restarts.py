"""When an engine that died is started again."""

from __future__ import annotations

from gateway.controlplane.supervision import Death, Supervision, restart_delay

RULES = Supervision()


def deaths(*times: float, ready_for: float = 0.0) -> list[Death]:
    return [Death("died", at, ready_for) for at in times]


def test_the_delay_doubles_from_one_second_to_thirty() -> None:
    rules = Supervision(deaths=100)
    delays = [restart_delay(deaths(*range(count)), rules, jitter=0) for count in range(1, 9)]
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]


def test_jitter_adds_at_most_a_fifth() -> None:
    assert restart_delay(deaths(0), RULES, jitter=1) == 1.2
    assert restart_delay(deaths(*range(90)), Supervision(deaths=100), jitter=1) == 30


def test_the_fifth_death_in_ten_minutes_is_the_last() -> None:
    assert restart_delay(deaths(0, 100, 200, 300), RULES, jitter=0) is not None
    assert restart_delay(deaths(0, 100, 200, 300, 600), RULES, jitter=0) is None


def test_deaths_of_long_ago_do_not_count() -> None:
    assert restart_delay(deaths(0, 100, 200, 300, 601), RULES, jitter=0) is not None


def test_an_engine_that_was_well_for_a_while_starts_again_quickly() -> None:
    history = [*deaths(0, 10, 30), Death("died", 300, ready_for=200)]
    assert restart_delay(history, RULES, jitter=0) == 1
    assert restart_delay([*history, Death("died", 310)], RULES, jitter=0) is None
    assert restart_delay([*history[2:], Death("died", 310)], RULES, jitter=0) == 2


def test_what_cannot_be_helped_is_not_tried_again() -> None:
    assert restart_delay([Death("cannot run", 0, final=True)], RULES, jitter=0) is None
