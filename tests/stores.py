"""Small stores for the tests of the store, and what its errors say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.writer import StoreWriter
from frozenfusion.utils.errors import UserError

IDS = ["a", "b", "c", "d", "e"]
MADE_BY = {"backbone": "efficientnet-b7", "image_size": 224}


def made(path: Path, ids: list[str] = IDS, shape: tuple[int, ...] = (3,), dtype: str = "float32") -> StoreWriter:
    return StoreWriter.create(path, ids, shape, dtype, MADE_BY)


def written(path: Path, rows: list[int] | range = range(5), ids: list[str] = IDS) -> FeatureStore:
    """A store whose `rows` are ok and hold their own number, three times."""
    with made(path, ids) as writer:
        write(writer, rows)
    return FeatureStore(path)


def write(writer: StoreWriter, rows: list[int] | range) -> None:
    values = np.repeat(np.array(rows, dtype=np.float32)[:, None], 3, axis=1)
    writer.write(rows, values, [bytes([row]) * 16 for row in rows], [(row, 10 * row) for row in rows])


def error_of(action: Callable[[], object]) -> str:
    """The one line that `action` fails with."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message
