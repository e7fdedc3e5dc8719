"""What an adapter's check needs to know of the base model: its modules and their shapes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.safetensors import SafetensorsError, Tensor, read_header
from adapters.strict_json import StrictJsonError, loads

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"

_MAX_JSON = 64 << 20  # the index of a 400B mixture has 10 MB
_MAX_HEADER = 100 << 20  # the format's own limit
_MAX_LAYERS = 1024
_MAX_SIZE = 1 << 24

# Architectures whose modules are Llama's, under Llama's names: their shapes follow from config.json.
_LLAMA_LIKE = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "olmo2", "smollm3"}
)

# Dtypes a weight has where a row and a column of it are what the module's output and input are.
_UNPACKED = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")

_CACHED = re.compile(r"models--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})", re.ASCII)

_EMBEDDING, _HEAD = "embed_tokens", "lm_head"

Shape = tuple[int, int]


class BaseModelError(Exception):
    """The base model's folder does not say what its modules are; the text names the file and the reason."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """Modules of a base model by name (`model.layers.0.self_attn.q_proj`) with the shape of their weights [out, in]."""

    name: str  # as its makers call it, or its folder's
    architecture: str  # model_type in config.json
    shapes: Mapping[str, Shape]
    folder: Path | None = None
    revision: str | None = None  # the commit that the hub's client fetched, where it lies in its cache

    @classmethod
    def read(cls, folder: Path) -> "BaseModel":
        """Reads config.json and the headers of the safetensors files in `folder`.

        Where there are no weights, or packed (quantised) ones, the shapes of Llama-like models follow from
        config.json. An output layer that shares the embedding's weights has no tensor of its own: it gets the
        embedding's shape. Raises BaseModelError.
        """
        config = json_object(folder / _CONFIG)
        architecture = config.get("model_type")
        if not isinstance(architecture, str):
            raise BaseModelError(f"{folder / _CONFIG} has no model_type: is this a model's folder?")
        tensors = [tensor for file in weight_files(folder) for tensor in read_tensors(file)]
        derived = _llama_shapes(config) if architecture in _LLAMA_LIKE else {}
        packed = any(tensor.name.endswith(".qweight") or tensor.dtype in ("U8", "I8") for tensor in tensors)
        if not derived and (packed or not tensors):
            reason = "its weights are packed" if packed else f"there is no {_WEIGHTS}"
            raise BaseModelError(
                f"the shapes in {folder} are unknown: {reason}, and {architecture!a} is not Llama-like"
            )
        shapes = derived | {
            tensor.name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
            for tensor in tensors
            if tensor.name.endswith(".weight") and len(tensor.shape) == 2 and tensor.dtype in _UNPACKED
        }
        name, commit = model_name(str(folder.resolve()))
        return cls(name, architecture, _with_head(shapes), folder, commit)

    @property
    def vocabulary(self) -> int | None:
        """How many tokens it has a place for."""
        return next((rows for name, (rows, _) in self.shapes.items() if name.rpartition(".")[2] == _EMBEDDING), None)

    def slot_bytes(self, rank: int, element_bytes: int = 2) -> int:
        """What one of an engine's --max-loras takes of its device, whatever is loaded: vLLM lays out all modules at
        --max-lora-rank when it starts."""
        return rank * element_bytes * sum(out + into for out, into in self.shapes.values())


def model_name(path: str) -> tuple[str, str | None]:
    """A model's name without its owner's, and its commit, from its name on a hub or from its folder, wherever that is.

    https://huggingface.co/docs/huggingface_hub/guides/manage-cache has the layout of the cache.
    """
    path = path.replace("\\", "/").rstrip("/")
    if cached := _CACHED.search(path):
        return cached["name"].rpartition("--")[2], cached["commit"]
    return path.rpartition("/")[2], None


def _with_head(shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    embedding = next((name for name in shapes if name.rpartition(".")[2] == _EMBEDDING), None)
    if embedding is None or any(name.rpartition(".")[2] == _HEAD for name in shapes):
        return shapes
    return {**shapes, _HEAD: shapes[embedding]}


def json_object(file: Path) -> dict[str, object]:
    """The content of a JSON file of the model's folder. Raises BaseModelError."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_JSON + 1)
        value = loads(data) if len(data) <= _MAX_JSON else None
    except OSError as error:
        raise BaseModelError(f"{file} cannot be read ({error.strerror})") from error
    except StrictJsonError as error:
        raise BaseModelError(f"{file} is no JSON of one meaning ({error})") from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{file} is not a JSON object of at most {_MAX_JSON} bytes")
    return value


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold the weights; none where there are no such weights. Raises BaseModelError."""
    if (folder / _INDEX).exists():
        shards = json_object(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
            raise BaseModelError(f"{folder / _INDEX} has no weight_map from tensors to files beside it")
        return tuple(folder / shard for shard in sorted(set(shards.values())))
    return (folder / _WEIGHTS,) if (folder / _WEIGHTS).exists() else ()


def read_tensors(file: Path) -> tuple[Tensor, ...]:
    """The tensors of one of them, in the order of their bytes. Raises BaseModelError."""
    try:
        with file.open("rb", buffering=0) as stream:
            return read_header(stream, file.stat().st_size, _MAX_HEADER)
    except OSError as error:
        raise BaseModelError(f"{file} cannot be read ({error.strerror})") from error
    except SafetensorsError as error:
        raise BaseModelError(f"{file} is no valid safetensors file: {error}") from error


def _llama_shapes(config: Mapping[str, object]) -> dict[str, Shape]:
    """The shapes as transformers builds them for Llama and its kin."""

    def size(name: str, default: int | None = None, limit: int = _MAX_SIZE) -> int:
        value = config.get(name)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= limit:
            raise BaseModelError(f"{_CONFIG} has no usable {name}")
        return value

    hidden, inner, vocabulary = size("hidden_size"), size("intermediate_size"), size("vocab_size")
    heads = size("num_attention_heads")
    width = size("head_dim", hidden // heads)
    queries, keys = heads * width, size("num_key_value_heads", heads) * width
    layer: dict[str, Shape] = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = range(size("num_hidden_layers", limit=_MAX_LAYERS))
    shapes = {f"model.layers.{i}.{module}": shape for i in layers for module, shape in layer.items()}
    return {f"model.{_EMBEDDING}": (vocabulary, hidden), **shapes}
