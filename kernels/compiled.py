"""How the Numba kernels are compiled: without the GIL, and kept on disk until a kernel's source changes."""

import hashlib
from pathlib import Path

from numba import njit

_FOLDER = Path(__file__).resolve().parent


def _forget_stale_code() -> None:
    """Drop compiled code when any source here has changed: Numba itself looks at one file at a time."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(_FOLDER.glob("*.py")))).hexdigest()
    cache = _FOLDER / "__pycache__"
    stamp = cache / "kernels.sha256"
    try:
        if stamp.is_file() and stamp.read_text(encoding="ascii") == digest:
            return
        for index in cache.glob("*.nbi"):
            index.unlink(missing_ok=True)
        cache.mkdir(exist_ok=True)
        stamp.write_text(digest, encoding="ascii")
    except OSError:
        return  # an installation that cannot be written is not edited either


_forget_stale_code()

compiled = njit(cache=True, nogil=True)
"""Decorator of every kernel."""

compiled_fastmath = njit(cache=True, nogil=True, fastmath=True)
"""Decorator of inner loops whose sums may be taken in any order, so that they become vector code."""

compiled_inline = njit(cache=True, nogil=True, inline="always")
"""Decorator of small helpers of such loops."""
