"""JSON that means one thing to every reader: UTF-8, no name twice in an object, no NaN, no absurd depth or numbers."""

import json
import re

# The escape of half a character of UTF-16, which Python takes without its other half and stricter readers do not.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


class StrictJsonError(ValueError):
    """The text is not such JSON; the message says where or why, in ASCII."""


def loads(data: bytes) -> object:
    """The value `data` stands for. The caller bounds the size. Raises StrictJsonError."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_whole if b"-0" in data else None,  # None is much quicker
        )
        if _HALF.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except StrictJsonError:
        raise
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"byte {error.start} is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise StrictJsonError("a text in it holds half a character of UTF-16") from error
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of thousands of digits
        raise StrictJsonError(str(error)[:100]) from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries: dict[str, object] = {}
    for name, value in pairs:
        if name in entries:
            raise StrictJsonError(f"the name {name[:100]!a} stands twice in one object")
        entries[name] = value
    return entries


def _whole(text: str) -> int:
    """A whole number; -0 is one to some readers only."""
    if text == "-0":
        raise StrictJsonError("-0 is no whole number")
    return int(text)


def _refuse_constant(text: str) -> object:
    raise StrictJsonError(f"{text} is no JSON")
