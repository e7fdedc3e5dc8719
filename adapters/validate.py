"""Would vLLM load this adapter, and serve what was trained?"""

from dataclasses import dataclass
from pathlib import Path

from adapters.base_model import BaseModel
from adapters.findings import Finding
from adapters.inspect import Inspection


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found. `inspection` is None where the adapter could not be read that far."""

    findings: tuple[Finding, ...]
    inspection: Inspection | None

    @property
    def ok(self) -> bool:
        """True when nothing of severity `error` was found."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def as_json(self) -> dict[str, object]:
        """The verdict as plain values: {"ok", "findings": [{"code", "severity", "message", "remedy"}], "adapter"}."""
        raise NotImplementedError


def check(path: Path, base: BaseModel | None = None, max_lora_rank: int | None = None) -> Verdict:
    """Judges the adapter in the folder `path` against a base model and an engine's --max-lora-rank.

    Never raises for what is wrong with the adapter: that is what the verdict says. Without `base` the shapes are not
    compared (a warning says so); without `max_lora_rank` any rank that some engine can be started with passes.
    Blocks on the disk: a 10 MB adapter takes tens of milliseconds.
    """
    raise NotImplementedError
