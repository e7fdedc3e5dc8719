"""Administration of keys: what the control plane does for it, and its routes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response

from gateway.api import answers, bodies
from gateway.api.audit import Audit, actor, refusals_noted
from gateway.domain.audit import Actor

Page = dict[str, Any]  # a JSON object, as api/openapi_admin.py describes it

_SHOWN = 80  # characters of what was taken for a key's id


class KeyAdmin(Protocol):
    """The life of keys.  What is returned is JSON (schemas `Key` and `NewKey` of api/openapi_admin.py).

    `id` is a key's id, or its name if no key that is not revoked has the same.  `by` is who asks, for the audit.
    `settings` holds those of domain.principal.Principal that were given, `owner` and `expires`.

    All raise errors of gateway.domain.errors, with sentences for people.  What is returned from is durable, in the
    audit and in force: also for requests that run.
    """

    async def rows(self, after: str, limit: int) -> tuple[list[Page], bool]:
        """So many keys behind the one whose id is `after` ("": from the first on), and whether there are more."""
        ...

    async def show(self, id: str) -> Page:
        """One key."""
        ...

    async def create(self, settings: Mapping[str, Any], by: Actor) -> Page:
        """Makes a key, and shows it this once (`key`)."""
        ...

    async def configure(self, id: str, settings: Mapping[str, Any], by: Actor) -> Page:
        """Changes the settings that are given."""
        ...

    async def rotate(self, id: str, grace: int, by: Actor) -> Page:
        """Gives the key another secret, and shows it this once (`key`); the one before is let in for `grace` seconds
        more."""
        ...

    async def revoke(self, id: str, by: Actor) -> Page:
        """Nobody is let in with the key any more, and what runs with it is ended."""
        ...


def routes(app: FastAPI, admin: KeyAdmin, audit: Audit) -> None:
    """Adds the routes.  Whoever reaches them has the admin key."""
    note = partial(refusals_noted, audit)
    key = "/admin/v1/keys/{id}"

    @app.get("/admin/v1/keys")
    async def rows(request: Request) -> Response:
        page = bodies.query(request, bodies.Keys)
        found, more = await admin.rows(page.after, page.limit)
        return answers.page({"object": "list", "data": found, "has_more": more})

    @app.post("/admin/v1/keys")
    async def create(request: Request) -> Response:
        wanted = await bodies.read(request, bodies.CreateKey)
        async with note(request, "key.create", wanted.name):
            return answers.page(await admin.create(wanted.given(), actor(request)), 201)

    @app.get(key)
    async def show(id: str) -> Response:
        return answers.page(await admin.show(id))

    @app.patch(key)
    async def configure(request: Request, id: str) -> Response:
        wanted = await bodies.read(request, bodies.KeySettings)
        async with note(request, "key.configure", id[:_SHOWN]):
            return answers.page(await admin.configure(id, wanted.given(), actor(request)))

    @app.delete(key)
    async def revoke(request: Request, id: str) -> Response:
        async with note(request, "key.revoke", id[:_SHOWN]):
            return answers.page(await admin.revoke(id, actor(request)))

    @app.post(key + "/rotate")
    async def rotate(request: Request, id: str) -> Response:
        wanted = await bodies.read(request, bodies.Rotation, optional=True)
        async with note(request, "key.rotate", id[:_SHOWN]):
            return answers.page(await admin.rotate(id, wanted.grace, actor(request)))
