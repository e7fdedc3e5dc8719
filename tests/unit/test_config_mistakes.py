"""Every mistake in a configuration file is named with its place, what is wrong and what to write, before anything
starts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.controlplane.loader import ConfigError, Problem, from_mapping, load
from gateway.controlplane.problems import place

KEY = "9f4c1d7e2b8a6053c7e1f2a4b6d8091e"
ADMIN = "e19b08d6a4f2c1e7530a6b8e2d7c4f9f"
ENVIRON = {"CLIENT_KEY": KEY, "ADMIN_KEY": ADMIN, "EMPTY_VARIABLE": "", "PASTED": "sk-live-QUOTED\u201d"}

RIGHT = """\
server:
  host: 127.0.0.1
  port: 8000
auth:
  admin_key: ${ADMIN_KEY}
  keys:
    - {name: openwebui, key: "${CLIENT_KEY}", allow: [priority]}
timeouts: {connect: 2, total: 3600}
upstreams:
  - name: local
    kind: vllm
    engine:
      model: var/models/small
      args: ["--max-model-len", "2048"]
      max_loras: 4
  - name: ollama
    kind: ollama
    base_url: http://127.0.0.1:11434
    options: {num_ctx: 8192, keep_alive: 10m}
  - name: openai
    kind: openai
    base_url: https://api.openai.com/v1
    api_key: ${CLIENT_KEY}
    headers: {x-team: research}
    models: [gpt-5-mini]
    prefix: openai/
models:
  - id: assistant
    targets:
      - {upstream: local, model: small}
      - {upstream: openai, model: gpt-5-mini}
openwebui:
  tasks: {"*": assistant}
adapters:
  store: var/adapters
  sources: [adapters.d]
"""


def problems_of(text: str, folder: Path) -> tuple[Problem, ...]:
    file = folder / "gateway.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(file, ENVIRON)
    return caught.value.problems


def test_the_file_that_the_mistakes_are_planted_in_is_right(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(RIGHT)
    config = load(tmp_path / "gateway.yaml", ENVIRON)
    assert [upstream.name for upstream in config.upstreams] == ["local", "ollama", "openai"]


ATTACHED = "  - name: box\n    kind: vllm\n    base_url: http://127.0.0.1:8001/v1\n"

# What is written instead of what, the place that must be named, and words that its message must hold.
MISTAKES = {
    "unknown key at the top": ("timeouts:", "timeuots:", "timeuots", 'not a known key … did you mean "timeouts"'),
    "unknown key in a section": ("  port: 8000", "  prot: 8000", "server.prot", 'did you mean "port"'),
    "unknown key of an upstream": ("base_url: https", "baseurl: https", "upstreams[2].baseurl", 'mean "base_url"'),
    "port that is no number": ("port: 8000", "port: http", "server.port", "whole number"),
    "port that is true": ("port: 8000", "port: true", "server.port", "number, not true or false"),
    "port out of range": ("port: 8000", "port: 80000", "server.port", "at most 65535"),
    "host that is none": ("host: 127.0.0.1", 'host: "http://x"', "server.host", "not an IP address or a host name"),
    "two workers": ("port: 8000", "port: 8000\n  workers: 2", "server.workers", "can only be 1"),
    "no auth beyond loopback": (
        "auth:\n",
        "auth:\n  required: false\n",
        "auth.required",
        "anyone could use the gateway … server.host: 127.0.0.1",
    ),
    "no keys and nobody to make them": (
        '  admin_key: ${ADMIN_KEY}\n  keys:\n    - {name: openwebui, key: "${CLIENT_KEY}", allow: [priority]}',
        "  required: true",
        "auth.keys",
        "without an admin key no other can be made: nobody could use",
    ),
    "key that only looks as if the gateway had made it": (
        "${CLIENT_KEY}",
        "sk-lgw-a3c5e7092b4d6f8190a3c5e7092b4d6f8190",
        "auth.keys[0].key",
        "begins with sk-lgw- and is no key that",
    ),
    "short pepper": ("auth:\n", "auth:\n  pepper: Zp4vQ8Zp4vQ8k\n", "auth.pepper", "at least 32 characters … openssl"),
    "pepper that is a key": ("auth:\n", f"auth:\n  pepper: {KEY}\n", "auth.pepper", "is a key as well"),
    "endpoint that there is not": (
        "allow: [priority]}",
        "endpoints: [/v1/chat]}",
        "auth.keys[0].endpoints[0]",
        "/v1/chat/completions",
    ),
    "proxy that is no address": (
        "port: 8000",
        "port: 8000\n  trusted_proxies: [10.0.0.1/8]",
        "server.trusted_proxies[0]",
        "not an IP address or a network … without host bits",
    ),
    "sample key": ("${CLIENT_KEY}", "sk-1234", "auth.keys[0].key", "sample key … openssl rand"),
    "sample key of words": ("${CLIENT_KEY}", "your-secret-api-key-here", "auth.keys[0].key", "sample key"),
    "short key": ("${CLIENT_KEY}", "Zp4vQ8", "auth.keys[0].key", "16 to 512 characters"),
    "key of few characters": ("${CLIENT_KEY}", "qzqzqzqzqzqzqzqzqzqzqzqz", "auth.keys[0].key", "different characters"),
    "empty key": ("${CLIENT_KEY}", "${EMPTY_VARIABLE}", "auth.keys[0].key", "is empty"),
    "key with a space": ("${CLIENT_KEY}", "9f4c1d7e2b8a6053 c7e1f2a4b6d8091e", "auth.keys[0].key", "space"),
    "one key for admin and client": ("${ADMIN_KEY}", KEY, "auth.keys[0].key", "is the admin key as well"),
    "two clients with one key": (
        "allow: [priority]}",
        'allow: []}\n    - {name: other, key: "${CLIENT_KEY}"}',
        "auth.keys[1].key",
        "same as that of keys[0]",
    ),
    "unknown privilege": ("[priority]", "[prioritty]", "auth.keys[0].allow[0]", 'did you mean "priority"'),
    "key that is no text": ('"${CLIENT_KEY}"', "12345678901234567", "auth.keys[0].key", "must be text … quotes"),
    "variable that is not set": ("${ADMIN_KEY}", "${NOT_SET}", "auth.admin_key", "NOT_SET, which is not set"),
    "variable that is malformed": ("${ADMIN_KEY}", "${ADMIN-KEY}", "auth.admin_key", "neither ${NAME} nor"),
    "secret of users that is short": (
        "timeouts:",
        "users: {openwebui: {jwt_secret: Zp4vQ8-Zp4vQ8-b7Yw5kT2}}\ntimeouts:",
        "users.openwebui.jwt_secret",
        "32 to 512 characters",
    ),
    "secret of users that is a sample": (
        "timeouts:",
        "users: {openwebui: {jwt_secret: change-me-in-production-please-change-me}}\ntimeouts:",
        "users.openwebui.jwt_secret",
        "sample key",
    ),
    "secret of users that is a client's key": (
        "timeouts:",
        'users: {openwebui: {jwt_secret: "${CLIENT_KEY}"}}\ntimeouts:',
        "users.openwebui.jwt_secret",
        "could say to be anybody",
    ),
    "secret of the cache that is short": (
        "timeouts:",
        "users: {cache_secret: Zp4vQ8}\ntimeouts:",
        "users.cache_secret",
        "16 to 512 characters",
    ),
    "way to share the cache that is none": (
        "timeouts:",
        "users: {cache: teant}\ntimeouts:",
        "users.cache",
        'did you mean "tenant"',
    ),
    "users that nobody can prove": (
        "allow: [priority]}",
        "users: required}",
        "auth.keys[0].users",
        "nobody could use the key … users.openwebui.jwt_secret",
    ),
    "roles that nobody can prove": (
        "timeouts:",
        "users: {roles: {admin: [adapters]}}\ntimeouts:",
        "users.roles",
        "nobody is trusted to say who a user is",
    ),
    "unknown right of a role": (
        "timeouts:",
        "users: {trusted_headers: true, roles: {admin: [adapter]}}\ntimeouts:",
        "users.roles.admin[0]",
        'did you mean "adapters"',
    ),
    "key in an unknown team": (
        "allow: [priority]}",
        "team: suport}\nteams: [{name: support}]",
        "auth.keys[0].team",
        'did you mean "support"',
    ),
    "two teams with one name": (
        "timeouts:",
        "teams: [{name: support}, {name: support}]\ntimeouts:",
        "teams[1].name",
        "same as that of teams[0]",
    ),
    "member that is none": (
        "timeouts:",
        'teams: [{name: support, members: [""]}]\ntimeouts:',
        "teams[0].members[0]",
        "is empty",
    ),
    "limit of nothing": (
        "allow: [priority]}",
        "limits: {requests_per_minute: 0}}",
        "auth.keys[0].limits.requests_per_minute",
        "at least 1",
    ),
    "unknown limit": (
        "allow: [priority]}",
        "limits: {request_per_minute: 5}}",
        "auth.keys[0].limits.request_per_minute",
        'did you mean "requests_per_minute"',
    ),
    "budget that bounds nothing": (
        "allow: [priority]}",
        "budgets: [{per: day}]}",
        "auth.keys[0].budgets[0]",
        "bounds nothing … money, tokens or both",
    ),
    "budget without a period": (
        "allow: [priority]}",
        "budgets: [{money: 5}]}",
        "auth.keys[0].budgets[0].per",
        "is missing",
    ),
    "budget for a week": (
        "allow: [priority]}",
        "budgets: [{money: 5, per: week}]}",
        "auth.keys[0].budgets[0].per",
        "'day', 'month' or 'total'",
    ),
    "budget below nothing": (
        "allow: [priority]}",
        "budgets: [{tokens: -1, per: day}]}",
        "auth.keys[0].budgets[0].tokens",
        "at least 0",
    ),
    "two budgets for a day": (
        "timeouts:",
        "limits: {defaults: {user: {budgets: [{money: 5, per: day}, {tokens: 9, per: day}]}}}\ntimeouts:",
        "limits.defaults.user.budgets[1].per",
        "same as that of budgets[0]",
    ),
    "limits in a place that is none": (
        "timeouts:",
        "limits: {url: postgresql://db/limits}\ntimeouts:",
        "limits.url",
        "redis:// … redis://host:6379/0",
    ),
    "limits in a database that is none": (
        "timeouts:",
        "limits: {url: redis://cache/one}\ntimeouts:",
        "limits.url",
        "not the number of a database",
    ),
    "price that is a word": (
        "    prefix: openai/\n",
        "    prefix: openai/\n    overrides: {gpt-5-mini: {price: cheap}}\n",
        "upstreams[2].overrides.gpt-5-mini.price",
        "a price or free",
    ),
    "half a price": (
        "    prefix: openai/\n",
        "    prefix: openai/\n    overrides: {gpt-5-mini: {price: {input: 0.25}}}\n",
        "upstreams[2].overrides.gpt-5-mini.price",
        "neither input with output, nor gpu_hour",
    ),
    "two prices in one": (
        "    prefix: openai/\n",
        "    prefix: openai/\n    overrides: {m: {price: {input: 1, output: 1, gpu_hour: 2, tokens_per_second: 9}}}\n",
        "upstreams[2].overrides.m.price",
        "neither input with output, nor gpu_hour",
    ),
    "prices of nobody": (
        "    prefix: openai/\n",
        "    prefix: openai/\n    prices: opnai\n",
        "upstreams[2].prices",
        'did you mean "openai"',
    ),
    "prices of a model at home": (
        "kind: ollama\n",
        "kind: ollama\n    prices: auto\n",
        "upstreams[1].prices",
        "for kind openai only",
    ),
    "limit of a model that is no number": (
        "    prefix: openai/\n",
        "    prefix: openai/\n    overrides: {gpt-5-mini: {limits: {concurrent: many}}}\n",
        "upstreams[2].overrides.gpt-5-mini.limits.concurrent",
        "whole number",
    ),
    "pattern with a space": (
        "allow: [priority]}",
        'models: ["support bot"]}',
        "auth.keys[0].models[0]",
        "a name, or a pattern",
    ),
    "no model for a key": ("allow: [priority]}", "models: []}", "auth.keys[0].models", "at least 1"),
    "unknown kind": ("kind: ollama", "kind: olama", "upstreams[1].kind", 'did you mean "ollama"'),
    "upstream without a name": ("name: ollama\n    kind", "kind", "upstreams[1].name", "is missing"),
    "name with a space": ("name: ollama", "name: my ollama", "upstreams[1].name", "a-z, 0-9"),
    "two upstreams with one name": ("name: ollama", "name: local", "upstreams[1].name", "same as that of upstreams[0]"),
    "no base_url": ("    base_url: http://127.0.0.1:11434\n", "", "upstreams[1].base_url", "is missing"),
    "neither engine nor base_url": (
        "    kind: ollama\n    base_url: http://127.0.0.1:11434\n    options: {num_ctx: 8192, keep_alive: 10m}",
        "    kind: vllm",
        "upstreams[1].base_url",
        "exactly one of the two",
    ),
    "engine and base_url": (
        "    engine:",
        "    base_url: http://127.0.0.1:8001/v1\n    engine:",
        "upstreams[0].base_url",
        "exactly one of the two",
    ),
    "engine of another kind": ("kind: vllm", "kind: openai", "upstreams[0].engine", "for kind vllm only"),
    "options of another kind": ("models: [gpt", "options: {}\n    models: [gpt", "upstreams[2].options", "ollama only"),
    "base_url without a scheme": ("https://api.openai.com/v1", "api.openai.com/v1", "upstreams[2].base_url", "http://"),
    "base_url with a password": ("https://api", "https://me:pw@api", "upstreams[2].base_url", "password … api_key"),
    "base_url with a query": ("openai.com/v1", "openai.com/v1?a=b", "upstreams[2].base_url", "query … into query"),
    "base_url with a bad port": ("openai.com/v1", "openai.com:x/v1", "upstreams[2].base_url", "valid host and port"),
    "base_url of one endpoint": ("com/v1", "com/v1/chat/completions", "upstreams[2].base_url", "one endpoint"),
    "ollama below /v1": ("http://127.0.0.1:11434", "http://127.0.0.1:11434/v1", "upstreams[1].base_url", "native API"),
    "hop-by-hop header": ("{x-team:", "{Connection:", "upstreams[2].headers.Connection", "set by the gateway itself"),
    "header name that is none": ("{x-team:", '{"x team":', 'upstreams[2].headers["x team"]', "not a valid header name"),
    "header beside api_key": ("{x-team:", "{Authorization:", "upstreams[2].headers.authorization", "api_key as well"),
    "pasted quote in a key": ("    api_key: ${CLIENT_KEY}", "    api_key: ${PASTED}", "upstreams[2].api_key", "ASCII"),
    "duration that is none": ("keep_alive: 10m", "keep_alive: soon", "upstreams[1].options.keep_alive", '"10m"'),
    "zero time-out": ("connect: 2", "connect: 0", "timeouts.connect", "more than 0"),
    "connect longer than total": ("connect: 2", "connect: 4000", "timeouts.connect", "longer than total (3600 s)"),
    "upstream's time-out over its total": (
        "    prefix:",
        "    timeouts: {answer: 100, total: 50}\n    prefix:",
        "upstreams[2].timeouts.answer",
        "longer than total (50 s)",
    ),
    "port given to the engine": ('"--max-model-len"', '"--port"', "upstreams[0].engine.args[0]", "--port"),
    "abbreviated flag": (
        '"--max-model-len", "2048"',
        '"--max_lora_r=64"',
        "upstreams[0].engine.args[0]",
        "max_lora_rank",
    ),
    "argument before a flag": ('"--max-model-len", "2048"', '"2048"', "upstreams[0].engine.args[0]", "dash"),
    "engine's own variable": (
        "      max_loras: 4",
        "      env: {VLLM_SERVER_DEV_MODE: '1'}",
        "upstreams[0].engine.env.VLLM_SERVER_DEV_MODE",
        "cannot be set here",
    ),
    "rank that vLLM has not": ("max_loras: 4", "max_lora_rank: 10", "upstreams[0].engine.max_lora_rank", "8, 16"),
    "fewer in memory than in a batch": (
        "max_loras: 4",
        "max_loras: 4\n      max_cpu_loras: 2",
        "upstreams[0].engine.max_cpu_loras",
        "less than max_loras",
    ),
    "model without a target": (
        "    targets:\n      - {upstream: local, model: small}\n      - {upstream: openai, model: gpt-5-mini}",
        "    targets: []",
        "models[0].targets",
        "at least 1",
    ),
    "target on an unknown upstream": (
        "{upstream: local",
        "{upstream: locol",
        "models[0].targets[0].upstream",
        '"local"',
    ),
    "target twice": (
        "openai, model: gpt-5-mini}",
        "local, model: small}",
        "models[0].targets[1]",
        "same as targets[0]",
    ),
    "model id with a space": ("id: assistant", "id: my assistant", "models[0].id", "without spaces"),
    "list instead of a mapping": ("{x-team: research}", "[x-team]", "upstreams[2].headers", "must be a mapping"),
    "text instead of a list": ("[gpt-5-mini]", "gpt-5-mini", "upstreams[2].models", "must be a list"),
    "key written twice": ("  port: 8000", "  port: 8000\n  port: 8001", "server.port", "twice, in lines 3 and 4"),
    "store in a source": ("store: var/adapters", "store: adapters.d/store", "adapters.store", "lies in"),
    "source in the store": ("[adapters.d]", "[./var/adapters/mine]", "adapters.sources[0]", "lies in adapters.store"),
    "YAML tag": ("port: 8000", "port: !!python/object/apply:os.getpid []", "server.port", "whole number"),
    "adapters of another kind": (
        "    prefix:",
        "    adapters: {max_loras: 4}\n    prefix:",
        "upstreams[2].adapters",
        "for kind vllm only",
    ),
    "adapters beside an engine": (
        "    engine:",
        "    adapters: {store: /mnt/adapters}\n    engine:",
        "upstreams[0].adapters",
        "has no use with engine … engine.max_loras",
    ),
    "store of an engine elsewhere by a relative path": (
        "  - name: ollama\n",
        f"{ATTACHED}    adapters: {{store: mnt/adapters}}\n  - name: ollama\n",
        "upstreams[1].adapters.store",
        "must be an absolute path … as the engine sees it",
    ),
    "engine that sees the store and fetches": (
        "  - name: ollama\n",
        f"{ATTACHED}    adapters: {{store: /mnt, from_hub: true}}\n  - name: ollama\n",
        "upstreams[1].adapters.from_hub",
        "stands beside store",
    ),
    "attached engine with fewer in memory than in a batch": (
        "  - name: ollama\n",
        f"{ATTACHED}    adapters: {{max_loras: 4, max_cpu_loras: 2}}\n  - name: ollama\n",
        "upstreams[1].adapters.max_cpu_loras",
        "less than max_loras",
    ),
    "way to load that is none": ("  store:", "  load: layz\n  store:", "adapters.load", 'did you mean "lazy"'),
    "idle time that is none": ("  store:", "  idle_unload: nver\n  store:", "adapters.idle_unload", "or never"),
    "idle time of nothing": ("  store:", "  idle_unload: 0\n  store:", "adapters.idle_unload", "more than 0"),
    "idle time that is true": ("  store:", "  idle_unload: true\n  store:", "adapters.idle_unload", "must be a number"),
    "no version to go back to": ("  store:", "  keep_versions: 1\n  store:", "adapters.keep_versions", "at least 2"),
    "limit of an import": (
        "  store:",
        "  import_limits: {max_gib: 4}\n  store:",
        "adapters.import_limits.max_gib",
        'did you mean "max_mib"',
    ),
    "another storage": ("timeouts:", "storage: {url: mysql://db/x}\ntimeouts:", "storage.url", "postgresql://"),
    "no database": ("timeouts:", "storage: {url: postgresql://db}\ntimeouts:", "storage.url", "names no database"),
    "a parameter of the database": (
        "timeouts:",
        "storage: {url: 'postgresql://db/x?options=-csearch_path'}\ntimeouts:",
        "storage.url",
        "has parameters that are not taken: options",
    ),
    "a pepper for each gateway": (
        "timeouts:",
        "storage: {url: postgresql://db/x}\ntimeouts:",
        "auth.pepper",
        "openssl rand",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_place(name: str, tmp_path: Path) -> None:
    before, after, place, words = MISTAKES[name]
    assert before in RIGHT
    text = RIGHT.replace(before, after, 1)
    if name == "no auth beyond loopback":
        text = text.replace("host: 127.0.0.1", "host: 0.0.0.0")
    problems = problems_of(text, tmp_path)

    assert [problem.place for problem in problems] == [place], "this mistake, and no consequence of it"
    told = str(problems[0])
    for part in words.split(" … "):
        assert part in told
    line = problems[0].line
    assert line is not None
    assert 1 <= line <= len(text.splitlines())


def test_there_are_at_least_thirty_planted_mistakes() -> None:
    assert len(MISTAKES) >= 30


def test_the_line_is_that_of_the_mistake(tmp_path: Path) -> None:
    (problem,) = problems_of(RIGHT.replace("kind: ollama", "kind: olama"), tmp_path)
    assert RIGHT.splitlines()[problem.line - 1] == "    kind: ollama" if problem.line else False


def test_all_mistakes_are_reported_at_once_and_none_twice(tmp_path: Path) -> None:
    text = (
        RIGHT.replace("port: 8000", "port: http")  # a value that is wrong in itself
        .replace("${ADMIN_KEY}", "${NOT_SET}")  # the environment
        .replace("name: ollama\n    kind: ollama", "name: ollama\n    kind: olama")  # drops an upstream
        .replace("${CLIENT_KEY}", "sk-1234", 1)  # a rule
        .replace("{upstream: local, model: small}", "{upstream: olama, model: small}")  # a reference
        .replace("store: var/adapters", "store: adapters.d/store")  # a rule at the end
    )
    places = sorted(problem.place for problem in problems_of(text, tmp_path))
    assert places == [
        "adapters.store",
        "auth.admin_key",
        "auth.keys[0].key",
        "models[0].targets[0].upstream",
        "server.port",
        "upstreams[1].kind",
    ]


def scalars(tree: Any, loc: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if entries is None:
        yield loc
        return
    for key, value in entries:
        yield from scalars(value, (*loc, key))


TREE = yaml.safe_load(RIGHT.replace("${ADMIN_KEY}", ADMIN).replace("${CLIENT_KEY}", KEY))


@pytest.mark.parametrize("loc", list(scalars(TREE)), ids=place)
@pytest.mark.parametrize("value", ["sk-live-4f9a\u201d", "sk live/4f9a"])
def test_a_message_never_repeats_a_value(loc: tuple[str | int, ...], value: str) -> None:
    """A secret in the wrong place, or a mangled one in the right place, stays out of every message."""
    tree = copy.deepcopy(TREE)
    section = tree
    for part in loc[:-1]:
        section = section[part]
    section[loc[-1]] = value
    problems: tuple[Problem, ...] = ()
    try:
        from_mapping(tree)
    except ConfigError as error:
        problems = error.problems
    assert "4f9a" not in " ".join(map(str, problems))
