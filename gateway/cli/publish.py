"""`gateway adapters add`: a new version, from wherever it is to an engine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from adapters import RefusedError
from adapters.sources.folder import NAME
from adapters.sources.pack import pack
from gateway.cli.admin import Absent, Admin
from gateway.cli.moves import moved
from gateway.cli.options import DEFAULT_URL, AdminKey, AsJson, Url
from gateway.cli.output import Failure, complain, print_json, say
from gateway.cli.progress import Steps, steps

_PIECE = 1 << 18  # bytes
_POLL = (0.05, 0.25)  # seconds between two looks at an import, at first and at most


def add(
    name: Annotated[str, typer.Argument(help="What the adapter is asked for as.", metavar="NAME")],
    source: Annotated[
        str,
        typer.Argument(
            help="A folder or an archive here, hf://org/repo@revision, modelscope://…, https://…#sha256=… or s3://….",
            metavar="SOURCE",
        ),
    ],
    digest: Annotated[str | None, typer.Option(help="SHA-256 of the file at a URL.", metavar="SHA256")] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Point the name to it as soon as it is Ready.")] = False,
    pin: Annotated[bool, typer.Option("--pin", help="Never evict the adapter's current version.")] = False,
    lazy: Annotated[
        bool | None, typer.Option("--lazy/--eager", help="Load it when it is asked for, or always.", show_default=False)
    ] = None,
    upstream: Annotated[
        list[str] | None, typer.Option(help="Only on this one; may be repeated.", metavar="NAME")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is Ready or Failed.")] = True,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    as_json: AsJson = False,
) -> None:
    """Add a version to a running gateway, and wait until it is Ready: exit 0, or 1 with the reason and the remedy.  The
    first version of a name is what the name points to."""
    if NAME.fullmatch(name) is None:
        raise Failure(f"{name!r} is no adapter's name: it must match {NAME.pattern}")
    settings = {
        "promote": promote or None,
        "pinned": pin or None,
        "load": None if lazy is None else "lazy" if lazy else "eager",
        "upstreams": upstream or None,
    }
    given = {key: value for key, value in settings.items() if value is not None}
    with Admin(url, admin_key) as admin, steps() as progress:
        if "://" in source:
            asked = {"name": name, "source": source, **given, **({"digest": digest} if digest else {})}
            begun = admin.call("POST", "adapters", asked)
        elif digest is not None:
            raise Failure("--digest is for a URL: what lies here is sent as it is")
        else:
            begun = _upload(admin, name, Path(source), given, progress)
        if wait:
            begun = _followed(admin, begun, progress)
            if begun["note"]:
                complain(f"note: {begun['note']}")
            if begun["phase"] == "Ready":
                begun = _row(admin, name, begun["version"], promote, progress)
    _tell(begun, as_json)
    if begun["phase"] == "Failed":
        raise typer.Exit(1)


def _upload(admin: Admin, name: str, source: Path, given: dict[str, Any], progress: Steps) -> dict[str, Any]:
    if not source.exists():
        raise Failure(f"{source}: there is no such folder or archive here, and it is no URL")
    try:
        admin.call("GET", f"adapters/{name}")  # a wrong key is known before anything large is sent
    except Absent:
        pass
    query = {
        key: ",".join(value) if isinstance(value, list) else str(value).lower() if value is True else value
        for key, value in given.items()
    }
    try:
        if source.is_file():
            with source.open("rb") as archive:
                return _send(admin, name, archive, query, progress)
        with tempfile.TemporaryFile() as archive:
            progress.show("Packing")
            pack(source, archive)
            return _send(admin, name, archive, query, progress)
    except RefusedError as error:
        raise Failure("\n".join(str(finding) for finding in error.findings)) from None
    except OSError as error:
        raise Failure(f"{source} cannot be read or packed: {error}") from None


def _send(admin: Admin, name: str, archive: BinaryIO, query: dict[str, str], progress: Steps) -> dict[str, Any]:
    size = archive.seek(0, 2)
    archive.seek(0)

    def pieces() -> Iterator[bytes]:
        while piece := archive.read(_PIECE):
            progress.show("Uploading", archive.tell(), size)
            yield piece

    return admin.upload(f"adapters/{name}/archive", pieces(), size, query)


def _followed(admin: Admin, begun: dict[str, Any], progress: Steps) -> dict[str, Any]:
    """The import when it has ended."""
    pause, most = _POLL
    while begun["phase"] not in ("Ready", "Failed"):
        progress.show(begun["phase"], begun["done"], begun["total"])
        time.sleep(pause)
        pause = min(pause * 1.5, most)
        begun = admin.call("GET", f"imports/{begun['id']}")
    return begun


def _row(admin: Admin, name: str, version: str, promote: bool, progress: Steps) -> dict[str, Any]:
    """The version; with `promote`, when the name points to it."""
    adapter = admin.call("GET", f"adapters/{name}")
    if promote:
        adapter = moved(admin, adapter, version, progress)
    for row in adapter["versions"]:
        if row["version"] == version:
            return dict(row)
    raise Failure(f"{name}@{version} was added, and has been removed again")


def _tell(done: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(done)
    name, version = done["name"], done["version"]
    if done["phase"] == "Failed":
        complain(f"{name}: {done['reason']}")
    elif as_json:
        return
    elif "current" not in done:
        say(f"{name}: the import {done['id']} has begun.")
    elif done["current"]:
        say(f"{name}@{version} is {done['phase']}, and {name} points to it.")
    else:
        say(
            f"{name}@{version} is {done['phase']}; {name} points to another version "
            f"(gateway adapters promote {name} {version})."
        )
