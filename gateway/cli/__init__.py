"""The command `gateway`."""

from __future__ import annotations

import sys

import typer

from gateway.cli import adapters, audit, check, explain, keys, schema, serve, version
from gateway.cli.output import Failure, complain
from gateway.controlplane.problems import ConfigError

app = typer.Typer(
    name="gateway",
    help="One OpenAI-compatible endpoint over vLLM with LoRA adapters, Ollama and third-party APIs.",
    no_args_is_help=True,
    add_completion=False,
    # Their tracebacks show the values of variables, keys among them.
    pretty_exceptions_enable=False,
)
app.command()(serve.serve)
app.command()(check.check)
app.command()(explain.explain)
app.add_typer(adapters.app, name="adapters")
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.command()(schema.schema)
app.command()(version.version)


def main() -> None:
    """Runs the command line.  What a person can mend is one line on stderr, and exit status 1."""
    try:
        app()
    except ConfigError as error:
        complain(*error.lines())
        sys.exit(1)
    except Failure as failure:
        complain(*str(failure).splitlines())
        sys.exit(1)
