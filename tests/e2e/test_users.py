"""People behind Open WebUI's one key, as the gateway knows them: by what Open WebUI signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from tests.e2e.access import accesses
from tests.e2e.events import eventually
from tests.e2e.person import Person
from tests.people import ADA, SECRET, handmade, token
from tests.real import BASE, LLAMA, Served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

QUESTION = "What is the capital of Italy?"


@pytest.fixture(scope="module")
def carol(ada: Person, enter: Callable[[str], Person]) -> Person:
    """Somebody with the role "user"."""
    ada.let_others_sign_up()
    person = enter("Carol")
    person.sign_up()
    assert person.account()["role"] == "user"
    return person


def own_turns(real: Served, before: int) -> list[dict[str, Any]]:
    """What people themselves asked the base model since then."""
    return [line for line in accesses(real)[before:] if line["model"] == BASE and not line["task"]]


def test_two_people_behind_one_key_are_told_apart(ada: Person, carol: Person, real: Served) -> None:
    before = len(accesses(real))
    for person in (ada, carol, ada):
        person.new_chat(BASE)
        person.ask(QUESTION)
        person.answer()
    eventually(lambda: len(own_turns(real, before)) == 3)
    ids = {person.name: person.account()["id"] for person in (ada, carol)}
    assert [line["user"] for line in own_turns(real, before)] == [ids["Ada"], ids["Carol"], ids["Ada"]]
    assert {line["key"] for line in own_turns(real, before)} == {"openwebui"}
    assert "@example.org" not in real.gateway.log.read_text()


def test_their_background_tasks_are_theirs_too(carol: Person, real: Served) -> None:
    before = len(accesses(real))
    carol.new_chat(BASE)
    carol.ask(QUESTION)
    carol.answer()

    def titles() -> list[dict[str, Any]]:
        return [line for line in accesses(real)[before:] if line["task"] == "title_generation"]

    eventually(titles)
    assert {line["user"] for line in titles()} == {carol.account()["id"]}


def test_a_model_that_a_person_may_not_use_is_shown_and_refused_in_a_sentence(ada: Person, carol: Person) -> None:
    assert ada.offered().keys() == carol.offered().keys()
    carol.new_chat(LLAMA)
    carol.ask(QUESTION)
    sentence = f"You may not use the model '{LLAMA}': it is not among those that people with the role 'user' may use."
    expect(carol.answers).to_contain_text(sentence)
    ada.new_chat(LLAMA)
    ada.ask(QUESTION)
    assert ada.answer()


@pytest.mark.parametrize(
    "forged",
    [
        token(secret=SECRET[::-1]),
        token(exp=1_700_000_000),
        handmade({"alg": "none", "typ": "JWT"}, {**ADA, "iss": "open-webui", "exp": 4_000_000_000}),
    ],
    ids=["forged", "expired", "alg none"],
)
def test_nobody_else_who_has_the_key_passes_for_one_of_them(real: Served, forged: str) -> None:
    headers = {**real.gateway.headers, "x-openwebui-user-jwt": forged}
    body = {"model": BASE, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1}
    answer = httpx2.post(f"{real.gateway.v1}/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_user_token"
