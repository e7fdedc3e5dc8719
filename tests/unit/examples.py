"""The examples of docs/configuration.md."""

from __future__ import annotations

import re
from pathlib import Path

REFERENCE = (Path(__file__).resolve().parents[2] / "docs/configuration.md").read_text(encoding="utf-8")
EXAMPLES: list[str] = re.findall(r"```yaml\n(.*?)```", REFERENCE, re.DOTALL)


def variables(text: str) -> dict[str, str]:
    """A value for each variable that the text needs, good enough for a key."""
    names = sorted(set(re.findall(r"\$\{([A-Z_]+)\}", text)))
    return {name: f"{index:02}a3c5e7092b4d6f8{index:02}" * 2 for index, name in enumerate(names)}


def example(upstream: str) -> str:
    """The example whose first upstream has this name."""
    return next(text for text in EXAMPLES if re.search(rf"^upstreams:\n  - name: {upstream}$", text, re.MULTILINE))
