"""What the settings must be together: pure functions from a configuration to what is wrong with it.

Each rule yields a `Mistake` for all that it finds; none stops at the first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path

from gateway.controlplane import pricelist, values
from gateway.controlplane.accounts import Auth, BudgetSettings
from gateway.controlplane.config import (
    AttachedAdapters,
    Config,
    EngineSettings,
    Price,
    TimeoutOverrides,
    Timeouts,
    UpstreamSettings,
)
from gateway.controlplane.launch import RESERVED_ARGUMENTS, RESERVED_ENVIRONMENT
from gateway.controlplane.problems import Loc, Mistake, nearest
from gateway.domain import keys
from gateway.domain.secret import Secret

MIN_KEY = 16
MAX_KEY = 512
_MIN_PEPPER = 32
MIN_SIGNING = 32  # characters of a secret that signs with SHA-256 (RFC 7518, 3.2)
_MIN_DISTINCT = 8  # characters that a key must at least be made of

# Words that sample keys are made of; a key that holds nothing but these (and runs of digits) is a sample.
_SAMPLE_WORDS = frozenset(
    "sk pk key keys api apikey my your the this that an to me it here with use change changeme changeit changethis "
    "replace replaceme insert put set enter test testing tests demo dev example sample dummy fake placeholder secret "
    "secretkey password passwd pass token admin adminkey root user client gateway lora openwebui webui vllm ollama "
    "openai empty none null foo bar baz please in production long random string value some default master local".split()
)
_SEQUENCES = (
    "01234567890123456789",
    "0123456789abcdef" * 3,
    "abcdefghijklmnopqrstuvwxyz" * 2,
    "qwertyuiopasdfghjklzxcvbnm",
)

_Rule = Callable[[Config, frozenset[str]], Iterator[Mistake]]


def check(config: Config, dropped: frozenset[str] = frozenset()) -> list[Mistake]:
    """Everything that is wrong with a configuration whose single values are right.

    `dropped`: names of upstreams and models that were left out of `config` because they are wrong in themselves;
    what refers to them is not reported again.
    """
    return [mistake for rule in RULES for mistake in rule(config, dropped)]


def _listening(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    if config.server.workers != 1:
        yield Mistake(
            ("server", "workers"),
            "can only be 1: engines, adapters and the state of the upstreams belong to one process",
            "write 1; for more capacity run more gateways behind a load balancer",
        )
    if not config.auth.required and not values.is_loopback(config.server.host):
        yield Mistake(
            ("auth", "required"),
            "is false, while server.host lets other machines in: anyone could use the gateway",
            "set auth.required: true, or server.host: 127.0.0.1",
        )


def _keys(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    auth = config.auth
    if auth.required and not auth.keys and auth.admin_key is None:
        yield Mistake(
            ("auth", "keys"),
            "is empty while auth.required is true, and without an admin key no other can be made: nobody could use the "
            "gateway",
            "set admin_key: ${…}, add {name: …, key: ${…}}, or set auth.required: false for loopback",
        )
    yield from _duplicates(("auth", "keys"), "name", [key.name for key in auth.keys])
    yield from _duplicates(("auth", "keys"), "key", [key.key for key in auth.keys])
    if auth.admin_key is not None:
        yield from _strength(("auth", "admin_key"), auth.admin_key)
    if auth.pepper is not None:
        yield from _pepper(("auth", "pepper"), auth)
    for index, key in enumerate(auth.keys):
        yield from _strength(("auth", "keys", index, "key"), key.key)
        if key.key == auth.admin_key:
            yield Mistake(("auth", "keys", index, "key"), "is the admin key as well", "make a key for each of the two")


def _content(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    for index, key in enumerate(config.auth.keys):
        if key.log_content and config.log.content is None:
            yield Mistake(
                ("auth", "keys", index, "log_content"),
                "is true, and there is no file for prompts and answers",
                "set log.content: /var/log/lora-gateway/content.jsonl, or take log_content away",
            )


def _budgets(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    defaults = config.limits.defaults
    places: list[tuple[Loc, tuple[BudgetSettings, ...]]] = [
        (("limits", "defaults", "key", "budgets"), defaults.key.budgets),
        (("limits", "defaults", "user", "budgets"), defaults.user.budgets),
    ]
    places += [(("auth", "keys", index, "budgets"), key.budgets) for index, key in enumerate(config.auth.keys)]
    places += [(("teams", index, "budgets"), team.budgets) for index, team in enumerate(config.teams)]
    places += [(("limits", "users", user, "budgets"), scope.budgets) for user, scope in config.limits.users.items()]
    for loc, budgets in places:
        yield from budget_mistakes(loc, budgets)


def budget_mistakes(loc: Loc, budgets: tuple[BudgetSettings, ...]) -> Iterator[Mistake]:
    """What is wrong with the budgets of one scope."""
    yield from _duplicates(loc, "per", [budget.per for budget in budgets])
    for index, budget in enumerate(budgets):
        if budget.money is None and budget.tokens is None:
            yield Mistake((*loc, index), "bounds nothing", "write money, tokens or both")


def _storage(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    if config.storage.url.is_shared and config.auth.pepper is None:
        yield Mistake(
            ("auth", "pepper"),
            "is missing, while storage.url is shared: a key that one gateway makes would open no other",
            "set the same pepper: ${…} on each; make one with: openssl rand -hex 32",
        )


def _pepper(loc: Loc, auth: Auth) -> Iterator[Mistake]:
    pepper = auth.pepper.reveal() if auth.pepper is not None else ""
    if len(pepper) < _MIN_PEPPER or len(set(pepper)) < _MIN_DISTINCT or is_sample(pepper):
        hint = "make one with: openssl rand -hex 32"
        yield Mistake(loc, f"must be random text of at least {_MIN_PEPPER} characters", hint)
    elif auth.pepper in (auth.admin_key, *(key.key for key in auth.keys)):
        yield Mistake(loc, "is a key as well", "make a pepper that is nothing else")


def _users(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    users, secret = config.users, config.users.openwebui.jwt_secret
    if secret is not None:
        loc: Loc = ("users", "openwebui", "jwt_secret")
        yield from _strength(loc, secret, MIN_SIGNING)
        if secret == config.auth.admin_key or secret in {key.key for key in config.auth.keys}:
            yield Mistake(loc, "is a key as well: who has that could say to be anybody", "make a secret of its own")
    if users.cache_secret is not None:
        yield from _strength(("users", "cache_secret"), users.cache_secret)
    if secret is None and not users.trusted_headers:
        hint = "set users.openwebui.jwt_secret"
        for index, key in enumerate(config.auth.keys):
            if key.users == "required":
                what = "is required, but nobody is trusted to say who a user is: nobody could use the key"
                yield Mistake(("auth", "keys", index, "users"), what, hint)
        for name in ("roles", "models"):
            if getattr(users, name):
                yield Mistake(("users", name), "has no use: nobody is trusted to say who a user is", hint)


def _teams(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    names = [team.name for team in config.teams]
    yield from _duplicates(("teams",), "name", names)
    for index, key in enumerate(config.auth.keys):
        if key.team is not None and key.team not in names:
            hint = nearest(key.team, names, "team")
            yield Mistake(("auth", "keys", index, "team"), "names no team of this file", hint)


def _strength(loc: Loc, secret: Secret, shortest: int = MIN_KEY) -> Iterator[Mistake]:
    key = secret.reveal()
    hint = "make one with: openssl rand -hex 32"
    if not key:
        yield Mistake(loc, "is empty", hint)
    elif re.search(r"\s", key):
        yield Mistake(loc, "holds a space or a tab, which no client can send in a key", hint)
    elif is_sample(key):
        yield Mistake(loc, "is a sample key that anyone can guess", hint)
    elif not shortest <= len(key) <= MAX_KEY:
        yield Mistake(loc, f"must have {shortest} to {MAX_KEY} characters", hint)
    elif keys.is_ours(key.encode()) and keys.is_malformed(key.encode()):
        yield Mistake(loc, f"begins with {keys.PREFIX} and is no key that `gateway keys create` has made", hint)
    elif len(set(key)) < _MIN_DISTINCT:
        yield Mistake(loc, f"is made of fewer than {_MIN_DISTINCT} different characters", hint)


def is_sample(key: str) -> bool:
    """Whether a key is only words and sequences that documentation and habit put in the place of a key."""
    tokens = re.findall(r"[a-z]+|\d+", key.lower())
    telling = [token for token in tokens if len(token) > 2]  # short ones stand beside words, and in random keys
    strange = [token for token in tokens if len(token) <= 2 and not token.isdigit() and token not in _SAMPLE_WORDS]
    whole = "".join(tokens)
    return any(whole in sequence for sequence in _SEQUENCES) or (
        bool(telling) and not strange and all(_is_habitual(token) for token in telling)
    )


def _is_habitual(token: str) -> bool:
    repeated = len(set(token)) == 1
    return repeated or token in _SAMPLE_WORDS or any(token in sequence for sequence in _SEQUENCES)


def _timeouts(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    # Only what was written is judged: a short total alone is meant, and ends the defaults with it.
    sections: list[tuple[Loc, Timeouts | TimeoutOverrides, float]] = [
        (("timeouts",), config.timeouts, config.timeouts.total)
    ]
    for index, upstream in enumerate(config.upstreams):
        sections.append((("upstreams", index, "timeouts"), upstream.timeouts, config.timeouts_for(upstream).total))
    for loc, section, total in sections:
        for key, seconds in section.model_dump(exclude_unset=True, exclude_none=True).items():
            if seconds > total:
                yield Mistake((*loc, key), f"is longer than total ({total:g} s), which ends the request before")


def _upstreams(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    yield from _duplicates(("upstreams",), "name", [upstream.name for upstream in config.upstreams])
    for index, upstream in enumerate(config.upstreams):
        loc = ("upstreams", index)
        yield from _address(loc, upstream)
        yield from _credentials(loc, upstream)
        yield from _offer(loc, upstream)
        yield from _attached((*loc, "adapters"), upstream)
        if upstream.options is not None and upstream.kind != "ollama":
            hint = 'use parameters.set for parameters of a request, or kind: "ollama"'
            yield Mistake((*loc, "options"), f"is for kind ollama only, not for {upstream.kind}", hint)
        if upstream.engine is not None and upstream.kind == "vllm":
            yield from _engine((*loc, "engine"), upstream.engine)


def _address(loc: Loc, upstream: UpstreamSettings) -> Iterator[Mistake]:
    if upstream.engine is not None and upstream.kind != "vllm":
        hint = "set kind: vllm, or leave engine out"
        yield Mistake((*loc, "engine"), f"is for kind vllm only, not for {upstream.kind}", hint)
        return
    if upstream.engine is not None and upstream.base_url is not None:
        hint = "keep engine for one that the gateway runs, base_url for one that runs already"
        yield Mistake((*loc, "base_url"), "stands beside engine: there must be exactly one of the two", hint)
        return
    if upstream.engine is not None:
        return
    if upstream.base_url is None:
        one_of = "or engine (exactly one of the two) " if upstream.kind == "vllm" else ""
        example = {"vllm": "http://127.0.0.1:8001/v1", "ollama": "http://127.0.0.1:11434"}
        hint = f"for example {example.get(upstream.kind, 'https://api.openai.com/v1')}"
        yield Mistake((*loc, "base_url"), f"{one_of}is missing", hint)
        return
    yield from _path((*loc, "base_url"), upstream.kind, values.address(upstream.base_url).path)
    if upstream.ca_file is not None and upstream.base_url.startswith("http://"):
        yield Mistake((*loc, "ca_file"), "has no use with an http:// base_url", "write https://, or leave ca_file out")


def _path(loc: Loc, kind: str, path: str) -> Iterator[Mistake]:
    if re.search(r"/(chat/completions|completions|embeddings|models|api/(chat|generate|tags))$", path):
        yield Mistake(loc, "ends in the path of one endpoint", "write only the part that all endpoints share")
    elif kind == "ollama" and re.search(r"/(v1|api)$", path):
        hint = "leave the end out; or use kind: openai for Ollama's own /v1"
        yield Mistake(loc, "must not end in /v1 or /api: Ollama's native API is used", hint)
    elif kind == "vllm" and not path.endswith("/v1"):
        yield Mistake(loc, "must end in /v1, where vLLM has its API", "write it as http://host:port/v1")


def _credentials(loc: Loc, upstream: UpstreamSettings) -> Iterator[Mistake]:
    if upstream.api_key is not None and "authorization" in upstream.headers:
        yield Mistake((*loc, "headers", "authorization"), "is set by api_key as well", "keep one of the two")
    if upstream.api_key is not None and not upstream.api_key:
        yield Mistake((*loc, "api_key"), "is empty", "leave the key out, or look at the environment variable")
    if upstream.engine is not None:
        for key in ("api_key", "headers", "query", "ca_file"):
            if getattr(upstream, key):
                yield Mistake((*loc, key), "has no use with engine: the gateway makes the engine's key itself")


def _prices(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    for index, upstream in enumerate(config.upstreams):
        loc: Loc = ("upstreams", index)
        if upstream.prices is not None:
            yield from _price_list((*loc, "prices"), upstream, upstream.prices)
        for name, override in upstream.overrides.items():
            yield from _price((*loc, "overrides", name, "price"), override.price)
    for index, model in enumerate(config.models):
        yield from _price(("models", index, "price"), model.price)


def _price_list(loc: Loc, upstream: UpstreamSettings, wanted: str) -> Iterator[Mistake]:
    if upstream.kind != "openai":
        hint = "give your own models a price each, in overrides"
        yield Mistake(loc, f"is for kind openai only, not for {upstream.kind}", hint)
        return
    try:
        pricelist.price_list(wanted, upstream.base_url or "")
    except LookupError:
        if wanted == pricelist.AUTO:
            hint = "write the id of a provider, or give each model a price in overrides"
            yield Mistake(loc, "is auto, and genai-prices knows no provider with this base_url", hint)
        else:
            hint = nearest(wanted, pricelist.providers(), "value") or "see https://github.com/pydantic/genai-prices"
            yield Mistake(loc, "is no provider that genai-prices knows", hint)
    except ImportError:
        what = "needs the package genai-prices, which is not installed"
        yield Mistake(loc, what, "pip install 'lora-gateway[prices]'")


def _price(loc: Loc, price: Price | None) -> Iterator[Mistake]:
    if price is None:
        return
    by_tokens, by_hours = (price.input, price.output), (price.gpu_hour, price.tokens_per_second)
    whole = None not in by_tokens and by_hours == (None, None)
    if not whole and (None in by_hours or (*by_tokens, price.cached) != (None, None, None)):
        hint = "write {input: 0.25, output: 2}, or {gpu_hour: 2.5, tokens_per_second: 1800}, or free"
        yield Mistake(loc, "is neither input with output, nor gpu_hour with tokens_per_second", hint)


def _offer(loc: Loc, upstream: UpstreamSettings) -> Iterator[Mistake]:
    if upstream.models is None:
        return
    yield from _duplicates((*loc, "models"), None, upstream.models)
    if upstream.engine is not None:
        yield Mistake((*loc, "models"), "has no use with engine", "the name of its model is engine.served_name")


def _engine(loc: Loc, engine: EngineSettings) -> Iterator[Mistake]:
    for index, argument in enumerate(engine.args):
        if flag := _reserved_flag(argument):
            yield Mistake(
                (*loc, "args", index), f"holds {flag}, which is the gateway's to set", RESERVED_ARGUMENTS[flag]
            )
    if engine.args and not engine.args[0].startswith("-"):
        hint = 'begin with a flag; write a flag and its value as two list items: ["--max-model-len", "2048"]'
        yield Mistake((*loc, "args", 0), "does not begin with a dash: it would be taken for the model", hint)
    for name in engine.env:
        if reason := RESERVED_ENVIRONMENT.get(name):
            yield Mistake((*loc, "env", name), f"cannot be set here: {reason}", "leave it out")
    yield from _loras(loc, engine)


def _attached(loc: Loc, upstream: UpstreamSettings) -> Iterator[Mistake]:
    adapters = upstream.adapters
    if "adapters" not in upstream.model_fields_set:
        return
    if upstream.kind != "vllm":
        yield Mistake(loc, f"is for kind vllm only, not for {upstream.kind}", "leave it out: only vLLM takes adapters")
        return
    if upstream.engine is not None:
        hint = "set engine.max_loras, engine.max_cpu_loras and engine.max_lora_rank"
        yield Mistake(loc, "has no use with engine, which the gateway starts itself and which sees the store", hint)
        return
    if adapters.from_hub and adapters.store is not None:
        hint = "keep store for an engine that sees the store, from_hub for one that does not"
        yield Mistake((*loc, "from_hub"), "stands beside store: an engine that sees the store reads from there", hint)
    yield from _loras(loc, adapters)


def _loras(loc: Loc, room: EngineSettings | AttachedAdapters) -> Iterator[Mistake]:
    if room.max_loras and room.max_cpu_loras and room.max_cpu_loras < room.max_loras:
        hint = f"write at least {room.max_loras}"
        yield Mistake((*loc, "max_cpu_loras"), "is less than max_loras, which vLLM refuses", hint)


def _reserved_flag(argument: str) -> str | None:
    """The reserved flag that vLLM would understand `argument` as: its parser takes `_` for `-`, and abbreviations."""
    flag = re.split(r"[=.\s]", argument, maxsplit=1)[0].replace("_", "-")
    if flag in RESERVED_ARGUMENTS:
        return flag
    if not flag.startswith("--") or len(flag) < 4:
        return None
    return next((reserved for reserved in RESERVED_ARGUMENTS if reserved.startswith(flag)), None)


def _models(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    yield from _duplicates(("models",), "id", [model.id for model in config.models])
    upstreams = {upstream.name: upstream for upstream in config.upstreams}
    for index, model in enumerate(config.models):
        yield from _duplicates(("models", index, "targets"), None, [(t.upstream, t.model) for t in model.targets])
        for number, target in enumerate(model.targets):
            loc = ("models", index, "targets", number)
            upstream = upstreams.get(target.upstream)
            if upstream is None:
                if target.upstream not in dropped:
                    hint = nearest(target.upstream, {*upstreams, *filter(values.NAME.fullmatch, dropped)}, "upstream")
                    yield Mistake((*loc, "upstream"), "names no upstream of this file", hint)
            elif (engine := upstream.engine) and target.model != engine.public_name and not _hosts(config, upstream):
                hint = nearest(target.model, [engine.public_name], "model")
                yield Mistake((*loc, "model"), f"is no model of the engine of {upstream.name}", hint)


def _hosts(config: Config, upstream: UpstreamSettings) -> bool:
    """Whether adapters, which come while the gateway runs, may be among its models."""
    engine = upstream.engine
    return upstream.kind == "vllm" and (engine is None or engine.max_loras is not None or bool(config.adapters.sources))


def _tasks(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    names = {model.id for model in config.models}
    for upstream in config.upstreams:
        own = (upstream.engine.public_name,) if upstream.engine else upstream.models
        if own is None:
            return  # what it lists is not known before it is asked
        names.update(upstream.prefix + model for model in own)
    if dropped or any(_hosts(config, upstream) for upstream in config.upstreams):
        return  # an adapter's name may be meant, or what was reported already
    for task, model in config.openwebui.tasks.items():
        if model not in names:
            hint = nearest(model, names, "model")
            yield Mistake(("openwebui", "tasks", task), "names no model that this gateway offers", hint)


def _adapters(config: Config, dropped: frozenset[str]) -> Iterator[Mistake]:
    store, sources = _absolute(config.adapters.store), [_absolute(source) for source in config.adapters.sources]
    yield from _duplicates(("adapters", "sources"), None, sources)
    hosts = any(upstream.kind == "vllm" or upstream.engine for upstream in config.upstreams)
    if sources and not hosts and not dropped:
        hint = "add an upstream of kind vllm, or leave sources out"
        yield Mistake(("adapters", "sources"), "has no use: no upstream can host adapters", hint)
    for index, source in enumerate(sources):
        if store == source or source in store.parents:
            hint = "keep the store, which the gateway writes, apart from the folders that it reads"
            yield Mistake(("adapters", "store"), f"lies in adapters.sources[{index}]", hint)
        elif store in source.parents:
            yield Mistake(("adapters", "sources", index), "lies in adapters.store", "put it elsewhere")


def _absolute(path: Path) -> Path:
    """Where a path points, by its text alone: the file system is not asked."""
    return Path(os.path.abspath(path))


def _duplicates(loc: Loc, key: str | None, items: Iterable[Hashable]) -> Iterator[Mistake]:
    """A mistake for each item that came before; `key` is the item's part that must differ, None for all of it."""
    first: dict[Hashable, int] = {}
    for index, item in enumerate(items):
        if item in first:
            here = (*loc, index) if key is None else (*loc, index, key)
            yield Mistake(
                here,
                f"is the same as that of {loc[-1]}[{first[item]}]"
                if key
                else f"is the same as {loc[-1]}[{first[item]}]",
                "each must be different",
            )
        else:
            first[item] = index


#: All rules, in the order of the file.
RULES: tuple[_Rule, ...] = (
    _listening,
    _keys,
    _content,
    _storage,
    _budgets,
    _users,
    _teams,
    _timeouts,
    _upstreams,
    _prices,
    _models,
    _tasks,
    _adapters,
)
