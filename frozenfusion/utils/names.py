"""Names as UTF-8: halves of characters, which names of files may have, stay what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray


def encoded(text: str) -> bytes:
    """A string as UTF-8."""
    return text.encode("utf-8", "surrogatepass")


def decoded(data: bytes) -> str:
    """What `encoded` made bytes of."""
    return data.decode("utf-8", "surrogatepass")


def are_encoded(names: Sequence[str] | NDArray[Any]) -> TypeGuard[NDArray[Any]]:
    """Whether names are an array of UTF-8, (k,) S, as stores have them; any other sequence is of strings."""
    return isinstance(names, np.ndarray) and names.dtype.kind == "S"


def encoded_names(names: Sequence[str] | NDArray[Any]) -> NDArray[Any]:
    """Names as UTF-8 of fixed length, (k,) S; those that are so already as they are."""
    if are_encoded(names):
        return names
    try:
        return np.array(names, np.bytes_)  # the fastest way, for ASCII alone
    except UnicodeEncodeError:
        return np.array([*map(encoded, names)], np.bytes_)
