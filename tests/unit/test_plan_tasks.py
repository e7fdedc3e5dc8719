"""Open WebUI's background tasks have a model of their own, as long as that one can answer."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from gateway.domain.plan import plan
from gateway.domain.snapshot import Readiness, Route, Snapshot, Target


def snapshot(small: Readiness, **tasks: str) -> Snapshot:
    """`big` on one upstream, `small` on another; `any` stands for every task."""
    routes = {
        "big": Route("big", (Target("one", "big"),)),
        "small": Route("small", (Target("two", "small", readiness=small),)),
    }
    models = {"*" if task == "any" else task: model for task, model in tasks.items()}
    return Snapshot(1, routes, {}, {}, MappingProxyType({}), task_models=models)


@pytest.mark.parametrize(("task", "model"), [("title_generation", "small"), ("tags_generation", "big"), ("", "big")])
def test_a_task_is_answered_by_its_model_and_nothing_else_is(task: str, model: str) -> None:
    planned = plan(snapshot(Readiness.READY, title_generation="small"), "big", task)
    assert [target.model for target in planned.targets] == [model]


def test_a_star_stands_for_every_task() -> None:
    assert plan(snapshot(Readiness.READY, any="small"), "big", "tags_generation").targets[0].model == "small"
    assert plan(snapshot(Readiness.READY, any="small"), "big").targets[0].model == "big"


@pytest.mark.parametrize("state", [Readiness.DOWN, Readiness.LOADING])
def test_a_task_does_not_fail_or_wait_with_its_model(state: Readiness) -> None:
    planned = plan(snapshot(state, any="small"), "big", "title_generation")
    assert [target.model for target in planned.targets] == ["big"]


def test_a_task_whose_model_is_gone_is_answered_by_the_one_that_was_asked() -> None:
    assert plan(snapshot(Readiness.READY, any="gone"), "big", "title_generation").targets[0].model == "big"
