"""adapter_config.json, read as what it is: a file from a stranger."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an adapter says of itself, after every field was found to hold what peft writes there."""

    peft_type: str | None
    base_model: str | None  # base_model_name_or_path
    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | str | None
