"""Merges tiny models with adapters of every kind, and holds the results against peft.  Runs in the engine's
environment; prints what came out, as JSON.

    python -m tests.engine.merge_variants FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from adapters.merge.agreement import compare
from adapters.merge.errors import MergeError
from adapters.merge.merging import Request, merge

VOCABULARY, GROWN = 96, 100
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = list(range(3, 60))


@dataclass(frozen=True)
class Case:
    """`same_as_peft`: bit by bit; false where peft itself would change the model's answers."""

    base: str
    config: Callable[[], Any]
    dtype: str | None = None
    adapters: int = 1
    same_as_peft: bool = True
    grown: bool = False
    shard: int = 5_000_000_000
    adapter_dtype: torch.dtype = torch.float32


def lora(**changes: Any) -> Callable[[], LoraConfig]:
    return lambda: LoraConfig(
        **{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": LINEAR, **changes}
    )


SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
BASES: Mapping[str, Any] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=False),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128),
}
PATTERNS = {
    "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "up_proj": 8},
    "alpha_pattern": {"layers.0.mlp.up_proj": 3},
}
CASES: Mapping[str, Case] = {
    "plain": Case("llama", lora()),
    "bfloat16": Case("llama", lora(), "bfloat16"),
    "float16": Case("llama", lora(), "float16"),
    "factors in bfloat16": Case("llama", lora(), "bfloat16", adapter_dtype=torch.bfloat16),
    "rank-stabilised": Case("llama", lora(use_rslora=True)),
    "rank and alpha patterns": Case("llama", lora(**PATTERNS)),
    "some layers": Case("llama", lora(layers_to_transform=[1])),
    "embedding and head": Case("llama", lora(target_modules=["q_proj", "embed_tokens", "lm_head"])),
    "embedding in bfloat16": Case("llama", lora(target_modules=["q_proj", "embed_tokens"]), "bfloat16"),
    "tied, layers only": Case("tied", lora()),
    "tied, embedding": Case("tied", lora(target_modules=["q_proj", "embed_tokens"]), same_as_peft=False),
    "tied, head": Case("tied", lora(target_modules=["q_proj", "lm_head"]), same_as_peft=False),
    "modules to save": Case("llama", lora(modules_to_save=["lm_head", "embed_tokens"])),
    "tied, modules to save": Case("tied", lora(modules_to_save=["lm_head"])),
    "new tokens": Case("llama", lora(modules_to_save=["lm_head", "embed_tokens"]), grown=True),
    "tied, new tokens": Case("tied", lora(modules_to_save=["lm_head", "embed_tokens"]), grown=True),
    "biases": Case("qwen2", lora(bias="all")),
    "fan in, fan out": Case("gpt2", lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "two, one after another": Case("llama", lora(), "bfloat16", adapters=2),
    "many files": Case("llama", lora(), shard=20_000),
    "DoRA": Case("llama", lora(use_dora=True)),
    "DoRA in bfloat16": Case("llama", lora(use_dora=True), "bfloat16"),
    "trained tokens": Case("llama", lora(trainable_token_indices=[5, 6])),
    "tied, one adapter for both ends": Case(
        "tied",
        lora(target_modules=["q_proj", "lm_head", "embed_tokens"], ensure_weight_tying=True),
        same_as_peft=False,
    ),
    "bias of the factors": Case("qwen2", lora(lora_bias=True, target_modules=["q_proj", "v_proj"])),
    "bias where there is none": Case("llama", lora(lora_bias=True)),
    "PiSSA": Case("llama", lora(init_lora_weights="pissa")),
    "LoHa": Case("llama", lambda: LoHaConfig(task_type="CAUSAL_LM", r=4, alpha=8, target_modules=LINEAR)),
}  # fmt: skip


@dataclass
class Result:
    max: float = 0.0
    allowed: float = 0.0
    argmax: float = 0.0
    differing: list[str] = field(default_factory=list)  # tensors that are not peft's, bit by bit
    through_peft: str | None = None
    files: int = 0
    vocabulary: int = 0
    refused: str | None = None


def make_base(name: str, folder: Path, dtype: torch.dtype) -> Path:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(BASES[name]()).to(dtype)
    for parameter in model.parameters():  # a fresh model's biases are zero, and its logits all but equal
        parameter.data = torch.randn_like(parameter) * (0.25 if parameter.dim() > 1 else 0.1) + (parameter.dim() == 1)
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def make_adapter(base: Path, case: Case, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if case.grown:
        model.resize_token_embeddings(GROWN, mean_resizing=False)
    adapted = get_peft_model(model, case.config())
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)  # in place: some share their memory
    adapted.to(case.adapter_dtype).save_pretrained(folder)
    return folder


def by_peft(base: Path, adapters: list[Path], case: Case, dtype: torch.dtype) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if case.grown:
        model.resize_token_embeddings(GROWN, mean_resizing=False)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return dict(model.state_dict())


def run(name: str, case: Case, folder: Path) -> Result:
    dtype = getattr(torch, case.dtype or "float32")
    base = make_base(case.base, folder / "base", dtype)
    adapters = [make_adapter(base, case, folder / f"adapter-{n}", seed=2 + n) for n in range(case.adapters)]
    request = Request(base, tuple(adapters), None, case.shard, verify=False)
    told: list[Mapping[str, object]] = []
    merged = merge(request, folder / "merged", told.append)
    found = {k: v for file in (folder / "merged").glob("*.safetensors") for k, v in load_file(file).items()}
    expected = by_peft(base, adapters, case, dtype)
    # Loaded once more as everybody loads it: the configuration says the same as the weights.
    model = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=dtype)
    loaded = model.state_dict()
    result = Result(through_peft=merged.through_peft, files=merged.files, vocabulary=model.config.vocab_size)
    result.differing = [
        key for key, value in expected.items()
        if not torch.equal(loaded[key], value) or (key in found and not torch.equal(found[key], value))
    ]  # fmt: skip
    agreement = compare(base, adapters, folder / "merged", case.dtype or "float32", [TOKENS], lambda: None)
    result.max, result.allowed, result.argmax = agreement.max, agreement.allowed_max, agreement.argmax
    return result


def main(place: Path) -> None:
    results = {}
    for number, (name, case) in enumerate(CASES.items()):
        try:
            results[name] = run(name, case, place / str(number))
        except MergeError as error:
            results[name] = Result(refused=str(error))
    json.dump({name: vars(result) for name, result in results.items()}, sys.stdout)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
