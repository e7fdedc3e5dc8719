"""A base model's folder: which tensors there are, where their bytes lie, and what its configuration says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.base_model import BaseModelError, json_object, read_tensors, weight_files
from adapters.merge.errors import MergeError
from adapters.safetensors import Tensor

CONFIG = "config.json"
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""The dtypes that a merge can change and cast."""

_PACKED = frozenset({"U8", "I8", "I32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"})
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor and the file that holds it."""

    file: Path
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model in the Hugging Face layout with plain floating weights."""

    folder: Path
    config: Mapping[str, object]
    tensors: Mapping[str, Stored]  # by name, in the order of the files and of their bytes

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint":
        """Raises MergeError, also for a quantised model: W + BA cannot be written back into packed weights."""
        if not folder.is_dir():
            raise MergeError(f"{folder} is not a folder: give the base model's folder, in the Hugging Face layout")
        try:
            config = json_object(folder / CONFIG)
            files = weight_files(folder)
            stored = [Stored(file, tensor) for file in files for tensor in read_tensors(file)]
        except BaseModelError as error:
            raise MergeError(str(error)) from error
        if not stored:
            pickles = any((folder / name).exists() for name in _PICKLES)
            raise MergeError(
                f"{folder} holds its weights as pickles: save the model with save_pretrained(), as safetensors"
                if pickles
                else f"{folder} holds no model.safetensors and no model.safetensors.index.json: is this a model?"
            )
        packed = next((one.tensor for one in stored if _is_packed(one.tensor)), None)
        if packed is not None or _says_quantised(config):
            what = f"tensor {packed.name} is {packed.dtype}" if packed else f"{CONFIG} has a quantization_config"
            raise MergeError(
                f"{folder} is quantised ({what}): merge into the model that it was quantised from, then quantise the"
                " result; or serve base and adapter as they are"
            )
        return cls(folder, config, {one.tensor.name: one for one in stored})

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(one.tensor.end - one.tensor.begin for one in self.tensors.values())

    @property
    def dtypes(self) -> frozenset[str]:
        return frozenset(one.tensor.dtype for one in self.tensors.values()) & FLOATS


def _is_packed(tensor: Tensor) -> bool:
    return tensor.dtype in _PACKED and tensor.name.endswith(("weight", "weight_packed", "qweight", "blocks"))


def _says_quantised(config: Mapping[str, object]) -> bool:
    text = config.get("text_config")
    return any(isinstance(part, dict) and part.get("quantization_config") not in (None, {}) for part in (config, text))
