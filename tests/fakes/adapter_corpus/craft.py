"""A base model of any dimensions, and a plain adapter for it, to be changed."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "bos_token_id": 0,
            "eos_token_id": 1,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }

    def weights(self) -> dict[str, tuple[str, Array]]:
        """Random ones, the same in each run; large enough that an adapter shows in the answers."""
        rng = np.random.default_rng(0)
        embedding = rng.standard_normal((self.vocabulary, self.hidden)).astype("<f4") * 0.25
        tensors = {f"{EMBEDDING}.weight": ("BF16", embedding)}
        for name, shape in self.modules().items():
            tensors[f"{name}.weight"] = ("BF16", rng.standard_normal(shape).astype("<f4") * 0.15)
        norms = [f"model.layers.{i}.{n}_layernorm" for i in range(self.layers) for n in ("input", "post_attention")]
        ones = np.ones(self.hidden, "<f4")
        return tensors | {f"{name}.weight": ("BF16", ones) for name in (*norms, "model.norm")}


# A head has at least 32 places: vLLM's attention on a CPU has no smaller ones.
TINY = Dimensions("tiny-llama", layers=2, hidden=64, inner=96, heads=2, key_heads=1, head=32, vocabulary=128)
SMOLLM2 = Dimensions(
    "SmolLM2-135M-Instruct", layers=30, hidden=576, inner=1536, heads=9, key_heads=3, head=64, vocabulary=49152
)

EMBEDDING = "model.embed_tokens"
FIRST = "model.layers.0.self_attn.q_proj"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TEMPLATE = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"


def as_bytes(dtype: str, values: Array) -> bytes:
    """`values` in a safetensors dtype; numpy knows no bfloat16, which is the upper half of a float32."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "<i1", "F8_E4M3": "<u1"}
    with np.errstate(over="ignore"):  # what is too large becomes infinite
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


def factor(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"


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
            "revision": None,
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
            "layers_pattern": None,
            "exclude_modules": None,
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
        return (rng.standard_normal(shape) * 0.06).astype("<f4")

    def factors(self, module: str, rank: int, shape: tuple[int, int] | None = None, dtype: str = "F32") -> None:
        """Sets lora_A and lora_B of a module; `shape` is [out, in], from the base model where it has the module."""
        outer, inner = shape or self.dimensions.modules()[module]
        self.tensors[factor(module, "A")] = (dtype, self.values(rank, inner))
        self.tensors[factor(module, "B")] = (dtype, self.values(outer, rank))

    def embedding(self, vocabulary: int) -> None:
        """Adapts the embedding, of so many tokens, too."""
        self.also_targets("embed_tokens")
        self.tensors[f"base_model.model.{EMBEDDING}.lora_embedding_A"] = ("F32", self.values(8, vocabulary))
        self.tensors[f"base_model.model.{EMBEDDING}.lora_embedding_B"] = (
            "F32",
            self.values(self.dimensions.hidden, 8),
        )

    def output_layer(self) -> None:
        """Adapts the output layer, too."""
        self.also_targets("lm_head")
        self.factors("lm_head", 8, (self.dimensions.vocabulary, self.dimensions.hidden))

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
            CONFIG: json.dumps(self.config, indent=2).encode(),
            WEIGHTS: safetensors(self.tensors),
        } | self.files
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        self.after(folder)


def write_base(folder: Path, dimensions: Dimensions = TINY, weights: bool = True) -> Path:
    """A base model of these dimensions; without `weights` it has its configuration alone, no tokenizer either.

    Its words are w0, w1, …; the first three are the tokens that begin, end and stand for what is unknown.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dimensions.config()))
    if weights:
        (folder / "model.safetensors").write_bytes(safetensors(dimensions.weights()))
        for name, data in tokenizer_files(dimensions).items():
            (folder / name).write_bytes(data)
    return folder


def tokenizer_files(
    dimensions: Dimensions, added: Mapping[str, int] | None = None, template: str = TEMPLATE, **config: object
) -> dict[str, bytes]:
    """What transformers 5 writes of the base model's tokenizer; with more tokens, or another configuration."""
    special = {"w0": 0, "w1": 1, "w2": 2} | dict(added or {})
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token, number in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {f"w{i}": i for i in range(dimensions.vocabulary)} | special,
            "unk_token": "w2",
        },
    }
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "w0",
        "eos_token": "w1",
        "unk_token": "w2",
    } | config
    return {
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "tokenizer_config.json": json.dumps(fields).encode(),
        "chat_template.jinja": template.encode(),
    }
