"""`gateway schema`."""

from __future__ import annotations

import sys

from gateway.controlplane.schema import schema_text


def schema() -> None:
    """Print the JSON schema of the configuration file, for editors."""
    sys.stdout.write(schema_text())
