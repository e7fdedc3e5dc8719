"""Packs an adapter on this machine for the upload to a gateway."""

import os
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from adapters.files import ADAPTER_FILES, BESIDE, open_file, open_folder
from adapters.findings import RefusedError
from adapters.sources.checkpoints import adapter_folder


def pack(folder: Path, file: BinaryIO) -> Path:
    """Writes the adapter in `folder`, or in its newest checkpoint, to `file` as a tar archive; the folder it took.

    The same files make the same bytes: the archive says nothing of their owner and age. Raises RefusedError when
    there is no adapter that can be read, OSError.
    """
    found = adapter_folder(folder) if folder.is_dir() else folder
    descriptor = open_folder(found)
    try:
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for name in ADAPTER_FILES:
                _add(archive, descriptor, name)
            for name in BESIDE:
                with suppress(RefusedError):  # not there, or nothing that a check could look at
                    _add(archive, descriptor, name)
    finally:
        os.close(descriptor)
    return found


def _add(archive: tarfile.TarFile, folder: int, name: str) -> None:
    with open_file(folder, name) as file:
        entry = tarfile.TarInfo(name)
        entry.size = os.fstat(file.fileno()).st_size
        archive.addfile(entry, file)
