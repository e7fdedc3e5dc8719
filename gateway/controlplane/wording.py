"""Says in the project's words what pydantic found wrong with the shape of a configuration."""

from __future__ import annotations

import re
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from gateway.controlplane.config import Config
from gateway.controlplane.problems import Loc, nearest

_FIXED = {
    "missing": ("is missing", ""),
    "string_type": ("must be text", "put it in quotes"),
    "string_too_short": ("is empty", ""),
    "int_type": ("must be a whole number", ""),
    "int_parsing": ("must be a whole number", ""),
    "int_parsing_size": ("must be a whole number", ""),
    "int_from_float": ("must be a whole number", ""),
    "float_type": ("must be a number", ""),
    "float_parsing": ("must be a number", ""),
    "finite_number": ("must be a finite number", ""),
    "bool_type": ("must be true or false", ""),
    "bool_parsing": ("must be true or false", ""),
    "tuple_type": ("must be a list", "write it as [a, b], or as lines that begin with a dash"),
    "model_type": ("must be a mapping", "write it as {key: value}, or as indented lines of key: value"),
    "dict_type": ("must be a mapping", "write it as {key: value}, or as indented lines of key: value"),
}

_BOUNDED = {
    "greater_than": ("must be more than {gt:g}", ""),
    "greater_than_equal": ("must be at least {ge:g}", ""),
    "less_than": ("must be less than {lt:g}", ""),
    "less_than_equal": ("must be at most {le:g}", ""),
    "string_too_long": ("is longer than {max_length} characters", ""),
    "too_short": ("must have at least {min_length} entries", ""),
    "too_long": ("must have at most {max_length} entries", ""),
}


def describe(detail: ErrorDetails, loc: Loc) -> tuple[str, str]:
    """What is wrong and what to write instead, for one of pydantic's errors at `loc`."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value":  # one of our own validators
        return context["message"], context["hint"]
    if kind == "extra_forbidden":
        return "is not a known key", nearest(str(loc[-1]), known_keys(loc[:-1]), "key")
    if kind == "literal_error":
        expected = context["expected"]
        allowed = re.findall(r"'([^']+)'", expected)
        return f"must be {expected}", nearest(str(detail["input"]), allowed, "value") if allowed else ""
    if kind in _BOUNDED:
        message, hint = _BOUNDED[kind]
        return message.format(**context), hint
    # pydantic's own words name the type that it wants and never the value.
    return _FIXED.get(kind, (detail["msg"], ""))


def known_keys(loc: Loc) -> frozenset[str]:
    """The keys that the file may have at `loc`."""
    annotation: Any = Config
    for part in loc:
        annotation = _inside(annotation, part)
    model = _model(annotation)
    return frozenset(model.model_fields) if model else frozenset()


def _inside(annotation: Any, part: str | int) -> Any:
    """The type of what lies under `part` in a value of this type."""
    if model := annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None:
        return model.model_fields[part].annotation if part in model.model_fields else None
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    if get_origin(annotation) is tuple:
        return arguments[0]
    return next((found for argument in arguments if (found := _inside(argument, part)) is not None), None)


def _model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _model(argument)) is not None), None)
