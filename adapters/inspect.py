"""What an adapter holds: which modules, at which rank, how large."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapters.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Inspection:
    """An adapter whose files could be read: its manifest and what the header of its weights says."""

    manifest: Manifest
    ranks: Mapping[str, int]  # by module name as in the base model, from the tensors
    dtypes: frozenset[str]
    parameters: int

    @property
    def rank(self) -> int:
        """The highest rank of any module, which an engine's --max-lora-rank must reach."""
        raise NotImplementedError

    def memory_bytes(self, element_bytes: int = 2) -> int:
        """Size in the engine's host memory, where weights are held in the base model's dtype."""
        return self.parameters * element_bytes


def required_max_lora_rank(ranks: Iterable[int]) -> int:
    """The smallest --max-lora-rank that vLLM accepts (1, 8, 16, 32, 64, 128, 256, 320, 512) and that holds all
    `ranks`; 16, vLLM's default, for none. Raises ValueError above 512."""
    raise NotImplementedError
