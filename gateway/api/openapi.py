"""The OpenAPI documents, by hand: the inference endpoints are served without FastAPI, which would describe them.

They describe what the gateway itself reads and checks; every further parameter of OpenAI's API and of the engine
passes through (`additionalProperties`).
"""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]

_NULLABLE_NUMBER = {"type": ["number", "null"]}
_NULLABLE_BOOLEAN = {"type": ["boolean", "null"]}
_COUNT = {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1}
_MODEL = {"type": "string", "minLength": 1, "maxLength": 256, "description": "A name from GET /v1/models."}
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
    "user": {"type": ["string", "null"]},
}

_SCHEMAS: Document = {
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
        },
    },
    "Models": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        },
    },
    "Answer": {"type": "object"},
    "Status": {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}},
    "Rows": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": {"type": "object"}}},
    },
}


def _json(name: str) -> Document:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _errors(*statuses: int) -> Document:
    return {str(status): {"description": _MEANINGS[status], "content": _json("Error")} for status in statuses}


_MEANINGS = {
    400: "The request is malformed, or the model cannot do this.",
    401: "No key, or not a valid one.",
    403: "The key has no right to this.",
    404: "No such model.",
    405: "Another method is needed.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The upstream cannot process the request.",
    429: "The upstream is over its rate limit.",
    500: "The gateway failed.",
    502: "The upstream failed.",
    503: "Nothing is free or ready at the moment; try again after Retry-After.",
    504: "The upstream took too long.",
}


def _post(summary: str, request: str, stream: bool) -> Document:
    answer = _json("Answer")
    if stream:
        answer = {**answer, "text/event-stream": {"schema": {"type": "string"}}}
    return {
        "post": {
            "summary": summary,
            "security": [{"key": []}],
            "requestBody": {"required": True, "content": _json(request)},
            "responses": {
                "200": {"description": "The answer, as OpenAI defines it.", "content": answer},
                **_errors(400, 401, 403, 404, 413, 415, 422, 429, 500, 502, 503, 504),
            },
        }
    }


def _get(summary: str, answer: str, *errors: int, parameters: list[Document] | None = None) -> Document:
    operation: Document = {
        "summary": summary,
        "security": [{"key": []}],
        "responses": {"200": {"description": "OK", "content": _json(answer)}, **_errors(*errors)},
    }
    if parameters:
        operation["parameters"] = parameters
    return {"get": operation}


def _open(summary: str, *statuses: int) -> Document:
    """A route that needs no key, and whose body is the same whatever it says."""
    answers = {str(status): {"description": summary, "content": _json("Status")} for status in statuses}
    return {"get": {"summary": summary, "responses": answers}}


def _document(title: str, version: str, paths: Document) -> Document:
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": _SCHEMAS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def inference(version: str) -> Document:
    """What clients' keys may use."""
    model_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return _document(
        "lora-gateway",
        version,
        {
            "/v1/chat/completions": _post("Chat, streamed or whole.", "ChatRequest", stream=True),
            "/v1/completions": _post("Completions, streamed or whole.", "CompletionRequest", stream=True),
            "/v1/embeddings": _post("Embeddings.", "EmbeddingRequest", stream=False),
            "/tokenize": _post("Tokens of a text, by an engine (vLLM).", "TokenizeRequest", stream=False),
            "/v1/models": _get("The models that can be asked for.", "Models", 401),
            "/v1/models/{id}": _get("One model.", "Model", 401, 404, parameters=[model_id]),
            "/livez": _open("Whether the process is alive.", 200),
            "/readyz": _open("Whether a model can be served.", 200, 503),
        },
    )


def administration(version: str) -> Document:
    """What the admin key may use."""
    return _document(
        "lora-gateway administration",
        version,
        {
            "/admin/v1/upstreams": _get("The upstreams and their state.", "Rows", 401, 403),
            "/admin/v1/adapters": _get("The adapters and their state.", "Rows", 401, 403),
            "/admin/v1/config": _get("The configuration in force, without secrets.", "Answer", 401, 403),
        },
    )
