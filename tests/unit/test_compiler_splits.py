"""Whose requests go to a canary, and where it answers."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.controlplane.compiler import compile
from gateway.controlplane.observed import Phase
from gateway.domain.snapshot import Readiness, Route, Snapshot
from tests.unit.scenes import adapter, config, openai, seen, up, vllm, where

ONE, TWO, THREE = "1" * 12, "2" * 12, "3" * 12
SALT = {"pirate": "salt", "parrot": "pepper"}
A, B = vllm("a"), vllm("b")


def shares(route: Route) -> list[tuple[float, list[str]]]:
    """Where each variant's share ends, and its targets as `upstream:model`."""
    assert route.split is not None
    return [(v.below, [f"{t.upstream}:{t.model}" for t in v.targets]) for v in route.split.variants]


def scene(*adapters: Any, file: Any = None) -> Snapshot:
    statuses = {"a": up("m"), "b": up("m"), "o": up("gpt")}
    return compile(file or config([A, B, openai("o")]), seen(statuses, *adapters, salts=SALT), 1)


def test_each_canary_has_its_percentage_and_the_current_version_has_the_rest() -> None:
    pirate = scene(
        adapter("pirate", "a", version=ONE),
        adapter("pirate", "a", version=TWO, canary=10),
        adapter("pirate", "a", version=THREE, canary=25),
    ).routes["pirate"]
    assert [t.model for t in pirate.targets] == [f"pirate@{ONE}"]
    assert shares(pirate) == [(0.1, [f"a:pirate@{TWO}"]), (0.35, [f"a:pirate@{THREE}"])]
    assert pirate.split is not None
    assert pirate.split.salt == "salt"


def test_a_canary_with_all_traffic_leaves_nothing_over() -> None:
    canaries = [adapter("pirate", "a", version=f"{index:012x}", canary=100 / 7) for index in range(7)]
    route = scene(adapter("pirate", "a", version="f" * 12), *canaries).routes["pirate"]
    assert shares(route)[-1][0] == pytest.approx(1.0)


def test_without_a_canary_nothing_is_split() -> None:
    snapshot = scene(adapter("pirate", "a", version=ONE), adapter("pirate", "a", version=TWO, current=False))
    assert all(route.split is None for route in snapshot.routes.values())


def test_exact_names_are_never_split() -> None:
    snapshot = scene(adapter("pirate", "a", version=ONE), adapter("pirate", "a", version=TWO, canary=50))
    assert snapshot.routes[f"pirate@{ONE}"].split is None
    assert where(snapshot)[f"pirate@{TWO}"] == [f"a:pirate@{TWO}"]


def test_each_version_is_answered_where_it_fits() -> None:
    snapshot = scene(adapter("pirate", "a", version=ONE), adapter("pirate", "b", version=TWO, canary=50))
    assert where(snapshot)["pirate"] == [f"a:pirate@{ONE}"]
    assert shares(snapshot.routes["pirate"]) == [(0.5, [f"b:pirate@{TWO}"])]


def test_a_canary_that_fails_keeps_its_share_so_that_nobody_else_changes_version() -> None:
    snapshot = scene(
        adapter("pirate", "a", version=ONE),
        adapter("pirate", "a", version=TWO, canary=10, phase=Phase.FAILED),
        adapter("pirate", "a", version=THREE, canary=10),
    )
    split = snapshot.routes["pirate"].split
    assert split is not None
    assert [variant.below for variant in split.variants] == [0.1, 0.2]
    assert {t.readiness for t in split.variants[0].targets} == {Readiness.DOWN}
    assert f"pirate@{TWO}" not in snapshot.routes


def test_a_canary_is_seen_in_nothing_but_what_all_versions_keep() -> None:
    short = vllm("b", overrides={"m": {"context_length": 100}})
    long = vllm("a", overrides={"m": {"context_length": 1000}})
    snapshot = scene(
        adapter("pirate", "a", version=ONE),
        adapter("pirate", "b", version=TWO, canary=50),
        file=config([long, short, openai("o")]),
    )
    assert b'"context_length":100,' in snapshot.cards["pirate"]


def captain(*targets: tuple[str, str], **more: Any) -> Any:
    model = {"id": "captain", "targets": [{"upstream": u, "model": m} for u, m in targets], **more}
    return config([A, B, openai("o")], models=[model])


def test_a_name_of_the_file_has_the_canaries_of_its_adapter() -> None:
    file = captain(("a", "pirate"), ("o", "gpt"), context_length=77, tools=False)
    route = scene(
        adapter("pirate", "a", version=ONE), adapter("pirate", "a", version=TWO, canary=20), file=file
    ).routes["captain"]
    assert [f"{t.upstream}:{t.model}" for t in route.targets] == [f"a:pirate@{ONE}", "o:gpt"]
    assert shares(route) == [(0.2, [f"a:pirate@{TWO}", "o:gpt"])]
    assert route.split is not None
    variant = route.split.variants[0].targets
    assert [(t.context_length, t.strip_tools) for t in variant] == [(77, True), (77, True)]


def test_in_a_name_of_the_file_a_canary_stands_only_where_it_fits() -> None:
    file = captain(("a", "pirate"), ("b", "pirate"), ("o", "gpt"))
    snapshot = scene(adapter("pirate", "a", version=ONE), adapter("pirate", "b", version=TWO, canary=20), file=file)
    route = snapshot.routes["captain"]
    assert [t.adapter for t in route.targets] == [f"pirate@{ONE}", None, None]
    assert route.targets[1].readiness is Readiness.DOWN, "the current version does not fit there"
    assert shares(route) == [(0.2, [f"b:pirate@{TWO}", "o:gpt"])]


@pytest.mark.parametrize(
    "canary",
    [
        pytest.param(adapter("pirate", "b", version=TWO, canary=20), id="fits none of its upstreams"),
        pytest.param(adapter("pirate", "a", version=TWO, canary=20, refused={"a": "no"}), id="is refused"),
        pytest.param(adapter("pirate", "a", version=TWO, canary=20, phase=Phase.FAILED), id="has failed"),
    ],
)
def test_in_a_name_of_the_file_a_canary_that_cannot_answer_gives_way_to_the_current_version(canary: Any) -> None:
    file = captain(("a", "pirate"), ("o", "gpt"))
    route = scene(adapter("pirate", "a", version=ONE), canary, file=file).routes["captain"]
    assert shares(route) == [(0.2, [f"a:pirate@{ONE}", "o:gpt"])]


def test_of_two_adapters_with_canaries_in_a_name_the_first_one_s_count() -> None:
    file = captain(("a", "pirate"), ("b", "parrot"))
    route = scene(
        adapter("parrot", "b", version=ONE),
        adapter("parrot", "b", version=TWO, canary=50),
        adapter("pirate", "a", version=ONE),
        adapter("pirate", "a", version=TWO, canary=20),
        file=file,
    ).routes["captain"]
    assert route.split is not None
    assert route.split.salt == "salt"
    assert shares(route) == [(0.2, [f"a:pirate@{TWO}", f"b:parrot@{ONE}"])]


def test_a_name_of_the_file_for_one_version_is_not_split() -> None:
    file = captain(("a", f"pirate@{ONE}"))
    snapshot = scene(adapter("pirate", "a", version=ONE), adapter("pirate", "a", version=TWO, canary=20), file=file)
    assert snapshot.routes["captain"].split is None
