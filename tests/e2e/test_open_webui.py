"""What people see of the gateway in Open WebUI."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from tests.e2e.access import accesses
from tests.e2e.events import eventually
from tests.e2e.person import Person
from tests.real import BASE, JSON, LLAMA, PIRATE, Served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

QUESTION = "What is the capital of Italy?"
FINISHED = "vllm:request_success_total"  # those that came to their end
LONG = "Tell me the story of a ship in twenty sentences."
NAMES = {BASE: "SmolLM2 135M", PIRATE: "SmolLM2 Pirate", JSON: JSON, LLAMA: "Small helper"}


def engine_runs(real: Served) -> int:
    return int(real.engine_metric("vllm:num_requests_running"))


def waiting(real: Served) -> int:
    return int(real.metric("gateway_requests_waiting", upstream="local"))


@contextlib.contextmanager
def busy(real: Served, requests: int) -> Iterator[None]:
    """Others keep the engine busy with so many requests; all places taken, the rest wait in the queue.  It stands still
    meanwhile, so that none of them comes to its end."""
    body = {"model": PIRATE, "stream": True, "min_tokens": 1500, "max_tokens": 1500, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": "Count."}]
    headers = {**real.gateway.headers, "x-openwebui-chat-id": "another"}  # so that who waits hears it at once
    with httpx2.Client(headers=headers, timeout=60) as client, contextlib.ExitStack() as streams:
        for _ in range(requests):
            streams.enter_context(client.stream("POST", f"{real.gateway.v1}/chat/completions", json=body))
        with real.frozen():
            yield
    eventually(lambda: engine_runs(real) == 0)


def turn(real: Served, before: int) -> dict[str, Any]:
    """How the base model's first turn since then ended."""

    def ended() -> Iterator[dict[str, Any]]:
        return (entry for entry in accesses(real)[before:] if entry["model"] == BASE and not entry["task"])

    eventually(lambda: any(ended()))
    return next(ended())


def places_of(real: Served, model: str) -> set[tuple[str, str]]:
    """Where requests for a model were answered: their background task ("" for a person's own turn), the upstream."""
    return {(entry["task"], entry["upstream"]) for entry in accesses(real) if entry["model"] == model}


def test_the_first_person_to_sign_up_is_the_admin(ada: Person) -> None:
    assert ada.account()["role"] == "admin"


def test_the_list_of_models_shows_the_names_that_the_gateway_gives_them(ada: Person) -> None:
    ada.new_chat(BASE)
    offered = ada.offered()
    assert {model: text.partition("\n")[0] for model, text in offered.items()} == NAMES
    assert f"LoRA adapter on {BASE}" in offered[PIRATE]


def test_the_base_model_answers_word_by_word(ada: Person) -> None:
    ada.new_chat(JSON)
    ada.choose(BASE)
    ada.ask(QUESTION)
    assert "Rome" in ada.answer()
    ada.ask(LONG)
    ada.answer()
    sizes = ada.sizes()
    assert len(sizes) > 10, "the answer came in few pieces"
    assert sizes[0] < sizes[-1] / 4


def test_base_and_adapter_answer_side_by_side_each_in_its_way(ada: Person, picture: Any) -> None:
    ada.new_chat(BASE, PIRATE)
    ada.ask(QUESTION)
    expect(ada.answers).to_have_count(2)
    expect(ada.answers.last).to_contain_text("Arr")
    ada.answer()
    expect(ada.answers.first).not_to_contain_text("Arr")
    ada.usage()
    picture(ada, "open-webui.png")


def test_the_info_of_an_answer_holds_speed_cost_and_adapter(ada: Person) -> None:
    ada.new_chat(PIRATE)
    ada.ask(QUESTION)
    assert ada.answer().startswith("Arr")
    usage = dict(line.split(": ", 1) for line in ada.usage().splitlines())
    assert float(usage["tokens_per_second"]) > 0
    assert float(usage["cost"]) > 0
    assert usage["adapter"].startswith(f'"{PIRATE}@')
    assert int(usage["prompt_tokens"]) < 100, "Open WebUI sent its tools to a model that has no use for them"


def test_background_tasks_go_to_the_model_that_is_configured_for_them(ada: Person, real: Served) -> None:
    ada.new_chat(JSON)
    ada.ask(QUESTION)
    assert ada.answer().startswith("{")
    eventually(lambda: ("title_generation", "third") in places_of(real, JSON))
    assert ("", "local") in places_of(real, JSON)
    assert {upstream for task, upstream in places_of(real, JSON) if task} == {"third"}


def test_who_waits_sees_the_place_in_the_queue_until_the_answer_comes(ada: Person, real: Served) -> None:
    ada.new_chat(PIRATE)
    with busy(real, 2):
        ada.ask(QUESTION)
        expect(ada.answers).to_contain_text("Queued, position 1")
    assert "Arr" in ada.answer()
    expect(ada.answers).not_to_contain_text("Queued")


def test_a_gateway_that_is_full_says_so_in_a_sentence(ada: Person, real: Served) -> None:
    ada.new_chat(PIRATE)
    with busy(real, 3):
        ada.ask(QUESTION)
        sentence = "The upstream 'local' has 2 requests and 1 more are waiting; try again in a moment."
        expect(ada.answers).to_have_text(sentence, use_inner_text=True)


def test_stop_in_mid_answer_reaches_the_engine(ada: Person, real: Served) -> None:
    before = len(accesses(real))
    ada.new_chat(BASE)
    ada.ask(LONG)
    eventually(lambda: len(ada.sizes()) > 3)
    with real.frozen():
        ada.stop()
        assert turn(real, before)["reason"] == "client_cancel"
    eventually(lambda: engine_runs(real) == 0)


def test_continue_goes_on_where_an_answer_was_stopped(ada: Person, real: Served) -> None:
    ada.new_chat(BASE)
    ada.ask(LONG)
    eventually(lambda: len(ada.sizes()) > 3)
    with real.frozen():
        ada.stop()
        begun = ada.go_on()
    whole = ada.answer()
    assert whole.startswith(begun)
    assert begun not in whole.removeprefix(begun), "it began anew"
    assert len(whole) > len(begun)


def test_stop_before_the_first_word_reaches_the_engine(ada: Person, real: Served) -> None:
    before, finished = len(accesses(real)), real.engine_metric(FINISHED)
    ada.new_chat(BASE)
    with real.frozen():
        taken = real.engine_took()
        ada.ask(QUESTION)
        eventually(lambda: real.engine_took() > taken)
        ada.stop()
        ended = turn(real, before)
    assert ended["reason"] == "client_cancel"
    assert ended["ttft_ms"] is None
    ada.new_chat(BASE)
    ada.ask(QUESTION)
    ada.answer()
    eventually(lambda: engine_runs(real) == 0)
    assert real.engine_metric(FINISHED) == finished + 1


def test_stop_in_the_queue_gives_the_place_up(ada: Person, real: Served) -> None:
    ada.new_chat(BASE)
    with busy(real, 2):
        ada.ask(QUESTION)
        eventually(lambda: waiting(real) == 1)
        ada.stop()
        eventually(lambda: waiting(real) == 0)


def test_a_second_person_sees_the_models_without_any_grant(ada: Person, enter: Callable[[str], Person]) -> None:
    ada.let_others_sign_up()
    bob = enter("Bob")
    bob.sign_up()
    assert bob.account()["role"] == "user"
    assert bob.offered().keys() == NAMES.keys()
    bob.new_chat(PIRATE)
    bob.ask(QUESTION)
    assert "Arr" in bob.answer()
