"""S-9, S-10, S-11: keys and prompts stay where they belong, whatever goes wrong.

Every gateway of these tests runs with canaries for keys and prompt, and the rig looks for them at the end in all that
was logged at DEBUG level, in the metrics and in every answer (tests/integration/rig.py).
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest
import yaml

from tests import wire
from tests.fakes import faults
from tests.fakes.openai_upstream import Behaviour, Exchange, OpenAIUpstream, Script
from tests.gateway import gateway_process
from tests.integration.conftest import Serve
from tests.integration.rig import ADMIN_KEY, AUTH, CLIENT_KEY, PROMPT, chat, configuration, provider_key, route

#: All that the gateway sends of itself; nothing of a client's headers is among it.
SENT = set("host user-agent accept accept-encoding content-type content-length x-request-id authorization".split())


def echo(status: int) -> Behaviour:
    """Refuses, and repeats everything it was sent, as some servers do."""

    async def behave(exchange: Exchange) -> None:
        told = f"{exchange.request.headers} {exchange.request.body.decode()}"
        error = {"error": {"message": told, "type": "server_error", "param": None, "code": None}}
        await exchange.json(json.dumps(error).encode(), status)

    return behave


async def echo_event(exchange: Exchange) -> None:
    told = f"{exchange.request.headers} {exchange.request.body.decode()}"
    await faults.error_event({"message": told, "code": 500}, done=True)(exchange)


FAULTS: dict[str, Behaviour] = {
    **{f"echo-{status}": echo(status) for status in (400, 401, 403, 404, 413, 422, 429, 500, 503)},
    "echo-in-the-stream": Script(itl=0.02, after=1, fault=echo_event),
    "echo-instead-of-the-stream": Script(fault=echo_event),
    "cut": Script(itl=0.02, after=1, fault=faults.cut),
    "cut-at-once": faults.cut,
    "stall": Script(itl=0.02, after=1, fault=faults.hang),
    "silence": faults.hang,
    "no-HTTP": faults.raw(b"SSH-2.0\r\n"),
    "no-JSON": Script(itl=0.02, after=1, fault=faults.raw(b"4\r\nnope\r\n")),
    "redirect": faults.refuse(302, headers=[("location", "http://127.0.0.1:1/")]),
    "no-fault-at-all": Script(pieces=(PROMPT,)),
}


async def test_no_failure_writes_a_key_or_a_prompt_anywhere(serve: Serve) -> None:
    async with OpenAIUpstream(FAULTS) as upstream:
        limits = {"first_byte": 0.3, "answer": 0.3, "byte_idle": 0.3}
        async with serve({"one": upstream}, timeouts=limits) as gateway:
            for name in FAULTS:
                for stream in (True, False):
                    await gateway.chat(name, stream=stream)
            await upstream.stop()
            await gateway.chat("no-fault-at-all")
            assert len(gateway.lines()) == 2 * len(FAULTS) + 1


async def test_nor_does_a_refused_request(serve: Serve) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}) as gateway:
        wrong = "gw-canaryprovider-but-not-ours-5521"
        for headers in (
            [("authorization", f"Bearer {wrong}")],
            [("authorization", f"Basic {wrong}")],
            [("x-api-key", wrong)],
            [("authorization", f"Bearer {CLIENT_KEY}"), ("x-api-key", wrong)],
            [("authorization", f"Bearer {ADMIN_KEY}"), ("cookie", f"token={wrong}")],
            [],
        ):
            reply = await wire.post(gateway.url, "/v1/chat/completions", chat(), headers)
            gateway.replies.append(reply)
            assert reply.status in (400, 401)
        for path in (
            f"/v1/models?key={wrong}",
            f"/v1/models/{wrong}",
            f"/{wrong}",
            f"/v1/chat/completions?api_key={wrong}",
        ):
            assert (await wire.get(gateway.url, path, AUTH)).status in (200, 400, 404, 405)
        for body in (
            PROMPT.encode(),
            json.dumps(chat(n=PROMPT)).encode(),
            json.dumps(chat(temperature=PROMPT)).encode(),
        ):
            assert (await gateway.post(body)).status == 400
        assert not upstream.ledger


async def test_no_page_shows_a_key(serve: Serve) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}) as gateway:
        admin = [("authorization", f"Bearer {ADMIN_KEY}")]
        for path, headers in (
            ("/livez", ()), ("/readyz", ()), ("/openapi.json", AUTH), ("/v1/models", AUTH), ("/v1/models/m", AUTH),
            ("/metrics", admin), ("/admin/v1/config", admin), ("/admin/v1/upstreams", admin),
            ("/admin/v1/adapters", admin), ("/admin/v1/openapi.json", admin),
        ):  # fmt: skip
            page = await wire.get(gateway.url, path, headers)
            assert page.status == 200, path
            gateway.replies.append(page)


@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_of_the_clients_headers_reaches_an_upstream(serve: Serve, stream: bool) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}) as gateway:
        await gateway.post(
            chat(stream=stream),
            headers=[
                ("cookie", "session=1"), ("proxy-authorization", "Basic eDp5"), ("x-forwarded-for", "10.0.0.1"),
                ("forwarded", "for=10.0.0.1"), ("x-real-ip", "10.0.0.1"), ("referer", "http://open-webui/"),
                ("http-referer", "http://open-webui/"), ("x-title", "Open WebUI"), ("openai-organization", "org-1"),
                ("openai-project", "p-1"), ("x-openwebui-user-email", "a@b.c"), ("x-openwebui-chat-id", "c-1"),
                ("x-stainless-lang", "python"), ("user-agent", "OpenAI/Python"), ("accept-encoding", "gzip, br"),
                ("x-request-id", "mine"), ("idempotency-key", "k"), ("traceparent", "00-0af7-b7ad-01"),
                ("x-gateway-upstream", "mine"), ("origin", "http://evil.invalid"),
            ],
        )  # fmt: skip
        (attempt,) = upstream.ledger
        names = [name for name, _ in attempt.request.headers]
        assert set(names) <= SENT
        assert len(names) == len(set(names))
        assert attempt.request.header("authorization") == f"Bearer {provider_key('one')}"
        assert attempt.request.header("x-request-id") != "mine"
        whole = f"{attempt.request.headers} {attempt.request.target}"
        assert CLIENT_KEY not in whole


@pytest.mark.parametrize("position", ["authorization", "x-api-key", "api-key"])
async def test_the_clients_key_goes_nowhere_wherever_it_stood(serve: Serve, position: str) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}) as gateway:
        value = f"Bearer {CLIENT_KEY}" if position == "authorization" else CLIENT_KEY
        reply = await wire.post(gateway.url, "/v1/chat/completions", chat(), [(position, value)])
        assert reply.status == 200
        (attempt,) = upstream.ledger
        assert CLIENT_KEY not in f"{attempt.request.headers} {attempt.request.body!r}"


async def test_each_origin_sees_its_own_key_and_no_other(serve: Serve) -> None:
    """Five origins: over fail-over, a redirect from one to the other, and each one's list of models."""
    names = ("a", "b", "c", "d", "e")
    async with AsyncExitStack() as stack:
        places = {name: await stack.enter_async_context(OpenAIUpstream({"m": Script()})) for name in names}
        places["a"].models["m"] = faults.refuse(500)
        places["b"].models["m"] = faults.refuse(307, headers=[("location", f"{places['e'].url}/chat/completions")])
        places["c"].models["m"] = faults.cut
        places["d"].models["m"] = faults.refuse(401)
        models = [route("all", *((name, "m") for name in names)), route("some", ("b", "m"), ("c", "m"))]
        async with serve(places, models=models) as gateway:
            assert (await gateway.chat("all")).header("x-gateway-upstream") == "e"
            before = len(places["e"].ledger)
            assert (await gateway.chat("some")).status == 502
            assert len(places["e"].ledger) == before
        for name, place in places.items():
            assert place.requests
            seen = " ".join(f"{request.headers} {request.body!r} {request.target}" for request in place.requests)
            assert {request.header("authorization") for request in place.requests} == {f"Bearer {provider_key(name)}"}
            for other in names:
                assert (provider_key(other) in seen) == (other == name)
            assert CLIENT_KEY not in seen
            assert ADMIN_KEY not in seen


@pytest.mark.parametrize("form", ["json", "pretty"])
async def test_a_real_process_keeps_its_secrets_too(tmp_path: Path, form: str) -> None:
    """As people run it: keys from the environment, all that it writes in one file, its arguments for all to see."""
    async with OpenAIUpstream({"m": echo(400), "cut": Script(itl=0.02, after=1, fault=faults.cut)}) as upstream:
        config = configuration({"one": upstream}, log_format=form)
        secrets = {"ADMIN": ADMIN_KEY, "CLIENT": CLIENT_KEY, "PROVIDER": provider_key("one")}
        text = yaml.safe_dump(config)
        for name, value in secrets.items():
            text = text.replace(value, f"${{{name}}}")
        with gateway_process(text, tmp_path, secrets) as gateway:
            assert gateway.process is not None
            await gateway.ready()
            for model in ("m", "cut", "other"):
                reply = await wire.post(gateway.url, "/v1/chat/completions", chat(model), AUTH)
                assert provider_key("one").encode() not in reply.body
            shown = " ".join(psutil.Process(gateway.process.pid).cmdline())
            gateway.process.terminate()
            await asyncio.to_thread(gateway.process.wait, 30)
        written = gateway.log.read_text()
        assert "upstream_cut" in written
        for secret in (*secrets.values(), PROMPT):
            assert secret not in written + shown
