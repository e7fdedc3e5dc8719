"""The JSON schema of the configuration file, for editors: deploy/gateway.schema.json is what this module makes.

It says what single values may be; `gateway check` also knows what they must be together.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from gateway.controlplane.config import Config
from gateway.controlplane.section import Section

_REFERENCE = {"type": "string", "pattern": r"\$\{"}


class _FileSchema(GenerateJsonSchema):
    """Takes `${NAME}` wherever a value may stand: it is replaced after the parsing."""

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return _or_reference(super().int_schema(schema))

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return _or_reference(super().float_schema(schema))

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return _or_reference(super().bool_schema(schema))

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return _or_reference(super().literal_schema(schema))

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        described = super().model_schema(schema)
        for name, text in descriptions(schema["cls"]).items():
            described["properties"][name]["description"] = text
        return described

    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def _or_reference(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {"anyOf": [schema, _REFERENCE]}


def descriptions(section: type[Any]) -> dict[str, str]:
    """What stands below each of its fields in the source.

    pydantic could read it when the class is made (`use_attribute_docstrings`), which every start would wait for.
    """
    texts = {}
    for part in reversed(section.__mro__[: section.__mro__.index(Section)]):
        for field, below in pairwise(_bodies(part.__module__)[part.__name__]):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = inspect.cleandoc(text)
    return texts


@cache
def _bodies(module: str) -> dict[str, list[ast.stmt]]:
    """What its classes consist of."""
    parsed = ast.parse(inspect.getsource(sys.modules[module]))
    return {made.name: made.body for made in parsed.body if isinstance(made, ast.ClassDef)}


def schema_text() -> str:
    """The schema as the text of its file."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(schema_generator=_FileSchema),
        "title": "Configuration of lora-gateway",
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
