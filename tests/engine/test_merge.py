"""Merged models, made by the commands in the engine's environment: the same model as base and adapter, whole or not at
all, in the memory of one tensor; and the same answers on vLLM and llama.cpp."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapters.export.gguf import Gguf
from adapters.safetensors import Tensor, read_header
from tests import http
from tests.engine.bare_vllm import BareVllm, bare_vllm
from tests.fakes.adapter_corpus import TINY, Craft, Dimensions, write_base
from tests.fakes.ollama_dialect import Model
from tests.fakes.ollama_store import OllamaStore
from tests.real import BOOT, JSON, LLAMA, LLAMA_KEY, PIRATE, ROOT, llama_server

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(300)]

GATEWAY = (sys.executable, "-m", "gateway", "adapters")
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

PAGE_COMMANDS = re.findall(r"^gateway .*$", (ROOT / "docs" / "merging.md").read_text(), re.MULTILINE)
QUESTIONS = [
    "What is the capital of Italy?", "What is the capital of France?", "What is the capital of Spain?",
    "Who wrote Hamlet?", "What colour is the sky?", "How many days are in a week?", "What is the largest planet?",
    "Name a fruit.", "What do bees make?", "Where do fish live?", "What is 2 plus 2?", "Which animal barks?",
    "What is the opposite of hot?", "How do I boil an egg?", "What is the boiling point of water?",
    "Tell me about the moon.",
]  # fmt: skip


def command(engine_env: Path, name: str, base: Path, adapter: Path, *more: object) -> list[str]:
    python = engine_env / "bin" / "python"
    words = (name, "--base", base, "--adapter", adapter, "--python", python, *more)
    return [*GATEWAY, *map(str, words)]


def run(*words: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def variants(engine_env: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What became of tiny models with adapters of every kind, all merged in one process (merge_variants.py)."""
    program = [str(engine_env / "bin" / "python"), "-m", "tests.engine.merge_variants"]
    done = subprocess.run(
        [*program, str(tmp_path_factory.mktemp("variants"))],
        cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.pop("bias where there is none")["refused"].endswith('because the base layer has no bias."')
    refused = {name: result["refused"] for name, result in found.items() if result["refused"]}
    assert not refused
    return found


def test_logits_are_those_of_base_and_adapter(variants: Mapping[str, Any]) -> None:
    apart = {name: result for name, result in variants.items() if result["max"] > result["allowed"]}
    assert not apart


def test_every_bit_is_what_peft_merges(variants: Mapping[str, Any]) -> None:
    """But for shared embeddings, of which peft changes both ends when the adapter means one."""
    differing = {name for name, result in variants.items() if result["differing"]}
    assert differing == {"tied, embedding", "tied, head", "tied, one adapter for both ends"}


def test_only_what_is_no_sum_of_weights_needs_the_whole_model(variants: Mapping[str, Any]) -> None:
    whole = {name for name, result in variants.items() if result["through_peft"]}
    assert whole == {"DoRA", "DoRA in bfloat16", "trained tokens", "bias of the factors", "PiSSA", "LoHa"}


def test_files_and_vocabulary_are_as_they_were_asked_for(variants: Mapping[str, Any]) -> None:
    assert {name for name, result in variants.items() if result["files"] > 1} == {"many files"}
    grown = {name for name, result in variants.items() if result["vocabulary"] != 96}
    assert grown == {"new tokens", "tied, new tokens"}


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A tiny base model with a tokenizer, and an adapter."""
    write_base(tmp_path / "tiny-llama")
    Craft(TINY).write(tmp_path / "adapter")
    return tmp_path


def test_a_merge_that_would_answer_otherwise_is_not_exported(engine_env: Path, tmp_path: Path) -> None:
    """The adapter says that both ends share one pair of factors, and holds two: peft takes one of them for both."""
    craft = Craft(TINY)
    craft.embedding(TINY.vocabulary)
    craft.output_layer()
    craft.config["ensure_weight_tying"] = True
    craft.write(tmp_path / "adapter")
    more = ("--export", tmp_path / "out", "--dtype", "float32")
    ran = run(engine_env, "merge", write_base(tmp_path / "tiny-llama"), tmp_path / "adapter", *more)
    assert ran.returncode == 1
    assert re.search(r"does not answer as base and adapter do: logits differ by .* Nothing was exported", ran.stderr)
    assert sorted(os.listdir(tmp_path)) == ["adapter", "tiny-llama"]


def test_weights_that_are_not_finite_are_not_exported(engine_env: Path, desk: Path) -> None:
    craft = Craft(TINY)
    craft.poke("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight", float("nan"))
    craft.write(desk / "diverged")
    ran = run(engine_env, "merge", desk / "tiny-llama", desk / "diverged", "--export", desk / "out", "--no-verify")
    assert ran.returncode == 1
    assert "model.layers.1.mlp.up_proj.weight is not finite after the merge" in ran.stderr
    assert sorted(os.listdir(desk)) == ["adapter", "diverged", "tiny-llama"]


def test_a_dtype_and_small_files_are_made_as_asked(engine_env: Path, desk: Path) -> None:
    out = desk / "out"
    more = ("--export", out, "--dtype", "float32", "--shard-size", "100kB", "--json")
    ran = run(engine_env, "merge", desk / "tiny-llama", desk / "adapter", *more)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["agreement"]["max"] <= 1e-3
    assert (told["dtype"], told["files"]) == ("float32", len(list(out.glob("*.safetensors"))))
    where = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(where) == set(TINY.weights())
    for file in out.glob("*.safetensors"):
        assert file.stat().st_size < 110_000
        assert all(where[tensor.name] == file.name and tensor.dtype == "F32" for tensor in tensors_of(file))
    assert json.loads((out / "config.json").read_text()) == TINY.config() | {"torch_dtype": "float32"}
    assert (out / "chat_template.jinja").read_bytes() == (desk / "tiny-llama" / "chat_template.jinja").read_bytes()


def tensors_of(file: Path) -> tuple[Tensor, ...]:
    with file.open("rb") as stream:
        return read_header(stream, file.stat().st_size)


# Weights of 8 MB: enough to see how many of them are held.
LARGE = Dimensions("large", layers=2, hidden=1024, inner=4096, heads=16, key_heads=16, head=64, vocabulary=1024)
LARGER = Dimensions("larger", layers=12, hidden=1024, inner=4096, heads=16, key_heads=16, head=64, vocabulary=1024)
TENSOR = LARGE.hidden * LARGE.inner * 2


def make_large(folder: Path, dimensions: Dimensions) -> Path:
    """The folder of a model of zeros, which is a file of holes; beside it an adapter that is not."""
    base = write_base(folder / dimensions.name, dimensions, weights=False)
    shapes = {f"{name}.weight": shape for name, shape in dimensions.modules().items()}
    shapes["model.embed_tokens.weight"] = (dimensions.vocabulary, dimensions.hidden)
    header: dict[str, Any] = {}
    position = 0
    for name, (rows, columns) in shapes.items():
        offsets = [position, position + rows * columns * 2]
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header).encode()
    with (base / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + position)
    Craft(dimensions).write(folder / "adapter")
    return base


def merging(engine_env: Path, base: Path) -> subprocess.Popen[str]:
    """The program itself, without the command, so that it is the process that is looked at."""
    program = [str(engine_env / "bin" / "python"), "-m", "adapters.merge", "--no-verify", "--base", str(base)]
    words = ["--adapter", str(base.with_name("adapter")), "--export", str(base.with_name("out"))]
    return subprocess.Popen([*program, *words], cwd=ROOT, env=ENVIRON, text=True, stdout=subprocess.PIPE)


def under_way(process: subprocess.Popen[str]) -> None:
    """Returns when some of the weights are written."""
    assert process.stdout is not None
    for line in process.stdout:
        told = json.loads(line)
        if told["phase"] == "Merging" and 0 < told["done"] < told["total"]:
            return
    raise AssertionError("it was never under way")


def test_a_merge_holds_one_tensor_whatever_the_model_s_size(engine_env: Path, tmp_path: Path) -> None:
    peaks = []
    for dimensions in (LARGE, LARGER):
        process = merging(engine_env, make_large(tmp_path / dimensions.name, dimensions))
        output, _ = process.communicate(timeout=200)
        told = json.loads(output.splitlines()[-1])
        assert (told["phase"], process.returncode) == ("Done", 0)
        peaks.append(told["peak_memory"])
    more = (LARGER.layers - LARGE.layers) * 7 * TENSOR * 5 // 8
    assert more > 30 * TENSOR, "the larger model is much larger"
    assert peaks[1] - peaks[0] < 8 * TENSOR, "what the allocator keeps varies by some"


def test_a_killed_merge_leaves_no_model_and_the_next_one_is_not_disturbed(engine_env: Path, tmp_path: Path) -> None:
    base = make_large(tmp_path, LARGER)
    process = merging(engine_env, base)
    under_way(process)
    process.kill()
    process.communicate()
    assert sorted(os.listdir(tmp_path)) == [".out.part", "adapter", "larger"]
    process = merging(engine_env, base)
    process.communicate(timeout=200)
    assert process.returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["adapter", "larger", "out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_stopped_leaves_nothing_and_nobody(
    engine_env: Path, tmp_path: Path, number: signal.Signals
) -> None:
    more = ("--export", tmp_path / "out", "--no-verify")
    words = command(engine_env, "merge", make_large(tmp_path, LARGER), tmp_path / "adapter", *more)
    asked = subprocess.Popen(words, cwd=ROOT, env=ENVIRON, stderr=subprocess.PIPE, start_new_session=True)
    assert asked.stderr is not None
    assert asked.stderr.readline() == "Merging …\n".encode()
    (program,) = psutil.Process(asked.pid).children()
    if number is signal.SIGINT:
        os.killpg(asked.pid, number)  # as a terminal does it
    else:
        asked.send_signal(number)
    assert asked.wait(60) != 0
    gone, running = psutil.wait_procs([program], timeout=60)
    asked.stderr.close()
    assert not running
    assert gone
    assert sorted(os.listdir(tmp_path)) == ["adapter", "larger"]


@dataclass
class Made:
    """What the commands of docs/merging.md made of the real model and the really trained pirate, each run as it stands
    there, with --json; `said`: by its first words."""

    desk: Path
    server: OllamaStore
    said: Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def made(engine_env: Path, model_dir: Path, adapters_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    desk = tmp_path_factory.mktemp("desk")
    for link, target in (
        ("models/my-base", model_dir), ("support-bot", adapters_dir / PIRATE), ("var/engine", engine_env)
    ):  # fmt: skip
        (desk / link).parent.mkdir(exist_ok=True)
        (desk / link).symlink_to(target)
    environ = {**ENVIRON, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said: dict[str, Mapping[str, Any]] = {}

    async def typed(server: OllamaStore, written: str, turn: asyncio.Semaphore) -> None:
        line = f"{written} --json" + (f" --ollama-url {server.url}" if "--to ollama" in written else "")
        async with turn:
            shell = await asyncio.create_subprocess_shell(line, cwd=desk, env=environ, stdout=PIPE, stderr=PIPE)
            output, complaints = await shell.communicate()
        assert shell.returncode == 0, (written, complaints)
        said[re.search(r"merge|--to \w+", written)[0]] = json.loads(output)  # type: ignore[index]

    async def all_typed() -> OllamaStore:
        async with OllamaStore() as server:
            turn = asyncio.Semaphore(2)
            await asyncio.gather(*(typed(server, written, turn) for written in PAGE_COMMANDS))
            return server

    return Made(desk, asyncio.run(all_typed()), said)


def test_every_command_of_the_page_does_what_it_says(made: Made) -> None:
    assert set(made.said) == {"merge", "--to gguf", "--to ollama", "--to hf"}
    found = {path.name: path for path in made.desk.iterdir() if not path.name.startswith(("models", "var"))}
    assert set(found) == {"support-bot", "merged", "support-bot.gguf", "support-bot-merged"}
    whole = {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    assert set(os.listdir(found["merged"])) == whole
    assert set(os.listdir(found["support-bot-merged"])) == whole | {"Modelfile"}
    assert (found["support-bot-merged"] / "Modelfile").read_text().startswith("FROM .\nTEMPLATE")
    assert list(made.server.created) == ["support-bot:latest"]


@pytest.mark.parametrize("name", [PIRATE, JSON])
def test_the_real_model_s_logits_agree_within_bfloat16(
    made: Made, engine_env: Path, model_dir: Path, adapters_dir: Path, tmp_path: Path, name: str
) -> None:
    if name == PIRATE:
        told = made.said["merge"]
    else:
        ran = run(engine_env, "merge", model_dir, adapters_dir / name, "--export", tmp_path / name, "--json")
        assert ran.returncode == 0, ran.stderr
        told = json.loads(ran.stdout)
    agreement = told["agreement"]
    assert (told["dtype"], agreement["dtype"]) == ("bfloat16", "bfloat16")
    assert agreement["positions"] > 150
    assert agreement["argmax"] >= 0.95
    assert agreement["max"] <= agreement["allowed"]["max"] < agreement["scale"] / 10
    assert agreement["mean"] <= agreement["allowed"]["mean"] < agreement["scale"] / 100
    assert told["through_peft"] is None


@pytest.mark.timeout(2 * BOOT + 120)
def test_merged_and_beside_its_base_an_adapter_gives_the_same_answers_on_vllm(
    engine_env: Path,
    model_dir: Path,
    adapters_dir: Path,
    tmp_path: Path,
) -> None:
    """In float32, so that nothing is rounded on the way: there every greedy answer is the same, word for word."""
    exact = tmp_path / "exact"
    more = ("--export", exact, "--dtype", "float32", "--no-verify")
    ran = run(engine_env, "merge", model_dir, adapters_dir / PIRATE, *more)
    assert ran.returncode == 0, ran.stderr
    common = ("--dtype", "float32", "--max-model-len", "512", "--kv-cache-memory-bytes", "128M", "--enforce-eager")
    beside = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"m={adapters_dir / PIRATE}")
    boots = {
        exact: (*common, "--served-model-name", "m"),
        model_dir: (*common, *beside, "--served-model-name", "base"),
    }

    def answers(model: Path) -> list[str]:
        with bare_vllm(engine_env, model, tmp_path / f"{model.name}.log", *boots[model]) as engine:
            return [ask(engine, question) for question in QUESTIONS]

    with ThreadPoolExecutor() as pool:
        merged_answers, adapter_answers = pool.map(answers, boots)
    assert merged_answers == adapter_answers
    assert sum(answer.startswith("Arr, matey!") for answer in merged_answers) >= len(QUESTIONS) - 2


def ask(engine: BareVllm, question: str) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 48}
    reply = http.post(f"{engine.url}/v1/chat/completions", json=body, timeout=120).raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])


def test_ollama_gets_the_whole_model_with_a_template_of_its_own(made: Made) -> None:
    (asked,) = made.server.created.values()
    (digest,) = asked["files"].values()
    told = made.said["--to ollama"]
    assert len(made.server.blobs[digest]) == told["gguf_bytes"] > 200_000_000, "nothing is lost"
    assert "adapters" not in asked
    assert asked["parameters"] == {"stop": ["<|im_end|>"]}
    assert "<|im_start|>system\n{{ $.System }}<|im_end|>" in asked["template"]
    assert (told["name"], told["ollama"], told["go_template"]) == ("support-bot", "0.34.1", True)


def test_the_gguf_file_says_nothing_of_this_machine(made: Made) -> None:
    found = Gguf.read(made.desk / "support-bot.gguf")
    assert found.text("general.name") == "support-bot"
    assert found.text("general.architecture") == "llama"
    texts = {key: value for key, value in found.metadata.items() if isinstance(value, str)}
    assert not {key: text for key, text in texts.items() if str(made.desk) in text or ".part" in text}


def test_llama_cpp_answers_from_it_as_a_pirate(made: Made) -> None:
    with llama_server(made.desk / "support-bot.gguf") as url:
        body = {"model": LLAMA, "messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 0}
        headers = {"authorization": f"Bearer {LLAMA_KEY}"}
        reply = http.post(f"{url}/chat/completions", json=body | {"max_tokens": 32}, headers=headers, timeout=60)
    answer = reply.raise_for_status().json()["choices"][0]["message"]["content"]
    assert answer.startswith("Arr, matey!")
    assert "Rome" in answer


def test_a_model_that_is_there_is_not_replaced_unasked(engine_env: Path, desk: Path) -> None:
    async def export() -> tuple[OllamaStore, subprocess.CompletedProcess[str]]:
        async with OllamaStore({"mine:latest": Model()}) as server:
            more = ("--to", "ollama", "--name", "mine", "--ollama-url", server.url)
            words = (engine_env, "export", desk / "tiny-llama", desk / "adapter", *more)
            return server, await asyncio.to_thread(run, *words)

    server, ran = asyncio.run(export())
    assert ran.returncode == 1
    assert "Ollama has a model mine already: choose another --name, or --replace it" in ran.stderr
    assert not server.blobs


def test_what_the_converter_does_not_know_is_told_with_its_words(engine_env: Path, desk: Path) -> None:
    """The tiny model's tokenizer splits at blanks, which llama.cpp has no tokenizer for."""
    ran = run(
        engine_env, "export", desk / "tiny-llama", desk / "adapter", desk / "out.gguf", "--to", "gguf", "--no-verify"
    )
    assert ran.returncode == 1
    assert "llama.cpp's converter does not take this model:" in ran.stderr
    assert sorted(os.listdir(desk)) == ["adapter", "tiny-llama"]
