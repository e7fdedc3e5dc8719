"""A file as torch.save writes it, without torch: an archive with a pickle that names torch's classes, and the bytes."""

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np


def torch_file(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The float32 tensors of a state, by name."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", b"".join(_pickled(tensors)))
        archive.writestr("archive/version", "3\n")
        for key, values in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{key}", values.astype("<f4").tobytes())
    return data.getvalue()


def _pickled(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """{name: torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict()), …}, in protocol 2."""
    yield pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK
    for key, (name, values) in enumerate(tensors.items()):
        yield _text(name) + _global("torch._utils", "_rebuild_tensor_v2") + pickle.MARK
        yield pickle.MARK + _text("storage") + _global("torch", "FloatStorage") + _text(str(key)) + _text("cpu")
        yield _number(values.size) + pickle.TUPLE + pickle.BINPERSID + _number(0)
        strides = [int(np.prod(values.shape[place + 1 :])) for place in range(values.ndim)]
        for sizes in (values.shape, strides):
            yield pickle.MARK + b"".join(map(_number, sizes)) + pickle.TUPLE
        yield pickle.NEWFALSE + _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
        yield pickle.TUPLE + pickle.REDUCE
    yield pickle.SETITEMS + pickle.STOP


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(text.encode())) + text.encode()


def _number(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)
