"""`gateway keys`: the API keys of a running gateway."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.admin import Admin
from gateway.cli.options import DEFAULT_URL, AdminKey, AsJson, Url
from gateway.cli.output import Failure, complain, print_json, print_table, say

_PAGE = 1000  # rows that are asked for at once
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_BUDGET = re.compile(
    r"(?:(?P<tokens>\d{1,15})tokens|(?P<money>\d{1,9}(?:\.\d{1,6})?))/(?P<period>day|month|total)", re.ASCII
)
_DURATION = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)

app = typer.Typer(help="API keys of a running gateway.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(help="The key's id or name.", metavar="KEY")]
Owner = Annotated[str | None, typer.Option(help="Whose it is.", metavar="TEXT")]
Team = Annotated[str | None, typer.Option(help="The team that it belongs to.", metavar="NAME")]
Expires = Annotated[
    str | None,
    typer.Option(help="When it ends: 2027-01-31, 2027-01-31T18:00, 90d, 12h; never.", metavar="DATE|DURATION"),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help="A model, or a pattern of names, that exists for it; may be repeated.", metavar="PATTERN"
    ),
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option("--endpoint", help="An endpoint that it may use, by path; may be repeated.", metavar="PATH"),
]
Requests = Annotated[int | None, typer.Option("--rpm", help="Requests a minute.", metavar="N", min=1)]
Tokens = Annotated[int | None, typer.Option("--tpm", help="Tokens a minute.", metavar="N", min=1)]
Concurrent = Annotated[int | None, typer.Option(help="Requests at once.", metavar="N", min=1)]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget", help="What it may use: 20/month (money), 1000000tokens/day, 5/total; may be repeated.",
        metavar="AMOUNT/PERIOD",
    ),
]  # fmt: skip
LogContent = Annotated[
    bool | None,
    typer.Option(
        "--log-content/--no-log-content", show_default=False,
        help="Whether its prompts and answers are written down (log.content).",
    ),
]  # fmt: skip
Rights = Annotated[list[str] | None, typer.Option(help="A further right; may be repeated.", metavar="RIGHT")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What people call it.", metavar="NAME")],
    owner: Owner = None,
    team: Team = None,
    expires: Expires = None,
    model: Models = None,
    endpoint: Endpoints = None,
    allow: Rights = None,
    rpm: Requests = None,
    tpm: Tokens = None,
    concurrent: Concurrent = None,
    budget: Budgets = None,
    log_content: LogContent = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, and print it this once."""
    wanted = {
        "name": name,
        **_settings(owner, team, expires, model, endpoint, allow, log_content),
        **_bounds(rpm, tpm, concurrent, budget),
    }
    with Admin(url, admin_key) as admin:
        made = admin.call("POST", "keys", wanted)
    _show_secret(made, f"The key {made['name']} ({made['id']}) is made. It is shown this once: keep it.", as_json)


@app.command("list")
def list_keys(url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: AsJson = False) -> None:
    """List the keys: those of the configuration file and those made at run time."""
    with Admin(url, admin_key) as admin:
        rows = list(_rows(admin))
    if as_json:
        print_json({"object": "list", "data": rows})
        return
    print_table(
        ("id", "name", "state", "source", "owner", "team", "models", "expires", "content"),
        [
            (row["id"], row["name"], row["state"], row["source"], row["owner"], row["team"], ", ".join(row["models"]),
             _moment(row["expires"], "never"), "logged" if row["log_content"] else "")
            for row in rows
        ],
    )  # fmt: skip


@app.command()
def show(key: Key, url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: AsJson = False) -> None:
    """Show one key.  The key itself is kept nowhere and cannot be shown."""
    with Admin(url, admin_key) as admin:
        found = admin.call("GET", f"keys/{_part(key)}")
    if as_json:
        print_json(found)
        return
    print_table(("", ""), [(name, _told(name, value)) for name, value in found.items()])


@app.command("set")
def configure(
    key: Key,
    name: Annotated[str | None, typer.Option(help="Another name.", metavar="NAME")] = None,
    owner: Owner = None,
    team: Team = None,
    expires: Expires = None,
    model: Models = None,
    endpoint: Endpoints = None,
    allow: Rights = None,
    rpm: Requests = None,
    tpm: Tokens = None,
    concurrent: Concurrent = None,
    budget: Budgets = None,
    log_content: LogContent = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: AsJson = False,
) -> None:
    """Change a key; what is not given stays."""
    settings = _settings(owner, team, expires, model, endpoint, allow, log_content)
    settings |= _bounds(rpm, tpm, concurrent, budget)
    if name is not None:
        settings["name"] = name
    if not settings:
        raise Failure("nothing to set: `gateway keys set --help` shows what there is")
    with Admin(url, admin_key) as admin:
        changed = admin.call("PATCH", f"keys/{_part(key)}", settings)
    if as_json:
        print_json(changed)
    else:
        say(f"{changed['name']} ({changed['id']}): set.")


@app.command()
def rotate(
    key: Key,
    grace: Annotated[int, typer.Option(help="Seconds for which the key as it was is let in still.", min=0)] = 0,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: AsJson = False,
) -> None:
    """Give a key another secret, and print it this once.  Requests that run with the one before are ended, unless there
    is a grace."""
    with Admin(url, admin_key) as admin:
        made = admin.call("POST", f"keys/{_part(key)}/rotate", {"grace": grace})
    ends = f"The one before ends {_moment(made['previous_until'])}." if grace else "The one before has ended."
    _show_secret(
        made, f"The key {made['name']} ({made['id']}) is another one, shown this once: keep it. {ends}", as_json
    )


@app.command()
def revoke(key: Key, url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: AsJson = False) -> None:
    """Revoke a key for good.  Requests that run with it are ended."""
    with Admin(url, admin_key) as admin:
        revoked = admin.call("DELETE", f"keys/{_part(key)}")
    if as_json:
        print_json(revoked)
    else:
        say(f"{revoked['name']} ({revoked['id']}) is revoked.")


def _rows(admin: Admin) -> Iterator[dict[str, Any]]:
    after, more = "", True
    while more:
        page = admin.call("GET", f"keys?limit={_PAGE}&after={quote(after, safe='')}")
        yield from page["data"]
        more = page["has_more"]
        after = page["data"][-1]["id"] if page["data"] else ""


def _settings(
    owner: str | None,
    team: str | None,
    expires: str | None,
    models: list[str] | None,
    endpoints: list[str] | None,
    allow: list[str] | None,
    log_content: bool | None,
) -> dict[str, Any]:
    """Those that were given."""
    given: dict[str, Any] = {
        "owner": owner, "team": team, "models": models, "endpoints": endpoints, "allow": allow,
        "log_content": log_content,
    }  # fmt: skip
    settings = {name: value for name, value in given.items() if value is not None}
    if expires is not None:
        settings["expires"] = moment(expires, time.time())
    return settings


def _bounds(rpm: int | None, tpm: int | None, concurrent: int | None, budgets: list[str] | None) -> dict[str, Any]:
    """Limits and budgets, where any are given: together they replace those there are."""
    bounds: dict[str, Any] = {}
    if (rpm, tpm, concurrent) != (None, None, None):
        bounds["limits"] = {"requests_per_minute": rpm, "tokens_per_minute": tpm, "concurrent": concurrent}
    if budgets is not None:
        bounds["budgets"] = merged_budgets(budgets)
    return bounds


def merged_budgets(texts: list[str]) -> list[dict[str, Any]]:
    """Budgets as they are written on the command line, one for each period; "none" for none.  Raises Failure."""
    if texts == ["none"]:
        return []
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        if (parts := _BUDGET.fullmatch(text)) is None:
            raise Failure(f"{text!r} is no budget: write 20/month, 1000000tokens/day, 5/total or none")
        unit, amount = ("tokens", int(parts["tokens"])) if parts["tokens"] else ("money", float(parts["money"]))
        budget = found.setdefault(parts["period"], {"per": parts["period"]})
        if unit in budget:
            raise Failure(f"{text!r}: there is another one for {unit} and this period")
        budget[unit] = amount
    return list(found.values())


def moment(text: str, now: float) -> int | None:
    """Unix seconds of a date (UTC where it does not say otherwise) or of a duration from now on; None for "never".
    Raises Failure."""
    if text == "never":
        return None
    if duration := _DURATION.fullmatch(text):
        return int(now) + int(duration[1]) * _UNITS[duration[2]]
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise Failure(f"{text!r} is no date and no duration: write 2027-01-31, 90d, 12h or never") from None
    return int((date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp())


def _show_secret(made: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(made)
    else:
        complain(sentence)
        sys.stdout.write(made["key"] + "\n")


def _part(key: str) -> str:
    """An id or a name as a part of a path; whether there is such a one, the gateway knows."""
    if not key or key in (".", ".."):
        raise Failure(f"{key!r} is no key's id or name")
    return quote(key, safe="")


def _told(name: str, value: Any) -> str:
    if name in ("created", "expires", "revoked", "previous_until"):
        return _moment(value, "never" if name == "expires" else "")
    if name == "limits":
        return ", ".join(f"{limit}={count}" for limit, count in (value or {}).items() if count is not None) or "as all"
    if name == "budgets":
        return ", ".join(map(_budget, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={text}" for key, text in value.items())
    return "all" if value is None else str(value)


def _budget(budget: dict[str, Any]) -> str:
    money, tokens = budget["money"], budget["tokens"]
    parts = [f"{money:g}"] if money is not None else []
    parts += [f"{tokens}tokens"] if tokens is not None else []
    return "/".join([" and ".join(parts), budget["per"]])


def _moment(seconds: int | None, otherwise: str = "") -> str:
    return otherwise if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
