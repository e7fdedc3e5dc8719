"""`gateway version`."""

from __future__ import annotations

import importlib.metadata

from gateway.cli.output import say


def version() -> None:
    """Print the version."""
    say(importlib.metadata.version("lora-gateway"))
