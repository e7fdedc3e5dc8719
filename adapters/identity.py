"""Is this the base model that an adapter was trained on? Shapes do not tell a model from its siblings.

What can tell, the surest first: digests that the training recorded (those of ours do), the copy of the base model's
embeddings that peft stores beside an adapter of them, the commit that both were fetched as, the name.
"""

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from math import isclose
from pathlib import Path
from typing import BinaryIO

from adapters.base_model import BaseModel, BaseModelError, json_object, model_name, read_tensors, weight_files
from adapters.findings import Code, Finding, quote
from adapters.inspect import Inspection
from adapters.manifest import BASE_DIGESTS
from adapters.safetensors import Tensor

# Fields of config.json that differ between copies of one model, or that its quantisation adds.
_OF_THE_COPY = frozenset(
    {"_name_or_path", "dtype", "quantization_config", "torch_dtype", "transformers_version", "use_cache"}
)
_TENSORS = 512  # of a model are sampled, at most
_SAMPLE = 1024  # bytes of each

_PLACES = 64  # of a copied embedding are compared …
_ELEMENTS = 64  # … with so many elements each
_FLOATS: Mapping[str, tuple[int, str, bytes]] = {
    "BF16": (2, "<f", b"\0\0"),
    "F16": (2, "<e", b""),
    "F32": (4, "<f", b""),
    "F64": (8, "<d", b""),
}
_ROUNDING = 2.0**-7  # bfloat16 keeps eight bits

_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


def digests(folder: Path) -> dict[str, str]:
    """What tells the base model in `folder` from others: "config" and "weights", for `base_model_digests`.

    "config" is a SHA-256 over what config.json says of the computation, "weights" the types of the tensors and a
    SHA-256 over a sample of them, however they are spread over files. Weights of other types (a quantised copy) are
    no other model: their digests are not to be compared. Reads less than a megabyte. Raises BaseModelError.
    """
    config = {key: value for key, value in json_object(folder / "config.json").items() if key not in _OF_THE_COPY}
    found = {"config": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()}
    tensors = [(tensor, file) for file in weight_files(folder) for tensor in read_tensors(file)]
    if tensors:
        found["weights"] = _weights_digest(sorted(tensors, key=lambda pair: pair[0].name))
    return found


def compare(inspection: Inspection, base: BaseModel) -> Iterator[Finding]:
    """What the adapter's configuration says against this base model."""
    manifest = inspection.manifest
    if manifest.base_model:
        name, commit = model_name(manifest.base_model)
        if name.casefold() != base.name.casefold():
            yield Finding(
                Code.BASE_NAME,
                f"the adapter names {quote(manifest.base_model)} as its base model, not {base.name}",
                "make sure that both are the same model: shapes alone do not tell a base model from its instruct "
                "version",
                "warning",
            )
        trained = manifest.revision or commit
        if trained and base.revision and _COMMIT.fullmatch(trained) and trained != base.revision:
            yield Finding(
                Code.BASE_REVISION,
                f"the adapter was trained on commit {trained[:12]} of the base model, this is {base.revision[:12]}",
                "serve it on that commit (--revision), or make sure that the weights did not change",
                "warning",
            )
    if manifest.base_digests:
        yield from _digests_differ(manifest.base_digests, base)


def compare_copies(file: BinaryIO, inspection: Inspection, base: BaseModel) -> Iterator[Finding]:
    """Holds the base model's embeddings, where the adapter's file has a copy of them, against the base model's own."""
    if not inspection.copies or base.folder is None:
        return
    tensors = {tensor.name: (tensor, path) for path in weight_files(base.folder) for tensor in read_tensors(path)}
    embedding = next((name for name in tensors if name.endswith("embed_tokens.weight")), "")
    for name, copy in inspection.copies.items():
        found = tensors.get(f"{name}.weight") or tensors.get(embedding)  # tied: the output layer is the embedding
        if found is None or found[0].shape != copy.shape or not {copy.dtype, found[0].dtype} <= _FLOATS.keys():
            continue
        with found[1].open("rb") as other:
            if not _alike(file, copy, other, found[0]):
                yield Finding(
                    Code.BASE,
                    f"the adapter was trained with another {name} than that of {base.name}, and vLLM leaves its copy "
                    "of it out",
                    "use the base model it was trained on, or merge it into that",
                )


def _digests_differ(recorded: Mapping[str, str], base: BaseModel) -> Iterator[Finding]:
    if base.folder is None:
        return
    found = digests(base.folder)
    ours, theirs = found.get("weights", "").rpartition(":"), recorded.get("weights", "").rpartition(":")
    comparable = bool(ours[2]) and ours[0] == theirs[0]
    remedy = f"serve it on the model it was trained on; if this is that model, remove {BASE_DIGESTS} from the adapter"
    if comparable and ours != theirs:
        yield Finding(Code.BASE, f"{base.name} does not have the weights that the adapter was trained on", remedy)
    elif "config" in recorded and recorded["config"] != found["config"]:
        yield Finding(
            Code.BASE_CONFIG if comparable else Code.BASE,
            f"the config.json of {base.name} is not that of the model that the adapter was trained on",
            remedy,
            "warning" if comparable else "error",
        )


def _weights_digest(tensors: list[tuple[Tensor, Path]]) -> str:
    total = hashlib.sha256()
    step = -(-len(tensors) // _TENSORS)
    for tensor, path in tensors[::step]:
        size = min(_SAMPLE, tensor.end - tensor.begin)
        total.update(f"{tensor.name} {tensor.dtype} {tensor.shape} ".encode())
        total.update(_read(path, (tensor.begin + tensor.end - size) // 2, size))
    return f"{'+'.join(sorted({tensor.dtype for tensor, _ in tensors}))}:{total.hexdigest()}"


def _read(path: Path, begin: int, size: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            return file.read(size)
    except OSError as error:
        raise BaseModelError(f"{path} cannot be read ({error.strerror})") from error


def _alike(file: BinaryIO, copy: Tensor, other: BinaryIO, original: Tensor) -> bool:
    """Whether two tensors of one shape hold the same values, in a sample; rounded where their types differ."""
    count = (copy.end - copy.begin) // _FLOATS[copy.dtype][0]
    for place in range(_PLACES):
        first = max(0, count - _ELEMENTS) * place // (_PLACES - 1)
        left, right = _elements(file, copy, first), _elements(other, original, first)
        if copy.dtype == original.dtype:
            if left != right:
                return False
        elif not all(map(_close, _floats(left, copy.dtype), _floats(right, original.dtype))):
            return False
    return True


def _close(one: float, other: float) -> bool:
    return isclose(one, other, rel_tol=_ROUNDING, abs_tol=1e-6)


def _elements(file: BinaryIO, tensor: Tensor, first: int) -> bytes:
    """The bytes of some elements from the `first` on. Raises EOFError where the file has become shorter."""
    size = _FLOATS[tensor.dtype][0]
    file.seek(tensor.begin + first * size)
    wanted = min(_ELEMENTS * size, tensor.end - tensor.begin - first * size)
    data = file.read(wanted)
    if len(data) < wanted:
        raise EOFError(f"the file ends within tensor {tensor.name!a}")
    return data


def _floats(data: bytes, dtype: str) -> list[float]:
    size, code, padding = _FLOATS[dtype]
    return [struct.unpack(code, padding + data[at : at + size])[0] for at in range(0, len(data), size)]
