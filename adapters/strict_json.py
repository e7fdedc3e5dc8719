"""JSON that means one thing to every reader: UTF-8, no name twice in an object, no NaN, no absurd depth or numbers."""

import json


class StrictJsonError(ValueError):
    """The text is not such JSON; the message says where or why, in ASCII."""


def loads(data: bytes) -> object:
    """The value `data` stands for. The caller bounds the size. Raises StrictJsonError."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except StrictJsonError:
        raise
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"byte {error.start} is not UTF-8") from error
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of thousands of digits
        raise StrictJsonError(str(error)[:100]) from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries: dict[str, object] = {}
    for name, value in pairs:
        if name in entries:
            raise StrictJsonError(f"the name {name[:100]!a} stands twice in one object")
        entries[name] = value
    return entries


def _refuse_constant(text: str) -> object:
    raise StrictJsonError(f"{text} is no JSON")
