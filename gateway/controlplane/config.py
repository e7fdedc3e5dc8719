"""The configuration file as frozen data: every key, its type and its default.

What one value may be is said here, and in `accounts` for keys, people and limits; what several must be together is in
`rules`, and `loader.load` is the one way to a configuration that was held against both.  docs/configuration.md and
deploy/gateway.schema.json follow these classes, and tests keep them in step.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gateway.controlplane import values
from gateway.controlplane.accounts import Auth, LimitSettings, LimitsStore, TeamSettings, Users
from gateway.controlplane.section import Section
from gateway.controlplane.storageurl import StorageURL
from gateway.controlplane.values import (
    AnySecret,
    Count,
    CpuLoras,
    EnginePath,
    Everything,
    FilePath,
    HeaderName,
    LoraRank,
    Loras,
    ModelId,
    Name,
    Network,
    ParameterName,
    Prefix,
    QueryName,
    Seconds,
    SecretText,
    TaskName,
    Text,
    Tokens,
    VariableName,
    Word,
)
from gateway.domain import money, snapshot

_DEFAULT_TIMEOUTS = snapshot.Timeouts()
_DEFAULT_CONCURRENCY = snapshot.Concurrency()


class Server(Section):
    """Where the gateway listens, and what a connection may ask of it."""

    host: Annotated[str, BeforeValidator(values.host)] = "127.0.0.1"
    """Address to listen on.  Anything but loopback is refused while `auth.required` is false."""
    port: Annotated[int, Field(ge=0, le=65_535), values.NUMERIC] = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    workers: Annotated[int, Field(ge=1), values.NUMERIC] = 1
    """Processes.  Only 1 is possible: the engines and the state of the upstreams belong to one process."""
    max_body_mib: Annotated[int, Field(ge=1, le=1024), values.NUMERIC] = 64
    """Largest request body, in MiB; a larger one is answered with 413."""
    max_connections: Count = 4096
    """Connections held open at once; further ones are closed at once."""
    header_timeout: Seconds = 10
    """Seconds that a client may take to send its headers."""
    body_timeout: Seconds = 30
    """Seconds without progress that a client may take while it sends a body."""
    keep_alive: Seconds = 75
    """Seconds that an idle connection is kept; more than the load balancer in front keeps its own."""
    write_stall: Seconds = 30
    """Seconds that a client may refuse to read its answer before it is cut off."""
    drain_timeout: Seconds = 30
    """Seconds that running requests get to finish when the gateway is told to stop."""
    trusted_proxies: Annotated[tuple[Network, ...], Field(max_length=256)] = ()
    """Addresses and networks of proxies whose `X-Forwarded-For` is believed."""


class Storage(Section):
    """Where the gateway keeps what must outlive it."""

    url: StorageURL = StorageURL.parse("sqlite:///var/gateway.db")
    """`sqlite:///` and the path of a file, or `postgresql://…` for what several gateways share."""
    local: FilePath = Path("var/gateway.db")
    """With PostgreSQL: the file of what is this gateway's own."""

    @property
    def file(self) -> str:
        """The SQLite file of what is this gateway's own, as `sqlite:///PATH`."""
        return f"sqlite:///{self.local}" if self.url.is_shared else self.url.shown


class Log(Section):
    """What the gateway says of its work.  No key is ever in it, and no prompt but in `content`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe message that is written."""
    format: Literal["auto", "pretty", "json"] = "auto"
    """`auto`: for people on a terminal, JSON lines elsewhere."""
    content: FilePath | None = None
    """File for the prompts and answers of keys with `log_content`, as JSON lines; null: no key can have that."""


class Timeouts(Section):
    """Seconds that an upstream gets, all on the monotonic clock."""

    connect: Seconds = _DEFAULT_TIMEOUTS.connect
    """To accept a connection, TLS included."""
    first_byte: Seconds = _DEFAULT_TIMEOUTS.first_byte
    """From the sent request to the first event of a stream."""
    answer: Seconds = _DEFAULT_TIMEOUTS.answer
    """From the sent request to an answer that comes whole."""
    byte_idle: Seconds = _DEFAULT_TIMEOUTS.byte_idle
    """Between two pieces of a stream, keep-alive comments included."""
    token_idle: Seconds = _DEFAULT_TIMEOUTS.token_idle
    """Between two events of a stream."""
    total: Seconds = _DEFAULT_TIMEOUTS.total
    """For a whole request."""


class TimeoutOverrides(Section):
    """Time-outs of one upstream, where they differ from `timeouts`."""

    connect: Seconds | None = None
    """As in `timeouts`."""
    first_byte: Seconds | None = None
    """As in `timeouts`."""
    answer: Seconds | None = None
    """As in `timeouts`."""
    byte_idle: Seconds | None = None
    """As in `timeouts`."""
    token_idle: Seconds | None = None
    """As in `timeouts`."""
    total: Seconds | None = None
    """As in `timeouts`."""


class Concurrency(Section):
    """How many requests an upstream gets at once."""

    limit: Count = _DEFAULT_CONCURRENCY.limit
    """Requests sent to it at once."""
    queue: Annotated[int, Field(ge=0, le=1_000_000), values.NUMERIC] = _DEFAULT_CONCURRENCY.queue
    """Requests that may wait for a place; further ones are answered with 503."""
    queue_timeout: Seconds = _DEFAULT_CONCURRENCY.queue_timeout
    """Seconds that a request waits for a place."""


class Parameters(Section):
    """What happens to a request's parameters on the way to an upstream: rename, drop, allow, set, in this order."""

    rename: dict[ParameterName, ParameterName] = {}
    """Client's name → the upstream's, as in `{max_tokens: max_completion_tokens}`."""
    drop: tuple[ParameterName, ...] = ()
    """Parameters that this upstream refuses; a dropped one is named in the header `x-gateway-dropped-params`."""
    allow: Everything = ()
    """Parameters that pass beyond those that the kind of upstream is known to take; "*" lets all through."""
    set: dict[ParameterName, Any] = {}
    """Parameters that are always sent with these values, whatever the client said."""


class Price(Section):
    """Money for a million tokens, in the currency that you think in; or what a machine costs and does."""

    input: Annotated[float, Field(ge=0, le=1_000_000), values.NUMERIC] | None = None
    """For a million prompt tokens."""
    output: Annotated[float, Field(ge=0, le=1_000_000), values.NUMERIC] | None = None
    """For a million completion tokens."""
    cached: Annotated[float, Field(ge=0, le=1_000_000), values.NUMERIC] | None = None
    """For a million prompt tokens that the upstream had in its cache, where it says how many; null: as the others."""
    gpu_hour: Annotated[float, Field(ge=0, le=1_000_000), values.NUMERIC] | None = None
    """In place of `input` and `output`: what the engine's machine costs an hour."""
    tokens_per_second: Annotated[float, Field(gt=0, le=100_000_000), values.NUMERIC] | None = None
    """With `gpu_hour`: tokens that it does a second under your load, prompts and answers together."""

    def of_domain(self) -> money.Price:
        """The price.  One of its two forms is whole (rules.py)."""
        if self.gpu_hour is not None and self.tokens_per_second is not None:
            return money.hourly(self.gpu_hour, self.tokens_per_second)
        return money.price(self.input or 0, self.output or 0, self.cached)


class Description(Section):
    """What a model's entry in `/v1/models` says, where the upstream does not say it (rightly)."""

    name: Word | None = None
    """Name that people see."""
    description: Text | None = None
    """A sentence about the model."""
    tags: Annotated[tuple[Word, ...], Field(max_length=32)] = ()
    """Tags that Open WebUI shows and filters by."""
    context_length: Tokens | None = None
    """Tokens of prompt and answer together."""
    tools: bool | None = None
    """Whether the model can call tools.  false: tools are taken out of requests."""
    vision: bool | None = None
    """Whether the model sees images."""
    price: Annotated[
        Price | None, BeforeValidator(values.free, json_schema_input_type=Price | Literal["free"] | None)
    ] = None
    """What a million tokens cost, or "free"; shown in the usage.  null: nobody with a budget in money may use it."""
    limits: LimitSettings | None = None
    """How fast, and how much at once, for everybody together."""


class Override(Description):
    """Settings of one model of an upstream."""

    parameters: Parameters = Parameters()
    """Added to the upstream's own `parameters`; where both name one, this counts."""


class OllamaOptions(Section):
    """Options that Ollama gets with every request."""

    num_ctx: Tokens | None = None
    """Context to load a model with; without it Ollama decides.  A longer prompt is answered with 400."""
    keep_alive: Annotated[str | int | None, BeforeValidator(values.keep_alive)] = None
    """How long a model stays loaded: seconds or "10m"; -1 for ever, 0 not at all."""
    think: Annotated[
        bool | str | None,
        BeforeValidator(values.think, json_schema_input_type=bool | Literal["low", "medium", "high"] | None),
    ] = None
    """Whether (or how much) models think before they answer, where a request does not say."""


class EngineSettings(Section):
    """A vLLM process that the gateway runs."""

    model: Text
    """Folder of the base model, or its name on the Hugging Face hub."""
    served_name: ModelId | None = None
    """Public name of the base model; the last part of `model` if left out."""
    command: Annotated[tuple[Text, ...], Field(min_length=1, max_length=32)] = ("vllm",)
    """Program (and first arguments) of the engine's environment; `serve` and the rest are added."""
    args: Annotated[tuple[Text, ...], Field(max_length=256)] = ()
    """Further arguments of `vllm serve`; those that the gateway sets itself are refused."""
    env: dict[VariableName, AnySecret] = {}
    """Environment variables of the engine, beyond the few that it needs and gets."""
    max_loras: Loras | None = None
    """Adapters in one batch; null: from the adapters it is to hold."""
    max_cpu_loras: CpuLoras | None = None
    """Adapters kept in memory; null: from the adapters it is to hold."""
    max_lora_rank: LoraRank | None = None
    """Largest rank of an adapter; null: from the adapters it is to hold."""
    startup_timeout: Seconds = 600
    """Seconds that the engine may take to become ready."""
    stop_timeout: Seconds = 15
    """Seconds that the engine gets to end before it is killed."""
    queue: Count | None = None
    """Requests inside the engine at once, running and waiting; it refuses further ones.  null: twice
    `concurrency.limit`, because a request for n answers counts n times."""

    @property
    def public_name(self) -> str:
        """The name of the base model in `/v1/models`."""
        return self.served_name or PurePath(self.model).name


class AttachedAdapters(Section):
    """How a vLLM that somebody else runs takes adapters: what it does not say itself."""

    store: EnginePath | None = None
    """Where the engine sees `adapters.store`; null: under the same path as the gateway."""
    from_hub: bool = False
    """Whether the engine, which does not see the store, fetches adapters from the Hugging Face hub itself.  It can have
    no other adapters then."""
    max_loras: Loras | None = None
    """Its --max-loras: the gateway sends no more different adapters at once.  null: not limited."""
    max_cpu_loras: CpuLoras | None = None
    """Its --max-cpu-loras: the gateway loads no more adapters.  null: not limited."""
    max_lora_rank: LoraRank | None = None
    """Its --max-lora-rank: adapters of a larger rank do not fit.  null: not known before it refuses one."""


class UpstreamSettings(Section):
    """A server that has models."""

    name: Name
    """Name of the upstream, for `models[].targets`, logs and metrics."""
    kind: Literal["vllm", "ollama", "openai"]
    """`vllm`, `ollama`, or `openai` for OpenAI and every API that speaks its dialect."""
    base_url: Annotated[str, BeforeValidator(values.base_url)] | None = None
    """URL of the API: up to and with `/v1` for vllm and openai, without a path for ollama."""
    engine: EngineSettings | None = None
    """vllm only, instead of `base_url`: the gateway runs the engine."""
    adapters: AttachedAdapters = AttachedAdapters()
    """vllm with a `base_url` only: how it takes adapters."""
    api_key: SecretText | None = None
    """Sent as `Authorization: Bearer`."""
    headers: dict[HeaderName, SecretText] = {}
    """Headers sent with every request."""
    query: dict[QueryName, SecretText] = {}
    """Query parameters sent with every request, such as Azure's `api-version`."""
    ca_file: FilePath | None = None
    """Certificates (PEM) to trust instead of the system's."""
    models: tuple[ModelId, ...] | None = None
    """What to offer, by the upstream's names; null: all that it lists."""
    developer_role: bool | None = None
    """Whether its models know the role `developer`, else it becomes `system`; null: those of kind openai do."""
    prefix: Prefix = ""
    """Put before the names of its models, as in `openai/`."""
    timeouts: TimeoutOverrides = TimeoutOverrides()
    """Where they differ from `timeouts`."""
    concurrency: Concurrency = Concurrency()
    """How many requests it gets at once."""
    parameters: Parameters = Parameters()
    """What happens to a request's parameters."""
    overrides: dict[ModelId, Override] = {}
    """Settings of single models, by the upstream's names."""
    prices: Word | None = None
    """What its models cost, where `overrides` does not say it, in US dollars and by the package genai-prices: the id of
    a provider there, or `auto` for the one with this `base_url`.  null: nothing is known."""
    options: OllamaOptions | None = None
    """ollama only: options for every request."""
    poll_interval: Annotated[float, Field(ge=1, le=86_400), values.NUMERIC] = 15
    """Seconds between two looks at what the upstream has."""
    when_down: Literal["hide", "keep"] = "hide"
    """Whether the models of an upstream that is down leave `/v1/models`, or stay and answer 503."""
    hide_after: Seconds = 60
    """Seconds of being down after which they leave."""

    @property
    def knows_developer_role(self) -> bool:
        """Whether messages of the role `developer` can be sent as they are."""
        return self.kind == "openai" if self.developer_role is None else self.developer_role

    def policy_for(self, model: str) -> snapshot.ParameterPolicy:
        """What happens to the parameters of a request to this model of the upstream."""
        general = self.parameters
        special = self.overrides[model].parameters if model in self.overrides else Parameters()
        return snapshot.ParameterPolicy(
            allow=frozenset(general.allow) | frozenset(special.allow),
            rename={**general.rename, **special.rename},
            drop=frozenset(general.drop) | frozenset(special.drop),
            set={**general.set, **special.set},
        )


class TargetSettings(Section):
    """One place that can answer for a model."""

    upstream: Name
    """Name of an upstream."""
    model: ModelId
    """The model's name in that upstream, or the name of an adapter on its engine."""


class ModelSettings(Description):
    """A public name of your own."""

    id: ModelId
    """The name that clients ask for."""
    targets: Annotated[tuple[TargetSettings, ...], Field(min_length=1, max_length=32)]
    """Where it is answered, in order; the next is tried while nothing was sent to the client."""


class OpenWebUI(Section):
    """What is done for Open WebUI."""

    tasks: dict[TaskName, ModelId] = {}
    """Background task (`title_generation` …, "*" for all) → public name of the model that does it."""


class ImportLimits(Section):
    """What taking up one adapter may cost."""

    max_mib: Annotated[int, Field(ge=1, le=1_048_576), values.NUMERIC] = 4096
    """MiB that are fetched, uploaded or unpacked at most."""
    timeout: Seconds = 1800
    """Seconds from the first byte to the last check."""
    memory_mib: Annotated[int, Field(ge=256, le=1_048_576), values.NUMERIC] = 1024
    """MiB of memory."""


class Adapters(Section):
    """LoRA adapters, offered on every engine whose base model they fit."""

    store: FilePath = Path("var/adapters")
    """Folder of the gateway's own copies, one for each content; nobody else writes there."""
    sources: Annotated[tuple[FilePath, ...], Field(max_length=64)] = ()
    """Folders whose sub-folders are adapters; watched while the gateway runs."""
    poll_interval: Annotated[float, Field(ge=0.05, le=3600), values.NUMERIC] = 1
    """Seconds between two looks at the sources."""
    load: Literal["eager", "lazy"] = "eager"
    """`eager`: loaded as long as there is room.  `lazy`: loaded when a request asks for it.  An adapter may have its
    own."""
    idle_unload: Annotated[
        Annotated[float, Field(gt=0, le=2_592_000), values.NUMERIC] | None,
        BeforeValidator(values.unless_never, json_schema_input_type=float | Literal["never"]),
    ] = 900
    """Seconds without a request after which a lazy adapter is unloaded, or "never"."""
    keep_versions: Annotated[int, Field(ge=2, le=1000), values.NUMERIC] = 10
    """Versions of an adapter that are kept; beyond that the oldest goes that nothing points to."""
    gc_grace: Annotated[float, Field(gt=0, le=2_592_000), values.NUMERIC] = 3600
    """Seconds that the files of a version which nobody needs any more are kept."""
    import_limits: ImportLimits = ImportLimits()
    """What taking up one adapter may cost."""


class Config(Section):
    """The configuration of a gateway."""

    server: Server = Server()
    """Where the gateway listens, and what a connection may ask of it."""
    auth: Auth = Auth()
    """Who may use the gateway."""
    users: Users = Users()
    """Who the people behind a key are, and what they may do."""
    teams: Annotated[tuple[TeamSettings, ...], Field(max_length=1024)] = ()
    """Teams; whoever fits several is in the first."""
    storage: Storage = Storage()
    """Where the gateway keeps what must outlive it."""
    # A default itself would be copied, which its Secret is not.
    limits: LimitsStore = Field(default_factory=LimitsStore, json_schema_extra={"default": {}})
    """Where limits are counted, and how much everybody may use."""
    log: Log = Log()
    """What the gateway says of its work."""
    timeouts: Timeouts = Timeouts()
    """Seconds that every upstream gets, unless it has its own."""
    upstreams: Annotated[tuple[UpstreamSettings, ...], Field(min_length=1, max_length=256)]
    """The servers that have models."""
    models: Annotated[tuple[ModelSettings, ...], Field(max_length=4096)] = ()
    """Public names of your own, beside those that the upstreams list."""
    openwebui: OpenWebUI = OpenWebUI()
    """What is done for Open WebUI."""
    adapters: Adapters = Adapters()
    """LoRA adapters."""

    def timeouts_for(self, upstream: UpstreamSettings) -> snapshot.Timeouts:
        """The upstream's own time-outs over those of the file."""
        own = upstream.timeouts.model_dump(exclude_none=True)
        return snapshot.Timeouts(**{**self.timeouts.model_dump(), **own})
