"""`gateway adapters`: the life of LoRA adapters."""

from __future__ import annotations

import typer

from gateway.cli import compare, judge, merge, moves, publish

app = typer.Typer(
    help="LoRA adapters: judge one; add, move and remove those of a running gateway.", no_args_is_help=True
)
app.command()(judge.check)
app.command()(publish.add)
app.command("list")(moves.list_adapters)
app.command()(moves.show)
app.command()(moves.promote)
app.command()(moves.rollback)
app.command()(moves.canary)
app.command()(compare.compare)
app.command("set")(moves.configure)
app.command()(moves.load)
app.command()(moves.unload)
app.command()(moves.remove)
app.command()(merge.merge)
app.command()(merge.export)
