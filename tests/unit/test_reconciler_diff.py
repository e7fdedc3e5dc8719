"""What is done to an engine: the pure decision, over any state that an engine can be found in."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.controlplane.drift import Action, Copy, Hub, Load, Memory, Prove, Unload, View, diff, ours
from gateway.domain.snapshot import Upstream

GRACE, NOW = 30.0, 1000.0
STORE = "/engine/store"
GPU = Upstream("gpu", "vllm", "http", "127.0.0.1", 8001, "/v1")
DIGESTS = [digit * 64 for digit in "123456"]
NAMES = [f"{name}@{digest[:12]}" for name, digest in zip(("pirate", "json", "poet") * 2, DIGESTS, strict=True)]
COPIES = {name: Copy(f"{STORE}/sha256/{digest}", digest) for name, digest in zip(NAMES, DIGESTS, strict=True)}
names = st.sets(st.sampled_from(NAMES))
moments = st.dictionaries(st.sampled_from(NAMES), st.floats(NOW - 100, NOW + 100))


@dataclass(frozen=True)
class Scene:
    view: View
    memory: Memory
    used: Collection[str] = ()

    def diff(self, now: float = NOW) -> list[Action]:
        return list(diff(self.view, self.memory, lambda name: int(name in self.used), now, GRACE))


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    room = draw(st.integers(0, 5))
    copies = draw(names)
    residents = draw(st.permutations(sorted(draw(names) & copies)))[: room or None]
    mine, theirs = draw(names), draw(names)
    listed = {name: COPIES[name].path for name in mine} | {name: f"/elsewhere/{name}" for name in theirs}
    view = View(GPU, 1, True, listed, STORE, tuple(residents), {name: COPIES[name] for name in copies}, room)
    unwanted = {name: draw(st.floats(NOW - 100, NOW)) for name in view.ours - copies}
    return Scene(view, Memory(draw(names), unwanted, draw(moments)), draw(names))


def applied(scene: Scene, now: float = NOW) -> Scene:
    """The engine after it did all that was asked."""
    listed, proven = dict(scene.view.listed), set(scene.memory.proven)
    for action in scene.diff(now):
        match action:
            case Load():
                listed[action.adapter] = scene.view.copies[action.adapter].path
            case Prove():
                proven.add(action.adapter)
            case Unload():
                del listed[action.adapter]
    return replace(
        scene, view=replace(scene.view, listed=listed), memory=replace(scene.memory, proven=frozenset(proven))
    )


@given(scenes())
def test_doing_what_is_asked_and_proving_what_was_loaded_leaves_nothing_to_do(scene: Scene) -> None:
    once = applied(scene)
    assert all(isinstance(action, Prove) for action in once.diff())
    assert applied(once).diff() == []


@given(scenes())
def test_without_failures_and_requests_the_engine_then_holds_its_residents_and_what_is_not_ours(scene: Scene) -> None:
    memory = replace(scene.memory, retry_at={}, unwanted_since=dict.fromkeys(scene.memory.unwanted_since, NOW - GRACE))
    calm = applied(Scene(scene.view, memory)).view
    theirs = scene.view.listed.keys() - scene.view.ours
    assert calm.listed.keys() == set(scene.view.residents) | theirs


@given(scenes())
def test_only_what_is_ours_and_unused_and_gives_way_or_was_unwanted_for_long_is_unloaded(scene: Scene) -> None:
    actions = scene.diff()
    crowded = 0 < scene.view.room < len(scene.view.ours) + sum(isinstance(action, Load) for action in actions)
    for action in actions:
        if isinstance(action, Unload):
            assert action.adapter in scene.view.ours
            assert action.adapter not in scene.view.residents
            assert action.adapter not in scene.used
            unwanted = action.adapter not in scene.view.copies
            long_ago = unwanted and scene.memory.unwanted_since[action.adapter] + GRACE <= NOW
            assert not unwanted or long_ago or crowded


@given(scenes())
def test_the_engine_is_never_asked_to_hold_more_than_it_has_room_for(scene: Scene) -> None:
    held = len(scene.view.ours)
    for action in scene.diff():
        held += {Load: 1, Prove: 0, Unload: -1}[type(action)]
        assert not isinstance(action, Load) or scene.view.room == 0 or held <= scene.view.room


@given(scenes())
def test_what_somebody_else_loaded_under_a_name_of_ours_is_neither_used_nor_touched(scene: Scene) -> None:
    impostors = scene.view.impostors
    assert not impostors.keys() & {action.adapter for action in scene.diff()}
    assert all(root.startswith("/elsewhere/") for root in impostors.values())


@given(scenes())
def test_what_gives_way_comes_first_then_what_is_there_then_what_is_missing_in_its_order(scene: Scene) -> None:
    done = scene.diff()
    kinds = [(Unload, Prove, Load).index(type(action)) for action in done]
    assert kinds == sorted(kinds)
    for kind in (Prove, Load):
        places = [scene.view.residents.index(action.adapter) for action in done if isinstance(action, kind)]
        assert places == sorted(set(places))


@given(scenes())
def test_what_failed_is_left_alone_until_its_time_and_then_tried(scene: Scene) -> None:
    early = {name for name, at in scene.memory.retry_at.items() if at > NOW}
    assert not early & {action.adapter for action in scene.diff()}
    later = {action.adapter for action in replace(scene, view=replace(scene.view, room=0)).diff(NOW + 1000)}
    assert set(scene.view.residents) - scene.view.listed.keys() <= later


def test_a_load_waits_for_the_unload_that_makes_room() -> None:
    old, new = NAMES[:2]
    view = View(GPU, 1, True, {old: COPIES[old].path}, STORE, (new,), COPIES, room=1)
    assert Scene(view, Memory(), used=[old]).diff() == []
    assert Scene(view, Memory()).diff() == [Unload(old), Load(new)]


def test_what_nobody_wants_gives_way_early_where_its_place_is_needed_the_longest_unwanted_first() -> None:
    first, second, third, new = NAMES[:4]
    listed = {name: COPIES[name].path for name in (first, second, third)}
    memory = Memory(unwanted_since={first: NOW - 1, second: NOW - 3, third: NOW - 2})
    view = View(GPU, 1, True, listed, STORE, (new,), {new: COPIES[new]}, room=3)
    assert Scene(view, memory).diff() == [Unload(second), Load(new)]
    assert Scene(view, memory, used=[second]).diff() == [Unload(third), Load(new)]
    assert Scene(replace(view, room=4), memory).diff() == [Load(new)]
    assert Scene(replace(view, residents=()), memory).diff() == []


def test_what_is_ours_is_told_by_where_the_engine_read_it() -> None:
    name, digest = NAMES[0], DIGESTS[0]
    home = f"{STORE}/sha256/{digest}"
    for root, wanted, unwanted in (
        (home, True, True),
        (f"{STORE}/sha256/{DIGESTS[1]}", False, False),  # another version, loaded by hand under this name
        (f"/engine/store-of-others/sha256/{digest}", False, False),
        (f"{STORE}/../elsewhere/{digest}", False, False),
        (f"/elsewhere/{digest}", False, False),
        ("org/repo", False, False),
        ("", False, False),
    ):
        assert (name in ours({name: root}, COPIES, STORE)) is wanted, root
        assert (name in ours({name: root}, {}, STORE)) is unwanted, root
    assert ours({"mine": home, "@" + digest[:12]: home}, {}, STORE) == frozenset()


def test_what_the_engine_fetched_from_the_hub_itself_is_ours_where_it_may() -> None:
    name, copy = NAMES[0], COPIES[NAMES[0]]
    hub = replace(copy, hub=Hub("org/repo", "c" * 40))
    assert ours({name: "org/repo"}, {name: hub}, STORE) == {name}
    assert ours({name: copy.path}, {name: hub}, STORE) == {name}
    assert ours({name: "org/other"}, {name: hub}, STORE) == frozenset()
