"""Kinds of adapter that vLLM refuses, or takes for something else."""

from adapters import Code
from tests.fakes.adapter_corpus.case import Area
from tests.fakes.adapter_corpus.craft import EMBEDDING, FIRST, Craft

AREA = Area("Other kinds of adapter")
case = AREA.case
configured = AREA.configured


@case("dora", "use_dora, with its magnitudes", Code.DORA, Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["use_dora"] = True
    for name, (outer, _inner) in craft.dimensions.modules().items():
        craft.tensors[f"base_model.model.{name}.lora_magnitude_vector"] = ("F32", craft.values(outer))


@case("bias", "trained biases of the base model", Code.BIAS, Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["bias"] = "all"
    craft.tensors[f"base_model.model.{FIRST}.bias"] = ("F32", craft.values(craft.dimensions.hidden))


@case("lora_bias", "biases of lora_B", Code.BIAS, Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["lora_bias"] = True
    craft.tensors[f"base_model.model.{FIRST}.lora_B.bias"] = ("F32", craft.values(craft.dimensions.hidden))


@case(
    "modules_to_save",
    "a whole lm_head in place of the base model's",
    Code.MODULES_TO_SAVE,
    Code.TENSOR_NAME,
    engine="refuses",
)
def _(craft: Craft) -> None:
    craft.config["modules_to_save"] = ["lm_head"]
    shape = (craft.dimensions.vocabulary, craft.dimensions.hidden)
    craft.tensors["base_model.model.lm_head.weight"] = ("F32", craft.values(*shape))


@case("whole_embedding_saved", "the embedding of a larger vocabulary", Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    shape = (craft.dimensions.vocabulary + 2, craft.dimensions.hidden)
    craft.tensors[f"base_model.model.{EMBEDDING}.weight"] = ("F32", craft.values(*shape))


@case("trained_tokens", "trainable_token_indices", Code.VARIANT, Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["trainable_token_indices"] = [5, 6]
    name = f"base_model.model.{EMBEDDING}.token_adapter.trainable_tokens_delta"
    craft.tensors[name] = ("F32", craft.values(2, craft.dimensions.hidden))


for _init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq"):
    _what = f"init_lora_weights is {_init}, which changes the base model's weights"
    configured(f"init_{_init}", _what, Code.INIT, engine="refuses", init_lora_weights=_init)
configured("activated_lora", "aLoRA", Code.VARIANT, engine="refuses", alora_invocation_tokens=[1, 2])
configured("layer_replication", "layers used twice", Code.VARIANT, engine="refuses", layer_replication=[[0, 1], [0, 2]])
configured("block_diagonal", "BD-LoRA", Code.VARIANT, engine="refuses", use_bdlora={"nblocks": 2})
configured("qalora", "QALoRA", Code.VARIANT, engine="refuses", use_qalora=True)
configured("arrow", "Arrow, which chooses among adapters", Code.VARIANT, engine="misserves", arrow_config={"top_k": 2})
configured("peft_type_of_another_kind", "peft_type is IA3", Code.PEFT_TYPE, engine="misserves", peft_type="IA3")


@case("ia3", "an adapter of another kind", Code.PEFT_TYPE, engine="refuses")
def _(craft: Craft) -> None:
    craft.config = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}
    craft.tensors = {f"base_model.model.{FIRST}.ia3_l": ("F32", craft.values(craft.dimensions.hidden, 1))}


@case("adalora", "AdaLoRA", Code.PEFT_TYPE, engine="refuses")
def _(craft: Craft) -> None:
    craft.config |= {"peft_type": "ADALORA", "target_r": 8, "init_r": 12}
    craft.tensors = {f"base_model.model.{FIRST}.lora_E": ("F32", craft.values(8, 1))}


@case(
    "tied_embeddings_adapted_once",
    "ensure_weight_tying: one adapter for the embedding and lm_head",
    Code.VARIANT,
    engine="misserves",
)
def _(craft: Craft) -> None:
    craft.config["ensure_weight_tying"] = True
    craft.embedding(craft.dimensions.vocabulary)


configured(
    "target_parameters_with_patterns",
    "alphas of their own for target_parameters",
    Code.VARIANT,
    engine="misserves",
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    target_parameters=["up_proj.weight"],
    alpha_pattern={"up_proj.weight": 200},
)
