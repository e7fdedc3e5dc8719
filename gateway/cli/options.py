"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gateway.controlplane.config import Config
from gateway.controlplane.loader import load

ConfigFile = Annotated[Path, typer.Option("--config", help="The configuration file.", metavar="FILE", dir_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Url = Annotated[str, typer.Option(envvar="GATEWAY_URL", help="Where the gateway runs.", metavar="URL")]
AdminKey = Annotated[
    str | None, typer.Option(envvar="GATEWAY_ADMIN_KEY", help="Its admin key; better taken from the environment.")
]
DEFAULT_URL = "http://127.0.0.1:8000"


def read(file: Path) -> Config:
    """The configuration in `file`, with this process's environment.  Raises ConfigError."""
    return load(file, os.environ)
