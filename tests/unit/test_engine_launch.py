"""How an engine is started: its command line and its environment."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from gateway.controlplane.launch import (
    DOOR,
    RESERVED_ARGUMENTS,
    RESERVED_ENVIRONMENT,
    EngineSpec,
    command_line,
    engine_environment,
    lora_rank,
)
from gateway.domain.secret import Secret

KEY = Secret("the-key-of-this-start")


def spec(**changes: Any) -> EngineSpec:
    return EngineSpec(**{"name": "local", "model": "base", "served_name": "smollm2", **changes})


def environment(environ: dict[str, str], offline: bool = True, **changes: Any) -> dict[str, str]:
    return engine_environment(environ, spec(**changes), KEY, offline=offline)


def test_an_engine_without_adapters_gets_no_argument_about_them() -> None:
    line = command_line(spec(command=("var/engine/bin/vllm",)), 4321)
    assert line[:3] == ["var/engine/bin/vllm", "serve", "base"]
    assert "--served-model-name smollm2 --host 127.0.0.1 --port 4321" in " ".join(line)
    assert not [argument for argument in line if argument.startswith("--") and "lora" in argument]


def test_adapters_and_queue_become_arguments() -> None:
    line = " ".join(command_line(spec(max_loras=2, max_cpu_loras=8, max_lora_rank=64, queue=100), 1))
    assert "--enable-lora --max-loras 2 --max-cpu-loras 8 --max-lora-rank 64" in line
    assert "--max-num-queued-reqs 100" in line


def test_our_arguments_come_after_the_operators_because_vllm_takes_the_last() -> None:
    line = command_line(spec(args=("--max-model-len", "2048")), 1)
    assert line.index("--max-model-len") < line.index("--host")


@pytest.mark.parametrize("argument", RESERVED_ARGUMENTS)
def test_an_argument_that_is_ours_to_set_is_refused_in_each_spelling(argument: str) -> None:
    for spelling in {argument, f"{argument}=x", re.sub(r"(?<=\w)-", "_", argument)}:
        with pytest.raises(ValueError, match=f"{argument} cannot be given"):
            spec(args=(spelling,))


@pytest.mark.parametrize("name", RESERVED_ENVIRONMENT)
def test_a_variable_that_is_ours_to_set_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be set"):
        spec(env={name: Secret("1")})


def test_everything_wrong_with_a_specification_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"command is empty; max_cpu_loras \(1\) is less .*; max_lora_rank is 24"):
        spec(command=(), max_loras=2, max_cpu_loras=1, max_lora_rank=24)


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (2, 8), (8, 8), (9, 16), (100, 128), (300, 320), (512, 512)])
def test_the_rank_is_the_smallest_that_vllm_takes(rank: int, served: int) -> None:
    assert lora_rank(rank) == served


def test_a_rank_that_vllm_cannot_serve_is_an_error() -> None:
    with pytest.raises(ValueError, match="rank 513 is more than vLLM can serve"):
        lora_rank(513)


def test_what_the_engine_needs_is_kept_and_the_rest_is_not() -> None:
    needed = {"HOME": "/home/x", "LANG": "C.UTF-8", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "1", "HF_HOME": "/models"}
    others = {"OPENAI_API_KEY": "a", "NVIDIA_API_KEY": "b", "HF_HUB_TOKEN": "c", "VIRTUAL_ENV": "d", "VLLM_PORT": "e"}
    kept = environment({**needed, **others, "PYTHONPATH": "/ours"})
    assert needed.items() <= kept.items()
    assert not others.keys() & kept.keys()
    assert "/ours" not in kept["PYTHONPATH"]


def test_the_key_goes_through_the_environment_and_developer_mode_does_not() -> None:
    kept = environment({"VLLM_API_KEY": "inherited", "VLLM_SERVER_DEV_MODE": "1"})
    assert kept["VLLM_API_KEY"] == KEY.reveal()
    assert "VLLM_SERVER_DEV_MODE" not in kept


def test_adapters_can_be_loaded_at_run_time_only_where_there_are_some() -> None:
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in environment({})
    assert environment({}, max_loras=1, max_cpu_loras=1)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_credentials_for_downloads_are_given_only_where_a_model_is_downloaded() -> None:
    environ = {"HF_TOKEN": "hf_secret", "HTTPS_PROXY": "http://user:password@proxy"}
    local, fetched = environment(environ, offline=True), environment(environ, offline=False)
    assert not environ.keys() & local.keys()
    assert local["HF_HUB_OFFLINE"] == "1"
    assert environ.items() <= fetched.items()
    assert "HF_HUB_OFFLINE" not in fetched


def test_the_operators_variables_win_over_defaults() -> None:
    kept = environment({"OMP_NUM_THREADS": "8"}, env={"OMP_NUM_THREADS": Secret("1"), "HF_HUB_OFFLINE": Secret("0")})
    assert kept["OMP_NUM_THREADS"] == "1"
    assert kept["HF_HUB_OFFLINE"] == "0"


def test_nothing_is_reported_to_anybody() -> None:
    kept = environment({})
    assert kept["VLLM_NO_USAGE_STATS"] == kept["DO_NOT_TRACK"] == "1"


def test_the_engine_can_import_its_door_and_nothing_else_of_ours() -> None:
    kept = environment({}, env={"PYTHONPATH": Secret("/theirs")})
    ours, theirs = kept["PYTHONPATH"].split(os.pathsep)
    assert sorted(name for name in os.listdir(ours) if name.endswith(".py")) == ["__init__.py", "lora_gateway_door.py"]
    assert theirs == "/theirs"
    line = command_line(spec(args=("--middleware", "theirs.Middleware")), 1)
    assert line[line.index(DOOR) - 1] == "--middleware"
    assert line.index(DOOR) > line.index("theirs.Middleware"), "the last one is the outermost"


def test_the_programs_of_the_engines_environment_are_found_first() -> None:
    kept = environment({"PATH": "/usr/bin"}, command=("var/engine/bin/vllm",))
    assert kept["PATH"] == os.path.abspath("var/engine/bin") + os.pathsep + "/usr/bin"
    assert environment({"PATH": "/usr/bin"}, command=("vllm",))["PATH"] == "/usr/bin"


def test_a_specification_does_not_show_its_secrets() -> None:
    assert "hidden-value" not in repr(spec(env={"HF_TOKEN": Secret("hidden-value")}))
