"""What an adapter holds: which modules, at which rank, how large."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from adapters.files import WEIGHTS
from adapters.findings import Code, Finding, RefusedError, quote
from adapters.manifest import Manifest
from adapters.safetensors import Tensor

# What --max-lora-rank can be in vLLM 0.32 (its MaxLoRARanks), and its default.
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_MAX_LORA_RANK = 16

_PREFIX = "base_model.model."
_MODULE = r"(?P<module>[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)"
_FACTOR = re.compile(rf"{_MODULE}\.(?:lora_(?P<side>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))", re.ASCII)
# peft stores the base model's embeddings beside an adapter of them; vLLM leaves them aside.
_COPY = re.compile(rf"{_MODULE}\.base_layer\.weight", re.ASCII)
_MAX_NAME = 256

# Modules that are looked up, not multiplied: peft names their factors differently and lays them out the other way.
_EMBEDDINGS = ("embed_tokens", "wte")
_COPIED = ("embed_tokens", "lm_head")


@dataclass(frozen=True, slots=True)
class Factors:
    """The two tensors of one module: lora_A [rank, in] and lora_B [out, rank]."""

    a: Tensor
    b: Tensor
    embedding: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def weight_shape(self) -> tuple[int, int]:
        """The shape of the base model's weight that these factors change: [out, in], for an embedding [in, out]."""
        outer, inner = self.b.shape[0], self.a.shape[1]
        return (inner, outer) if self.embedding else (outer, inner)


@dataclass(frozen=True, slots=True)
class Inspection:
    """An adapter whose files could be read: its manifest and what the header of its weights says."""

    manifest: Manifest
    modules: Mapping[str, Factors]  # by name as in the base model
    copies: Mapping[str, Tensor]  # the base model's own embeddings, where peft stored them too

    @property
    def ranks(self) -> Mapping[str, int]:
        """The rank of each module, from its tensors."""
        return {name: factors.rank for name, factors in self.modules.items()}

    @property
    def rank(self) -> int:
        """The highest rank, declared or held: an engine's --max-lora-rank must reach it."""
        return max([self.manifest.max_rank, *self.ranks.values()])

    @property
    def parameters(self) -> int:
        return sum(prod(factors.a.shape) + prod(factors.b.shape) for factors in self.modules.values())

    @property
    def dtypes(self) -> frozenset[str]:
        return frozenset(tensor.dtype for factors in self.modules.values() for tensor in (factors.a, factors.b))

    def memory_bytes(self, element_bytes: int = 2) -> int:
        """Size in the engine's host memory; it holds adapters in the dtype it serves in, 2 bytes but for float32."""
        return self.parameters * element_bytes


def inspect(manifest: Manifest, tensors: Iterable[Tensor]) -> Inspection:
    """Pairs the tensors of adapter_model.safetensors. Raises RefusedError for what is no pair of LoRA factors."""
    sides: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    copies: dict[str, Tensor] = {}
    strangers: list[str] = []
    for tensor in tensors:
        name = tensor.name.removeprefix(_PREFIX)
        if len(name) <= _MAX_NAME and (factor := _FACTOR.fullmatch(name)):
            module, side = factor["module"], factor["side"] or factor["embedding"]
            looked_up = module.rpartition(".")[2] in _EMBEDDINGS
            if looked_up is (factor["embedding"] is not None) and side not in sides.setdefault(module, {}):
                sides[module][side] = tensor
                embeddings.update((module,) if looked_up else ())
                continue
        elif (copy := _COPY.fullmatch(name)) and copy["module"].rpartition(".")[2] in _COPIED:
            copies[copy["module"]] = tensor
            continue
        strangers.append(tensor.name)
    if findings := (*_strangers(strangers), *_unpaired(sides, empty=not sides and not strangers)):
        raise RefusedError(*findings)
    modules = {name: Factors(pair["A"], pair["B"], name in embeddings) for name, pair in sides.items()}
    misshapen = [name for name, factors in modules.items() if not _fits(factors)]
    if misshapen:
        message = f"lora_A and lora_B of {several(misshapen)} are not [rank, in] and [out, rank]"
        raise RefusedError(Finding(Code.SHAPE, message, "export the adapter again"))
    return Inspection(manifest, modules, copies)


def required_max_lora_rank(ranks: Iterable[int]) -> int:
    """The smallest --max-lora-rank that vLLM accepts and that holds all `ranks`; its default for none.

    Raises ValueError above 512, the largest.
    """
    highest = max(ranks, default=DEFAULT_MAX_LORA_RANK)
    for allowed in MAX_LORA_RANKS:
        if highest <= allowed:
            return allowed
    raise ValueError(f"vLLM serves no rank above {MAX_LORA_RANKS[-1]}, not {highest}")


def several(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return quote(names[0], 160) + more


def _strangers(names: list[str]) -> list[Finding]:
    if not names:
        return []
    return [
        Finding(
            Code.TENSOR_NAME,
            f"{WEIGHTS} holds {several(names)}, which is no factor of a plain LoRA",
            "export the adapter with peft's save_pretrained(); other variants: merge them into the base model",
        )
    ]


def _unpaired(sides: Mapping[str, Mapping[str, Tensor]], empty: bool) -> list[Finding]:
    remedy = "the file is not a whole adapter: export it again"
    if empty:
        return [Finding(Code.UNPAIRED, f"{WEIGHTS} holds no LoRA tensors", remedy)]
    alone = [f"{name}.lora_{next(iter(pair))}" for name, pair in sides.items() if len(pair) == 1]
    if not alone:
        return []
    return [Finding(Code.UNPAIRED, f"{several(alone)} stands without its other half", remedy)]


def _fits(factors: Factors) -> bool:
    a, b = factors.a.shape, factors.b.shape
    return len(a) == len(b) == 2 and a[0] == b[1] and min(*a, *b) > 0
