"""What can be sent a request now, what is worth waiting for, and what leaves the list."""

from __future__ import annotations

import pytest

from gateway.controlplane.compiler import compile, model_names, next_change
from gateway.controlplane.observed import Phase, UpstreamState
from gateway.domain.snapshot import Readiness
from tests.unit.scenes import adapter, config, openai, seen, up, vllm

ENGINE = {"name": "local", "kind": "vllm", "engine": {"model": "base"}}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (UpstreamState.UP, Readiness.READY),
        (UpstreamState.STARTING, Readiness.LOADING),
        (UpstreamState.DOWN, Readiness.DOWN),
        (UpstreamState.FAILED, Readiness.DOWN),
    ],
)
def test_a_target_is_as_ready_as_its_upstream(state: UpstreamState, expected: Readiness) -> None:
    held = adapter("pirate", "local")
    snapshot = compile(config([ENGINE]), seen({"local": up("base", held=[held], state=state)}, held), 1)
    assert snapshot.routes["base"].targets[0].readiness is expected
    assert snapshot.routes["pirate"].targets[0].readiness is expected
    assert snapshot.ready is (expected is Readiness.READY)


def test_an_adapter_is_ready_where_it_is_held_and_loading_or_refused_elsewhere() -> None:
    pirate = adapter("pirate", "a", "b", "c", held=["a"], refused={"c": "rank 64 > 16 in /srv/store/x"})
    observed = seen({"a": up("m", held=[pirate]), "b": up("m"), "c": up("m")}, pirate)
    targets = compile(config([vllm("a"), vllm("b"), vllm("c")]), observed, 1).routes["pirate"].targets
    assert [target.readiness for target in targets] == [Readiness.READY, Readiness.LOADING, Readiness.DOWN]
    assert targets[1].note == "the adapter 'pirate' is being loaded"
    assert "/srv" not in targets[2].note, "notes are for clients"


def test_that_an_engine_lists_an_adapter_is_not_enough_to_send_it_requests() -> None:
    """It may not have answered a probe yet, or is about to be unloaded."""
    pirate = adapter("pirate", "a", phase=Phase.LOADING)
    snapshot = compile(config([vllm("a")]), seen({"a": up("m", held=[pirate])}, pirate), 1)
    assert [t.readiness for t in snapshot.routes["pirate"].targets] == [Readiness.LOADING]


@pytest.mark.parametrize(
    ("phase", "readiness", "note"),
    [
        (Phase.LOADING, Readiness.LOADING, "the adapter 'pirate' is being loaded"),
        (Phase.UNLOADED, Readiness.LOADING, "the adapter 'pirate' is not loaded yet: it is loaded on first use"),
        (Phase.FAILED, Readiness.DOWN, "the adapter 'pirate' has failed, the operator must look at it"),
    ],
)
def test_an_adapter_that_no_engine_holds_is_waited_for_unless_it_cannot_come(
    phase: Phase, readiness: Readiness, note: str
) -> None:
    pirate = adapter("pirate", "a", phase=phase)
    (target,) = compile(config([vllm("a")]), seen({"a": up("m")}, pirate), 1).routes["pirate"].targets
    assert (target.readiness, target.note) == (readiness, note)


def test_an_adapter_that_is_refused_is_not_waited_for_while_its_engine_starts() -> None:
    pirate = adapter("pirate", "local", phase=Phase.LOADING, refused={"local": "rank 64 > 16"})
    snapshot = compile(config([ENGINE]), seen({"local": up("base", state=UpstreamState.STARTING)}, pirate), 1)
    assert [t.readiness for t in snapshot.routes["pirate"].targets] == [Readiness.DOWN]


def test_an_adapter_that_fits_nowhere_now_is_unavailable_and_not_unknown() -> None:
    """As while the base model of an attached engine is not known yet."""
    pirate = adapter("pirate", phase=Phase.LOADING)
    snapshot = compile(config([vllm("a")]), seen({"a": up(state=UpstreamState.STARTING)}, pirate), 1)
    assert snapshot.routes["pirate"].targets == ()
    assert "pirate" not in snapshot.cards


def test_notes_tell_clients_of_progress_and_not_of_the_operators_business() -> None:
    booting = up("base", state=UpstreamState.STARTING, progress="loading weights, 50 %")
    note = compile(config([ENGINE]), seen({"local": booting}), 1).routes["base"].targets[0].note
    assert note == "the engine 'local' is starting (loading weights, 50 %)"
    down = compile(config([ENGINE]), seen({"local": up("base", state=UpstreamState.DOWN)}), 1)
    assert down.routes["base"].targets[0].note == "the upstream 'local' does not answer"


def test_a_model_that_an_engine_does_not_have_is_skipped_for_the_next_target() -> None:
    targets = [{"upstream": "a", "model": "gone"}, {"upstream": "o", "model": "any"}]
    file = config([vllm("a"), openai("o")], models=[{"id": "best", "targets": targets}])
    best = compile(file, seen({"a": up("m"), "o": up("other")}), 1).routes["best"]
    assert [target.readiness for target in best.targets] == [Readiness.DOWN, Readiness.READY]


@pytest.mark.parametrize("state", [UpstreamState.DOWN, UpstreamState.FAILED])
def test_what_is_down_leaves_the_list_after_a_while_and_keeps_its_route(state: UpstreamState) -> None:
    pirate = adapter("pirate", "a")
    file = config([vllm("a", hide_after=60), vllm("b", when_down="keep")])
    down = {
        "a": up("m", "shared", held=[pirate], state=state, since=100),
        "b": up("n", "shared", state=state, since=0),
    }
    before, after = seen(down, pirate, now=159.9), seen(down, pirate, now=160)
    assert list(compile(file, before, 1).cards) == ["m", "shared", "n", "pirate"]
    assert next_change(file, before) == 160
    snapshot = compile(file, after, 2)
    assert list(snapshot.cards) == ["shared", "n"]
    assert {"m", "pirate"} < set(snapshot.routes)
    assert next_change(file, after) is None
    assert next_change(config([vllm("b", when_down="keep")]), seen(down, now=0)) is None


def test_models_that_are_configured_are_there_before_their_upstream_was_reached() -> None:
    file = config([vllm("a", models=["m"]), openai("o")])
    unseen = up(state=UpstreamState.STARTING)
    snapshot = compile(file, seen({"a": unseen, "o": unseen}), 1)
    assert list(snapshot.routes) == ["m"]
    assert snapshot.routes["m"].targets[0].readiness is Readiness.LOADING


@pytest.mark.parametrize(
    ("phase", "current", "routed", "listed"),
    [
        (Phase.LOADING, True, True, True),
        (Phase.READY, True, True, True),
        (Phase.LOADING, False, True, False),
        (Phase.UNLOADED, True, True, True),
        (Phase.UNLOADED, False, True, False),
        (Phase.FAILED, True, True, False),
        (Phase.FAILED, False, False, False),
        (Phase.PENDING, False, False, False),
        (Phase.VALIDATING, False, False, False),
        (Phase.DRAINING, False, True, False),
    ],
)
def test_a_version_is_routed_from_loading_until_nothing_points_to_it(
    phase: Phase, current: bool, routed: bool, listed: bool
) -> None:
    pirate = adapter("pirate", "a", phase=phase, current=current)
    snapshot = compile(config([vllm("a")]), seen({"a": up("m", held=[pirate])}, pirate), 1)
    assert (pirate.engine_name in snapshot.routes) is routed
    assert ("pirate" in snapshot.routes) is (routed and current)
    assert ("pirate" in snapshot.cards) is listed


def test_names_of_models_belong_to_no_adapter() -> None:
    file = config([vllm("a", prefix="lab/")], models=[{"id": "own", "targets": [{"upstream": "a", "model": "m"}]}])
    observed = seen({"a": up("m", foreign=["theirs"])})
    assert model_names(file, observed) == {"own", "lab/m"}
