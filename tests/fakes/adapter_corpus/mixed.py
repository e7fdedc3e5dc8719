"""Adapters with several things changed at random: what nobody thought of, right or wrong."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.fakes.adapter_corpus.craft import EMBEDDING, TINY, Craft, Dimensions, factor

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KEYS = [
    *LINEAR,
    "mlp.up_proj",
    "layers.1.self_attn.q_proj",
    "model.layers.0.mlp.down_proj",
    r"^model\.layers\.\d+\.self_attn\.(k|v)_proj",
    r".*layers\.1\..*up_proj$",
    "no_such_module",
]
SCRAMBLES = [None, True, False, 0, 1, -1, 8, 8.0, 1e9, "", "none", "8", [], ["q_proj"], {}, {"q_proj": 4}]


def mixed(seed: int, dimensions: Dimensions = TINY) -> Craft:
    """One to four changes of a plain adapter; the same for the same seed."""
    rng = random.Random(seed)
    craft = Craft(dimensions)
    for change in rng.sample(CHANGES, rng.randint(1, 4)):
        change(craft, rng)
    return craft


def _modules(craft: Craft) -> list[str]:
    return [name for name in craft.dimensions.modules() if factor(name, "A") in craft.tensors]


def _some(craft: Craft, rng: random.Random) -> list[str]:
    modules = _modules(craft)
    return rng.sample(modules, min(len(modules), rng.randint(1, 4)))


def _rank(craft: Craft, rng: random.Random) -> None:
    craft.config["r"] = rank = rng.choice([1, 2, 4, 16, 17, 32])
    for name in _modules(craft) if rng.random() < 0.8 else _some(craft, rng):
        craft.factors(name, rank)


def _rank_pattern(craft: Craft, rng: random.Random) -> None:
    key, rank = rng.choice(KEYS), rng.choice([1, 4, 8, 16, 32])
    craft.config["rank_pattern"] = {key: rank}
    for name in _modules(craft):
        if name.endswith(key) and rng.random() < 0.9:
            craft.factors(name, rank)


def _alpha(craft: Craft, rng: random.Random) -> None:
    craft.config["lora_alpha"] = rng.choice([0, 1, 7.5, -16, 64, 1024, 40000])


def _alpha_pattern(craft: Craft, rng: random.Random) -> None:
    craft.config["alpha_pattern"] = {rng.choice(KEYS): rng.choice([1, 2.5, 64]) for _ in range(2)}


def _rslora(craft: Craft, rng: random.Random) -> None:
    craft.config["use_rslora"] = True


def _targets(craft: Craft, rng: random.Random) -> None:
    """Fewer targets, with or without the tensors of the others."""
    targets = rng.sample(LINEAR, rng.randint(1, 6))
    craft.config["target_modules"] = rng.choice(
        [targets, rf".*\.({'|'.join(targets)})", rf"model\.layers\.\d+\..*\.({'|'.join(targets)})", "all-linear"]
    )
    if rng.random() < 0.7:
        craft.keep(*(f".{target}." for target in targets))


def _parameters(craft: Craft, rng: random.Random) -> None:
    moved = rng.choice(LINEAR)
    craft.config["target_parameters"] = [f"{moved}.weight"]
    if isinstance(targets := craft.config.get("target_modules"), list) and rng.random() < 0.9:
        craft.config["target_modules"] = [target for target in targets if target != moved]


def _excluded(craft: Craft, rng: random.Random) -> None:
    craft.config["exclude_modules"] = excluded = [rng.choice(["up_proj", "layers.0.mlp.up_proj"])]
    if rng.random() < 0.7:
        craft.tensors = {n: t for n, t in craft.tensors.items() if f"{excluded[0]}." not in n}


def _layers(craft: Craft, rng: random.Random) -> None:
    craft.config["layers_to_transform"] = rng.choice([0, [0], [0, 1], [1, 7], []])
    craft.config["layers_pattern"] = rng.choice([None, "layers", ["h", "layers"], "blocks"])
    if rng.random() < 0.7:
        craft.keep("layers.0.")


def _fewer(craft: Craft, rng: random.Random) -> None:
    for name in _some(craft, rng):
        for side in "AB" if rng.random() < 0.8 else "A":
            craft.tensors.pop(factor(name, side), None)


def _dtypes(craft: Craft, rng: random.Random) -> None:
    kinds = ["BF16", "F16", "F32", "F64"]
    craft.tensors = {name: (rng.choice(kinds), values) for name, (_, values) in craft.tensors.items()}


def _shapes(craft: Craft, rng: random.Random) -> None:
    for name in _some(craft, rng):
        outer, inner = craft.dimensions.modules()[name]
        craft.factors(
            name, 8, rng.choice([(inner, outer), (outer // 2, inner), (outer, inner // 2), (outer * 2, inner)])
        )


def _elsewhere(craft: Craft, rng: random.Random) -> None:
    old, new = rng.choice(
        [("base_model.model.", ""), (".layers.1.", ".layers.7."), ("model.layers", "layers"), (".weight", ".bias")]
    )
    craft.tensors = {name.replace(old, new): tensor for name, tensor in craft.tensors.items()}


def _ends(craft: Craft, rng: random.Random) -> None:
    if not isinstance(craft.config.get("target_modules"), list):
        return
    if rng.random() < 0.6:
        craft.embedding(craft.dimensions.vocabulary + rng.choice([0, 0, 0, 8]))
    if rng.random() < 0.6:
        craft.output_layer()
    if rng.random() < 0.3:
        name = rng.choice([f"{EMBEDDING}.base_layer.weight", "lm_head.base_layer.weight"])
        craft.tensors[f"base_model.model.{name}"] = craft.dimensions.weights()[f"{EMBEDDING}.weight"]


def _value(craft: Craft, rng: random.Random) -> None:
    if names := sorted(craft.tensors):
        craft.poke(rng.choice(names), rng.choice([float("nan"), float("inf"), 1e9, 5e4, 100.0]))


def _kind(craft: Craft, rng: random.Random) -> None:
    craft.config |= rng.choice(
        [
            {"use_dora": True},
            {"bias": "lora_only"},
            {"init_lora_weights": rng.choice(["pissa", "gaussian", "eva", "PiSSA", False])},
            {"modules_to_save": rng.choice([["lm_head"], ["score"], ["norm"], []])},
            {"ensure_weight_tying": True},
            {"fan_in_fan_out": True},
            {"peft_type": rng.choice(["IA3", "LOHA", "LORA"])},
            {"use_qalora": True},
            {"layer_replication": [[0, 2]]},
            {"trainable_token_indices": [3]},
        ]
    )


def _scrambled(craft: Craft, rng: random.Random) -> None:
    craft.config[rng.choice(sorted(craft.config))] = rng.choice(SCRAMBLES)


def _left_out(craft: Craft, rng: random.Random) -> None:
    del craft.config[rng.choice(sorted(craft.config))]


CHANGES: list[Callable[[Craft, random.Random], None]] = [
    _rank, _rank_pattern, _alpha, _alpha_pattern, _rslora, _targets, _parameters, _excluded, _layers, _fewer, _dtypes,
    _shapes, _elsewhere, _ends, _value, _kind, _scrambled, _left_out,
]  # fmt: skip
