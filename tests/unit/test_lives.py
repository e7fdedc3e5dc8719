"""What is remembered of adapters from moment to moment saves work, and changes nothing that is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.controlplane.desired import AdapterRecord, VersionRecord, added, awaited, canaried, configured, promoted
from gateway.controlplane.folders import Arrival
from gateway.controlplane.lives import Lives
from gateway.controlplane.observed import AdapterStatus, Phase, UpstreamState
from gateway.controlplane.registry import Registry
from gateway.controlplane.versions import Host, Index, LoadTrouble, Standing

NAMES, ENGINES = ("bot", "pirate", "poet"), ("a", "b")
CONTENTS = [VersionRecord(d * 64, "upload", False, "base", 8, 1 << 20, ("print",), 1_700_000_000) for d in "123"]
ADAPTERS = [f"{name}@{content.version}" for name in NAMES for content in CONTENTS]
HOSTS = [None, Host("base", 16, "print", 2), Host("base", 16, "print", 1), Host("base", 4, "print", 2)]
some = st.sets(st.sampled_from(ADAPTERS), max_size=3)


def path(digest: str) -> str:
    return f"/store/{digest}"


@dataclass(frozen=True)
class Moment:
    """What is wanted, and what is seen of two engines."""

    records: Mapping[str, AdapterRecord] = field(default_factory=lambda: MappingProxyType({}))
    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {name: {} for name in ENGINES})
    arrivals: Mapping[str, Arrival] = field(default_factory=dict)
    unfit: Mapping[tuple[str, str], str] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()

    def told(self, lives: Lives) -> tuple[AdapterStatus, ...]:
        registry = Registry(Path("/store"), hub=Path("/hub"), default_load="eager", changed=lambda: None)
        registry.records, registry.unfit = self.records, self.unfit
        registry.index = index = Index(self.records, path, "eager")
        standings = {}
        for name, seen in self.engines.items():
            standing = Standing(**{"state": UpstreamState.UP, **seen, "residents": {}})
            residents = {a: index.by_adapter[a] for a in sorted(seen.get("residents", ())) if a in index.by_adapter}
            standings[name] = replace(standing, residents=residents)
        return lives.look(registry, standings, self.arrivals, self.taken, self.waiting)


engine = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from([UpstreamState.UP, UpstreamState.DOWN]),
        "host": st.sampled_from(HOSTS),
        "listed": some.map(frozenset),
        "proven": some.map(frozenset),
        "residents": some,
        "troubles": st.dictionaries(
            st.sampled_from(ADAPTERS), st.booleans().map(lambda lasting: LoadTrouble("no", lasting)), max_size=2
        ),
    },
)
moves = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(CONTENTS),
    st.sampled_from(["add", "add", "promote", "next", "canary", "pin", "upstreams", "remove"]),
)
changes = st.one_of(
    st.tuples(st.just("move"), moves),
    st.tuples(st.just("engine"), st.tuples(st.sampled_from(ENGINES), engine)),
    st.tuples(st.just("arrivals"), st.dictionaries(
        st.sampled_from(NAMES), st.sampled_from([Arrival(Phase.VALIDATING), Arrival(Phase.FAILED, "no")])
    )),
    st.tuples(st.just("unfit"), st.dictionaries(st.just((CONTENTS[0].digest, "print")), st.just("no"))),
    st.tuples(st.just("taken"), st.frozensets(st.sampled_from(NAMES), max_size=1)),
    st.tuples(st.just("waiting"), some.map(frozenset)),
)  # fmt: skip


def moved(record: AdapterRecord | None, name: str, content: VersionRecord, move: str) -> AdapterRecord | None:
    if record is None or move == "add":
        return added(record, name, content, promote=False, keep=10)
    if content.digest not in {version.digest for version in record.versions}:
        return record
    match move:
        case "promote":
            return promoted(record, content.digest)
        case "next":
            return awaited(record, content.digest)
        case "canary" if content.digest != record.current and not record.canaries:
            return canaried(record, content.digest, 10)
        case "pin":
            return configured(record, pinned=not record.pinned)
        case "upstreams":
            return configured(record, upstreams=("a",))
        case "remove":
            return None
    return record


def after(moment: Moment, change: tuple[str, Any]) -> Moment:
    what, how = change
    if what == "engine":
        return replace(moment, engines={**moment.engines, how[0]: how[1]})
    if what != "move":
        return replace(moment, **{what: how})
    name, content, move = how
    record = moved(moment.records.get(name), name, content, move)
    if record is moment.records.get(name):
        return moment
    rest = {other: each for other, each in moment.records.items() if other != name}
    return replace(moment, records=dict(sorted((rest | ({name: record} if record is not None else {})).items())))


@settings(max_examples=300)
@given(st.lists(changes, min_size=2, max_size=15))
def test_every_moment_is_told_the_same_whatever_came_before(story: list[tuple[str, Any]]) -> None:
    lives, moment = Lives(), Moment()
    for change in story:
        moment = after(moment, change)
        told = moment.told(lives)
        assert told == moment.told(Lives())
        assert moment.told(lives) is told, "nothing has changed"


@settings(max_examples=300)
@given(st.lists(moves, min_size=2, max_size=15))
def test_the_desired_state_is_arranged_the_same_whatever_came_before(
    story: list[tuple[str, VersionRecord, str]],
) -> None:
    moment, index = Moment(), Index({}, path, "lazy")
    for move in story:
        moment = after(moment, ("move", move))
        index = Index(moment.records, path, "lazy", before=index)
        fresh = Index(moment.records, path, "lazy")
        for what in ("by_adapter", "pinned", "kept", "eager", "salts", "moving"):
            assert getattr(index, what) == getattr(fresh, what), what
        assert list(index.by_adapter) == list(fresh.by_adapter)


def test_an_engine_that_goes_away_is_told_of_the_adapters_that_it_has_to_do_with() -> None:
    moment = Moment(engines={"a": {"host": HOSTS[1], "listed": frozenset({ADAPTERS[0]}), "residents": {ADAPTERS[0]}}})
    for name in NAMES:
        moment = after(moment, ("move", (name, CONTENTS[0], "add")))
    lives = Lives()
    before = moment.told(lives)
    away = replace(moment, engines={"a": {**moment.engines["a"], "state": UpstreamState.DOWN}})
    now = away.told(lives)
    assert [new is old for new, old in zip(now, before, strict=True)] == [False, True, True]
    assert "waits for a" in now[0].reason
