"""What the compiler keeps from moment to moment changes what a snapshot costs, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.controlplane.compiler import Compiler, compile
from gateway.controlplane.observed import AdapterStatus, EngineEndpoint, Observed, Phase, UpstreamState, UpstreamStatus
from gateway.domain.listing import ListedModel
from gateway.domain.secret import Secret
from gateway.domain.snapshot import Snapshot
from tests.unit.scenes import adapter, config, openai, seen, up, vllm

NAMES, VERSIONS, UPSTREAMS = ["bot", "m", "pirate"], ["1" * 12, "2" * 12, "3" * 12], ["a", "e", "o"]
FILE = config(
    [
        vllm("a", hide_after=50, overrides={"bot": {"tags": ["house"], "price": {"input": 1, "output": 2}}}),
        {"name": "e", "kind": "vllm", "engine": {"model": "base"}},
        openai("o", models=["gpt", "theirs"]),
    ],
    models=[
        {"id": "own", "targets": [{"upstream": "a", "model": "pirate"}, {"upstream": "e", "model": "bot"}]},
        {
            "id": "pinned",
            "targets": [{"upstream": "e", "model": f"bot@{VERSIONS[0]}"}, {"upstream": "o", "model": "x"}],
        },
    ],
)

some_upstreams = st.lists(st.sampled_from(UPSTREAMS[:2]), unique=True).map(tuple)
versions = st.builds(
    AdapterStatus,
    name=st.sampled_from(NAMES),
    phase=st.sampled_from(list(Phase)),
    version=st.sampled_from(["", *VERSIONS]),
    upstreams=some_upstreams,
    held=some_upstreams.map(frozenset),
    refused=st.dictionaries(st.sampled_from(UPSTREAMS), st.just("no"), max_size=1),
    current=st.booleans(),
    canary=st.sampled_from([0.0, 0.0, 10.0, 33.3]),
)
listed = st.lists(
    st.one_of(
        st.sampled_from([ListedModel("m"), ListedModel("base", context_length=10), ListedModel("gpt")]),
        st.builds(lambda name, version: ListedModel(f"{name}@{version}", parent="m"),
                  st.sampled_from(NAMES), st.sampled_from(VERSIONS)),
        st.just(ListedModel("theirs", parent="m")),
    ),
    max_size=4,
).map(tuple)  # fmt: skip
upstreams = st.builds(
    UpstreamStatus,
    state=st.sampled_from(list(UpstreamState)),
    since=st.sampled_from([0.0, 90.0]),
    progress=st.sampled_from(["", "half"]),
    models=listed,
    endpoint=st.sampled_from([None, EngineEndpoint("127.0.0.1", 4711, Secret("of-this-life"))]),
    max_loras=st.sampled_from([0, 4]),
)
#: What is another from one moment to the next.
changes = st.one_of(
    st.tuples(st.just("version"), versions),
    st.tuples(st.just("gone"), st.sampled_from(NAMES)),
    st.tuples(st.just("upstream"), st.tuples(st.sampled_from(UPSTREAMS), upstreams)),
    st.tuples(st.just("salt"), st.tuples(st.sampled_from(NAMES), st.sampled_from(["x", "y"]))),
    st.tuples(st.just("turned"), st.none()),
    st.tuples(st.just("copied"), st.none()),
    st.tuples(st.just("time"), st.sampled_from([100.0, 200.0])),
    st.tuples(st.just("started"), st.integers(0, 1)),
)


def after(before: Observed, change: tuple[str, object]) -> Observed:
    match change:
        case "version", AdapterStatus() as new:
            kept = tuple(new if old.engine_name == new.engine_name else old for old in before.adapters)
            return replace(before, adapters=kept if new in kept else (*kept, new))
        case "gone", str(name):
            return replace(before, adapters=tuple(each for each in before.adapters if each.name != name))
        case "upstream", (str(name), UpstreamStatus() as status):
            return replace(before, upstreams={**before.upstreams, name: status})
        case "salt", (str(name), str(salt)):
            return replace(before, salts={**before.salts, name: salt})
        case "turned", _:
            return replace(before, adapters=before.adapters[::-1])
        case "copied", _:
            return replace(before, adapters=tuple(replace(each) for each in before.adapters))
        case "time", float(now):
            return replace(before, now=now)
        case "started", int(started):
            return replace(before, started=started)
    raise AssertionError(change)


def content(snapshot: Snapshot) -> tuple[Snapshot, list[str]]:
    """Everything but the version, and the order of the list."""
    return replace(snapshot, version=0), list(snapshot.cards)


@settings(max_examples=300, deadline=None)
@given(st.lists(changes, min_size=2, max_size=12))
def test_every_moment_compiles_to_the_same_whatever_came_before(moments: list[tuple[str, object]]) -> None:
    compiler, observed, last = Compiler(FILE), Observed(now=100.0), None
    for change in moments:
        observed = after(observed, change)
        now = compiler.compile(observed)
        assert content(now) == content(compile(FILE, observed, 1))
        if last is not None:
            assert (now is last) == (content(now) == content(last))
            assert now.version == last.version + (now is not last)
        last = now


def test_a_moment_in_which_nothing_changes_gives_the_very_same_snapshot() -> None:
    file = config([vllm("a"), vllm("b")])

    def moment(now: float, message: str) -> Observed:
        statuses = {name: replace(up("m"), message=message) for name in "ab"}
        return seen(statuses, adapter("pirate", "a", "b"), adapter("bot", "a"), now=now)

    compiler = Compiler(file, version=7)
    first = compiler.compile(moment(1, "one"))
    assert first.version == 8
    assert compiler.compile(moment(2, "another")) is first


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda one: replace(one, adapters=(*one.adapters[2:], *one.adapters[:2])), id="order of the list"),
        pytest.param(lambda one: replace(one, salts={"bot": "y"}), id="salt"),
        pytest.param(lambda one: replace(one, started=7), id="date of creation"),
        pytest.param(lambda one: replace(one, upstreams={"a": replace(up("m"), max_loras=4)}), id="room"),
        pytest.param(lambda one: replace(one, upstreams={"a": up("m", "n")}), id="models"),
        pytest.param(lambda one: replace(one, adapters=one.adapters[:-1]), id="an adapter less"),
        pytest.param(lambda one: replace(one, upstreams={"a": up("m", state=UpstreamState.DOWN)}), id="readiness"),
    ],
)
def test_whatever_is_served_otherwise_makes_another_snapshot(other: Callable[[Observed], Observed]) -> None:
    file = config([{"name": "a", "kind": "vllm", "engine": {"model": "m"}}])
    canary = adapter("bot", "a", version="2" * 12, canary=10)
    one = seen({"a": up("m")}, adapter("bot", "a"), canary, adapter("pirate", "a"), salts={"bot": "x"})
    compiler = Compiler(file)
    first = compiler.compile(one)
    second = compiler.compile(other(one))
    assert second is not first
    assert content(second) == content(compile(file, other(one), 1)) != content(first)
    assert content(compiler.compile(one)) == content(first)


def test_an_adapter_that_an_engine_holds_and_drops_changes_only_its_own_names() -> None:
    """A load changes the engine's list, with which nothing of a thousand other adapters is compiled again."""
    pirate, bot = adapter("pirate", "a"), adapter("bot", "a")
    compiler = Compiler(config([vllm("a")]))
    before = compiler.compile(seen({"a": up("m", held=[bot])}, bot, replace(pirate, held=frozenset())))
    after = compiler.compile(seen({"a": up("m", held=[bot, pirate])}, bot, pirate))
    assert after is not before
    assert {name for name, route in after.routes.items() if route is not before.routes[name]} == {
        "pirate",
        pirate.engine_name,
    }


def test_a_failed_compilation_leaves_nothing_behind() -> None:
    file = config([vllm("a")])
    compiler = Compiler(file)
    good = seen({"a": up("m")}, adapter("pirate", "a"))
    compiler.compile(good)
    broken = seen({"a": up("m")}, adapter("pirate", "a"), adapter("bot", "a"))
    object.__setattr__(broken.adapters[1], "upstreams", 1)
    for _ in range(2):
        with pytest.raises(TypeError):
            compiler.compile(broken)
    better = seen({"a": up("m")}, adapter("pirate", "a", phase=Phase.LOADING), adapter("bot", "a"))
    assert content(compiler.compile(better)) == content(compile(file, better, 1))
