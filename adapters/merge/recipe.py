"""What an adapter does to the tensors of a base model, read from its two files.

    W + s·B·A       for a plain LoRA, whatever decides s and the rank (rsLoRA, rank and alpha patterns)
    the adapter's   for tensors that it replaces (modules_to_save, bias, the embeddings of a larger vocabulary)

Everything else raises NotStreamableError: peft itself has to merge it (see `whole`). An adapter of another base model
is known by its modules and shapes.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.files import CONFIG, WEIGHTS, open_file, open_folder
from adapters.findings import Code, RefusedError
from adapters.inspect import Factors, inspect, several
from adapters.manifest import Manifest, parse_manifest
from adapters.merge.checkpoint import FLOATS, Checkpoint
from adapters.merge.errors import MergeError, NotStreamableError
from adapters.safetensors import SafetensorsError, Tensor, read_header
from adapters.sources.checkpoints import adapter_folder
from adapters.strict_json import loads

HEAD = "lm_head"

_PREFIX = "base_model.model."
_WRAPPED = ".base_layer."
# Where the vocabulary grew, peft stores a replaced module three times; under its own name it is the trained one.
_DOUBLES = (".modules_to_save.", ".original_module.")
# What peft, too, merges into a plain model; a parse that ends in anything else is an adapter that nobody should read.
_PEFT_KNOWS = frozenset({Code.PEFT_TYPE, Code.RANK, Code.PATTERN})
# Initialisations that leave the base model as it is, and mean nothing once there are trained weights.
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal"})


@dataclass(frozen=True, slots=True)
class LowRank:
    """W += scale · B·A, transposed where the weight is stored [in, out]."""

    file: Path
    a: Tensor
    b: Tensor
    scale: float
    transposed: bool
    embedding: bool  # peft rounds the product to the weight's dtype before it adds it to an embedding


@dataclass(frozen=True, slots=True)
class Replacement:
    """The adapter's own tensor in the place of the base model's."""

    file: Path
    tensor: Tensor


Change = LowRank | Replacement


@dataclass(frozen=True, slots=True)
class Recipe:
    """The changes of one adapter by the base model's tensor, in their order."""

    adapter: Path
    base_name: str | None  # what it says that it was trained on
    changes: Mapping[str, tuple[Change, ...]]


def find_adapter(path: Path) -> Path:
    """The folder of the adapter in `path`: itself, or its newest checkpoint. Raises MergeError where there is none."""
    try:
        folder = adapter_folder(path)
    except OSError as error:
        raise MergeError(f"{path} is not a folder that can be read ({error.strerror}): give the adapter's") from error
    _config(folder)
    return folder


def read_recipe(folder: Path, base: Checkpoint) -> Recipe:
    """Raises NotStreamableError, or MergeError for what is no adapter of this base model."""
    manifest = _manifest(_config(folder))
    replaced, factors = _split(_header(folder), base)
    try:
        modules = inspect(manifest, factors).modules
    except RefusedError as refused:
        if any(finding.code is Code.TENSOR_NAME for finding in refused.findings) or _beyond_matrices(factors):
            raise NotStreamableError(refused.findings[0].message) from refused
        raise MergeError(f"{folder}: {refused}") from refused
    missing = [module for module in modules if not _holds(base, module)]
    if len(missing) == len(modules):
        raise NotStreamableError(f"{base.folder} names its weights otherwise than the adapter its modules")
    if missing:
        raise MergeError(f"{base.folder} has no module {several(missing)}: {folder} was trained on another model")
    file = folder / WEIGHTS
    changes: dict[str, tuple[Change, ...]] = {name: (Replacement(file, tensor),) for name, tensor in replaced.items()}
    for module, pair in modules.items():
        name = f"{module}.weight"
        shape = replaced[name].shape if name in replaced else _shape(base, module)
        change = _low_rank(file, module, pair, manifest, shape)
        changes[name] = (*changes.get(name, ()), change)
    return Recipe(folder, manifest.base_model, changes)


def _config(folder: Path) -> bytes:
    descriptor = -1
    try:
        descriptor = open_folder(folder)
        with open_file(descriptor, CONFIG) as file:
            return file.read()
    except RefusedError as refused:
        raise MergeError(f"{folder}: {refused}") from refused
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _manifest(data: bytes) -> Manifest:
    """Raises NotStreamableError for a variant of LoRA whose tensors mean something else."""
    try:
        manifest = parse_manifest(data)
    except RefusedError as refused:
        if {finding.code for finding in refused.findings} <= _PEFT_KNOWS:
            raise NotStreamableError(refused.findings[0].message) from refused
        raise MergeError(f"{CONFIG}: {refused}") from refused
    fields = loads(data)
    task = fields.get("task_type") if isinstance(fields, dict) else None
    if task not in (None, "CAUSAL_LM"):
        raise MergeError(f"the adapter's task_type is {task!a}: only adapters of language models are merged")
    init = manifest.init_lora_weights
    for variant, is_set in (
        ("a DoRA", manifest.use_dora),
        ("a LoRA with lora_bias", manifest.lora_bias),
        (f"one of init_lora_weights {init!a}", isinstance(init, str) and init.lower() not in _PLAIN_INITS),
        ("one of target_parameters", bool(manifest.target_parameters)),
        (f"one with {', '.join(manifest.variants)}", bool(manifest.variants)),
    ):
        if is_set:
            raise NotStreamableError(f"the adapter is {variant}")
    return manifest


def _header(folder: Path) -> tuple[Tensor, ...]:
    descriptor = open_folder(folder)
    try:
        with open_file(descriptor, WEIGHTS) as file:
            return read_header(file, os.fstat(file.fileno()).st_size)
    except RefusedError as refused:
        raise MergeError(f"{folder}: {refused}") from refused
    except SafetensorsError as error:
        raise MergeError(f"{folder / WEIGHTS} is no valid safetensors file: {error}") from error
    finally:
        os.close(descriptor)


def _split(tensors: Iterable[Tensor], base: Checkpoint) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The tensors that stand for one of the base model's, by its name, and the others."""
    replaced: dict[str, Tensor] = {}
    others: list[Tensor] = []
    given = {tensor.name: tensor for tensor in tensors}
    for tensor in given.values():
        if any(mark in tensor.name and tensor.name.replace(mark, ".") in given for mark in _DOUBLES):
            continue
        name = tensor.name.removeprefix(_PREFIX).replace(_WRAPPED, ".")
        if (name in base.tensors or name == f"{HEAD}.weight") and tensor.dtype in FLOATS:
            replaced[name] = tensor
        else:
            others.append(tensor)
    for name, tensor in replaced.items():
        expected = _shape(base, name.removesuffix(".weight")) if name.endswith(".weight") else _own(base, name)
        grown = len(expected) == 2 and embeds(name) and tensor.shape[1:] == expected[1:]
        if tensor.shape != expected and not grown:
            raise MergeError(
                f"the adapter's {name} is {list(tensor.shape)}, the base model's {list(expected)}: it was trained on"
                " another model"
            )
    return replaced, others


def embeds(name: str) -> bool:
    """Whether the tensor has a row for each token: the embedding or the output layer."""
    return name.removesuffix(".weight").rpartition(".")[2] in ("embed_tokens", "wte", HEAD)


def embedding_of(base: Checkpoint) -> str | None:
    """The name of the embedding's tensor."""
    return next((name for name in base.tensors if embeds(name) and not name.startswith(HEAD)), None)


def tied(base: Checkpoint) -> bool:
    """Whether the output layer is the embedding."""
    return f"{HEAD}.weight" not in base.tensors or base.config.get("tie_word_embeddings") is True


def _holds(base: Checkpoint, module: str) -> bool:
    return f"{module}.weight" in base.tensors or (module == HEAD and embedding_of(base) is not None)


def _shape(base: Checkpoint, module: str) -> tuple[int, ...]:
    name = f"{module}.weight"
    if module == HEAD and name not in base.tensors:
        name = embedding_of(base) or name
    return _own(base, name)


def _own(base: Checkpoint, name: str) -> tuple[int, ...]:
    return base.tensors[name].tensor.shape if name in base.tensors else ()


def _beyond_matrices(tensors: Iterable[Tensor]) -> bool:
    return any(len(tensor.shape) > 2 for tensor in tensors)


def _low_rank(file: Path, module: str, pair: Factors, manifest: Manifest, shape: tuple[int, ...]) -> LowRank:
    declared = manifest.rank(module)
    if pair.rank != declared:
        raise MergeError(
            f"{CONFIG} declares rank {declared} for {module}, its tensors have {pair.rank}: restore the"
            f" {CONFIG} that was written with these weights"
        )
    strange = {pair.a.dtype, pair.b.dtype} - FLOATS
    if strange:
        raise MergeError(f"the adapter's factors of {module} are {', '.join(strange)}: save them as floats")
    turned = manifest.fan_in_fan_out and not pair.embedding
    expected = pair.weight_shape[::-1] if turned else pair.weight_shape
    if shape != expected:
        raise MergeError(
            f"the base model's {module} is {list(shape)}, the adapter's {list(expected)}: it was trained on another"
            " model"
        )
    return LowRank(file, pair.a, pair.b, manifest.scale(module), turned or pair.embedding, pair.embedding)
