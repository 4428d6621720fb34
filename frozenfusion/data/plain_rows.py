"""Rows of a table many at a time: what is ordinary in all of them needs no look at each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from frozenfusion.data.records import MAX_NAME_BYTES, checked_label, checked_split
from frozenfusion.utils.errors import UserError

Row = tuple[str, dict[str, Any]]  # "FILE:LINE" and the cells by their columns

_ROWS_OF_A_BLOCK = 1024  # larger ones keep the garbage collector busy
_LETTERS_OF_A_BLOCK = 2**24
_LONG = ("text", "image")  # cells that are, or may be by mistake

_END, _SLASH, _DOT = b"\n/."
_PLAIN = np.zeros(256, bool)  # letters of names that mean the same to every system
_PLAIN[0x20:0x7F] = True
_PLAIN[[*b'\\:*?"<>|']] = False
_PLAIN[_END] = True  # which is put between names
_BEGINS = np.zeros(256, bool)  # what names, and those of folders and files in them, begin behind
_BEGINS[[_END, _SLASH]] = True
_PLAIN_IN_IDS = _PLAIN.copy()
_PLAIN_IN_IDS[_SLASH] = False


def in_blocks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Rows in lists of bounded size. An error comes after the rows before it."""
    error = None
    while error is None:
        block: list[Row] = []
        letters = 0
        try:
            for row in rows:
                block.append(row)
                for name in _LONG:
                    cell = row[1].get(name)
                    if cell.__class__ is str:
                        letters += len(cell)
                if len(block) == _ROWS_OF_A_BLOCK or letters > _LETTERS_OF_A_BLOCK:
                    break
        except UserError as raised:
            error = raised
        if block:
            yield block
        elif error is None:
            return
    raise error


class PlainRows:
    """Tells rows that need no closer look, and what their cells mean: that of labels and splits is remembered."""

    def __init__(self) -> None:
        self._labels, self._splits = _Remembered(checked_label), _Remembered(checked_split)

    def columns(self, cells: Mapping[str, Sequence[str]], no_image: str) -> dict[str, Any] | None:
        """What Listing.extend takes of k rows, whose cells come by their columns, (k,) each; None if any is not plain.

        no_image: the address of an image where the cell is empty. Raises UserError, without its line, for a label or
        split that is none.
        """
        ids = [*map(str.strip, cells["id"])]
        images = [name or no_image for name in map(str.strip, cells["image"])]
        files = cells["text_path"]
        if any(files):
            files = ["" if text else file for text, file in zip(cells["text"], files, strict=True)]
        if not (
            _are_plain(ids, _PLAIN_IN_IDS)
            and _are_plain(images, _PLAIN)
            and _are_plain([*filter(None, files)], _PLAIN)
            and _can_be_encoded(cells["text"])
        ):
            return None
        return {
            "ids": ids,
            "addresses": images,
            "labels": [*map(self._labels.__getitem__, cells["label"])],
            "splits": [*map(self._splits.__getitem__, cells["split"])],
            "texts": [*map(str.strip, cells["text"])],
            "text_files": files,
        }


class _Remembered(dict[str, "str | None"]):
    """What a check makes of each cell, by the cell."""

    def __init__(self, check: Callable[[str, str], str | None]) -> None:
        super().__init__()
        self._check = check

    def __missing__(self, cell: str) -> str | None:
        return self.setdefault(cell, self._check(cell, ""))


def _are_plain(names: Sequence[str], letters: np.ndarray) -> bool:
    """Whether names are of such ASCII letters alone, none empty, hidden, very long, or with an odd path of its own."""
    together = "\n".join(["", *names, ""])
    if not names or not together.isascii():
        return not names
    codes = np.frombuffer(together.encode(), np.uint8)
    ends = np.flatnonzero(codes == _END)
    begins = codes[1:][_BEGINS[codes[:-1]]]  # of names, and of folders and files in them
    return bool(
        len(ends) == len(names) + 1
        and letters[codes].all()
        and np.diff(ends).max() <= MAX_NAME_BYTES
        and not ((begins == _END) | (begins == _SLASH) | (begins == _DOT)).any()
    )


def _can_be_encoded(texts: Sequence[str]) -> bool:
    """Whether no text has halves of characters."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
