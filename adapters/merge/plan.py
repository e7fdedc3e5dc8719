"""The merged model before it is computed: its tensors, the files they go into, and its configuration.

All of it follows from headers. So the disk that it takes is known beforehand, each file's header can be written before
its tensors are, and the order in which the base model is read is the order in which the result is written.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from adapters.merge.checkpoint import FLOATS, Checkpoint, Stored
from adapters.merge.errors import MergeError
from adapters.merge.recipe import HEAD, Change, Recipe, Replacement, embedding_of, embeds, tied
from adapters.safetensors import DTYPE_BITS

DTYPES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""What --dtype may be, as transformers and as safetensors name it."""

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the merged model: what lies in `source`, cast to `dtype`, then changed in this order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Stored
    changes: tuple[Change, ...] = ()

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    @property
    def copied(self) -> bool:
        """Whether its bytes are the base model's."""
        return not self.changes and self.dtype == self.source.tensor.dtype


@dataclass(frozen=True, slots=True)
class Plan:
    """`config`: the fields of config.json that differ from the base model's."""

    outputs: tuple[Output, ...]
    config: Mapping[str, object]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(output.size for output in self.outputs)

    @property
    def vocabulary(self) -> int | None:
        """Tokens that the model has rows for; None where its embedding goes by another name."""
        return next((output.shape[0] for output in self.outputs if embeds(output.name)), None)


def make_plan(base: Checkpoint, recipes: Sequence[Recipe], dtype: str | None) -> Plan:
    """`dtype`: one of DTYPES' values; None keeps each tensor's own. Raises MergeError.

    An adapter of the embedding or of the output layer unties the two: merged in place, as peft does it, the change of
    one would also change the other, and the model would not answer as it did with its adapter.
    """
    changes: dict[str, tuple[Change, ...]] = {}
    for recipe in recipes:
        for name, steps in recipe.changes.items():
            changes[name] = (*changes.get(name, ()), *steps)
    outputs = [_output(name, stored, changes.get(name, ()), dtype) for name, stored in base.tensors.items()]
    head, embedding, config = f"{HEAD}.weight", embedding_of(base), dict[str, object]()
    if embedding is not None and tied(base) and not changes.keys().isdisjoint((head, embedding)):
        source = base.tensors[embedding]
        outputs = [output for output in outputs if output.name != head]
        place = next(index for index, output in enumerate(outputs) if output.name == embedding)
        outputs.insert(place + 1, _output(head, source, changes.get(head, ()), dtype))
        config["tie_word_embeddings"] = False
    config |= _vocabulary(outputs, base)
    if dtype is not None:
        name = next(name for name, short in DTYPES.items() if short == dtype)
        config |= {key: name for key in ("dtype", "torch_dtype") if key in base.config} or {"dtype": name}
    return Plan(tuple(outputs), config)


def _output(name: str, stored: Stored, changes: tuple[Change, ...], dtype: str | None) -> Output:
    own = stored.tensor
    given = [change.tensor.shape for change in changes if isinstance(change, Replacement)]
    floating = own.dtype in FLOATS
    if changes and not floating:
        raise MergeError(f"the base model's {name} is {own.dtype}, which nothing can be added to")
    return Output(name, dtype if dtype and floating else own.dtype, (given or [own.shape])[-1], stored, changes)


def _vocabulary(outputs: Iterable[Output], base: Checkpoint) -> dict[str, object]:
    """The new vocabulary's size, where an adapter brings another. Raises MergeError where only one end grew."""
    rows = {output.name: output.shape[0] for output in outputs if embeds(output.name)}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise MergeError(
            f"the adapter brings a vocabulary of another size for one end of the model only ({told}): train with both"
            " embed_tokens and lm_head in modules_to_save"
        )
    size = next(iter(rows.values()), None)
    grown = any(output.shape != output.source.tensor.shape for output in outputs if output.name in rows)
    return {"vocab_size": size} if grown and "vocab_size" in base.config else {}


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the merged model."""

    name: str
    outputs: tuple[Output, ...]

    def header(self) -> bytes:
        """Its first bytes: the length, and the JSON that names the tensors; padded, so that data begins aligned."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for output in self.outputs:
            offsets = [position, position + output.size]
            entries[output.name] = {"dtype": output.dtype, "shape": list(output.shape), "data_offsets": offsets}
            position += output.size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def shards(outputs: Sequence[Output], limit: int) -> tuple[Shard, ...]:
    """The files, each of at most `limit` bytes of tensors but for a single tensor that is larger.

    Within a file wide elements come first, so that every tensor lies where its elements are aligned.
    """
    groups: list[list[Output]] = [[]]
    filled = 0
    for output in outputs:
        if groups[-1] and filled + output.size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(output)
        filled += output.size
    many = len(groups) > 1
    return tuple(
        Shard(
            f"model-{number:05}-of-{len(groups):05}.safetensors" if many else "model.safetensors",
            tuple(sorted(group, key=lambda output: -DTYPE_BITS[output.dtype])),
        )
        for number, group in enumerate(groups, 1)
    )


def index(files: Sequence[Shard]) -> bytes | None:
    """The content of model.safetensors.index.json; None for a single file, which needs none."""
    if len(files) == 1:
        return None
    where = {output.name: shard.name for shard in files for output in shard.outputs}
    total = sum(output.size for shard in files for output in shard.outputs)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return json.dumps(content, indent=2).encode() + b"\n"
