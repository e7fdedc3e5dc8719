"""The check says what the real vLLM does: nothing is accepted that it refuses or serves wrongly, and what it serves
rightly is refused only with the reasons that the corpus gives.

vLLM serves a tiny Llama and answers with each adapter; what was trained is what peft answers with it. Both compute in
float32, so that a difference is no rounding. The corpus, an adapter of every kind that peft makes, and adapters with
several things changed at random are laid before both by `make soak`; a sample of them, with some of everything that
vLLM does, in every run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
import pytest

from adapters import BaseModel, Code, Verdict, check
from tests.engine.bare_vllm import bare_vllm
from tests.fakes.adapter_corpus import AREAS, CASES, TINY, Case, write_base
from tests.fakes.adapter_corpus.mixed import mixed
from tests.real import BOOT, ROOT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(BOOT + 120)]

PROMPTS = [[5, 17, 99, 3, 64, 8], [100, 2, 33, 33, 7]]
BASE = "tiny"
MIXED, MIXED_LONG = 80, 3000
MAX_LORA_RANK = 16

# Half of the sum of what two distributions over the next token differ by. What is right is apart by less than 0.0001,
# what is wrong here by 0.01 and more.
ALIKE = 0.001

STRICT = frozenset(code for case in CASES if case.stricter for code in case.errors)
"""What the check refuses although vLLM may serve it rightly; the corpus says why."""

ASKED = [case for case in CASES if case.engine != "unasked"]
SAMPLE = [
    *{(number, case.engine): case for number, area in enumerate(AREAS) for case in area.cases if case in ASKED}.values()
]

Answer = list[list[float]]


@dataclass(frozen=True)
class Found:
    """What vLLM did with an adapter, and what peft did; None: it refused it, or answered with nothing."""

    refused: str  # what vLLM said at the load
    answer: Answer | None
    trained: Answer | None
    misread: bool = False  # it cut a text otherwise than the tokenizer beside the adapter

    @property
    def engine(self) -> str:
        """As the corpus calls it."""
        if self.refused:
            return "refuses"
        right = self.answer is not None and self.trained is not None and apart(self.answer, self.trained) < ALIKE
        return "serves" if right and not self.misread else "misserves"

    def __str__(self) -> str:
        if self.answer is None or self.trained is None:
            return (
                f"{self.engine} ({self.refused or ('no answer' if self.answer is None else 'peft does not load it')})"
            )
        return f"{self.engine} (apart from peft by {apart(self.answer, self.trained):.4f})"


def apart(one: Answer, other: Answer) -> float:
    """The largest distance of the distributions for a prompt."""
    return max(sum(abs(p - q) for p, q in zip(a, b, strict=True)) / 2 for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Bench:
    """vLLM and peft on the same base model."""

    client: httpx2.Client
    python: Path
    base: Path
    model: BaseModel

    @contextlib.contextmanager
    def peft(
        self, folder: Path, adapters: Sequence[Path], variants: Path | None = None
    ) -> Iterator[Callable[[], Mapping[str, Mapping[str, Any]]]]:
        """Starts to ask peft; what it yields waits for the answers. `folder` is for files of this conversation."""
        folder.mkdir()
        job = {"base": self.base, "prompts": PROMPTS, "adapters": adapters, "variants": variants}
        (folder / "job").write_text(json.dumps(job, default=str))
        command = [str(self.python), "-W", "ignore", "-m", "tests.engine.peft_answers", "job", "answers"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)

        def answers() -> Mapping[str, Mapping[str, Any]]:
            assert process.wait(BOOT) == 0, (folder / "log").read_text()[-4000:]
            said: Mapping[str, Mapping[str, Any]] = json.loads((folder / "answers").read_text())
            return said

        try:
            yield answers
        finally:
            process.kill()
            process.wait()

    def ask(self, model: str) -> Answer | None:
        """Probabilities of each token to follow each prompt; None where the engine has no answer."""
        answers = []
        for prompt in PROMPTS:
            body = {
                "model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": TINY.vocabulary,
                "return_tokens_as_token_ids": True,
            }  # fmt: skip
            answer = self.client.post("/v1/completions", json=body)
            if answer.status_code == 400:  # not a number is no JSON
                return None
            [found] = answer.raise_for_status().json()["choices"][0]["logprobs"]["top_logprobs"]
            answers.append([math.exp(found.get(f"token_id:{i}", -math.inf)) for i in range(TINY.vocabulary)])
        return answers

    def load(self, name: str, folder: Path) -> str:
        """What vLLM says against the adapter; "" when it takes it."""
        answer = self.client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})
        return "" if answer.status_code == 200 else str(answer.json()["error"]["message"])

    def measure(
        self, folder: Path, trained: Answer | None, reads: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    ) -> Found:
        name = folder.name
        if refused := self.load(name, folder):
            return Found(refused, None, trained)
        try:
            misread = any(self.reads(name, text) != tokens for text, tokens in reads.items())
            return Found("", self.ask(name), trained, misread)
        finally:
            self.client.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()

    def reads(self, model: str, text: str) -> tuple[int, ...]:
        """How vLLM cuts a text."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return tuple(self.client.post("/tokenize", json=body).raise_for_status().json()["tokens"])

    def check(self, folder: Path) -> Verdict:
        return check(folder, self.model, MAX_LORA_RANK)


@dataclass(frozen=True)
class Measured:
    """What vLLM and peft did with all adapters, by the names of their folders."""

    cases: Sequence[Case]
    bench: Bench
    folders: Mapping[str, Path]
    found: Mapping[str, Found]
    base_before: Answer | None
    base_after: Answer | None
    base_trained: Answer


@pytest.fixture(scope="module", params=["sample", pytest.param("all", marks=pytest.mark.soak)])
def measured(
    request: pytest.FixtureRequest, engine_env: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Measured]:
    root = tmp_path_factory.mktemp("corpus")
    everything = request.param == "all"
    cases = ASKED if everything else SAMPLE
    base = write_base(root / "base" / TINY.name)
    written = {case.name: case for case in CASES if everything or case in SAMPLE}
    written |= {case.like: next(one for one in CASES if one.name == case.like) for case in cases if case.like}
    folders = {name: case.write(root / "corpus" / name) for name, case in written.items()}
    for seed in range(MIXED if everything else 0):
        folders[f"mixed-{seed}"] = root / "mixed" / f"mixed-{seed}"
        mixed(seed).write(folders[f"mixed-{seed}"])
    variants = root / "peft" if everything else None
    with httpx2.Client(timeout=60) as client:
        bench = Bench(client, engine_env / "bin" / "python", base, BaseModel.read(base))
        vllm = bare_vllm(
            engine_env, base, root / "vllm.log",
            "--served-model-name", BASE, "--dtype", "float32", "--max-model-len", "256", "--enforce-eager",
            "--kv-cache-memory-bytes", "64M", "--no-enable-prefix-caching", "--max-logprobs", str(TINY.vocabulary),
            "--enable-lora", "--max-loras", "1", "--max-cpu-loras", "1", "--max-lora-rank", str(MAX_LORA_RANK),
            VLLM_ALLOW_RUNTIME_LORA_UPDATING="1",
        )  # fmt: skip
        with bench.peft(root / "asked", list(folders.values()), variants) as answers, vllm as engine:
            trained = {name: said.get("next") for name, said in answers().items()}
            if variants is not None:
                folders |= {folder.name: folder for folder in sorted(variants.iterdir())}
            client.base_url = engine.url
            before = bench.ask(BASE)
            found = {
                case.name: bench.measure(folders[case.name], trained[case.like or case.name], case.reads)
                for case in cases
            }
            for name in folders.keys() - {case.name for case in CASES}:
                found[name] = bench.measure(folders[name], trained[name])
            yield Measured(cases, bench, folders, found, before, bench.ask(BASE), trained[""])


def test_without_an_adapter_vllm_and_peft_answer_alike_before_and_after_all_others(measured: Measured) -> None:
    for answer in (measured.base_before, measured.base_after):
        assert answer is not None
        assert apart(answer, measured.base_trained) < ALIKE / 2


def test_vllm_does_with_each_adapter_what_the_corpus_says(measured: Measured) -> None:
    found = {case.name: measured.found[case.name] for case in measured.cases}
    otherwise = [
        f"{case.name}: {found[case.name]}, the corpus says {case.engine}"
        for case in measured.cases
        if found[case.name].engine != case.engine
    ]
    assert not otherwise, "\n".join(otherwise)
    assert {case.engine for case in measured.cases} == {"serves", "refuses", "misserves"}


def test_whatever_vllm_refuses_or_serves_wrongly_is_refused_and_nothing_else_but_with_a_reason(
    measured: Measured,
) -> None:
    disagreements = [
        f"{name}: vLLM {found}, the check {sorted(finding.code for finding in verdict.errors) or 'accepts'}"
        for name, found in measured.found.items()
        if not agree(found, verdict := measured.bench.check(measured.folders[name]))
    ]
    assert not disagreements, "\n".join(disagreements)
    engines = [found.engine for found in measured.found.values()]
    each = 40 if len(measured.cases) == len(ASKED) else 5
    assert min(engines.count(kind) for kind in ("serves", "refuses", "misserves")) >= each


def agree(found: Found, verdict: Verdict) -> bool:
    if verdict.ok:
        return found.engine == "serves"
    return found.engine != "serves" or bool({finding.code for finding in verdict.errors} & STRICT)


@pytest.mark.soak
@pytest.mark.parametrize("measured", ["all"], indirect=True)
@pytest.mark.timeout(3000)
def test_no_adapter_changed_at_random_is_judged_otherwise_than_vllm_does(measured: Measured, tmp_path: Path) -> None:
    begin = random.SystemRandom().randrange(MIXED, 1 << 30)
    folders = [tmp_path / f"mixed-{seed}" for seed in range(begin, begin + MIXED_LONG)]
    for seed, folder in enumerate(folders, begin):
        mixed(seed).write(folder)
    with measured.bench.peft(tmp_path / "asked", folders) as answers:
        trained = answers()
    disagreements = []
    for folder in folders:
        found, verdict = measured.bench.measure(folder, trained[folder.name].get("next")), measured.bench.check(folder)
        if not agree(found, verdict):
            disagreements.append(f"{folder.name}: vLLM {found}, the check {verdict.errors or 'accepts'}")
        shutil.rmtree(folder)
    assert not disagreements, "\n".join(disagreements)


FLOAT16 = """
import sys, torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

for folder in sys.argv[1:]:
    lora = LoRAModel.from_local_checkpoint(
        folder, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        PEFTHelper.from_local_dir(folder, 256), lora_model_id=1, device="cpu", dtype=torch.float16,
    )
    loaded = [layer.optimize() for layer in lora.loras.values()]
    print(all(bool(x.isfinite().all()) for layer in loaded for x in (layer.lora_a, layer.lora_b)))
"""


@pytest.mark.soak
def test_in_float16_vllms_own_loader_makes_infinities_of_what_the_check_calls_an_overflow(
    engine_env: Path, tmp_path: Path
) -> None:
    cases = [case for case in CASES if case.errors == {Code.OVERFLOW} or case.name == "plain"]
    folders = [str(case.write(tmp_path / case.name)) for case in cases]
    program = [str(engine_env / "bin" / "python"), "-W", "ignore", "-c", FLOAT16, *folders]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    finite = done.stdout.split()[-len(cases) :]
    assert len(cases) >= 3
    assert finite == [str(case.name == "plain") for case in cases]
