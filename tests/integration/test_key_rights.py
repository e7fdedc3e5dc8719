"""S-8: no key reaches further than what it was given, whatever leads to whatever."""

from __future__ import annotations

import itertools
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.routes import RULES, Access
from gateway.dataplane.admit import build_call
from gateway.domain.call import Client, Endpoint
from gateway.domain.errors import Forbidden, NotFound
from gateway.domain.plan import plan
from gateway.domain.principal import PRIVILEGED_PARAMETERS, Principal
from gateway.domain.snapshot import Readiness, Route, Snapshot, Split, Target, Variant
from tests.fakes.openai_upstream import Script
from tests.gateway import ADMIN_KEY, CLIENT_KEY
from tests.integration.keyed import bearer, chat, keyed

NAMES = ("base", "alias", "support", "support-de", "legal", "openai/gpt", "Support", "tiny")
VERSIONS = ("0123456789ab", "fedcba987654")
ASKED = tuple(name + at for name in NAMES for at in ("", *(f"@{version}" for version in VERSIONS)))
PATTERNS = ("*", "support*", "sup*", "*@*", "s?pport", "[a-l]*", "openai/*", "*de", "", "legal@0123456789ab", *NAMES)
TASKS = ("title_generation", "tags_generation", "*")
READINESS = st.sampled_from(Readiness)


@st.composite
def graphs(draw: st.DrawFn) -> Snapshot:
    """Names that lead to targets, some of them split, some with a task's model that is another name."""
    routes = {}
    for name in draw(st.lists(st.sampled_from(ASKED), unique=True, min_size=1)):
        where = tuple(
            # What a target is called says by which name it was reached.
            Target(f"up{number}", f"{name}#{number}", adapter=name if "@" in name else None, readiness=draw(READINESS))
            for number in range(draw(st.integers(1, 3)))
        )
        split = None
        if draw(st.booleans()):
            split = Split("salt", (Variant(draw(st.floats(0, 1)), (Target("up9", f"{name}#canary"),)),))
        routes[name] = Route(name, where, split)
    tasks = draw(st.dictionaries(st.sampled_from(TASKS), st.sampled_from(ASKED)))
    cards = dict.fromkeys(routes, b"{}")
    return Snapshot(1, routes, MappingProxyType({}), cards, {}, task_models=tasks)


def granted(patterns: tuple[str, ...], name: str) -> bool:
    """What a key may use, said anew: a pattern fits the name, or the plain name of its version."""
    return any(fnmatchcase(whole, pattern) for pattern in patterns for whole in (name, name.split("@", maxsplit=1)[0]))


def check_graph(snapshot: Snapshot, patterns: tuple[str, ...], asked: str, task: str, sticky: str) -> None:
    principal = Principal("someone", models=patterns)
    if asked not in snapshot.routes or not granted(patterns, asked):
        with pytest.raises(NotFound) as refused:
            plan(snapshot, asked, task, sticky, principal)
        assert refused.value.message == f"The model '{asked}' does not exist or you do not have access to it."
        return
    planned = plan(snapshot, asked, task, sticky, principal)
    for target in (*planned.targets, *planned.waiting):
        name = target.model.split("#")[0]
        assert granted(patterns, name), "somebody is answered by a model that is not for them"
        assert name == asked or name in (snapshot.task_models.get(task), snapshot.task_models.get("*"))
    assert {name for name in snapshot.cards if principal.may_use(name)} == {
        name for name in snapshot.cards if granted(patterns, name)
    }


_GRAPH = given(
    graphs(), st.lists(st.sampled_from(PATTERNS), max_size=3).map(tuple), st.sampled_from(ASKED),
    st.sampled_from(("", *TASKS)), st.text(max_size=4),
)  # fmt: skip
test_no_key_is_answered_by_a_model_that_is_not_for_it = settings(max_examples=500)(_GRAPH(check_graph))
test_no_key_is_answered_by_a_model_that_is_not_for_it_in_ten_thousand_graphs = pytest.mark.soak(
    pytest.mark.timeout(1800)(settings(max_examples=10_000)(_GRAPH(check_graph)))
)


@given(st.sets(st.sampled_from(sorted(PRIVILEGED_PARAMETERS))), st.sets(st.sampled_from(sorted(PRIVILEGED_PARAMETERS))))
def test_no_key_sends_what_it_has_no_right_to(rights: set[str], sent: set[str]) -> None:
    body = {**chat(), **dict.fromkeys(sent, 1)}

    def build() -> Any:
        return build_call(Endpoint.CHAT, body, 1, "r", Principal("p", frozenset(rights)), Client())

    if sent <= rights:
        assert build().body == body
    else:
        with pytest.raises(Forbidden):
            build()


SETTINGS = [
    {}, {"allow": ["adapters", "chat_template", "kv_transfer_params", "priority", "request_id"]}, {"models": ["*"]},
    {"team": "admin", "owner": "admin"}, {"metadata": {"role": "admin", "admin": "true"}}, {"models": ["admin"]},
]  # fmt: skip


async def test_no_clients_key_reaches_administration_whatever_it_is_given(tmp_path: Path) -> None:
    admin = [rule for rule in RULES if rule.access in (Access.ADMIN, Access.OBSERVER)]
    async with keyed(tmp_path) as gateway:
        made = [await gateway.create(f"admin{number}", **given) for number, given in enumerate(SETTINGS)]
        before = await gateway.rows()
        acts = len(await gateway.audit())
        for key, rule in itertools.product([CLIENT_KEY, *(key["key"] for key in made)], admin):
            path = rule.path.replace("{id}", made[0]["id"]).replace("{name}", "x").replace("{version}", "0" * 12)
            headers = {**bearer(key), "x-forwarded-for": "203.0.113.5"}
            answer = await gateway.client.request(rule.method, path, headers=headers, json={"name": "mine"})
            assert answer.status_code in (401, 429), (rule.method, path)
        assert await gateway.rows() == before
        assert len(await gateway.audit()) == acts


async def test_what_a_key_may_use_holds_for_each_way_to_a_model(tmp_path: Path) -> None:
    """Through the real gateway: the list, the look-up, the request; names of the file with fallbacks, and tasks."""
    scripts = {"a": Script(), "b": Script(), "tiny": Script()}
    own = [
        {"id": "assistant", "targets": [{"upstream": "up", "model": "a"}, {"upstream": "up", "model": "b"}]},
        {"id": "secret", "targets": [{"upstream": "up", "model": "b"}]},
    ]
    async with keyed(tmp_path, scripts, models=own, openwebui={"tasks": {"*": "tiny"}}) as gateway:
        names = ("a", "b", "tiny", "assistant", "secret")
        for number, patterns in enumerate((["assistant"], ["a*"], ["secret", "tiny"], ["nothing"], ["*"])):
            key = (await gateway.create(f"k{number}", models=patterns))["key"]
            listed = {model["id"] for model in (await gateway.get(key)).json()["data"]}
            assert listed == {name for name in names if granted(tuple(patterns), name)}
            for name in names:
                may = name in listed
                assert (await gateway.get(key, f"/v1/models/{name}")).status_code == (200 if may else 404)
                before = len(gateway.upstream.ledger)
                headers = {**bearer(key), "x-openwebui-task": "title_generation"}
                answer = await gateway.client.post("/v1/chat/completions", headers=headers, json=chat(name))
                assert answer.status_code == (200 if may else 404)
                reached = [attempt.model for attempt in gateway.upstream.ledger[before:]]
                expected = "tiny" if "tiny" in listed else {"assistant": "a", "secret": "b"}.get(name, name)
                assert reached == ([expected] if may else [])


async def test_a_key_cannot_make_or_widen_a_key(tmp_path: Path) -> None:
    async with keyed(tmp_path, auth={"admin_key": ADMIN_KEY}) as gateway:
        made = await gateway.create("anna", models=["a"])
        headers = bearer(made["key"])
        for method, path, body in (
            ("POST", "/admin/v1/keys", {"name": "x"}), ("PATCH", f"/admin/v1/keys/{made['id']}", {"models": ["*"]}),
            ("POST", f"/admin/v1/keys/{made['id']}/rotate", {}), ("DELETE", f"/admin/v1/keys/{made['id']}", None),
        ):  # fmt: skip
            assert (await gateway.client.request(method, path, headers=headers, json=body)).status_code == 401
        assert (await gateway.rows())[made["id"]]["models"] == ["a"]
