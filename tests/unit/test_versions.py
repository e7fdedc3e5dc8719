"""Where a version may go, when a name moves, what an engine could be asked to hold, and what people are told of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from gateway.controlplane.desired import AdapterRecord, VersionRecord, added, canaried, promoted
from gateway.controlplane.observed import Phase, UpstreamState
from gateway.controlplane.versions import (
    Demand,
    Holding,
    Host,
    Index,
    LoadTrouble,
    Standing,
    due,
    engine_name,
    kept,
    misfit,
    statuses,
)

HOST = Host("/models/base", 16, "print", room=2)


def version(digit: str, rank: int = 8, fits: tuple[str, ...] = ("print",)) -> VersionRecord:
    return VersionRecord(digit * 64, "upload", False, "base", rank, 1 << 20, fits, 1_700_000_000)


OLD, NEW, NEWEST = version("1"), version("2"), version("3")


def record(*versions: VersionRecord, name: str = "pirate") -> AdapterRecord:
    """Added one after the other; the first is current."""
    found: AdapterRecord | None = None
    for one in versions:
        found = added(found, name, one, promote=False, keep=10)
    assert found is not None
    return found


PIRATE = record(OLD, NEW)
AWAITING = replace(PIRATE, next=NEW.digest)


def standing(
    *held: VersionRecord,
    of: AdapterRecord = PIRATE,
    state: UpstreamState = UpstreamState.UP,
    troubles: Mapping[str, LoadTrouble] | None = None,
    residents: Iterable[VersionRecord] | None = None,
    host: Host | None = HOST,
) -> Standing:
    """An engine that holds these and is to hold them, and nothing else unless it is said."""
    names = frozenset(engine_name(of, one) for one in held)
    index = Index({of.name: of}, lambda digest: f"/store/{digest}", "eager").by_adapter
    wanted = {engine_name(of, one) for one in (held if residents is None else residents)}
    return Standing(state, host, names, names, {name: index[name] for name in sorted(wanted)}, troubles or {})


TROUBLE = {engine_name(PIRATE, NEW): LoadTrouble("no memory", lasting=False)}


@pytest.mark.parametrize(
    ("standings", "moves"),
    [
        pytest.param({"a": standing(), "b": standing()}, False, id="loaded nowhere"),
        pytest.param({"a": standing(OLD, NEW), "b": standing(OLD)}, False, id="not where the old one still serves"),
        pytest.param({"a": standing(OLD, NEW), "b": standing(OLD, NEW)}, True, id="loaded everywhere"),
        pytest.param(
            {"a": standing(OLD, NEW), "b": standing(OLD, troubles=TROUBLE)}, True, id="one engine fails to load it"
        ),
        pytest.param(
            {"a": standing(OLD, NEW), "b": standing(OLD, state=UpstreamState.DOWN)}, True, id="one engine is away"
        ),
        pytest.param({"a": standing(NEW), "b": standing()}, True, id="the old one is lost"),
        pytest.param({"a": standing(OLD, NEW, residents=[OLD])}, False, id="it must give way"),
    ],
)
def test_a_name_moves_when_nobody_has_to_wait_for_it(standings: dict[str, Standing], moves: bool) -> None:
    assert due(AWAITING, standings) == (NEW.digest if moves else None)
    assert due(PIRATE, standings) is None, "nobody asked for it"


def test_what_serves_what_comes_and_what_was_before_is_loaded_unasked_and_no_more() -> None:
    first = promoted(record(OLD, NEW, NEWEST, version("4"), version("5")), NEW.digest)
    now = replace(canaried(promoted(first, NEWEST.digest), OLD.digest, 10), next=version("4").digest)
    assert [v.digest[0] for v in kept(now)] == ["3", "4", "1", "2", "5"]
    assert [v.digest[0] for v in kept(record(OLD, NEW, NEWEST))] == ["1", "3"]


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        pytest.param(HOST, None, id="judged to fit"),
        pytest.param(replace(HOST, fingerprint=None), "", id="its base model was not looked at yet"),
        pytest.param(None, "", id="its base model is not known yet"),
        pytest.param(replace(HOST, fingerprint="other"), "shapes differ", id="judged not to fit"),
        pytest.param(replace(HOST, fingerprint="third"), "", id="not judged yet"),
        pytest.param(
            replace(HOST, max_lora_rank=4),
            "rank 8 > 4: start the engine with --max-lora-rank 8 or more (engine.max_lora_rank), or merge",
            id="rank too large",
        ),
    ],
)
def test_a_version_goes_only_where_it_was_judged_to_fit(host: Host | None, reason: str | None) -> None:
    assert misfit(PIRATE, OLD, "a", host, {(OLD.digest, "other"): "shapes differ"}) == reason


def test_a_version_goes_only_where_it_is_meant_for() -> None:
    assert misfit(replace(PIRATE, upstreams=("b",)), OLD, "a", HOST, {}) == "it is not meant for a"


def asking(
    waiting: Mapping[str, float] | None = None, recently: Iterable[str] = (), ejected: Iterable[str] = ()
) -> Demand:
    return Demand(
        now=1000.0,
        grace=30.0,
        asked=lambda adapter: -math.inf,
        recently=tuple(recently),
        waiting=waiting or {},
        users=lambda upstream, adapter: 0,
        ejected=set(ejected),
    )


def test_a_thousand_idle_adapters_are_no_wishes() -> None:
    names = [f"a{number}" for number in range(1000)]
    records = {name: replace(record(OLD, NEW, name=name), load="lazy") for name in names}
    records["pinned"] = replace(record(OLD, name="pinned"), pinned=True, load="lazy")
    records["eager"] = record(OLD, name="eager")
    index = Index(records, lambda digest: f"/store/{digest}", "eager")
    held, recent, waited = (f"{names[number]}@{OLD.version}" for number in (1, 2, 3))
    wishes = index.wishes("a", HOST, Holding({held: 5.0}), asking({waited: 7.0}, [recent]))
    found = {wish.adapter.partition("@")[0]: wish for wish in wishes}
    assert sorted(found) == ["a1", "a2", "a3", "eager", "pinned"]
    assert found["a1"].since == 5.0
    assert found["a3"].waiting == 7.0
    assert found["pinned"].pinned
    assert found["eager"].eager
    assert not found["a2"].eager


def test_of_many_eager_adapters_no_more_are_wished_for_than_there_is_room() -> None:
    records = {f"a{number:03}": record(OLD, name=f"a{number:03}") for number in range(1000)}
    index = Index(records, lambda digest: f"/store/{digest}", "eager")
    assert [wish.adapter[:4] for wish in index.wishes("a", HOST, Holding(), asking())] == ["a000", "a001"]
    assert len(index.wishes("a", replace(HOST, room=0), Holding(), asking())) == 1000


def test_what_was_ejected_goes_until_somebody_waits_for_it() -> None:
    index = Index({"pirate": PIRATE}, lambda digest: f"/store/{digest}", "eager")
    old, new = engine_name(PIRATE, OLD), engine_name(PIRATE, NEW)
    held = Holding({new: 1.0})
    assert [wish.adapter for wish in index.wishes("a", HOST, held, asking(ejected=[new]))] == [old]
    assert [wish.adapter for wish in index.wishes("a", HOST, held, asking({new: 2.0}, ejected=[new]))] == [old, new]


def test_what_an_engine_refused_is_wished_for_as_such() -> None:
    index = Index({"pirate": PIRATE}, lambda digest: f"/store/{digest}", "eager")
    has = Holding(troubles={engine_name(PIRATE, OLD): LoadTrouble("no", lasting=True)})
    assert [wish.refused for wish in index.wishes("a", HOST, has, asking())] == [True, False]


def phases(record: AdapterRecord, waiting: Iterable[str] = (), **standings: Standing) -> list[Phase]:
    return [status.phase for status in statuses(record, standings, {}, False, frozenset(waiting))]


def test_the_phase_says_where_a_version_is_in_its_life() -> None:
    held = standing(OLD)
    assert phases(PIRATE, a=held) == [Phase.READY, Phase.UNLOADED]
    assert phases(PIRATE, a=standing(OLD, residents=[OLD, NEW])) == [Phase.READY, Phase.LOADING]
    assert phases(PIRATE, waiting=[engine_name(PIRATE, NEW)], a=held) == [Phase.READY, Phase.LOADING]
    assert phases(PIRATE, a=standing(OLD, NEW, residents=[OLD])) == [Phase.READY, Phase.DRAINING]
    assert phases(PIRATE, a=standing(OLD, host=None)) == [Phase.PENDING, Phase.PENDING]
    lasting = {engine_name(PIRATE, NEW): LoadTrouble("vLLM does not take it", lasting=True)}
    assert phases(PIRATE, a=standing(OLD, troubles=lasting, residents=[OLD, NEW])) == [Phase.READY, Phase.FAILED]
    assert phases(PIRATE, a=standing(OLD, troubles=lasting), b=standing(NEW)) == [Phase.READY, Phase.READY]


def test_a_request_may_be_sent_only_where_the_version_is_held_and_stays() -> None:
    here, leaving, away = standing(OLD), standing(OLD, residents=[]), standing(OLD, state=UpstreamState.DOWN)
    (old, _) = statuses(PIRATE, {"a": here, "b": leaving, "c": away}, {}, False, ())
    assert old.held == {"a"}
    assert old.upstreams == ("a", "b", "c")


def test_a_version_waits_for_the_engines_of_which_it_is_not_known_what_fits_them() -> None:
    unknown, unseen = standing(host=replace(HOST, fingerprint=None)), standing(host=None, state=UpstreamState.STARTING)
    without_adapters, another = standing(host=None), standing(host=replace(HOST, max_lora_rank=1))
    engines = {"a": unknown, "b": unseen, "c": without_adapters, "d": another}
    (status,) = statuses(record(OLD), engines, {}, False, ())
    assert (status.phase, status.upstreams, status.candidates) == (Phase.PENDING, (), ("a", "b"))
    assert status.routed
    (status,) = statuses(record(OLD), {**engines, "e": standing()}, {}, False, ())
    assert (status.upstreams, status.candidates) == (("e",), ()), "one that it fits is enough"
    (status,) = statuses(record(OLD), {"c": without_adapters, "d": another}, {}, False, ())
    assert status.candidates == ()
    (status,) = statuses(record(OLD), engines, {}, True, ())
    assert status.candidates == (), "the name belongs to a model"


def test_a_version_that_no_engine_takes_says_why_for_each() -> None:
    unfit = {(OLD.digest, "other"): "shapes differ: take the right base"}
    other, small = standing(host=replace(HOST, fingerprint="other")), standing(host=replace(HOST, max_lora_rank=1))
    (status,) = statuses(record(OLD), {"a": other, "b": small}, unfit, False, ())
    assert status.phase is Phase.FAILED
    assert status.reason.startswith("on a: shapes differ: take the right base | on b: rank 8 > 1")


def test_a_name_of_another_model_serves_nobody() -> None:
    (status,) = statuses(record(OLD), {"a": standing(OLD)}, {}, True, ())
    assert (status.phase, status.held, status.upstreams, status.current) == (Phase.FAILED, frozenset(), (), False)
    assert "belongs to a model" in status.reason


def test_shares_are_told_with_the_versions() -> None:
    split = canaried(PIRATE, NEW.digest, 10)
    old, new = statuses(split, {"a": standing(OLD, NEW)}, {}, False, ())
    assert (old.current, old.canary) == (True, 0.0)
    assert (new.current, new.canary) == (False, 10.0)
