"""Adapters that vLLM serves as they were trained."""

from functools import partial

import numpy as np

from adapters import Code
from tests.fakes.adapter_corpus.case import Area
from tests.fakes.adapter_corpus.craft import EMBEDDING, FIRST, Craft

AREA = Area("Served as they were trained")
case = AREA.case
configured = AREA.configured
filed = AREA.filed
without = AREA.without


@case("plain", "rank 8 on every linear module, as peft writes it", engine="serves")
def _(craft: Craft) -> None:
    pass


for _dtype in ("BF16", "F16", "F64"):
    case(f"dtype_{_dtype}", f"stored as {_dtype}", engine="serves")(partial(Craft.all_as, dtype=_dtype))


@case("dtypes_mixed", "lora_A stored as BF16, lora_B as F32", engine="serves")
def _(craft: Craft) -> None:
    craft.tensors = {n: ("BF16" if "lora_A" in n else d, v) for n, (d, v) in craft.tensors.items()}


@case("rank_1", "the smallest rank", engine="serves")
def _(craft: Craft) -> None:
    craft.config["r"] = 1
    for name in craft.dimensions.modules():
        craft.factors(name, 1)


@case("rank_16", "the engine's --max-lora-rank", engine="serves")
def _(craft: Craft) -> None:
    craft.config["r"] = 16
    for name in craft.dimensions.modules():
        craft.factors(name, 16)


@case("attention_only", "q_proj and v_proj alone", engine="serves")
def _(craft: Craft) -> None:
    craft.config["target_modules"] = ["q_proj", "v_proj"]
    craft.keep("q_proj", "v_proj")


@case("one_layer_only", "layers_to_transform names one layer", engine="serves")
def _(craft: Craft) -> None:
    craft.config["layers_to_transform"] = [1]
    craft.keep("layers.1.")


@case("one_layer_of_a_pattern", "layers_pattern says where the layers are", engine="serves")
def _(craft: Craft) -> None:
    craft.config |= {"layers_to_transform": 0, "layers_pattern": "layers"}
    craft.keep("layers.0.")


@case("modules_by_their_whole_names", "target_modules names two modules of all", engine="serves")
def _(craft: Craft) -> None:
    craft.config["target_modules"] = [FIRST, "model.layers.1.mlp.up_proj"]
    craft.keep("layers.0.self_attn.q_proj", "layers.1.mlp.up_proj")


@case("modules_excluded", "exclude_modules takes some out", engine="serves")
def _(craft: Craft) -> None:
    craft.config["exclude_modules"] = ["k_proj", "layers.0.mlp.up_proj"]
    craft.tensors = {n: t for n, t in craft.tensors.items() if "k_proj" not in n and "layers.0.mlp.up_proj" not in n}


@case("rank_pattern", "ranks and alphas of their own for some modules", engine="serves")
def _(craft: Craft) -> None:
    craft.config |= {"rank_pattern": {"q_proj": 4, "model.layers.1.mlp.up_proj": 16}, "alpha_pattern": {"q_proj": 4.5}}
    craft.factors("model.layers.1.mlp.up_proj", 16)
    for name in craft.dimensions.modules():
        if name.endswith("q_proj"):
            craft.factors(name, 4)


@case("rank_pattern_of_regular_expressions", "the same by regular expressions", engine="serves")
def _(craft: Craft) -> None:
    craft.config["rank_pattern"] = {r"^model\.layers\.\d+\.self_attn\.(k|v)_proj": 2, r".*layers\.1\..*up_proj$": 4}
    craft.factors("model.layers.1.mlp.up_proj", 4)
    for name in craft.dimensions.modules():
        if name.endswith(("k_proj", "v_proj")):
            craft.factors(name, 2)


configured("rslora", "scaled by alpha / √rank", engine="serves", use_rslora=True)


@case("rslora_with_patterns", "the same with ranks and alphas of their own", engine="serves")
def _(craft: Craft) -> None:
    craft.config |= {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 3, "up_proj": 20}}
    for name in craft.dimensions.modules():
        if name.endswith("q_proj"):
            craft.factors(name, 4)


configured("fractional_alpha", "lora_alpha is 11.5", engine="serves", lora_alpha=11.5)
configured("negative_alpha", "lora_alpha is -8", engine="serves", lora_alpha=-8)
for _init in ("gaussian", "eva", "orthogonal", "lora_ga", False):
    configured(f"init_{_init}", f"init_lora_weights is {_init}", engine="serves", init_lora_weights=_init)
configured("fan_in_fan_out", "set, and without a meaning for linear modules", engine="serves", fan_in_fan_out=True)
configured(
    "target_modules_as_expression",
    "target_modules is a regular expression",
    engine="serves",
    target_modules=r".*\.(q|k|v|o|up|gate|down)_proj",
)
configured(
    "target_modules_as_a_richer_expression",
    "one that Unsloth writes for models with vision",
    engine="serves",
    target_modules=r"(?:.*?(?:language|text|model).*?(?:self_attn|mlp).*?(?:q|k|v|o|gate|up|down)_proj.*?)|(?:lm_head)",
)
configured("all_linear", "target_modules is all-linear", engine="serves", target_modules="all-linear")
configured(
    "target_parameters",
    "two of the weights are targets by their parameters' names",
    engine="serves",
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"],
    target_parameters=["up_proj.weight", "gate_proj.weight"],
)
configured(
    "fields_of_a_later_peft",
    "unknown fields in adapter_config.json",
    engine="serves",
    some_new_thing={"a": [1, 2]},
    peft_version="9.9",
)
without("peft_type_left_out", "no peft_type", "peft_type", engine="serves", like="plain")


@case("smallest_configuration", "adapter_config.json has four fields", engine="serves")
def _(craft: Craft) -> None:
    craft.config = {name: craft.config[name] for name in ("peft_type", "r", "lora_alpha", "target_modules")}


@case("prefix_left_out", "tensors without base_model.model.", engine="serves")
def _(craft: Craft) -> None:
    craft.tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in craft.tensors.items()}


filed(
    "llama_factory_output",
    "with what LLaMA-Factory leaves beside it",
    engine="serves",
    files={
        "README.md": b"---\nlibrary_name: peft\n---\n",
        "training_args.bin": b"PK\x03\x04",
        "trainer_state.json": b"{}",
        "checkpoint-10/adapter_config.json": b"{}",
        "checkpoint-10/optimizer.pt": b"PK\x03\x04",
    },
)


@case("embedding", "an adapter of the embedding, with peft's copy of the base model's", engine="serves")
def _(craft: Craft) -> None:
    craft.embedding(craft.dimensions.vocabulary)
    copy = craft.dimensions.weights()[f"{EMBEDDING}.weight"]
    craft.tensors[f"base_model.model.{EMBEDDING}.base_layer.weight"] = copy


@case("output_layer", "an adapter of lm_head", engine="serves", warnings=(Code.OUTPUT_LAYER,))
def _(craft: Craft) -> None:
    craft.output_layer()


@case(
    "embedding_and_output_layer",
    "adapters of both ends, which share their weights in the base model",
    engine="serves",
    warnings=(Code.OUTPUT_LAYER,),
)
def _(craft: Craft) -> None:
    craft.embedding(craft.dimensions.vocabulary)
    craft.output_layer()


@case("never_trained", "lora_B is zero", engine="serves", warnings=(Code.NO_EFFECT,))
def _(craft: Craft) -> None:
    craft.tensors = {n: (d, np.zeros_like(v) if "lora_B" in n else v) for n, (d, v) in craft.tensors.items()}


@case("scaled_to_nothing", "lora_alpha is 0", engine="serves", warnings=(Code.NO_EFFECT,))
def _(craft: Craft) -> None:
    craft.config["lora_alpha"] = 0
