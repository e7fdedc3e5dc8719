"""Administration of adapters: what the control plane does for it, and its routes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from adapters.sources.source import parse_source
from gateway.api import answers, bodies
from gateway.api.audit import Audit, noted
from gateway.api.guard import ClientConnection
from gateway.api.uploads import Uploads
from gateway.domain.errors import Overloaded

Page = dict[str, Any]  # a JSON object, as api/openapi.py describes it

_LOAD_SECONDS = 240.0  # Open WebUI gives up after 300


class AdapterAdmin(Protocol):
    """The life of adapters.  What is returned is JSON: a row is one version, an adapter its rows and where its name
    points to, an import what becomes of a source (schemas `AdapterVersion`, `Adapter`, `Import` of api/openapi.py).

    `name` is within the grammar of names, `version` 12 to 64 hexadecimal digits.  `settings` holds those of `pinned`
    (bool), `load` ("eager", "lazy" or None for what the file says) and `upstreams` (tuple of names, or None for
    wherever it fits) that were given.

    All raise errors of gateway.domain.errors, with sentences for people: NotFound for what is not there, Conflict for a
    move that cannot be, InvalidRequest for a source or an upstream that cannot be.  A move that is returned from is
    durable.
    """

    @property
    def uploads(self) -> Path:
        """The folder that archives are received in, on the store's file system.  It exists; what a killed gateway left
        there is cleared at start."""
        ...

    async def rows(self) -> list[Page]:
        """Every version of every adapter, by name, oldest version first."""
        ...

    async def show(self, name: str) -> Page:
        """One adapter."""
        ...

    async def add(
        self, name: str, source: str, *, digest: str | None, promote: bool, settings: Mapping[str, Any]
    ) -> Page:
        """Begins to import a source with a scheme (`hf://`, `modelscope://`, `https://`, `s3://`; never a path) and
        returns the import.  `digest`: SHA-256 of what a URL has; `promote`: the name moves when the version is Ready.
        """
        ...

    async def receive(self, name: str, archive: Path, *, promote: bool, settings: Mapping[str, Any]) -> Page:
        """Begins to import an archive that lies in `uploads`, and returns the import.  The file is the callee's from
        the call on, whatever comes of it: it removes it."""
        ...

    async def imports(self, id: str) -> Page:
        """How far an import is.  Ended ones are remembered for a while."""
        ...

    async def promote(self, name: str, version: str) -> Page:
        """Points the name to the version and returns the adapter: at once when the version is Ready, else when it is,
        and `next` names it until then.  Nothing changes when the name points to it already."""
        ...

    async def rollback(self, name: str) -> Page:
        """Points the name to what it pointed to before, and returns the adapter; like `promote`, when that is Ready."""
        ...

    async def canary(self, name: str, version: str, weight: float) -> Page:
        """Gives the version `weight` percent of the name's traffic (0 ends it), and returns the adapter.  A version
        that is not Ready is loaded first, and waited for."""
        ...

    async def configure(self, name: str, settings: Mapping[str, Any]) -> Page:
        """Changes the settings that are given, and returns the adapter."""
        ...

    async def load(self, name: str, version: str | None) -> Page:
        """Asks for the version (None: the current one) as a request would, and returns the adapter when it is Ready.
        Raises when it Failed, with the reason.  Waits for as long as it takes: the caller bounds it."""
        ...

    async def unload(self, name: str, version: str | None) -> Page:
        """Makes engines let go of the version (None: all of the name's) until somebody asks for it or loads it, and
        returns the adapter when the published snapshot says so: what runs is finished first, and not waited for.  The
        current version of a pinned adapter: Conflict."""
        ...

    async def remove(self, name: str, version: str | None) -> Page | None:
        """Removes the version (None: the adapter), and returns what is left of the adapter, None when nothing is."""
        ...


def routes(app: FastAPI, admin: AdapterAdmin, audit: Audit) -> None:
    """Adds the routes.  Whoever reaches them has the admin key."""
    note = partial(noted, audit)
    uploads = Uploads()
    adapter = "/admin/v1/adapters/{name}"

    @app.get("/admin/v1/adapters")
    async def rows() -> Response:
        return answers.rows(await admin.rows())

    @app.post("/admin/v1/adapters")
    async def add(request: Request) -> Response:
        wanted = await bodies.read(request, bodies.NewVersion)
        source = bodies.checked_source(wanted.source, wanted.digest)
        with_it = {"digest": wanted.digest, "promote": wanted.promote, **wanted.given()}
        async with note(
            request, "adapter.add", wanted.name, source=str(parse_source(source, wanted.digest)), **with_it
        ):
            begun = await admin.add(
                wanted.name, source, digest=wanted.digest, promote=wanted.promote, settings=wanted.given()
            )
        return answers.page(begun, 202)

    @app.put(adapter + "/archive")
    async def upload(request: Request, name: str) -> Response:
        bodies.named(name)
        options = bodies.query(request, bodies.Upload)
        archive = await uploads.receive(request, admin.uploads)
        async with note(request, "adapter.add", name, source="upload", promote=options.promote, **options.given()):
            begun = await admin.receive(name, archive, promote=options.promote, settings=options.given())
        return answers.page(begun, 202)

    @app.get("/admin/v1/imports/{id}")
    async def imports(id: str) -> Response:
        return answers.page(await admin.imports(id))

    @app.get(adapter)
    async def show(name: str) -> Response:
        return answers.page(await admin.show(bodies.named(name)))

    @app.patch(adapter)
    async def configure(request: Request, name: str) -> Response:
        bodies.named(name)
        settings = await bodies.read(request, bodies.Settings)
        async with note(request, "adapter.configure", name, **settings.given()):
            return answers.page(await admin.configure(name, settings.given()))

    @app.delete(adapter)
    async def remove(request: Request, name: str) -> Response:
        async with note(request, "adapter.remove", bodies.named(name)):
            await admin.remove(name, None)
        return answers.page({"name": name, "deleted": True})

    @app.delete(adapter + "/versions/{version}")
    async def remove_version(request: Request, name: str, version: str) -> Response:
        digits = bodies.digits(bodies.named(name), version)
        async with note(request, "adapter.remove", name, version=digits):
            left = await admin.remove(name, digits)
        return answers.page({"name": name, "deleted": True} if left is None else left)

    @app.post(adapter + "/promote")
    async def promote(request: Request, name: str) -> Response:
        bodies.named(name)
        chosen = await bodies.read(request, bodies.Chosen)
        version = bodies.digits(name, chosen.version)
        async with note(request, "adapter.promote", name, version=version):
            return _moved(await admin.promote(name, version))

    @app.post(adapter + "/rollback")
    async def rollback(request: Request, name: str) -> Response:
        async with note(request, "adapter.rollback", bodies.named(name)):
            return _moved(await admin.rollback(name))

    @app.post(adapter + "/canary")
    async def canary(request: Request, name: str) -> Response:
        bodies.named(name)
        share = await bodies.read(request, bodies.Share)
        version = bodies.digits(name, share.version)
        async with note(request, "adapter.canary", name, version=version, weight=share.weight):
            return answers.page(await loaded(request, admin.canary(name, version, share.weight)))

    @app.post(adapter + "/load")
    async def load(request: Request, name: str) -> Response:
        version = await _chosen(request, name)
        async with note(request, "adapter.load", name, version=version):
            return answers.page(await loaded(request, admin.load(name, version)))

    @app.post(adapter + "/unload")
    async def unload(request: Request, name: str) -> Response:
        version = await _chosen(request, name)
        async with note(request, "adapter.unload", name, version=version):
            return answers.page(await admin.unload(name, version))


async def loaded(request: Request, loading: Coroutine[Any, Any, Page]) -> Page:
    """Awaits a load for as long as the client does, and not for ever.  Raises Overloaded, ClientDisconnect."""
    connection: ClientConnection = request.scope["extensions"]["gateway"]
    task = asyncio.ensure_future(asyncio.wait_for(loading, _LOAD_SECONDS))

    def leave() -> None:
        task.cancel()

    connection.on_disconnect = leave
    try:
        return await task
    except TimeoutError:
        raise Overloaded(
            f"It is not loaded after {_LOAD_SECONDS:g} seconds, and still on its way.", code="model_loading"
        ) from None
    except asyncio.CancelledError:
        if connection.gone:
            raise ClientDisconnect from None
        raise
    finally:
        connection.on_disconnect = None


def _moved(adapter: Page) -> Response:
    """The name points there; or it will, when the version is Ready."""
    return answers.page(adapter, 200 if adapter["next"] is None else 202)


async def _chosen(request: Request, name: str) -> str | None:
    bodies.named(name)
    choice = await bodies.read(request, bodies.Choice, optional=True)
    return None if choice.version is None else bodies.digits(name, choice.version)
