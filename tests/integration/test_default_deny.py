"""S-1 to S-4: nothing is open that is not listed; no trick with paths, hosts or credentials changes who may what."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from gateway.api.edge import Edge
from gateway.api.routes import RULES, Access, RouteTable
from tests import http
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.gateway import ADMIN_KEY, CLIENT_KEY, Running, running_gateway
from tests.wire import connected

OPEN = {("GET", "/livez"), ("GET", "/readyz")}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: As if a proxy stood in front: a client on loopback itself may see the metrics without a key.
PROXIED = {"x-forwarded-for": "198.51.100.7"}
CREDENTIALS = {
    "no key": {},
    "garbage": {"authorization": "Bearer garbage"},
    "unknown key": {"authorization": "Bearer sk-nobody-0123456789abcdef"},
    "not a bearer": {"authorization": f"Basic {CLIENT_KEY}"},
    "empty bearer": {"authorization": "Bearer"},
    "client key": {"authorization": f"Bearer {CLIENT_KEY}"},
    "admin key": {"authorization": f"Bearer {ADMIN_KEY}"},
}


@pytest.fixture
async def gateway(tmp_path: Path):
    async with OpenAIUpstream() as upstream:
        config = {
            "upstreams": [{"name": "up", "kind": "openai", "base_url": upstream.url, "models": ["m"]}],
            "auth": {"admin_key": ADMIN_KEY, "keys": [{"name": "tester", "key": CLIENT_KEY, "allow": ["adapters"]}]},
        }
        async with running_gateway(config, tmp_path) as running:
            yield running


def allowed(access: Access | None, credential: str) -> bool:
    if access is Access.OPEN:
        return True
    if access is Access.KEY or access is None:
        return credential == "client key"
    return credential == "admin key"


async def answer(client: httpx2.AsyncClient, gateway: Running, method: str, path: str, headers: dict[str, str]):
    body = b"{}" if method in ("POST", "PUT", "PATCH") else None
    kind = {"content-type": "application/json"} if body else {}
    return await client.request(method, gateway.url + path, headers={**kind, **headers}, content=body)


async def test_every_route_and_method_lets_in_exactly_those_whom_the_table_names(gateway):
    paths = {re.sub(r"\{.*?\}", "0123456789ab", rule.path) + ("m" if rule.path.endswith("/") else "") for rule in RULES}
    paths |= {"/", "/docs", "/redoc", "/v1", "/v1/", "/admin", "/admin/v1", "/admin/v1/keys/", "/v1/files", "/metrics/",
              "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/api/tags", "/api/pull", "/health",
              "/static/x", "/admin/v1/adapters/", "/admin/v1/adapters/a/b", "/models/x", "/models/sse"}  # fmt: skip
    table = RouteTable()
    wrong = []
    async with http.client() as client:
        for path, method, (credential, headers) in itertools.product(sorted(paths), METHODS, CREDENTIALS.items()):
            methods = table.methods(path) or {}
            rule = methods.get(method)
            access = rule.access if rule else (next(iter(methods.values())).access if methods else None)
            answered = await answer(client, gateway, method, path, {**PROXIED, **headers})
            got = answered.status_code
            if not allowed(access, credential):
                right = got in (400, 401, 403, 429)  # 429: many wrong keys have come from here
            elif rule is None:
                right = got == (405 if methods else 404)
            else:
                # 400: the empty body; 404: no such adapter, no such key; 409: no upstream takes one
                right = got in (200, 400) or (got in (404, 409) and "error" in answered.json())
            if not right:
                wrong.append((method, path, credential, got))
    assert not wrong


async def test_only_liveness_and_readiness_are_open_and_say_no_more(gateway):
    open_rules = {(rule.method, rule.path) for rule in RULES if rule.access is Access.OPEN}
    assert open_rules == OPEN
    async with http.client(headers=PROXIED) as client:
        assert (await client.get(f"{gateway.url}/livez")).json() == {"status": "alive"}
        assert (await client.get(f"{gateway.url}/readyz")).json() == {"status": "ready"}
        assert (await client.get(f"{gateway.url}/metrics")).status_code == 401


async def test_metrics_are_for_loopback_without_a_proxy_or_for_the_admin(gateway):
    async with http.client() as client:
        assert (await client.get(f"{gateway.url}/metrics")).status_code == 200
        for header in ("x-forwarded-for", "forwarded", "x-real-ip"):
            assert (await client.get(f"{gateway.url}/metrics", headers={header: "127.0.0.1"})).status_code == 401
        admin = {**PROXIED, "authorization": f"Bearer {ADMIN_KEY}"}
        assert (await client.get(f"{gateway.url}/metrics", headers=admin)).status_code == 200


async def test_a_fastapi_route_without_a_rule_keeps_the_gateway_from_starting():
    pages = FastAPI(openapi_url=None)

    @pages.get("/forgotten")
    async def forgotten() -> None: ...

    with pytest.raises(RuntimeError, match="without a rule"):
        Edge(None, pages, None, None, RouteTable())  # type: ignore[arg-type]


TRICKS = [
    "//v1/models", "/v1/models/../../admin/v1/config", "/admin/v1/%63onfig", "/%61dmin/v1/config", "/admin//v1/config",
    "/admin/v1/config/", "/admin/v1/config;x", "/admin/v1/config%2f", "/ADMIN/v1/config", "/admin/v1/config%00",
    "/v1/models/..;/admin/v1/config", "/v1/%2e%2e/admin/v1/config", "/v1/models/%2e%2e/%2e%2e/admin/v1/config",
    "/livez/../admin/v1/config", "/livez%2f..%2fadmin/v1/config", "/livez/admin/v1/config", "/./admin/v1/config",
    "/admin/v1/config?/livez", "/admin/v1/config#/livez", "/admin\\v1\\config", "/v1//models/../admin/v1/config",
    "/readyz?x=/admin/v1/config", "/metrics/../admin/v1/config", "/v1/models?key=" + CLIENT_KEY,
]  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
async def test_no_spelling_of_a_path_opens_what_is_closed(gateway, trick):
    for host in ("127.0.0.1", "localhost", "admin", "a.example:8000"):
        async with connected(gateway.url) as wire:
            await wire.send(f"GET {trick} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            reply = await wire.reply()
        assert reply.status in (400, 401, 403, 404) or trick.startswith("/readyz"), (trick, reply.status)
        assert b"upstreams" not in reply.body or trick.startswith("/readyz")


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
async def test_each_place_for_a_key_serves_alike(gateway, header):
    def placed(key: str) -> dict[str, str]:
        return {header: f"Bearer {key}" if header == "authorization" else key}

    async with http.client() as client:
        assert (await client.get(f"{gateway.v1}/models", headers=placed(CLIENT_KEY))).status_code == 200
        assert (await client.get(f"{gateway.v1}/models", headers=placed(ADMIN_KEY))).status_code == 401
        assert (await client.get(f"{gateway.v1}/models", headers=placed("sk-other-0123456789"))).status_code == 401
        config = f"{gateway.url}/admin/v1/config"
        assert (await client.get(config, headers=placed(ADMIN_KEY))).status_code == 200
        assert (await client.get(config, headers=placed(CLIENT_KEY))).status_code == 401


async def test_two_credentials_are_refused_even_when_both_are_good(gateway):
    pairs = itertools.combinations(
        (("authorization", f"Bearer {CLIENT_KEY}"), ("x-api-key", CLIENT_KEY), ("api-key", CLIENT_KEY)), 2
    )
    async with http.client() as client:
        for pair in pairs:
            assert (await client.get(f"{gateway.v1}/models", headers=dict(pair))).status_code == 400
        twice = [("authorization", f"Bearer {CLIENT_KEY}")] * 2
        assert (await client.get(f"{gateway.v1}/models", headers=twice)).status_code == 400


async def test_a_key_in_the_query_is_no_key(gateway):
    async with http.client() as client:
        for name in ("key", "api_key", "api-key", "access_token", "authorization"):
            assert (await client.get(f"{gateway.v1}/models?{name}={CLIENT_KEY}")).status_code == 401


async def test_the_configuration_page_shows_no_secret(gateway):
    async with http.client() as client:
        page = await client.get(f"{gateway.url}/admin/v1/config", headers=gateway.admin_headers)
    assert page.status_code == 200
    assert CLIENT_KEY not in page.text
    assert ADMIN_KEY not in page.text
    assert re.search(r'"admin_key":"\*\*\*"', page.text)
