"""The OpenAPI document of the administration.  What is sent is described by the models that read it (api/bodies.py)."""

from __future__ import annotations

from gateway.api import bodies
from gateway.api.openapi import SCHEMAS, Document, content, document, in_path, in_query, list_of, operation, report
from gateway.domain.errors import Reason

_TEXT = {"type": "string"}
_WHOLE = {"type": "integer", "minimum": 0}
_COUNTED = {"type": ["integer", "null"], "minimum": 0}
_SWITCH = {"type": "boolean"}
_PERCENT = {"type": "number", "minimum": 0, "maximum": 100}
_VERSION = {"type": "string", "description": "12 hex digits"}
_LOAD = {"type": ["string", "null"], "enum": ["eager", "lazy", None]}
_UPSTREAMS = {"type": ["array", "null"], "items": _TEXT}
_PHASES = "Pending Fetching Validating Loading Ready Draining Unloaded Failed".split()


def _object(**properties: Document) -> Document:
    """All of its properties are always there."""
    return {"type": "object", "required": list(properties), "properties": properties}


_ROW = _object(
    name=_TEXT,
    version=_VERSION,
    digest={"type": "string", "description": "SHA-256 over the version's files, 64 hex digits."},
    phase={"type": "string", "enum": _PHASES},
    reason=_TEXT,
    base={"type": "string", "description": "What the adapter says it was trained on."},
    rank=_WHOLE,
    size={"type": "integer", "minimum": 0, "description": "Bytes in an engine's memory."},
    source=_TEXT,
    added={"type": "integer", "minimum": 0, "description": "Unix seconds."},
    upstreams={"type": "array", "items": _TEXT, "description": "Those that it fits."},
    current={"type": "boolean", "description": "The plain name points to it."},
    weight={**_PERCENT, "description": "Percent of the plain name's traffic."},
    pinned=_SWITCH,
    load=_LOAD,
    replicas={
        "type": "object",
        "additionalProperties": _object(state=_TEXT, reason=_TEXT),
        "description": "Where it stands on each upstream.",
    },
    conditions={"type": "array", "items": _object(type=_TEXT, status=_TEXT, reason=_TEXT)},
)
_ADAPTER = _object(
    name=_TEXT,
    current=_VERSION,
    next={"type": ["string", "null"], "description": "Becomes current when it is Ready."},
    history={"type": "array", "items": _VERSION, "description": "What was current before, newest last."},
    canaries={"type": "array", "items": _object(version=_VERSION, weight=_PERCENT)},
    pinned=_SWITCH,
    load=_LOAD,
    upstreams=_UPSTREAMS,
    versions={"type": "array", "items": {"$ref": "#/components/schemas/AdapterVersion"}},
)
_IMPORT = _object(
    id=_TEXT,
    name=_TEXT,
    source=_TEXT,
    phase={"type": "string", "enum": _PHASES, "description": "Ends as Ready or Failed."},
    done={"type": "integer", "minimum": 0, "description": "Bytes."},
    total=_COUNTED,
    version={"type": "string", "description": "12 hex digits, or nothing while it is not known."},
    reason=_TEXT,
    note={"type": "string", "description": "What people should know, such as which checkpoint is taken."},
)
_TEXTS = {"type": "array", "items": _TEXT}
_MOMENT = {"type": ["integer", "null"], "minimum": 0, "description": "Unix seconds."}
_KEY = _object(
    id={"type": "string", "description": "Stands in the key itself; of a key of the file, its name."},
    name=_TEXT,
    source={"type": "string", "enum": ["api", "file"], "description": "A key of the file cannot be changed here."},
    state={
        "type": "string",
        "enum": ["active", "expired", "revoked", "invalid"],
        "description": "invalid: made with a pepper that the gateway does not have any more.",
    },
    owner=_TEXT,
    team=_TEXT,
    models=_TEXTS,
    endpoints={"type": ["array", "null"], "items": _TEXT},
    allow=_TEXTS,
    limits={"anyOf": [{"$ref": "#/components/schemas/KeyLimits"}, {"type": "null"}]},
    budgets={"type": "array", "items": {"$ref": "#/components/schemas/KeyBudget"}},
    metadata={"type": "object", "additionalProperties": _TEXT},
    created=_MOMENT,
    expires=_MOMENT,
    revoked=_MOMENT,
    rotation={"type": "integer", "minimum": 0, "description": "How often it was rotated."},
    previous_until={**_MOMENT, "description": "Until when the secret before the last rotation is let in."},
    log_content={**_SWITCH, "description": "Whether its prompts and answers are written down."},
)
_NEW_KEY = {
    **_KEY,
    "required": [*_KEY["required"], "key"],
    "properties": {**_KEY["properties"], "key": {"type": "string", "description": "Shown this once."}},
}
_AUDIT_ROW = _object(
    number={"type": "integer", "minimum": 1},
    at={"type": "integer", "minimum": 0, "description": "Unix time in microseconds."},
    who=_TEXT,
    address=_TEXT,
    act=_TEXT,
    target=_TEXT,
    outcome={"type": "string", "description": "done, or the code of the refusal."},
    detail={"type": "string", "description": "JSON."},
    hash={"type": "string", "description": "SHA-256 over the hash of the row before and this row's canonical JSON."},
)


def _part_of(rows: Document) -> Document:
    """A part of a long list, which says whether there is more."""
    whole = list_of(rows)
    return {
        **whole,
        "required": [*whole["required"], "has_more"],
        "properties": {**whole["properties"], "has_more": _SWITCH},
    }


_REQUEST = _object(
    day={"type": "string", "format": "date", "description": "On which it ended, in UTC."},
    request_id=_TEXT,
    started_us={"type": "integer", "description": "Unix time in microseconds."},
    **dict.fromkeys(("endpoint", "model", "adapter", "upstream", "key", "key_name", "team", "user", "task"), _TEXT),
    attempts=_WHOLE,
    status=_WHOLE,
    reason={"type": "string", "enum": [reason.value for reason in Reason]},
    **dict.fromkeys(("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"), _WHOLE),
    estimated={"type": "boolean", "description": "The gateway counted the tokens, because the upstream did not."},
    cost_micros={"type": "integer", "description": "Millionths of the currency of the prices."},
    price={"type": "string", "description": "What it was computed with, for a million tokens."},
    first_byte_us=_COUNTED,
    duration_us=_WHOLE,
)


def _schemas() -> Document:
    sent = (bodies.NewVersion, bodies.Settings, bodies.Chosen, bodies.Choice, bodies.Share,
            bodies.CreateKey, bodies.KeySettings, bodies.Rotation)  # fmt: skip
    return {
        **{name: SCHEMAS[name] for name in ("Error", "Answer", "Rows", "Usage")},
        **{model.__name__: model.model_json_schema() for model in sent},
        "AdapterVersion": _ROW,
        "AdapterVersions": list_of({"$ref": "#/components/schemas/AdapterVersion"}),
        "Adapter": _ADAPTER,
        "UsageRequests": _part_of(_REQUEST),
        "Import": _IMPORT,
        "Key": _KEY,
        "KeyWithSecret": _NEW_KEY,
        "KeyRows": _part_of({"$ref": "#/components/schemas/Key"}),
        "AuditRows": _part_of(_AUDIT_ROW),
        "Deleted": _object(name=_TEXT, deleted={"const": True}),
        "AdapterOrDeleted": {
            "anyOf": [{"$ref": "#/components/schemas/Adapter"}, {"$ref": "#/components/schemas/Deleted"}]
        },
    }


def administration(version: str) -> Document:
    """What the admin key may use."""
    key = (401, 403)
    read = (400, *key, 404)
    sent = (400, *key, 404, 409, 413, 415, 507)
    name = in_path("name", bodies.Settings.model_json_schema()["properties"]["upstreams"]["anyOf"][0]["items"])
    chosen = in_path("version", bodies.Chosen.model_json_schema()["properties"]["version"])

    def get(summary: str, answer: str, *statuses: int, parameters: tuple[Document, ...] = ()) -> Document:
        return {"get": operation(summary, {200: answer}, *statuses, parameters=parameters)}

    def move(summary: str, body: str | None, *statuses: int, optional: bool = False) -> Document:
        answers = {200: "Adapter"}
        return {"post": operation(summary, answers, *sent, *statuses, body=body, optional=optional, parameters=[name])}

    archive = operation(
        "Import an archive: tar, tar.gz or zip.",
        {202: "Import"},
        *sent,
        503,
        parameters=[name, *in_query(bodies.Upload)],
    )
    archive["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    promote = move("Point the name to a version.", "Chosen")
    rollback = move("Point the name to what it pointed to before.", None)
    for moved in (promote, rollback):
        moved["post"]["responses"]["202"] = {"description": "As soon as it is Ready.", "content": content("Adapter")}
    adapter = "/admin/v1/adapters/{name}"
    id = in_path("id", {"type": "string", "minLength": 1})
    return document(
        "lora-gateway administration",
        version,
        _schemas(),
        {
            "/admin/v1/upstreams": get("The upstreams and their state.", "Rows", *key),
            "/admin/v1/config": get("The configuration in force, without secrets.", "Answer", *key),
            "/admin/v1/audit": get("What was done.", "AuditRows", 400, *key, 507, parameters=(*in_query(bodies.Span),)),
            "/admin/v1/keys": {
                **get("The keys.", "KeyRows", 400, *key, parameters=(*in_query(bodies.Keys),)),
                "post": operation("Make a key.", {201: "KeyWithSecret"}, *sent, body="CreateKey"),
            },
            "/admin/v1/keys/{id}": {
                **get("One key.", "Key", *read, parameters=(id,)),
                "patch": operation("Change a key.", {200: "Key"}, *sent, body="KeySettings", parameters=[id]),
                "delete": operation("Revoke a key.", {200: "Key"}, *read, 409, 507, parameters=[id]),
            },
            "/admin/v1/keys/{id}/rotate": {
                "post": operation(
                    "Give a key another secret.",
                    {200: "KeyWithSecret"},
                    *sent,
                    body="Rotation",
                    optional=True,
                    parameters=[id],
                )
            },
            "/admin/v1/usage": report("What was used and what it cost."),
            "/admin/v1/usage/requests": report("Single requests, for billing.", bodies.RequestsPage, "UsageRequests"),
            "/admin/v1/adapters": {
                **get("The versions of all adapters.", "AdapterVersions", *key),
                "post": operation("Import a source.", {202: "Import"}, *sent, 503, body="NewVersion"),
            },
            adapter: {
                **get("One adapter.", "Adapter", *read, parameters=(name,)),
                "patch": operation(
                    "Change how it is served.", {200: "Adapter"}, *sent, body="Settings", parameters=[name]
                ),
                "delete": operation("Remove it.", {200: "Deleted"}, *read, 409, 507, parameters=[name]),
            },
            adapter + "/archive": {"put": archive},
            adapter + "/promote": promote,
            adapter + "/rollback": rollback,
            adapter + "/canary": move("Give a version a share of the traffic.", "Share", 503),
            adapter + "/load": move("Load a version and wait until it is.", "Choice", 503, optional=True),
            adapter + "/unload": move("Unload a version until it is asked for.", "Choice", optional=True),
            adapter + "/versions/{version}": {
                "delete": operation(
                    "Remove a version.", {200: "AdapterOrDeleted"}, *read, 409, 507, parameters=[name, chosen]
                )
            },
            "/admin/v1/imports/{id}": get(
                "How far an import is.",
                "Import",
                *read,
                parameters=(in_path("id", {"type": "string", "minLength": 1}),),
            ),
        },
    )
