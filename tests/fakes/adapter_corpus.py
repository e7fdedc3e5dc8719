"""Crafted LoRA adapters, right and wrong, each with the verdict it deserves and what vLLM 0.32 does with it.

Each case starts from a plain adapter for a Llama-like base model of given dimensions and changes one thing. Needs numpy
and nothing else, so that the same adapters can be laid before the check, and before a real engine.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from adapters import Code

# What vLLM 0.32 does with a case: it serves what was trained; it refuses (404 or 500); or it loads it without a word
# and serves something else, or harms others. `untold`: no engine is asked, as it is not about one.
Engine = Literal["serves", "refuses", "misserves", "untold"]

Array = np.ndarray


@dataclass(frozen=True)
class Dimensions:
    """Of a Llama-like base model."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int

    def modules(self) -> dict[str, tuple[int, int]]:
        """[out, in] of each linear module."""
        queries, keys = self.heads * self.head, self.key_heads * self.head
        layer = {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }
        return {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }


TINY = Dimensions("tiny-llama", layers=2, hidden=64, inner=96, heads=4, key_heads=2, head=16, vocabulary=128)
SMOLLM2 = Dimensions(
    "SmolLM2-135M-Instruct", layers=30, hidden=576, inner=1536, heads=9, key_heads=3, head=64, vocabulary=49152
)


def as_bytes(dtype: str, values: Array) -> bytes:
    """`values` in a safetensors dtype; numpy knows no bfloat16, which is the upper half of a float32."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "<i1", "F8_E4M3": "<u1"}
    return values.astype(kinds[dtype]).tobytes()


def safetensors(tensors: Mapping[str, tuple[str, Array]], metadata: bool = True) -> bytes:
    """A valid file, laid out as the safetensors package does."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if metadata else {}
    payload = bytearray()
    for name, (dtype, values) in tensors.items():
        begin = len(payload)
        payload += as_bytes(dtype, values)
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [begin, len(payload)]}
    return with_header(json.dumps(header).encode(), bytes(payload))


def with_header(header: bytes, payload: bytes = b"") -> bytes:
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + payload


@dataclass
class Craft:
    """A plain adapter to change: rank 8 on all linear modules, as peft writes it."""

    dimensions: Dimensions
    config: dict[str, object] = field(init=False)
    tensors: dict[str, tuple[str, Array]] = field(init=False)
    files: dict[str, bytes] = field(default_factory=dict)  # more files, or others in place of the two
    after: Callable[[Path], None] = lambda folder: None

    def __post_init__(self) -> None:
        self.config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": f"somebody/{self.dimensions.name}",
            "r": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
            "layer_replication": None,
            "layers_to_transform": None,
            "rank_pattern": {},
            "alpha_pattern": {},
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "auto_mapping": None,
            "loftq_config": {},
            "megatron_config": None,
            "megatron_core": "megatron.core",
            "target_parameters": None,
            "trainable_token_indices": None,
        }
        self.tensors = {}
        for name in self.dimensions.modules():
            self.factors(name, 8)

    def values(self, *shape: int) -> Array:
        """Small numbers, other ones for each tensor, the same in each run."""
        rng = np.random.default_rng(len(self.tensors))
        return (rng.standard_normal(shape) * 0.02).astype("<f4")

    def factors(self, module: str, rank: int, shape: tuple[int, int] | None = None, dtype: str = "F32") -> None:
        """Sets lora_A and lora_B of a module; `shape` is [out, in], from the base model where it has the module."""
        outer, inner = shape or self.dimensions.modules()[module]
        self.tensors[factor(module, "A")] = (dtype, self.values(rank, inner))
        self.tensors[factor(module, "B")] = (dtype, self.values(outer, rank))

    def all_as(self, dtype: str) -> None:
        self.tensors = {name: (dtype, values) for name, (_, values) in self.tensors.items()}

    def keep(self, *parts: str) -> None:
        """Only the tensors whose name contains one of `parts`."""
        self.tensors = {n: t for n, t in self.tensors.items() if any(part in n for part in parts)}

    def also_targets(self, module: str) -> None:
        targets = self.config["target_modules"]
        assert isinstance(targets, list)
        self.config["target_modules"] = [*targets, module]

    def poke(self, name: str, value: float, index: int = -1) -> None:
        dtype, values = self.tensors[name]
        values = values.copy()
        values.reshape(-1)[index] = value
        self.tensors[name] = (dtype, values)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        files = {
            "adapter_config.json": json.dumps(self.config, indent=2).encode(),
            "adapter_model.safetensors": safetensors(self.tensors),
        } | self.files
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        self.after(folder)


def factor(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"


@dataclass(frozen=True)
class Case:
    """An adapter and its verdict on its base model with --max-lora-rank 16: the codes of its errors and warnings."""

    name: str
    change: Callable[[Craft], None]
    errors: frozenset[Code]
    warnings: frozenset[Code]
    engine: Engine

    def write(self, folder: Path, dimensions: Dimensions = TINY) -> Path:
        craft = Craft(dimensions)
        self.change(craft)
        craft.write(folder)
        return folder


def write_base(folder: Path, dimensions: Dimensions = TINY, weights: bool = True) -> Path:
    """A base model of these dimensions, with random weights or without."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dimensions.config()))
    if weights:
        rng = np.random.default_rng(0)
        shapes = {"model.embed_tokens": (dimensions.vocabulary, dimensions.hidden), **dimensions.modules()}
        tensors = {f"{n}.weight": ("BF16", rng.standard_normal(s).astype("<f4") * 0.02) for n, s in shapes.items()}
        tensors |= {"model.norm.weight": ("BF16", np.ones(dimensions.hidden, "<f4"))}
        (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return folder


CASES: list[Case] = []


def case(
    name: str, *errors: Code, engine: Engine, warnings: tuple[Code, ...] = ()
) -> Callable[[Callable[[Craft], None]], Callable[[Craft], None]]:
    def register(change: Callable[[Craft], None]) -> Callable[[Craft], None]:
        CASES.append(Case(name, change, frozenset(errors), frozenset(warnings), engine))
        return change

    return register


def configured(name: str, *errors: Code, engine: Engine, **fields: object) -> None:
    """A case whose tensors are plain and whose configuration has these fields."""

    def apply(craft: Craft) -> None:
        craft.config |= fields

    case(name, *errors, engine=engine)(apply)


def filed(name: str, *errors: Code, engine: Engine, files: dict[str, bytes]) -> None:
    """A case with these files, in place of or beside the plain ones."""

    def apply(craft: Craft) -> None:
        craft.files |= files

    case(name, *errors, engine=engine)(apply)


def without(name: str, field_name: str, *errors: Code, engine: Engine) -> None:
    """A case whose configuration lacks a field."""

    def apply(craft: Craft) -> None:
        del craft.config[field_name]

    case(name, *errors, engine=engine)(apply)


FIRST = "model.layers.0.self_attn.q_proj"

# ---- right


@case("plain", engine="serves")
def _(craft: Craft) -> None:
    pass


for _dtype in ("BF16", "F16", "F64"):
    case(f"dtype_{_dtype}", engine="serves")(partial(Craft.all_as, dtype=_dtype))


@case("rank_16", engine="serves")
def _(craft: Craft) -> None:
    craft.config["r"] = 16
    for name in craft.dimensions.modules():
        craft.factors(name, 16)


@case("attention_only", engine="serves")
def _(craft: Craft) -> None:
    craft.config["target_modules"] = ["q_proj", "v_proj"]
    craft.keep("q_proj", "v_proj")


@case("one_layer_only", engine="serves")
def _(craft: Craft) -> None:
    craft.config["layers_to_transform"] = [1]
    craft.keep("layers.1.")


@case("rank_pattern", engine="serves")
def _(craft: Craft) -> None:
    craft.config |= {"rank_pattern": {"q_proj": 4, "model.layers.1.mlp.up_proj": 16}, "alpha_pattern": {"q_proj": 4.5}}
    craft.factors("model.layers.1.mlp.up_proj", 16)
    for name in craft.dimensions.modules():
        if name.endswith("q_proj"):
            craft.factors(name, 4)


@case("rank_pattern_of_regular_expressions", engine="serves")
def _(craft: Craft) -> None:
    craft.config["rank_pattern"] = {r"^model\.layers\.\d+\.self_attn\.(k|v)_proj": 2, r".*layers\.1\..*up_proj$": 4}
    craft.factors("model.layers.1.mlp.up_proj", 4)
    for name in craft.dimensions.modules():
        if name.endswith(("k_proj", "v_proj")):
            craft.factors(name, 2)


@case("prefix_left_out", engine="serves")
def _(craft: Craft) -> None:
    craft.tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in craft.tensors.items()}


@case("smallest_configuration", engine="serves")
def _(craft: Craft) -> None:
    craft.config = {name: craft.config[name] for name in ("peft_type", "r", "lora_alpha", "target_modules")}


@case("llama_factory_output", engine="serves")
def _(craft: Craft) -> None:
    craft.files |= {
        "README.md": b"---\nlibrary_name: peft\n---\n",
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "training_args.bin": b"PK\x03\x04",
        "trainer_state.json": b"{}",
        "checkpoint-10/adapter_config.json": b"{}",
        "checkpoint-10/optimizer.pt": b"PK\x03\x04",
    }


@case("output_layer", engine="serves", warnings=(Code.OUTPUT_LAYER,))
def _(craft: Craft) -> None:
    craft.also_targets("lm_head")
    craft.factors("lm_head", 8, (craft.dimensions.vocabulary, craft.dimensions.hidden))


def embedding(craft: Craft, vocabulary: int) -> None:
    craft.also_targets("embed_tokens")
    module = "base_model.model.model.embed_tokens"
    craft.tensors[f"{module}.lora_embedding_A"] = ("F32", craft.values(8, vocabulary))
    craft.tensors[f"{module}.lora_embedding_B"] = ("F32", craft.values(craft.dimensions.hidden, 8))


@case("embedding", engine="serves")
def _(craft: Craft) -> None:
    embedding(craft, craft.dimensions.vocabulary)
    copy = craft.values(craft.dimensions.vocabulary, craft.dimensions.hidden)
    craft.tensors["base_model.model.model.embed_tokens.base_layer.weight"] = ("BF16", copy)


configured("rslora", engine="serves", use_rslora=True)
for _init in ("gaussian", "eva", "orthogonal", "lora_ga", False):
    configured(f"init_{_init}", engine="serves", init_lora_weights=_init)
configured("target_modules_as_expression", engine="serves", target_modules=r".*\.(q|k|v|o|up|gate|down)_proj")
configured("all_linear", engine="serves", target_modules="all-linear")
configured("fields_of_a_later_peft", engine="serves", some_new_thing={"a": [1, 2]}, peft_version="9.9")
configured("fractional_alpha", engine="serves", lora_alpha=11.5)
without("peft_type_left_out", "peft_type", engine="serves")


@case("other_base_name", engine="serves", warnings=(Code.BASE_NAME,))
def _(craft: Craft) -> None:
    craft.config["base_model_name_or_path"] = "somebody/another-model"


@case("never_trained", engine="serves", warnings=(Code.NO_EFFECT,))
def _(craft: Craft) -> None:
    craft.tensors = {n: (d, np.zeros_like(v) if "lora_B" in n else v) for n, (d, v) in craft.tensors.items()}


# ---- kinds of adapter that an engine refuses or takes for something else


@case("dora", Code.DORA, Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["use_dora"] = True
    for name, (outer, _inner) in craft.dimensions.modules().items():
        craft.tensors[f"base_model.model.{name}.lora_magnitude_vector"] = ("F32", craft.values(outer))


@case("bias", Code.BIAS, Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["bias"] = "all"
    craft.tensors[f"base_model.model.{FIRST}.bias"] = ("F32", craft.values(craft.dimensions.hidden))


@case("lora_bias", Code.BIAS, Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["lora_bias"] = True
    craft.tensors[f"base_model.model.{FIRST}.lora_B.bias"] = ("F32", craft.values(craft.dimensions.hidden))


@case("modules_to_save", Code.MODULES_TO_SAVE, Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["modules_to_save"] = ["lm_head"]
    shape = (craft.dimensions.vocabulary, craft.dimensions.hidden)
    craft.tensors["base_model.model.lm_head.weight"] = ("F32", craft.values(*shape))


@case("whole_embedding_saved", Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    shape = (craft.dimensions.vocabulary + 2, craft.dimensions.hidden)
    craft.tensors["base_model.model.model.embed_tokens.weight"] = ("F32", craft.values(*shape))


@case("trained_tokens", Code.VARIANT, Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["trainable_token_indices"] = [5, 6]
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    craft.tensors[name] = ("F32", craft.values(2, craft.dimensions.hidden))


for _init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq"):
    configured(f"init_{_init}", Code.INIT, engine="refuses", init_lora_weights=_init)
configured("activated_lora", Code.VARIANT, engine="refuses", alora_invocation_tokens=[1, 2])
configured("layer_replication", Code.VARIANT, engine="refuses", layer_replication=[[0, 1], [0, 2]])
configured("block_diagonal", Code.VARIANT, engine="refuses", use_bdlora={"nblocks": 2})
configured("qalora", Code.VARIANT, engine="refuses", use_qalora=True)
configured("arrow", Code.VARIANT, engine="misserves", arrow_config={"top_k": 2})
configured("peft_type_of_another_kind", Code.PEFT_TYPE, engine="misserves", peft_type="IA3")


@case("ia3", Code.PEFT_TYPE, engine="refuses")
def _(craft: Craft) -> None:
    craft.config = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}
    craft.tensors = {f"base_model.model.{FIRST}.ia3_l": ("F32", craft.values(craft.dimensions.hidden, 1))}


@case("adalora", Code.PEFT_TYPE, engine="refuses")
def _(craft: Craft) -> None:
    craft.config |= {"peft_type": "ADALORA", "target_r": 8, "init_r": 12}
    craft.tensors = {f"base_model.model.{FIRST}.lora_E": ("F32", craft.values(8, 1))}


# ---- the rank and the scale

configured("rank_declared_too_large", Code.RANK_TOO_LARGE, engine="refuses", rank_pattern={"no_such_module": 64})
configured("rank_of_a_million", Code.RANK, engine="refuses", r=1_000_000)
configured("rank_zero", Code.RANK, engine="refuses", r=0)
configured("rank_negative", Code.RANK, engine="refuses", r=-8)
configured("rank_as_text", Code.FIELD, engine="refuses", r="8")
configured("rank_as_truth", Code.FIELD, engine="misserves", r=True)
configured("rank_that_lies", Code.RANK_MISMATCH, engine="misserves", r=4)
configured("rank_pattern_that_lies", Code.RANK_MISMATCH, engine="misserves", rank_pattern={"k_proj": 16})
configured("rank_pattern_as_list", Code.FIELD, engine="refuses", rank_pattern=[8])
configured("alpha_as_text", Code.FIELD, engine="refuses", lora_alpha="16")
configured("alpha_of_nothing", Code.FIELD, engine="refuses", lora_alpha=None)
configured("alpha_beyond_measure", Code.SCALE, engine="misserves", lora_alpha=1e30)
without("no_rank", "r", Code.FIELD, engine="refuses")
without("no_alpha", "lora_alpha", Code.FIELD, engine="refuses")
without("no_target_modules", "target_modules", Code.FIELD, engine="refuses")


@case("rank_64", Code.RANK_TOO_LARGE, engine="refuses")
def _(craft: Craft) -> None:
    craft.config["r"] = 64
    for name in craft.dimensions.modules():
        craft.factors(name, 64)


@case("one_module_of_another_rank", Code.RANK_MISMATCH, engine="misserves")
def _(craft: Craft) -> None:
    craft.factors(FIRST, 4)


# ---- hostile configurations

configured("auto_map", Code.REMOTE_CODE, engine="misserves", auto_map={"AutoModel": "evil.Model"})
configured("trust_remote_code", Code.REMOTE_CODE, engine="misserves", trust_remote_code=True)
configured("field_of_the_engine", Code.REMOTE_CODE, engine="misserves", vllm_lora_scaling_factor=100.0)
configured("internal_field", Code.REMOTE_CODE, engine="misserves", is_target_internal=True)
configured("rank_pattern_that_hangs", Code.PATTERN, engine="untold", rank_pattern={"((a|aa)+)+x": 8})
configured("alpha_pattern_that_hangs", Code.PATTERN, engine="untold", alpha_pattern={".*.*.*.*.*.*x": 8})
configured("target_modules_that_hang", Code.PATTERN, engine="misserves", target_modules="(.*a)+(.*a)+$")
configured("use_dora_as_text", Code.FIELD, engine="refuses", use_dora="no")
configured("bias_as_number", Code.FIELD, engine="refuses", bias=1)

_CONFIG = "adapter_config.json"
_PLAIN = b'{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]'
filed("config_not_json", Code.CONFIG, engine="refuses", files={_CONFIG: b"{r: 8}"})
filed("config_empty", Code.CONFIG, engine="refuses", files={_CONFIG: b""})
filed("config_a_list", Code.CONFIG, engine="refuses", files={_CONFIG: b"[]"})
filed("config_of_two_ranks", Code.CONFIG, engine="misserves", files={_CONFIG: _PLAIN + b', "r": 4}'})
filed("config_alpha_nan", Code.CONFIG, engine="misserves", files={_CONFIG: _PLAIN.replace(b"16", b"NaN") + b"}"})
filed("config_deep", Code.CONFIG, engine="refuses", files={_CONFIG: _PLAIN + b', "x": ' + b"[" * 100_000})
filed("config_huge", Code.TOO_LARGE, engine="misserves", files={_CONFIG: _PLAIN + b"}" + b" " * (1 << 20)})
filed("config_with_mark", Code.CONFIG, engine="refuses", files={_CONFIG: b"\xef\xbb\xbf" + _PLAIN + b"}"})
filed("config_not_utf8", Code.CONFIG, engine="refuses", files={_CONFIG: _PLAIN.replace(b"LORA", b"\xff") + b"}"})
filed(
    "config_alpha_overflowing", Code.SCALE, engine="misserves", files={_CONFIG: _PLAIN.replace(b"16", b"1e999") + b"}"}
)

# ---- the weights' file

_WEIGHTS = "adapter_model.safetensors"


def weights(name: str, *errors: Code, engine: Engine, change: Callable[[bytes], bytes]) -> None:
    """A case whose weights' file is the plain one, changed."""

    def apply(craft: Craft) -> None:
        craft.files[_WEIGHTS] = change(safetensors(craft.tensors))

    case(name, *errors, engine=engine)(apply)


def header(name: str, *errors: Code, engine: Engine, data: bytes, payload: bytes = b"") -> None:
    filed(name, *errors, engine=engine, files={_WEIGHTS: with_header(data, payload)})


def entry(dtype: str = "F32", shape: str = "[1]", offsets: str = "[0, 4]") -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}'


weights("weights_truncated", Code.HEADER, engine="refuses", change=lambda data: data[: len(data) // 2])
weights("weights_with_a_tail", Code.HEADER, engine="refuses", change=lambda data: data + b"\0")
weights("weights_empty", Code.HEADER, engine="refuses", change=lambda data: b"")
weights("weights_garbage", Code.HEADER, engine="refuses", change=lambda data: b"\xff" * 100)
weights("weights_a_pickle", Code.HEADER, engine="refuses", change=lambda data: b"\x80\x04\x95" + data)
header("header_a_list", Code.HEADER, engine="refuses", data=b"[]")
header("header_of_nothing", Code.UNPAIRED, engine="refuses", data=b"{}")
header(
    "header_with_gap",
    Code.HEADER,
    engine="refuses",
    data=f'{{"a": {entry(offsets="[4, 8]")}}}'.encode(),
    payload=b"\0" * 8,
)
header(
    "header_with_overlap",
    Code.HEADER,
    engine="refuses",
    data=f'{{"a": {entry()}, "b": {entry(offsets="[2, 6]")}}}'.encode(),
    payload=b"\0" * 6,
)
header(
    "header_of_two_names",
    Code.HEADER,
    engine="refuses",
    data=f'{{"a": {entry()}, "a": {entry(offsets="[4, 8]")}}}'.encode(),
    payload=b"\0" * 8,
)
header(
    "header_negative", Code.HEADER, engine="refuses", data=f'{{"a": {entry(shape="[-1]")}}}'.encode(), payload=b"\0" * 4
)
header(
    "header_overflowing",
    Code.HEADER,
    engine="refuses",
    data=f'{{"a": {entry(shape="[4294967296, 4294967296]", offsets="[0, 0]")}}}'.encode(),
)
header(
    "header_of_unknown_dtype",
    Code.HEADER,
    engine="refuses",
    data=f'{{"a": {entry("F12")}}}'.encode(),
    payload=b"\0" * 4,
)


@case("lora_b_missing", Code.UNPAIRED, engine="refuses")
def _(craft: Craft) -> None:
    del craft.tensors[factor(FIRST, "B")]


@case("lora_a_missing", Code.UNPAIRED, engine="misserves")
def _(craft: Craft) -> None:
    del craft.tensors[factor(FIRST, "A")]


@case("adapter_name_in_tensor_names", Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.tensors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in craft.tensors.items()}


@case("one_module_twice", Code.TENSOR_NAME, engine="misserves")
def _(craft: Craft) -> None:
    for side in "AB":
        dtype, values = craft.tensors[factor(FIRST, side)]
        craft.tensors[f"{FIRST}.lora_{side}.weight"] = (dtype, values * -1)


@case("hostile_tensor_name", Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.tensors["base_model.model.\x1b[2J\n../../etc.lora_A.weight"] = ("F32", craft.values(8, 8))


@case("weights_of_whole_numbers", Code.DTYPE, engine="misserves")
def _(craft: Craft) -> None:
    craft.all_as("I8")


@case("weights_of_a_byte", Code.DTYPE, engine="untold")
def _(craft: Craft) -> None:
    craft.all_as("F8_E4M3")


def spoilt(name: str, code: Code, value: float, side: str, dtype: str, index: int) -> None:
    def apply(craft: Craft) -> None:
        craft.poke(factor(FIRST, side), value, index)
        craft.all_as(dtype)

    case(name, code, engine="misserves")(apply)


for _dtype in ("BF16", "F16", "F32", "F64"):
    spoilt(f"nan_{_dtype}", Code.NOT_FINITE, float("nan"), "B", _dtype, -1)
spoilt("infinite", Code.NOT_FINITE, float("inf"), "A", "F32", 0)
spoilt("negative_infinite", Code.NOT_FINITE, float("-inf"), "A", "BF16", 7)
spoilt("infinite_in_float16", Code.OVERFLOW, 1e30, "B", "F32", 3)

# ---- against the base model


@case("module_of_another_family", Code.MODULE, engine="refuses")
def _(craft: Craft) -> None:
    craft.factors("model.layers.0.self_attn.wqkv", 8, (64, 64))


@case("layer_beyond_the_model", Code.MODULE, engine="misserves")
def _(craft: Craft) -> None:
    craft.factors(f"model.layers.{craft.dimensions.layers}.self_attn.q_proj", 8, (64, 64))


@case("modules_of_a_wrapped_model", Code.MODULE, engine="misserves")
def _(craft: Craft) -> None:
    craft.tensors = {n.replace(".model.layers", ".model.language_model.layers"): t for n, t in craft.tensors.items()}


def shaped(name: str, engine: Engine, change: Callable[[int], int]) -> None:
    def apply(craft: Craft) -> None:
        for module, (outer, inner) in craft.dimensions.modules().items():
            craft.factors(module, 8, (change(outer), change(inner)))

    case(name, Code.SHAPE, engine=engine)(apply)


shaped("of_a_smaller_base", "misserves", lambda size: size // 2)
shaped("of_a_larger_base", "refuses", lambda size: size * 2)


@case("transposed", Code.SHAPE, engine="refuses")
def _(craft: Craft) -> None:
    for side in "AB":
        dtype, values = craft.tensors[factor("model.layers.0.mlp.up_proj", side)]
        craft.tensors[factor("model.layers.0.mlp.up_proj", side)] = (dtype, np.ascontiguousarray(values.T))


@case("embedding_of_another_vocabulary", Code.SHAPE, engine="refuses")
def _(craft: Craft) -> None:
    embedding(craft, craft.dimensions.vocabulary + 8)


@case("embedding_as_if_linear", Code.TENSOR_NAME, engine="refuses")
def _(craft: Craft) -> None:
    craft.factors("model.embed_tokens", 8, (craft.dimensions.vocabulary, craft.dimensions.hidden))


@case("base_of_a_larger_vocabulary", Code.VOCABULARY, engine="misserves", warnings=(Code.OUTPUT_LAYER,))
def _(craft: Craft) -> None:
    craft.factors("lm_head", 8, (craft.dimensions.vocabulary, craft.dimensions.hidden))
    copy = craft.values(craft.dimensions.vocabulary + 2, craft.dimensions.hidden)
    craft.tensors["base_model.model.lm_head.base_layer.weight"] = ("F32", copy)


@case("tied_embeddings_adapted_once", Code.VARIANT, engine="misserves")
def _(craft: Craft) -> None:
    craft.config["ensure_weight_tying"] = True
    embedding(craft, craft.dimensions.vocabulary)


# ---- the folder


def changed(name: str, *errors: Code, engine: Engine, after: Callable[[Path], None]) -> None:
    """A case whose folder is changed after it was written."""

    def apply(craft: Craft) -> None:
        craft.after = after

    case(name, *errors, engine=engine)(apply)


def _nothing(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _link(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).rename(folder.parent / f"{folder.name}.{name}")
        (folder / name).symlink_to(folder.parent / f"{folder.name}.{name}")

    return apply


def _in_place(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / _WEIGHTS).unlink()
        make(folder / _WEIGHTS)

    return apply


def _renamed(to: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / _WEIGHTS).rename(folder / to)

    return apply


changed("nothing_in_it", Code.CONFIG_MISSING, Code.WEIGHTS_MISSING, engine="refuses", after=_nothing)
changed("no_configuration", Code.CONFIG_MISSING, engine="refuses", after=lambda folder: (folder / _CONFIG).unlink())
changed("no_weights", Code.WEIGHTS_MISSING, engine="refuses", after=lambda folder: (folder / _WEIGHTS).unlink())
changed("pickled_weights", Code.PICKLE, engine="untold", after=_renamed("adapter_model.bin"))
changed(
    "weights_in_shards",
    Code.WEIGHTS_MISSING,
    engine="refuses",
    after=_renamed("adapter_model-00001-of-00002.safetensors"),
)
changed("weights_a_link", Code.LINK, engine="untold", after=_link(_WEIGHTS))
changed("configuration_a_link", Code.LINK, engine="untold", after=_link(_CONFIG))
changed("weights_a_folder", Code.FILE, engine="refuses", after=_in_place(Path.mkdir))
changed("weights_a_pipe", Code.FILE, engine="untold", after=_in_place(os.mkfifo))
