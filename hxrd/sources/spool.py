"""Temporary copies of what can be read only once."""

import errno
import shutil
import tempfile
from typing import IO, Any

from hxrd.errors import InputError


def temporary_copy(stream: Any, name: str) -> IO[bytes]:
    """Return a copy of a stream that can be read again and anywhere; it vanishes when it is closed.

    Parameters
    ----------
    stream : binary stream
        Read to its end.
    name : str
        What it is called in a message.

    Raises
    ------
    InputError
        There is no room for it.
    OSError
        As the stream raises.
    """
    copy = tempfile.TemporaryFile()  # noqa: SIM115  (returned open)
    try:
        shutil.copyfileobj(stream, copy, 2**20)
        copy.flush()
    except BaseException as error:
        copy.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"the disk of {tempfile.gettempdir()} is full, where {name} is kept meanwhile: "
                "free some space there, or set TMPDIR"
            ) from error
        raise
    return copy
