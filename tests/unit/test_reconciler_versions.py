"""Which version a name points to, what engines are to hold, and what people are told of each."""

from __future__ import annotations

import pytest

from gateway.controlplane.observed import Phase, UpstreamState, UpstreamStatus
from gateway.controlplane.versions import Host, Known, LoadTrouble, Version, held_against, point, statuses, wanted
from gateway.domain.listing import ListedModel

HOST = Host("/models/base", 16)


def version(digit: str, *upstreams: str, name: str = "pirate") -> Version:
    return Version(name, digit * 64, f"/store/{digit}", "base", 8, dict.fromkeys(upstreams or ("a",), HOST))


def holding(*versions: Version, state: UpstreamState = UpstreamState.UP) -> UpstreamStatus:
    listed = (ListedModel("base"), *(ListedModel(v.engine_name, parent="base") for v in versions))
    return UpstreamStatus(state, 0.0, models=listed)


OLD, NEW = version("1", "a", "b"), version("2", "a", "b")
KNOWN = {"pirate": Known("pirate", NEW)}
TROUBLE = {"b": {NEW.engine_name: LoadTrouble("no memory", lasting=False)}}


def test_the_first_version_has_the_name_at_once() -> None:
    assert point({}, KNOWN, {"a": holding()}, {}) == {"pirate": NEW}


@pytest.mark.parametrize(
    ("upstreams", "troubles", "expected"),
    [
        pytest.param({"a": holding(OLD), "b": holding(OLD)}, {}, OLD, id="loaded nowhere"),
        pytest.param({"a": holding(OLD, NEW), "b": holding(OLD)}, {}, OLD, id="not where the old one still serves"),
        pytest.param({"a": holding(OLD, NEW), "b": holding(OLD, NEW)}, {}, NEW, id="loaded everywhere"),
        pytest.param({"a": holding(OLD, NEW), "b": holding(OLD)}, TROUBLE, NEW, id="one engine fails to load it"),
        pytest.param(
            {"a": holding(OLD, NEW), "b": holding(OLD, state=UpstreamState.DOWN)}, {}, NEW, id="one engine is away"
        ),
        pytest.param({"a": holding(NEW), "b": holding()}, {}, NEW, id="the old one is lost"),
        pytest.param({"a": holding(), "b": holding()}, {}, OLD, id="both are lost"),
    ],
)
def test_a_name_moves_when_nobody_has_to_wait_for_it(
    upstreams: dict[str, UpstreamStatus], troubles: dict[str, dict[str, LoadTrouble]], expected: Version
) -> None:
    assert point({"pirate": OLD}, KNOWN, upstreams, troubles) == {"pirate": expected}


def test_a_refused_content_leaves_the_name_where_it_is_and_a_gone_one_takes_it_away() -> None:
    refused = {"pirate": Known("pirate", OLD, Phase.FAILED, "NaN")}
    assert point({"pirate": OLD}, refused, {"a": holding(OLD)}, {}) == {"pirate": OLD}
    assert point({"pirate": OLD}, {}, {"a": holding(OLD)}, {}) == {}


def test_an_engine_is_to_hold_what_serves_first_and_what_is_to_come_and_only_what_fits_it() -> None:
    json = version("3", "b", name="json")
    known = {**KNOWN, "json": Known("json", json)}
    current = {"pirate": OLD, "json": json}
    assert list(wanted("a", known, current).items()) == [(OLD.engine_name, "/store/1"), (NEW.engine_name, "/store/2")]
    assert list(wanted("b", known, current)) == [OLD.engine_name, json.engine_name, NEW.engine_name]


def test_people_see_both_versions_of_a_swap() -> None:
    rows = statuses(KNOWN, {"pirate": OLD}, {"a": holding(OLD), "b": holding(OLD)}, {})
    assert [(row.version, row.phase, row.current) for row in rows] == [
        ("1" * 12, Phase.READY, True),
        ("2" * 12, Phase.LOADING, False),
    ]


def test_people_see_why_a_content_is_refused_beside_what_serves() -> None:
    known = {"pirate": Known("pirate", OLD, Phase.FAILED, "a weight is NaN: train again")}
    rows = statuses(known, {"pirate": OLD}, {"a": holding(OLD), "b": holding(OLD)}, {})
    assert [(row.version, row.phase, row.reason) for row in rows] == [
        ("1" * 12, Phase.READY, ""),
        ("", Phase.FAILED, "a weight is NaN: train again"),
    ]


def test_an_adapter_has_failed_when_no_engine_will_take_it() -> None:
    no = LoadTrouble("cannot read /store/2", lasting=True)
    some = {"a": {NEW.engine_name: no}}
    every = {**some, "b": {NEW.engine_name: no}}
    upstreams = {"a": holding(), "b": holding()}
    (loading,) = statuses(KNOWN, {"pirate": NEW}, upstreams, some)
    assert (loading.phase, dict(loading.refused)) == (Phase.LOADING, {"a": "cannot read /store/2"})
    (failed,) = statuses(KNOWN, {"pirate": NEW}, upstreams, every)
    assert (failed.phase, failed.reason) == (Phase.FAILED, "a: cannot read /store/2; b: cannot read /store/2")


def test_people_see_what_an_adapter_waits_for() -> None:
    away = {"a": holding(state=UpstreamState.STARTING), "b": holding(state=UpstreamState.DOWN)}
    (row,) = statuses(KNOWN, {"pirate": NEW}, away, {})
    assert (row.phase, row.reason) == (Phase.LOADING, "waits for a (starting), b (down)")


def test_what_nobody_wants_any_more_is_draining() -> None:
    (row,) = statuses({}, {}, {"a": holding(OLD)}, {}, leaving={OLD.engine_name})
    assert (row.name, row.version, row.phase, row.routed) == ("pirate", "1" * 12, Phase.DRAINING, False)


def test_an_adapter_cannot_take_the_name_of_a_model() -> None:
    (row,) = statuses(KNOWN, {"pirate": NEW}, {"a": holding(NEW)}, {}, taken={"pirate"})
    assert (row.phase, row.routed) == (Phase.FAILED, False)
    assert "rename" in row.reason


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        (HOST, True),
        (Host("/models/base"), True),
        (Host("/models/base", 8), True),
        (Host("/models/base", 4), False),
        (Host("/models/other", 16), False),
        (None, False),
    ],
)
def test_a_version_fits_only_the_engine_that_it_was_judged_for(host: Host | None, fits: bool) -> None:
    now = {"b": HOST} if host is None else {"a": host, "b": HOST}
    assert held_against(OLD, now).upstreams == (("a", "b") if fits else ("b",))
