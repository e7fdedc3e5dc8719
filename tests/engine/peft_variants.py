"""Adapters of every kind that peft makes, as it writes them.  Runs in the engine's environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import peft
import torch
from peft import LoraConfig

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": LINEAR, **changes})


def other(kind: str, **fields: Any) -> Any:
    return getattr(peft, kind)(task_type="CAUSAL_LM", **fields)


VARIANTS: Mapping[str, Any] = {
    "peft-plain": lora(),
    "peft-all-linear": lora(target_modules="all-linear"),
    "peft-expression": lora(target_modules=r".*\.layers\.1\..*(q|up)_proj"),
    "peft-expression-of-names": lora(target_modules=r"model\.layers\.\d+\.self_attn\.(q|v)_proj"),
    "peft-whole-names": lora(target_modules=["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]),
    "peft-ends-of-names": lora(target_modules=["self_attn.q_proj", "mlp.down_proj"]),
    "peft-layers": lora(layers_to_transform=[1]),
    "peft-layer": lora(layers_to_transform=0),
    "peft-layers-pattern": lora(layers_to_transform=[1], layers_pattern="layers"),
    "peft-excluded": lora(exclude_modules=["k_proj", "layers.0.mlp.up_proj"]),
    "peft-excluded-by-expression": lora(exclude_modules=r".*layers\.0.*"),
    "peft-rslora": lora(use_rslora=True),
    "peft-rslora-patterns": lora(
        use_rslora=True, rank_pattern={"q_proj": 4}, alpha_pattern={"q_proj": 3, "layers.1.mlp.up_proj": 20}
    ),
    "peft-patterns": lora(
        rank_pattern={"^model.layers.0.self_attn.q_proj": 2, "v_proj": 16}, alpha_pattern={"v_proj": 1}
    ),
    "peft-rank-1": lora(r=1, lora_alpha=1),
    "peft-rank-16": lora(r=16, lora_alpha=4),
    "peft-rank-32": lora(r=32),
    "peft-alpha-0": lora(lora_alpha=0),
    "peft-alpha-negative": lora(lora_alpha=-8),
    "peft-alpha-fraction": lora(lora_alpha=11.5),
    "peft-embedding": lora(target_modules=[*LINEAR, "embed_tokens"]),
    "peft-embedding-alone": lora(target_modules=["embed_tokens"]),
    "peft-output-layer": lora(target_modules=[*LINEAR, "lm_head"]),
    "peft-both-ends": lora(target_modules=[*LINEAR, "lm_head", "embed_tokens"]),
    "peft-tied-both-ends": lora(target_modules=[*LINEAR, "lm_head", "embed_tokens"], ensure_weight_tying=True),
    "peft-tied-embedding": lora(target_modules=[*LINEAR, "embed_tokens"], ensure_weight_tying=True),
    "peft-dora": lora(use_dora=True),
    "peft-bias-all": lora(bias="all"),
    "peft-bias-lora-only": lora(bias="lora_only"),
    "peft-lora-bias": lora(lora_bias=True),
    "peft-whole-output-layer": lora(modules_to_save=["lm_head"]),
    "peft-whole-norm": lora(modules_to_save=["norm"]),
    "peft-trained-tokens": lora(trainable_token_indices=[5, 6]),
    "peft-gaussian": lora(init_lora_weights="gaussian"),
    "peft-orthogonal": lora(init_lora_weights="orthogonal"),
    "peft-pissa": lora(init_lora_weights="pissa"),
    "peft-olora": lora(init_lora_weights="olora"),
    "peft-parameters": lora(target_modules=[], target_parameters=["q_proj.weight"]),
    "peft-parameters-and-modules": lora(target_parameters=["mlp.up_proj.weight"], target_modules=["q_proj"]),
    "peft-parameters-with-alphas": lora(
        target_parameters=["mlp.up_proj.weight"], target_modules=["q_proj"], alpha_pattern={"up_proj.weight": 64}
    ),
    "peft-alora": lora(alora_invocation_tokens=[3, 4]),
    "peft-replication": lora(layer_replication=[[0, 1], [0, 2]]),
    "peft-qalora": lora(use_qalora=True),
    "peft-ia3": other("IA3Config", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "peft-loha": other("LoHaConfig", target_modules=LINEAR),
    "peft-lokr": other("LoKrConfig", target_modules=LINEAR),
    "peft-oft": other("OFTConfig", target_modules=LINEAR, oft_block_size=8),
    "peft-boft": other("BOFTConfig", target_modules=LINEAR, boft_block_size=4),
    "peft-vera": other("VeraConfig", target_modules=["q_proj"], r=8),
    "peft-adalora": other("AdaLoraConfig", target_modules=LINEAR, total_step=10),
    "peft-prompt": other("PromptTuningConfig", num_virtual_tokens=4),
    "peft-prefix": other("PrefixTuningConfig", num_virtual_tokens=4),
    "peft-norms": other("LNTuningConfig"),
    "peft-miss": other("MissConfig", target_modules=LINEAR),
    "peft-fourier": other("FourierFTConfig", target_modules=["q_proj"], n_frequency=20),
    "peft-hra": other("HRAConfig", target_modules=LINEAR),
    "peft-randlora": other("RandLoraConfig", target_modules=LINEAR, r=8),
    "peft-vblora": other(
        "VBLoRAConfig", target_modules=["q_proj"], r=4, num_vectors=16, vector_length=8, topk=2
    ),
}  # fmt: skip


def randomised(model: Any) -> Any:
    """As if it were trained: all that is trained is other than it began."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn_like(parameter) * 0.05
            parameter.data = parameter.data + noise * 2 if "norm" in name else noise
    return model
