"""The arithmetic of the merge: one tensor after another, each read, changed and written before the next.

Bit by bit what peft's merge_and_unload() computes: the product in the adapter's precision (float32 at least), scaled,
added to the weight and rounded to its dtype once; for an embedding the product is rounded first, as peft does.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from adapters.merge.errors import MergeError
from adapters.merge.plan import INDEX, Output, Plan, Shard, index, shards
from adapters.merge.recipe import LowRank, Replacement
from adapters.safetensors import Tensor

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_PIECE = 16 << 20  # bytes copied at a time


def write_model(plan: Plan, folder: Path, limit: int, on_bytes: Callable[[int], None]) -> tuple[Shard, ...]:
    """Writes the merged weights into `folder`, in files of at most `limit` bytes; `on_bytes` gets what was written.

    Each file is on the disk when this returns. Raises MergeError for a weight that is not finite.
    """
    files = shards(plan.outputs, limit)
    for shard in files:
        with (folder / shard.name).open("wb", buffering=0) as file:
            _write(file, shard.header())
            for output in shard.outputs:
                if output.copied:
                    _copy(output, file)
                else:
                    _write(file, _merged(output))
                on_bytes(output.size)
            os.fsync(file.fileno())
    if (listing := index(files)) is not None:
        (folder / INDEX).write_bytes(listing)
    return files


def _merged(output: Output) -> memoryview:
    """The bytes of the changed tensor; it is changed within the memory that it was read into."""
    content, weight = _read(output.source.file, output.source.tensor)
    dtype = _DTYPES[output.dtype]
    for change in output.changes:
        if isinstance(change, Replacement):
            content, weight = _read(change.file, change.tensor)
    if weight.dtype != dtype:
        content, weight = _cast(weight, dtype)
    for change in output.changes:
        if isinstance(change, LowRank):
            product = _product(change)
            weight.add_(product.to(dtype) if change.embedding else product)
            if not bool(torch.isfinite(weight).all()):
                raise MergeError(
                    f"{output.name} is not finite after the merge: the adapter or the base model holds NaN or infinity,"
                    f" or {output.dtype} is too small for the sum (try --dtype float32)"
                )
    return memoryview(content)


def _product(change: LowRank) -> Any:
    a, b = (_wide(_read(change.file, tensor)[1]) for tensor in (change.a, change.b))
    product = b @ a
    return (product.T if change.transposed else product).mul_(change.scale)


def _wide(factor: Any) -> Any:
    """peft holds the factors in float32 at least."""
    return factor.float() if factor.dtype in (torch.float16, torch.bfloat16) else factor


def _cast(weight: Any, dtype: Any) -> tuple[bytearray, Any]:
    content = bytearray(weight.numel() * dtype.itemsize)
    return content, torch.frombuffer(content, dtype=dtype).view(weight.shape).copy_(weight)


def _read(file: Path, tensor: Tensor) -> tuple[bytearray, Any]:
    """The tensor, and the memory that holds it. Read, not mapped: a mapped file stays in memory as it is walked."""
    content = bytearray(tensor.end - tensor.begin)
    view = memoryview(content)
    with file.open("rb", buffering=0) as source:
        source.seek(tensor.begin)
        while view:
            count = source.readinto(view)
            if not count:
                raise MergeError(f"{file} became shorter while it was read: let nobody write there")
            view = view[count:]
    return content, torch.frombuffer(content, dtype=_DTYPES[tensor.dtype]).view(tensor.shape)


def _write(file: BinaryIO, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _copy(output: Output, target: BinaryIO) -> None:
    left = output.size
    with output.source.file.open("rb", buffering=0) as source:
        source.seek(output.source.tensor.begin)
        while left:
            piece = source.read(min(left, _PIECE))
            if not piece:
                raise MergeError(f"{output.source.file} became shorter while it was read: let nobody write there")
            _write(target, piece)
            left -= len(piece)
