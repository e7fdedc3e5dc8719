"""What a caller is known by where the traffic of a name is split."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.dataplane.admit import build_call
from gateway.dataplane.pipeline import client_of
from gateway.domain.call import Client, Endpoint
from gateway.domain.errors import InvalidRequest
from gateway.domain.principal import ANONYMOUS, Principal


def known_by(request_id: str = "req_1", principal: Principal = ANONYMOUS, chat: str = "", **body: Any) -> str:
    whole = {"model": "m", "prompt": "p", **body}
    return build_call(Endpoint.COMPLETIONS, whole, 0, request_id, principal, Client(chat=chat)).sticky


def test_the_chat_comes_before_the_user_and_the_user_before_the_key() -> None:
    key = Principal("team")
    assert known_by(principal=key, chat="c", user="u", safety_identifier="s") == "c"
    assert known_by(principal=key, user="u", safety_identifier="s") == "u"
    assert known_by(principal=key, user="", safety_identifier="s") == "s"
    assert known_by(principal=key, user=None) == "team"


def test_a_person_who_is_verified_comes_before_whoever_the_body_names() -> None:
    whole = {"model": "m", "prompt": "p", "user": "u"}
    people = [Client(user=user, verified=True) for user in ("ada", "bob", "ada")]
    calls = [build_call(Endpoint.COMPLETIONS, whole, 0, "r", Principal("team"), person) for person in people]
    assert [call.sticky for call in calls] == ["ada", "bob", "ada"]
    chat = Client(chat="c", user="ada", verified=True)
    assert build_call(Endpoint.COMPLETIONS, whole, 0, "r", Principal("team"), chat).sticky == "c"


def test_strangers_are_not_taken_for_one_another() -> None:
    assert known_by("req_1") != known_by("req_2")
    assert known_by("req_1", Principal("anonymous")) == known_by("req_2", Principal("anonymous"))


def test_what_a_caller_is_known_by_is_a_text() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        known_by(safety_identifier=7)
    assert refusal.value.param == "safety_identifier"


def test_the_chat_is_the_one_that_open_webui_names_and_never_longer_than_a_name() -> None:
    assert client_of({b"x-openwebui-chat-id": b"c-1"}) == Client(openwebui=True, chat="c-1")
    assert client_of({b"x-openwebui-chat-id": b""}).chat == ""  # as it sends it for a request without a chat
    assert len(client_of({b"x-openwebui-chat-id": b"c" * 10_000}).chat) == 128
