"""How the process keeps memory that it has used."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # as glibc's malloc.h numbers them
_NEVER = -1


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that were freed, for the next of their kind; elsewhere than glibc, nothing.

    Activations are as large as blocks that glibc gives back to the system at once, to get each anew, page by page,
    cleared: up to a tenth of a network's time on a CPU (measured: docs/performance.md). The price is that the process
    stays as large as it ever was.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
