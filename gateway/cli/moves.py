"""The commands of `gateway adapters` that act on a running gateway, but for the two that take long: add and compare."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from gateway.cli.admin import Admin
from gateway.cli.options import DEFAULT_URL, AdminKey, AsJson, Url
from gateway.cli.output import Failure, print_json, print_table, say
from gateway.cli.progress import Steps, steps

_MOVE_SECONDS = 600.0
_POLL = 0.2  # seconds

Name = Annotated[str, typer.Argument(help="The adapter.", metavar="NAME")]
Version = Annotated[
    str, typer.Argument(help="12 or more hex digits of the version's digest, or name@….", metavar="VERSION")
]
Named = Annotated[
    str, typer.Argument(help="The adapter, or one version of it: name@version.", metavar="NAME[@VERSION]")
]
Wait = Annotated[bool, typer.Option(help="Wait until the name has moved.")]


class Load(StrEnum):
    """When an adapter is loaded."""

    EAGER = "eager"
    LAZY = "lazy"
    DEFAULT = "default"  # as the gateway's configuration says


def list_adapters(url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: AsJson = False) -> None:
    """List the adapters of a running gateway: their versions, where each stands, what each gets of the traffic."""
    with Admin(url, admin_key) as admin:
        rows = admin.rows("adapters")
    if as_json:
        print_json({"object": "list", "data": rows})
    elif rows:
        _print_rows(rows)
    else:
        say("This gateway has no adapters.")


def show(name: Name, url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: AsJson = False) -> None:
    """Show one adapter: what its name points to and pointed to before, and each version on each upstream."""
    with Admin(url, admin_key) as admin:
        adapter = admin.call("GET", f"adapters/{_part(name)}")
    if as_json:
        print_json(adapter)
        return
    _say_traffic(adapter)
    if adapter["history"]:
        say(f"before: {', '.join(reversed(adapter['history']))}")
    say(
        f"loaded: {adapter['load'] or 'as the configuration says'}{', pinned' if adapter['pinned'] else ''}; "
        f"on: {', '.join(adapter['upstreams'] or ()) or 'every upstream that it fits'}",
        "",
    )
    print_table(
        ("version", "phase", "traffic", "added", "rank", "MiB", "base", "source"),
        [
            (row["version"], row["phase"], _share(row), _date(row["added"]), row["rank"], _mib(row["size"]),
             row["base"], row["source"])
            for row in adapter["versions"]
        ],
    )  # fmt: skip
    replicas = [
        (row["version"], upstream, replica["state"], replica["reason"])
        for row in adapter["versions"]
        for upstream, replica in row["replicas"].items()
    ]
    if replicas:
        say("")
        print_table(("version", "upstream", "state", "reason"), replicas)
    for row in adapter["versions"]:
        if row["reason"]:
            say("", f"{row['version']}: {row['reason']}")


def promote(
    name: Name,
    version: Version,
    wait: Wait = True,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: AsJson = False,
) -> None:
    """Point the name to a version, as soon as that is Ready.  Requests that run stay with theirs."""
    _move(name, "promote", {"version": version}, wait, url, admin_key, as_json)


def rollback(
    name: Name, wait: Wait = True, url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: AsJson = False
) -> None:
    """Point the name to what it pointed to before."""
    _move(name, "rollback", None, wait, url, admin_key, as_json)


def canary(
    name: Name,
    version: Version,
    weight: Annotated[float, typer.Option(help="Percent of the name's traffic; 0 ends it.", min=0, max=100)],
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: AsJson = False,
) -> None:
    """Give a version a share of the name's traffic.  The same users and chats stay with it."""
    with Admin(url, admin_key) as admin:
        adapter = admin.call("POST", f"adapters/{_part(name)}/canary", {"version": version, "weight": weight})
    _tell(adapter, as_json)


def configure(
    name: Name,
    pin: Annotated[
        bool | None, typer.Option("--pin/--no-pin", help="Never evict the current version.", show_default=False)
    ] = None,
    load: Annotated[Load | None, typer.Option(help="When it is loaded.")] = None,
    upstream: Annotated[
        list[str] | None, typer.Option(help="Only on this one; may be repeated.", metavar="NAME")
    ] = None,
    all_upstreams: Annotated[bool, typer.Option("--all-upstreams", help="Wherever it fits.")] = False,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: AsJson = False,
) -> None:
    """Change how an adapter is served; what is not given stays."""
    settings: dict[str, Any] = {}
    if pin is not None:
        settings["pinned"] = pin
    if load is not None:
        settings["load"] = None if load is Load.DEFAULT else load.value
    if upstream or all_upstreams:
        settings["upstreams"] = upstream or None
    if upstream and all_upstreams:
        raise Failure("give either --upstream or --all-upstreams")
    if not settings:
        raise Failure("nothing to set: give --pin, --no-pin, --load, --upstream or --all-upstreams")
    with Admin(url, admin_key) as admin:
        adapter = admin.call("PATCH", f"adapters/{_part(name)}", settings)
    if as_json:
        print_json(adapter)
    else:
        say(f"{name}: set.")


def load(adapter: Named, url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: AsJson = False) -> None:
    """Load a version on its engines now, and wait until it is."""
    _ask(adapter, "load", "is loaded", url, admin_key, as_json)


def unload(adapter: Named, url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: AsJson = False) -> None:
    """Let engines go of an adapter until somebody asks for it.  Requests that run are finished first."""
    _ask(adapter, "unload", "is unloaded until it is asked for", url, admin_key, as_json)


def remove(adapter: Named, url: Url = DEFAULT_URL, admin_key: AdminKey = None, as_json: AsJson = False) -> None:
    """Remove an adapter, or one version of it.  Requests that run are finished first."""
    name, version = _parts(adapter)
    path = f"adapters/{_part(name)}" + (f"/versions/{_part(version)}" if version else "")
    with Admin(url, admin_key) as admin:
        left = admin.call("DELETE", path)
    if as_json:
        print_json(left)
    else:
        say(f"{adapter} is removed.")
        if "versions" in left:
            _say_traffic(left)


def moved(admin: Admin, adapter: dict[str, Any], version: str, progress: Steps) -> dict[str, Any]:
    """The adapter, when its name points to the version.  Raises Failure when that is not to be."""
    name = adapter["name"]
    deadline = time.monotonic() + _MOVE_SECONDS
    while adapter["current"] != version:
        row = next((row for row in adapter["versions"] if row["version"] == version), None)
        if row is None or adapter["next"] != version:
            raise Failure(
                f"{name}@{version} will not be current: somebody else has moved {name} or removed the version"
            )
        if row["phase"] == "Failed":
            raise Failure(f"{name}@{version} cannot be current: {row['reason']}")
        if time.monotonic() > deadline:
            raise Failure(f"{name}@{version} is {row['phase']} still; {name} will point to it when it is Ready")
        progress.show(row["phase"])
        time.sleep(_POLL)
        adapter = admin.call("GET", f"adapters/{name}")
    return adapter


def _move(
    name: str, what: str, body: dict[str, Any] | None, wait: bool, url: str, admin_key: str | None, as_json: bool
) -> None:
    with Admin(url, admin_key) as admin, steps() as progress:
        adapter = admin.call("POST", f"adapters/{_part(name)}/{what}", body)
        if wait and adapter["next"] is not None:
            adapter = moved(admin, adapter, adapter["next"], progress)
    _tell(adapter, as_json)


def _ask(adapter: str, what: str, done: str, url: str, admin_key: str | None, as_json: bool) -> None:
    name, version = _parts(adapter)
    with Admin(url, admin_key) as admin:
        page = admin.call("POST", f"adapters/{_part(name)}/{what}", {"version": version} if version else {})
    if as_json:
        print_json(page)
    else:
        say(f"{adapter} {done}.")


def _parts(adapter: str) -> tuple[str, str]:
    """The name, and the version if one is meant, else "".  A version that a script left empty does not mean all."""
    name, at, version = adapter.partition("@")
    if at and not version:
        raise Failure(f"{adapter!r} names no version: write {name}@VERSION, or {name} for all of it")
    return name, version


def _part(text: str) -> str:
    """A name or a version as a part of a path; whether there is such a one, the gateway knows."""
    if not text or not all(char.isascii() and (char.isalnum() or char in "._-@") for char in text):
        raise Failure(f"{text!r} is no adapter's name or version")
    return text


def _tell(adapter: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(adapter)
    else:
        _say_traffic(adapter)


def _say_traffic(adapter: dict[str, Any]) -> None:
    parts = [f"{adapter['name']} points to {adapter['current']}"]
    parts += [f"{canary['weight']:g} % of its traffic goes to {canary['version']}" for canary in adapter["canaries"]]
    if adapter["next"] is not None:
        parts.append(f"{adapter['next']} follows when it is Ready")
    say("; ".join(parts) + ".")


def _print_rows(rows: list[dict[str, Any]]) -> None:
    print_table(
        ("name", "version", "phase", "traffic", "upstreams", "base", "reason"),
        [
            (
                row.get("name", ""),
                row.get("version", ""),
                row.get("phase", ""),
                _share(row),
                ", ".join(row.get("upstreams") or ()),
                row.get("base") or "",
                row.get("reason") or "",
            )
            for row in rows
        ],
    )


def _share(row: dict[str, Any]) -> str:
    return f"{row['weight']:g} %" if row.get("weight") else ""


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f}"
