"""What an adapter's check needs to know of the base model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class BaseModelError(Exception):
    """The base model's folder does not say what its modules are; the text names the file and what to do."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """Modules of a base model by name (`model.layers.0.self_attn.q_proj`) with the shape of their weights [out, in]."""

    name: str
    architecture: str
    shapes: Mapping[str, tuple[int, int]]
    element_bytes: int  # of the dtype it is served in, which is also the adapters'

    @classmethod
    def read(cls, folder: Path) -> "BaseModel":
        """Reads config.json and the headers of the safetensors files there. Without weights the shapes of Llama-like
        models follow from config.json. Raises BaseModelError."""
        raise NotImplementedError
