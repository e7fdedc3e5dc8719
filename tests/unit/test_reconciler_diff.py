"""What is done to an engine: the pure decision, over any state that an engine can be found in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from gateway.controlplane.reconciler import Holding, Load, Unload, diff

GRACE, NOW = 30.0, 1000.0
NAMES = [f"{name}@{digit * 12}" for name in ("pirate", "json", "poet") for digit in "12"]
names = st.sets(st.sampled_from(NAMES))
moments = st.dictionaries(st.sampled_from(NAMES), st.floats(NOW - 100, NOW + 100))


@dataclass(frozen=True)
class Scene:
    desired: Mapping[str, str]
    holding: Holding
    used: Collection[str]

    def diff(self, now: float = NOW) -> list[Load | Unload]:
        return list(diff(self.desired, self.holding, lambda name: int(name in self.used), now, GRACE))


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    desired = {name: f"/store/{name}" for name in draw(names)}
    ours, theirs = draw(names), draw(names)
    unwanted = {name: draw(st.floats(NOW - 100, NOW)) for name in ours - desired.keys()}
    return Scene(desired, Holding(frozenset(ours | theirs), frozenset(ours), unwanted, draw(moments)), draw(names))


def applied(scene: Scene) -> Scene:
    """The engine after it did all that was asked."""
    listed = set(scene.holding.listed)
    for action in scene.diff(NOW):
        (listed.add if isinstance(action, Load) else listed.discard)(action.adapter)
    ours = (scene.holding.ours & listed) | (listed - scene.holding.listed)
    return Scene(
        scene.desired,
        Holding(frozenset(listed), frozenset(ours), scene.holding.unwanted_since, scene.holding.retry_at),
        scene.used,
    )


@given(scenes())
def test_doing_what_is_asked_leaves_nothing_to_do(scene: Scene) -> None:
    assert applied(scene).diff() == []


@given(scenes())
def test_without_failures_and_requests_the_engine_then_holds_what_is_wanted_and_what_is_not_ours(scene: Scene) -> None:
    long_unwanted = dict.fromkeys(scene.holding.unwanted_since, NOW - GRACE)
    calm = Scene(scene.desired, Holding(scene.holding.listed, scene.holding.ours, long_unwanted), ())
    assert applied(calm).holding.listed == calm.desired.keys() | (scene.holding.listed - scene.holding.ours)


@given(scenes())
def test_nothing_is_unloaded_that_is_wanted_or_used_or_not_ours_or_within_its_grace(scene: Scene) -> None:
    for action in scene.diff():
        if isinstance(action, Unload):
            assert action.adapter in scene.holding.ours
            assert action.adapter not in scene.desired
            assert action.adapter not in scene.used
            assert scene.holding.unwanted_since[action.adapter] + GRACE <= NOW


@given(scenes())
def test_no_name_is_loaded_twice_and_each_from_its_own_folder(scene: Scene) -> None:
    loads = [action for action in scene.diff() if isinstance(action, Load)]
    assert len({load.adapter for load in loads}) == len(loads)
    for load in loads:
        assert load.adapter not in scene.holding.listed
        assert load.path == scene.desired[load.adapter]


@given(scenes())
def test_what_failed_is_left_alone_until_its_time_and_then_tried(scene: Scene) -> None:
    waiting = {name for name, at in scene.holding.retry_at.items() if at > NOW}
    assert not waiting & {action.adapter for action in scene.diff()}
    later = {action.adapter for action in scene.diff(NOW + 1000)}
    assert scene.desired.keys() - scene.holding.listed <= later


def test_what_serves_now_is_loaded_first() -> None:
    desired = {"b@2": "/2", "a@1": "/1"}
    assert [load.adapter for load in diff(desired, Holding(), lambda _: 0, NOW, GRACE)] == ["b@2", "a@1"]
