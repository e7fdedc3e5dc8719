"""How a name's traffic is divided between the versions of an adapter, and whom a name exists for."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from gateway.domain.errors import NotFound
from gateway.domain.plan import plan, plan_again, share
from gateway.domain.principal import Principal
from gateway.domain.snapshot import Readiness, Route, Snapshot, Split, Target, Variant

READY, LOADING, DOWN = Readiness.READY, Readiness.LOADING, Readiness.DOWN
OLD, NEW, NEWER = "bot@aaaaaaaaaaaa", "bot@bbbbbbbbbbbb", "bot@cccccccccccc"
PEOPLE = [f"chat-{number}" for number in range(20_000)]


def on(adapter: str, *states: Readiness) -> tuple[Target, ...]:
    """Its targets on as many upstreams."""
    return tuple(Target(f"u{number}", adapter, adapter, state) for number, state in enumerate(states or (READY,)))


def snapshot(
    *variants: tuple[float, tuple[Target, ...]], salt: str = "s", current: tuple[Target, ...] = ()
) -> Snapshot:
    split = Split(salt, tuple(Variant(below, targets) for below, targets in variants)) if variants else None
    routes = {"bot": Route("bot", current or on(OLD), split), "base": Route("base", (Target("u0", "base"),))}
    for adapter in (OLD, NEW):
        routes[adapter] = Route(adapter, on(adapter, READY, READY))
    return Snapshot(1, routes, {}, {}, MappingProxyType({}), task_models={"*": "bot"})


def version(of: Snapshot, sticky: str) -> str | None:
    return plan(of, "bot", sticky=sticky).targets[0].adapter


# ---- shares


def test_a_share_lies_in_its_interval_and_is_spread_evenly() -> None:
    shares = [share("salt", person) for person in PEOPLE]
    assert min(shares) >= 0
    assert max(shares) < 1
    for tenth in range(10):
        count = sum(tenth <= 10 * value < tenth + 1 for value in shares)
        assert abs(count - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5


def test_a_share_is_the_same_in_every_process() -> None:
    """Stickiness outlives restarts and releases: these figures may never change."""
    assert share("salt", "chat-1") == 0.4097715608736906  # printf 'salt\\0chat-1' | b2sum -l 64, of 2^64
    assert share("", "") == 0.5818916442384907


def test_another_salt_divides_otherwise() -> None:
    """Who gets one canary is not who gets the next."""
    both = sum(share("one", person) < 0.1 and share("two", person) < 0.1 for person in PEOPLE)
    assert abs(both - 200) < 70


def test_each_version_gets_what_it_was_given_and_the_current_one_the_rest() -> None:
    split = snapshot((0.1, on(NEW)), (0.4, on(NEWER)))
    given = [version(split, person) for person in PEOPLE]
    for adapter, part in ((NEW, 0.1), (NEWER, 0.3), (OLD, 0.6)):
        assert abs(given.count(adapter) - 20_000 * part) < 5 * (20_000 * part * (1 - part)) ** 0.5


def test_everybody_is_everybody() -> None:
    assert all(version(snapshot((1.0, on(NEW))), person) == NEW for person in PEOPLE[:1000])


def test_a_larger_share_takes_nobody_back() -> None:
    """A canary that grows from a tenth to a half keeps those that it had."""
    small, large = snapshot((0.1, on(NEW))), snapshot((0.5, on(NEW)))
    assert all(version(large, person) == NEW for person in PEOPLE if version(small, person) == NEW)


# ---- versions that are not ready


def test_a_version_that_is_loading_is_waited_for() -> None:
    planned = plan(snapshot((1.0, on(NEW, LOADING, DOWN))), "bot", sticky="x")
    assert (planned.targets, [t.adapter for t in planned.waiting]) == ((), [NEW])


def test_a_version_that_nobody_can_answer_for_leaves_its_share_to_the_current_one() -> None:
    assert version(snapshot((1.0, on(NEW, DOWN, DOWN))), "x") == OLD


def test_only_replicas_that_are_ready_are_asked() -> None:
    planned = plan(snapshot((1.0, on(NEW, LOADING, READY))), "bot", sticky="x")
    assert [t.upstream for t in planned.targets] == ["u1"]


# ---- a version that was lost


def test_a_lost_version_is_looked_for_under_the_name_that_was_asked() -> None:
    """That is where what the operator said of the name is: its price, whether tools are taken out."""
    split = snapshot((0.1, on(NEW)))
    assert plan_again(split, "bot", NEW).route.model == "bot"
    assert plan_again(split, "bot", OLD).route.model == "bot"


def test_a_lost_version_is_kept_although_the_name_has_moved_on() -> None:
    planned = plan_again(snapshot(current=on(NEW)), "bot", OLD)
    assert [t.adapter for t in planned.targets] == [OLD, OLD]


def test_a_lost_version_that_is_gone_for_good_is_not_replaced_by_another() -> None:
    with pytest.raises(NotFound):
        plan_again(snapshot(), "bot", NEWER)


# ---- access


@pytest.mark.parametrize(
    ("patterns", "model", "exists"),
    [
        (("*",), "bot", True),
        (("b?t",), "bot", True),
        (("bot",), OLD, True),
        ((OLD,), OLD, True),
        ((OLD,), "bot", False),
        ((OLD,), NEW, False),
        (("base", "x*"), "bot", False),
        (("BOT",), "bot", False),
        ((), "bot", False),
    ],
)
def test_a_name_exists_for_those_that_may_use_it(patterns: tuple[str, ...], model: str, exists: bool) -> None:
    principal = Principal("someone", models=patterns)
    if exists:
        assert plan(snapshot(), model, principal=principal).targets
        return
    with pytest.raises(NotFound) as refusal:
        plan(snapshot(), model, principal=principal)
    with pytest.raises(NotFound) as unknown:
        plan(snapshot(), "nothing", principal=principal)
    assert refusal.value.body() == unknown.value.body().replace(b"nothing", model.encode())


def test_a_task_is_answered_by_the_own_model_of_one_who_may_not_use_the_substitute() -> None:
    assert plan(snapshot(), "base", "tags").targets[0].model == OLD
    assert plan(snapshot(), "base", "tags", principal=Principal("p", models=("base",))).targets[0].model == "base"


def test_a_task_is_divided_as_its_model_is() -> None:
    split = snapshot((0.5, on(NEW)))
    for person in PEOPLE[:100]:
        assert plan(split, "base", "tags", person).targets == plan(split, "bot", sticky=person).targets
