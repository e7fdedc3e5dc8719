"""What a merge and an export have in common as processes: what they need, how they are ended, how they end."""

import errno
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from types import FrameType

from adapters.merge.errors import MergeError
from adapters.merge.progress import NobodyListensError, Tell, standard_output

_INTERRUPTED = 130
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(needed: Iterable[str], work: Callable[[Tell], Mapping[str, object]]) -> int:
    """Does the work, tells its end, and returns the exit status: 0 when it is done.

    `needed`: packages that must be there. SIGTERM ends it as Ctrl-C does: what was begun is removed.
    """
    tell = standard_output()
    if missing := [name for name in needed if find_spec(name) is None]:
        environment = "the engine's environment (var/engine/bin/python) or one made for training"
        tell({"phase": "Failed", "reason": f"{sys.executable} has no {', '.join(missing)}: use {environment}"})
        return 1
    for number in _ENDING:
        signal.signal(number, _end)
    try:
        tell({"phase": "Done", **work(tell)})
    except MergeError as error:
        return _failed(tell, str(error))
    except NobodyListensError:
        return 1
    except OSError as error:
        return _failed(tell, _in_words(error))
    except MemoryError:
        return _failed(tell, "there is not enough memory for the largest of the model's weights")
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _failed(tell: Tell, reason: str) -> int:
    tell({"phase": "Failed", "reason": reason})
    return 1


def _in_words(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}: free some, or choose another place"
    return f"{error.strerror or error}{where}"


def _end(_number: int, _frame: FrameType | None) -> None:
    """Once: a second signal must not disturb the cleaning up."""
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt
