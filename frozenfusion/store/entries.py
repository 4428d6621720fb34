"""A row's entry: all that a store keeps of a row beside its features, and the checksum over it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD],
    dtype=np.uint64,
)  # odd, so that no flipped bit of a word is lost in its product


def entry_checks(
    status: npt.NDArray[Any], crc32: npt.NDArray[Any], digest: npt.NDArray[Any], stat: npt.NDArray[Any]
) -> npt.NDArray[np.uint64]:
    """A checksum of each of k entries, (k,) uint64: its five words, each times a factor of its own, modulo 2**64.

    A CRC would need a call per row; this looks at ten million in a second. Any change of a single word is found.
    """
    words = (
        status.astype(np.uint64) << np.uint64(32) | crc32.astype(np.uint64),
        *np.ascontiguousarray(digest).view("<u8").T,
        *np.ascontiguousarray(stat).view("<u8").T,
    )
    total = np.zeros(len(status), dtype=np.uint64)
    for word, factor in zip(words, _FACTORS, strict=True):
        total += word * factor
    return total
