"""How the Numba kernels are compiled: without the GIL, and kept on disk until a kernel's source changes."""

import hashlib
import os
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


def must_compile(kernel: str) -> bool:
    """Tell whether a kernel, such as ``powder.patterns``, has no compiled code on disk yet."""
    cache = _FOLDER / "__pycache__"
    elsewhere = "NUMBA_CACHE_DIR" in os.environ or not os.access(cache, os.W_OK)
    return not elsewhere and not any(cache.glob(f"{kernel}-*.nbi"))


compiled = njit(cache=True, nogil=True, error_model="numpy")
"""Decorator of every kernel; divisions are not checked for zero."""

compiled_fastmath = njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
"""Decorator of inner loops that are to become vector code: their sums may be taken in any order.

What keeps such a loop from it: an index of the form `array[first + i]` (take a slice before the loop), `min`
and `max` of floats (write `a if a < b else b`), and a Python float among single-precision numbers.
"""
