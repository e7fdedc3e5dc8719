"""`gateway usage`: what was used and what it cost."""

from __future__ import annotations

import sys
from datetime import datetime
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlencode

import typer

from gateway.cli.admin import Admin
from gateway.cli.options import DEFAULT_URL, AdminKey, AsJson, Url
from gateway.cli.output import Failure, print_json, print_table, say
from gateway.domain.csvtext import csv_text
from gateway.domain.entry import SUMS
from gateway.domain.money import amount


class By(StrEnum):
    """What usage can be added up by."""

    DAY = "day"
    KEY = "key"
    TEAM = "team"
    USER = "user"
    MODEL = "model"
    ADAPTER = "adapter"
    UPSTREAM = "upstream"


Date = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="DATE", show_default=False)]


def usage(
    by: Annotated[By, typer.Option(help="What it is added up by.")] = By.DAY,
    since: Date = None,
    until: Date = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show what was used and what it cost, from one day to another (both included; days are UTC's)."""
    if as_json and as_csv:
        raise Failure("give either --json or --csv")
    days = {name: f"{day:%Y-%m-%d}" for name, day in (("since", since), ("until", until)) if day is not None}
    with Admin(url, admin_key) as admin:
        report = admin.call("GET", f"usage?{urlencode({'by': by.value, **days})}")
    rows = report["data"]
    if as_json:
        print_json(report)
    elif as_csv:
        sys.stdout.write(csv_text(rows))
    elif rows:
        counts = ("requests", *(name for name in SUMS if name.endswith("_tokens")))
        print_table(
            (by.value, *(name.removesuffix("_tokens") for name in counts), "cost"),
            [
                (row.get("name") or row.get(by.value, "total") or "-", *(row[name] for name in counts),
                 amount(row["cost_micros"]))
                for row in (*rows, report["total"])
            ],
        )  # fmt: skip
    else:
        say("Nothing was used.")
