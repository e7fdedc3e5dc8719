"""The documented API is the API: schemathesis invents requests from the documents and judges the answers by them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from gateway.api.routes import RULES, Access
from tests import http
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.gateway import ADMIN_KEY, CLIENT_KEY, running_gateway

SCHEMATHESIS = Path(sys.executable).with_name("st")
DOCUMENTS = {"/openapi.json": CLIENT_KEY, "/admin/v1/openapi.json": ADMIN_KEY}
EXAMPLES = 15  # for each operation and phase


@pytest.fixture
async def gateway(tmp_path: Path):
    async with OpenAIUpstream() as upstream:
        config = {"upstreams": [{"name": "up", "kind": "openai", "base_url": upstream.url, "models": ["m"]}]}
        async with running_gateway(config, tmp_path) as running:
            yield running


@pytest.mark.parametrize("document", DOCUMENTS)
async def test_invented_requests_never_get_an_answer_that_is_not_documented(gateway, document, tmp_path):
    process = await asyncio.create_subprocess_exec(
        str(SCHEMATHESIS), "run", gateway.url + document, "--header", f"Authorization: Bearer {DOCUMENTS[document]}",
        "--checks", "all", "--exclude-checks", "positive_data_acceptance", "--max-examples", str(EXAMPLES),
        "--generation-deterministic", "--request-timeout", "10", "--no-color", "--warnings", "off",
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-6000:]


async def test_every_route_for_clients_and_admins_is_documented(gateway):
    described = set()
    async with http.client() as client:
        for document, key in DOCUMENTS.items():
            answer = await client.get(gateway.url + document, headers={"authorization": f"Bearer {key}"})
            for path, operations in answer.json()["paths"].items():
                described |= {(method.upper(), path) for method in operations}
    listed = {(rule.method, rule.path + ("{id}" if rule.path.endswith("/") else "")) for rule in RULES}
    itself = {("GET", document) for document in DOCUMENTS}
    metrics = {(rule.method, rule.path) for rule in RULES if rule.access is Access.OBSERVER}  # Prometheus' own form
    assert listed - itself - metrics - {("POST", "/v1/tokenize")} == described
