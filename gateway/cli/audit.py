"""`gateway audit`: what administrators have done, and whether the log of it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

import typer

from gateway.cli.admin import Admin
from gateway.cli.options import DEFAULT_URL, AdminKey, AsJson, Url
from gateway.cli.output import Failure, print_json, print_table, say
from gateway.domain.audit import GENESIS, Broken, Row, verified

_PAGE = 1000  # rows that are asked for at once

app = typer.Typer(help="The log of administrative acts of a running gateway.", no_args_is_help=True)


@app.command("list")
def list_acts(
    after: Annotated[int, typer.Option(help="The number of the last row that is known.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="At most so many rows.", min=1)] = 100,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: AsJson = False,
) -> None:
    """List what was done, oldest first."""
    with Admin(url, admin_key) as admin:
        rows = list(islice(_rows(admin, after), limit))
    if as_json:
        print_json({"object": "list", "data": [asdict(row) for row in rows]})
        return
    print_table(
        ("number", "time", "who", "from", "act", "target", "outcome", "detail"),
        [(row.number, _time(row.at), row.who, row.address, row.act, row.target, row.outcome, row.detail)
         for row in rows],
    )  # fmt: skip


@app.command()
def verify(
    head: Annotated[
        str | None, typer.Option(help="A head that was printed before: it must still be in the log.", metavar="HASH")
    ] = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: AsJson = False,
) -> None:
    """Walk the whole log: exit 0 when each row fits, 1 with the first that does not.

    Prints the head of the chain: keep it elsewhere, only whoever has it can tell that rows are missing at the end.
    """
    count, newest, known = 0, GENESIS, head is None or head == GENESIS
    try:
        with Admin(url, admin_key) as admin:
            for row in verified(_rows(admin, 0)):
                count, newest, known = row.number, row.hash, known or row.hash == head
    except Broken as broken:
        raise Failure(f"the log was tampered with: {broken}") from None
    if not known:
        raise Failure(
            "the log was tampered with: the head that you have kept is not in it, so rows are missing at its end"
        )
    if as_json:
        print_json({"rows": count, "head": newest})
    else:
        say(f"{count} rows fit. Head: {newest}")


def _rows(admin: Admin, after: int) -> Iterator[Row]:
    more = True
    while more:
        page: dict[str, Any] = admin.call("GET", f"audit?after={after}&limit={_PAGE}")
        for row in page["data"]:
            yield Row(**row)
            after = row["number"]
        more = page["has_more"]


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
