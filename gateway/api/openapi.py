"""The OpenAPI document for clients, by hand: FastAPI, which would write it, does not serve the inference endpoints.

It describes what the gateway itself reads and checks; every further parameter of OpenAI's API and of the engine
passes through (`additionalProperties`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.api import bodies
from gateway.domain.entry import BY, SUMS

Document = dict[str, Any]

_NULLABLE_NUMBER = {"type": ["number", "null"]}
_NULLABLE_BOOLEAN = {"type": ["boolean", "null"]}
_COUNT = {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1}
_MODEL = {"type": "string", "minLength": 1, "maxLength": 256, "description": "A name from GET /v1/models."}
_COUNTS = {name: {"type": "integer", "minimum": 0} for name in ("requests", *SUMS)}
_STREAMING = {
    "stream": _NULLABLE_BOOLEAN,
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
}
_SAMPLING = {
    "temperature": _NULLABLE_NUMBER,
    "top_p": _NULLABLE_NUMBER,
    "max_tokens": _COUNT,
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 128},
    "seed": {"type": ["integer", "null"]},
    "stop": {"type": ["string", "array", "null"], "items": {"type": "string"}},
    "user": {"type": ["string", "null"], "maxLength": 256, "description": "Who it is for, in printable characters."},
}


def list_of(item: Document) -> Document:
    """The schema of a list in OpenAI's form."""
    return {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": item}},
    }


SCHEMAS: Document = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "Message": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string"},
            "content": {"type": ["string", "array", "null"], "items": {"type": "object"}},
        },
    },
    "ChatRequest": {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            "model": _MODEL,
            "messages": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}},
            "max_completion_tokens": _COUNT,
            "tools": {"type": ["array", "null"], "items": {"type": "object"}},
            "response_format": {"type": ["object", "null"]},
            **_SAMPLING,
            **_STREAMING,
        },
    },
    "CompletionRequest": {
        "type": "object",
        "required": ["model", "prompt"],
        "properties": {"model": _MODEL, "prompt": {"type": ["string", "array"]}, **_SAMPLING, **_STREAMING},
    },
    "EmbeddingRequest": {
        "type": "object",
        "required": ["model", "input"],
        "properties": {
            "model": _MODEL,
            "input": {"type": ["string", "array"], "minLength": 1, "minItems": 1},
            "encoding_format": {"type": ["string", "null"], "enum": ["float", "base64", None]},
            "dimensions": {"type": ["integer", "null"], "minimum": 1},
        },
    },
    "TokenizeRequest": {
        "type": "object",
        "required": ["model", "prompt"],
        "properties": {"model": _MODEL, "prompt": {"type": "string"}},
    },
    "Model": {
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": {"type": "string"},
            "name": {"type": "string"},
            "parent": {"type": "string", "description": "The base model, for an adapter."},
            "context_length": {"type": "integer"},
            "status": {
                "type": "object",
                "description": "Whether an adapter is loaded, as llama.cpp's router has it.",
                "required": ["value"],
                "properties": {"value": {"type": "string"}},
            },
        },
    },
    "Models": list_of({"$ref": "#/components/schemas/Model"}),
    "ModelChoice": {"type": "object", "required": ["model"], "properties": {"model": _MODEL}},
    "Success": {"type": "object", "required": ["success"], "properties": {"success": {"const": True}}},
    "Answer": {"type": "object"},
    "Usage": {
        "type": "object",
        "required": ["object", "by", "data", "total"],
        "properties": {
            "object": {"const": "list"},
            "by": {"type": "string", "enum": list(BY)},
            "data": {
                "type": "array",
                "items": {
                    "type": "object",
                    "description": "With the value of `by` under its name, and for a key its `name`.",
                    "required": ["requests", *SUMS],
                    "properties": _COUNTS,
                },
            },
            "total": {"type": "object", "required": ["requests", *SUMS], "properties": _COUNTS},
        },
    },
    "Status": {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}},
    "Rows": list_of({"type": "object"}),
}


def content(name: str) -> Document:
    """A body of this schema."""
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def errors(*statuses: int) -> Document:
    """The answers with these statuses."""
    return {str(status): {"description": _MEANINGS[status], "content": content("Error")} for status in statuses}


_MEANINGS = {
    400: "The request is malformed, or the model cannot do this.",
    401: "No key, or not a valid one.",
    403: "The key has no right to this.",
    404: "No such model, adapter or version.",
    405: "Another method is needed.",
    409: "It contradicts how things stand.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The upstream cannot process the request.",
    429: "The upstream is over its rate limit.",
    500: "The gateway failed.",
    502: "The upstream failed.",
    503: "Nothing is free or ready at the moment; try again after Retry-After.",
    504: "The upstream took too long.",
    507: "The gateway cannot keep it: the disk is full, or storage fails.",
}


def operation(
    summary: str,
    answers: Mapping[int, str],
    *statuses: int,
    body: str | None = None,
    optional: bool = False,
    parameters: Sequence[Document] = (),
) -> Document:
    """An operation that needs a key.  `answers`: status → schema; `statuses` of errors; `optional`: so is the body."""
    described: Document = {
        "summary": summary,
        "security": [{"key": []}],
        "responses": {
            **{str(status): {"description": "OK", "content": content(name)} for status, name in answers.items()},
            **errors(*statuses),
        },
    }
    if body is not None:
        described["requestBody"] = {"required": not optional, "content": content(body)}
    if parameters:
        described["parameters"] = list(parameters)
    return described


def in_path(name: str, schema: Document) -> Document:
    """A parameter in the path."""
    return {"name": name, "in": "path", "required": True, "schema": schema}


def in_query(model: type[bodies.Body]) -> list[Document]:
    """A model's fields as parameters of the query."""
    fields: Document = model.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "schema": _without_null(schema), "style": "form", "explode": False}
        for name, schema in fields.items()
    ]


def _without_null(schema: Document) -> Document:
    """A query has no null: what is not there is not given."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    return {**kinds[0], "description": schema.get("description", "")} if kinds else schema


def report(summary: str, query: type[bodies.Window] = bodies.Report, schema: str = "Usage") -> Document:
    """A route that answers out of the ledger, in JSON or CSV."""
    described = operation(summary, {200: schema}, 400, 401, 403, 507, parameters=in_query(query))
    described["responses"]["200"]["content"]["text/csv"] = {"schema": {"type": "string"}}
    return {"get": described}


def _post(summary: str, request: str, stream: bool) -> Document:
    described = operation(
        summary, {200: "Answer"}, 400, 401, 403, 404, 413, 415, 422, 429, 500, 502, 503, 504, body=request
    )
    answer = described["responses"]["200"]
    answer["description"] = "The answer, as OpenAI defines it."
    if stream:
        answer["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {"post": described}


def _open(summary: str, *statuses: int) -> Document:
    """A route that needs no key, and whose body is the same whatever it says."""
    answers = {str(status): {"description": summary, "content": content("Status")} for status in statuses}
    return {"get": {"summary": summary, "responses": answers}}


def document(title: str, version: str, schemas: Document, paths: Document) -> Document:
    """A whole document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def inference(version: str) -> Document:
    """What clients' keys may use."""
    model_id = in_path("id", {"type": "string", "minLength": 1})
    named = {"name": "model", "in": "query", "schema": {"type": "string"}}
    models = {"get": operation("The models that can be asked for.", {200: "Models"}, 401)}
    managed = (400, 401, 403, 404, 409, 413, 415, 503, 507)
    return document(
        "lora-gateway",
        version,
        SCHEMAS,
        {
            "/v1/chat/completions": _post("Chat, streamed or whole.", "ChatRequest", stream=True),
            "/v1/completions": _post("Completions, streamed or whole.", "CompletionRequest", stream=True),
            "/v1/embeddings": _post("Embeddings.", "EmbeddingRequest", stream=False),
            "/tokenize": _post("Tokens of a text, by an engine (vLLM).", "TokenizeRequest", stream=False),
            "/v1/models": models,
            "/v1/models/{id}": {"get": operation("One model.", {200: "Model"}, 401, 404, parameters=[model_id])},
            "/models": {
                **models,
                "post": operation("Always refused: adapters are added by an operator.", {}, 400, 401),
                "delete": operation(
                    "Always refused: adapters are removed by an operator.", {}, 400, 401, parameters=[named]
                ),
            },
            "/models/load": {
                "post": operation(
                    "Load an adapter and wait until it is.", {200: "Success"}, *managed, body="ModelChoice"
                )
            },
            "/models/unload": {
                "post": operation(
                    "Eject an adapter until it is asked for.", {200: "Success"}, *managed, body="ModelChoice"
                )
            },
            "/v1/usage/me": report("What this key has used and what it cost."),
            "/livez": _open("Whether the process is alive.", 200),
            "/readyz": _open("Whether a model can be served.", 200, 503),
        },
    )
