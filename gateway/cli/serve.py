"""`gateway serve`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from gateway.cli.options import ConfigFile
from gateway.controlplane.loader import load


def serve(
    config: ConfigFile,
    host: Annotated[str | None, typer.Option(help="Listen here instead of server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Listen on this port instead of server.port.")] = None,
    workers: Annotated[int | None, typer.Option(help="Instead of server.workers.")] = None,
) -> None:
    """Run the gateway, and the engines that the file asks it to run."""
    # Most of a second of imports (FastAPI, the database) that no other command should wait for.
    from gateway import app  # noqa: PLC0415

    given = {"host": host, "port": port, "workers": workers}
    overrides = {("server", key): value for key, value in given.items() if value is not None}
    raise typer.Exit(app.run(load(config, os.environ, overrides)))
