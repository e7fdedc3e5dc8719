"""Adapters for another model than the base model: its modules, its shapes, its vocabulary."""

from collections.abc import Callable

import numpy as np

from adapters import Code
from tests.fakes.adapter_corpus.case import Area, Engine
from tests.fakes.adapter_corpus.craft import EMBEDDING, Craft, factor

AREA = Area("For another model")
case = AREA.case


@case("module_of_another_family", "a fused wqkv", Code.MODULE, Code.TARGET, engine="refuses")
def _(craft: Craft) -> None:
    craft.factors("model.layers.0.self_attn.wqkv", 8, (64, 64))


@case("layer_beyond_the_model", "one layer more than the model has", Code.MODULE, engine="misserves")
def _(craft: Craft) -> None:
    craft.factors(f"model.layers.{craft.dimensions.layers}.self_attn.q_proj", 8, (64, 64))


@case("modules_of_a_wrapped_model", "model.language_model.layers", Code.MODULE, engine="misserves")
def _(craft: Craft) -> None:
    craft.tensors = {n.replace(".model.layers", ".model.language_model.layers"): t for n, t in craft.tensors.items()}


def shaped(name: str, what: str, engine: Engine, change: Callable[[int], int]) -> None:
    def apply(craft: Craft) -> None:
        for module, (outer, inner) in craft.dimensions.modules().items():
            craft.factors(module, 8, (change(outer), change(inner)))

    case(name, what, Code.SHAPE, engine=engine)(apply)


shaped("of_a_smaller_base", "all sizes halved", "misserves", lambda size: size // 2)
shaped("of_a_larger_base", "all sizes doubled", "refuses", lambda size: size * 2)


@case("transposed", "the factors of a module the other way round", Code.SHAPE, engine="refuses")
def _(craft: Craft) -> None:
    for side in "AB":
        dtype, values = craft.tensors[factor("model.layers.0.mlp.up_proj", side)]
        craft.tensors[factor("model.layers.0.mlp.up_proj", side)] = (dtype, np.ascontiguousarray(values.T))


@case("fan_in_fan_out_taken_at_its_word", "factors stored for a transposed weight", Code.SHAPE, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["fan_in_fan_out"] = True
    for module, (outer, inner) in craft.dimensions.modules().items():
        craft.factors(module, 8, (inner, outer))


@case("embedding_of_another_vocabulary", "eight tokens more", Code.SHAPE, engine="refuses")
def _(craft: Craft) -> None:
    craft.embedding(craft.dimensions.vocabulary + 8)


@case("embedding_as_if_linear", "lora_A and lora_B of the embedding", Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.also_targets("embed_tokens")
    craft.factors(EMBEDDING, 8, (craft.dimensions.vocabulary, craft.dimensions.hidden))


@case(
    "base_of_a_larger_vocabulary",
    "peft's copy of lm_head has two tokens more",
    Code.VOCABULARY,
    engine="misserves",
    warnings=(Code.OUTPUT_LAYER,),
)
def _(craft: Craft) -> None:
    craft.output_layer()
    copy = craft.values(craft.dimensions.vocabulary + 2, craft.dimensions.hidden)
    craft.tensors["base_model.model.lm_head.base_layer.weight"] = ("F32", copy)
