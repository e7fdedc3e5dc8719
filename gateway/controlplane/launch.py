"""How an engine is started: pure functions from a specification to the command line and the environment of vLLM.

Written against vLLM 0.32; its `vllm serve --help` and `vllm/envs.py` name every argument and variable used here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway import inengine
from gateway.domain.secret import Secret

LOOPBACK = "127.0.0.1"

#: What asks for the key on every route (see the module).  The engine imports it, from `inengine` on its PYTHONPATH.
DOOR = "lora_gateway_door.Door"

#: The values that vLLM accepts for --max-lora-rank.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

#: Arguments that an operator cannot give, and what to do instead.
RESERVED_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        "--model": "set engine.model",
        "--served-model-name": "set engine.served_name",
        "--host": "the engine listens on loopback only; clients reach it through the gateway",
        "--port": "the gateway picks a free port",
        "--uds": "the engine listens on a loopback port",
        "--grpc": "the engine is spoken to over HTTP",
        "--grpc-port": "the engine is spoken to over HTTP",
        "--ssl-keyfile": "the gateway speaks plain HTTP with the engine, over loopback",
        "--ssl-certfile": "the gateway speaks plain HTTP with the engine, over loopback",
        "--root-path": "the engine's paths are its own",
        "--headless": "the gateway needs the engine's API",
        "--api-server-count": "an adapter is loaded into one API server: there can be only one",
        "-asc": "an adapter is loaded into one API server: there can be only one",
        "--shutdown-timeout": "set engine.stop_timeout",
        "--api-key": "the gateway makes a new key at each start",
        "--config": "write the settings of that file into engine.args",
        "--enable-lora": "it is set when there are adapters",
        "--no-enable-lora": "adapters are off when adapters.sources is empty",
        "--max-loras": "set engine.max_loras",
        "--max-cpu-loras": "set engine.max_cpu_loras",
        "--max-lora-rank": "set engine.max_lora_rank",
        "--lora-modules": "put the adapters into a folder of adapters.sources",
        "--max-num-queued-reqs": "set engine.queue",
        "--enable-log-requests": "no prompt text belongs into the log",
        "--enable-log-outputs": "no answer's text belongs into the log",
    }
)

#: Variables that an operator cannot set, and why.
RESERVED_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "VLLM_API_KEY": "the gateway makes a new key at each start",
        "VLLM_SERVER_DEV_MODE": "it opens routes that put the engine to sleep and run code in it",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "it is set when there are adapters",
        "VLLM_LORA_RESOLVER_CACHE_DIR": "it lets a request load any folder as an adapter",
        "VLLM_LORA_RESOLVER_HF_REPO_LIST": "it lets a request load adapters from the network",
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "a dead engine must end, so that it is started again",
        "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "no answer's text belongs into the log",
    }
)

# What the engine takes over from the gateway's own environment: names, and beginnings of names.  Everything else stays
# here, keys of third parties first of all.
_KEPT = frozenset(
    "PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR TEMP TMP XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME "
    "LD_LIBRARY_PATH LD_PRELOAD SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE "
    "CC CXX TRANSFORMERS_CACHE TRANSFORMERS_OFFLINE HUGGINGFACE_HUB_CACHE TOKENIZERS_PARALLELISM "
    "VLLM_CACHE_ROOT VLLM_CONFIG_ROOT VLLM_LOGGING_LEVEL VLLM_TARGET_DEVICE VLLM_PLUGINS".split()
)
_KEPT_PREFIXES = tuple(
    "LC_ CUDA_ NVIDIA_ NCCL_ GLOO_ ROCM_ ROCR_ HIP_ HSA_ HF_ TORCH_ TORCHINDUCTOR_ PYTORCH_ TRITON_ "
    "OMP_ GOMP_ KMP_ MKL_ OPENBLAS_ NUMBA_ VLLM_CPU_ MALLOC_".split()
)
_CREDENTIAL = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)

# Only a model that is fetched needs these; a proxy's URL may hold a password.
_KEPT_FOR_DOWNLOADS = frozenset(
    "HF_TOKEN HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy".split()
)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is to be.  Raises ValueError for arguments and variables that are the gateway's to set.

    `command` starts vLLM's command line; `model` is a folder or a name on the Hugging Face hub.
    `max_loras` adapters can be in one batch and `max_cpu_loras` in memory; 0 and 0: an engine without adapters.
    `queue`: requests in the engine at once, running and waiting; None: unbounded.  Time-outs in seconds.
    """

    name: str
    model: str
    served_name: str
    command: tuple[str, ...] = ("vllm",)
    args: tuple[str, ...] = ()
    env: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}))
    max_loras: int = 0
    max_cpu_loras: int = 0
    max_lora_rank: int = 16
    queue: int | None = None
    startup_timeout: float = 600.0
    stop_timeout: float = 15.0

    def __post_init__(self) -> None:
        problems = [*refused_arguments(self.args), *refused_variables(self.env)]
        if not self.command:
            problems.append("engine.command is empty")
        if self.max_cpu_loras < self.max_loras:
            problems.append(f"max_cpu_loras ({self.max_cpu_loras}) is less than max_loras ({self.max_loras})")
        if self.max_lora_rank not in LORA_RANKS:
            problems.append(f"max_lora_rank is {self.max_lora_rank}; vLLM takes {', '.join(map(str, LORA_RANKS))}")
        if problems:
            raise ValueError(f"engine {self.name!r}: {'; '.join(problems)}")


def refused_arguments(args: Iterable[str]) -> list[str]:
    """A sentence for each argument that is the gateway's to set.  vLLM takes `_` for `-` in names."""
    names = (arg.partition("=")[0].replace("_", "-") for arg in args if arg.startswith("-"))
    return [f"{name} cannot be given: {RESERVED_ARGUMENTS[name]}" for name in names if name in RESERVED_ARGUMENTS]


def refused_variables(names: Iterable[str]) -> list[str]:
    """A sentence for each environment variable that is the gateway's to set."""
    return [f"{name} cannot be set: {RESERVED_ENVIRONMENT[name]}" for name in names if name in RESERVED_ENVIRONMENT]


def lora_rank(rank: int) -> int:
    """The smallest --max-lora-rank that holds adapters of this rank.  ValueError beyond the largest."""
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise ValueError(f"rank {rank} is more than vLLM can serve ({LORA_RANKS[-1]})")


def command_line(spec: EngineSpec, port: int) -> list[str]:
    """The command that starts the engine on this port of loopback.

    It holds no secret: every user of the machine can read it.  The operator's arguments come first, because vLLM lets
    the last of several win.  Our own access log replaces the engine's.
    """
    ours = ["--served-model-name", spec.served_name, "--host", LOOPBACK, "--port", str(port)]
    if spec.max_loras:
        ours += ["--enable-lora", "--max-loras", str(spec.max_loras), "--max-cpu-loras", str(spec.max_cpu_loras)]
        ours += ["--max-lora-rank", str(spec.max_lora_rank)]
    if spec.queue is not None:
        ours += ["--max-num-queued-reqs", str(spec.queue)]
    ours += ["--middleware", DOOR, "--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    return [*spec.command, "serve", spec.model, *spec.args, *ours]


def engine_environment(environ: Mapping[str, str], spec: EngineSpec, key: Secret, *, offline: bool) -> dict[str, str]:
    """The engine's environment: the few variables of ours that it needs, the operator's, and those that we set.

    `key` is what the engine will ask for.  `offline`: the model is a local folder, so nothing is
    fetched and no credential is needed.
    """
    environment = {name: value for name, value in environ.items() if _kept(name, offline)}
    if os.path.dirname(spec.command[0]):
        # The programs of the engine's environment (ninja, for kernels compiled at start), as if it were activated.
        programs = os.path.abspath(os.path.dirname(spec.command[0]))
        environment["PATH"] = os.pathsep.join(filter(None, [programs, environment.get("PATH", os.defpath)]))
    environment |= {
        "PYTHONUNBUFFERED": "1",  # the last words of a dying process are not lost
        "NO_COLOR": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": LOOPBACK,  # where its processes talk to each other
    }
    if offline:
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment |= {name: value.reveal() for name, value in spec.env.items()}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [*inengine.__path__, environment.get("PYTHONPATH")]))
    if spec.max_loras:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    environment["VLLM_API_KEY"] = key.reveal()
    return environment


def _kept(name: str, offline: bool) -> bool:
    if name in _KEPT:
        return True
    if name in _KEPT_FOR_DOWNLOADS:
        return not offline
    return name.startswith(_KEPT_PREFIXES) and not _CREDENTIAL.search(name)
