"""Where the bytes of an image are: in a file of its own, which is a `Path`, or in one of the places below.

A place is all that is known of an image until it is read: it can be compared, pickled, and turned into an address and
back. What opens images asks the functions here, which take both.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.table_files import File, cell_bytes, cell_size
from frozenfusion.utils.files import TooLargeError, read_part, read_regular_file
from frozenfusion.utils.remote import address_of, read_remote, read_remote_part, stat_remote

Stat = tuple[int, int]
NO_FILE = (0, 0)
AT_ONCE = 32  # questions to a store

_CELL = re.compile(r"table:(.+)#(\d{1,19})/([^#]*)", re.DOTALL)
_MEMBER = re.compile(r"tar:(.+)#(\d{1,19})\+(\d{1,19})/([^#]*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of an object store or a hub, such as s3://bucket/key."""

    address: str

    @property
    def name(self) -> str:
        """What it is called."""
        return PurePosixPath(self.address).name

    @property
    def file(self) -> File:
        """The file that holds the bytes."""
        return self.address

    def size(self, stat: Stat) -> int:
        """How many bytes `read` takes, where `stat` is what `image_stat` says."""
        return stat[0]

    def read(self, limit: int) -> bytes:
        """The image's bytes. Raises OSError, TooLargeError above `limit` of them."""
        return read_remote(self.address, limit)


@dataclass(frozen=True, slots=True)
class TableCell:
    """A cell of a table (.parquet, .arrow) that holds an image's bytes."""

    file: File
    row: int
    column: str

    @property
    def address(self) -> str:
        """It in one line, as `place_of` reads it."""
        return f"table:{_name(self.file)}#{self.row}/{quote(self.column)}"

    @property
    def name(self) -> str:
        """It has none: the number of a row is no name that another program has given the image."""
        return ""

    def size(self, stat: Stat) -> int:
        """How many bytes `read` takes."""
        return cell_size(self.file, self.row, self.column)

    def read(self, limit: int) -> bytes:
        """The image's bytes. Raises OSError, TooLargeError above `limit` of them."""
        return cell_bytes(self.file, self.row, self.column, limit)


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member of a tar archive, known by where its bytes begin."""

    file: File
    offset: int
    length: int
    name: str

    @property
    def address(self) -> str:
        """It in one line, as `place_of` reads it."""
        return f"tar:{_name(self.file)}#{self.offset}+{self.length}/{quote(self.name)}"

    def size(self, stat: Stat) -> int:
        """How many bytes `read` takes."""
        return self.length

    def read(self, limit: int) -> bytes:
        """The image's bytes. Raises OSError, TooLargeError above `limit` of them."""
        if self.length > limit:
            raise TooLargeError(f"{self.length:,} bytes, more than {limit:,}")
        read = read_remote_part if isinstance(self.file, str) else read_part
        return read(self.file, self.offset, self.length)  # type: ignore[arg-type]  # of its own kind


Place = RemoteFile | TableCell | TarMember
ImagePlace = Path | Place

_From = TypeVar("_From")
_To = TypeVar("_To")


def place_of(address: str) -> Place:
    """The place that has this `address`. Raises ValueError for a string that is none's."""
    if cell := _CELL.fullmatch(address):
        return TableCell(_file(cell[1]), int(cell[2]), unquote(cell[3]))
    if member := _MEMBER.fullmatch(address):
        return TarMember(_file(member[1]), int(member[2]), int(member[3]), unquote(member[4]))
    if address_of(address) == address:
        return RemoteFile(address)
    raise ValueError(f"{address!r} is no image's address")


def image_address(image: ImagePlace, root: Path | None = None) -> str:
    """Where an image is, in one line: below `root`, which each machine may have elsewhere, if it is."""
    if isinstance(image, Path):
        return _name(_within(image, root))
    if isinstance(image, RemoteFile):
        return image.address
    return dataclasses.replace(image, file=_within(image.file, root)).address


def below(root: Path, place: Place) -> Place:
    """The place in a file below `root` whose `image_address` was made for that root."""
    return place if isinstance(place, RemoteFile) else dataclasses.replace(place, file=root / place.file)


def image_stem(image: ImagePlace) -> str:
    """The name of an image without its ending, "" where it has none."""
    return PurePosixPath(image.name).stem


def in_reading_order(image: Callable[[int], ImagePlace], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of images, (k,): as they come, but for cells of tables, which are read without going back."""
    if not len(places) or not isinstance(image(int(places[0])), TableCell):
        return places
    files: dict[str, int] = {}
    cells = np.zeros((len(places), 2), np.int64)  # a file's number and the row
    for turn, place in enumerate(places):
        cell = image(int(place))
        if isinstance(cell, TableCell):
            cells[turn] = files.setdefault(_name(cell.file), len(files) + 1), cell.row
    by_name = np.zeros(len(files) + 1, np.int64)
    by_name[[files[name] for name in sorted(files)]] = np.arange(1, len(files) + 1)
    return places[np.lexsort((cells[:, 1], by_name[cells[:, 0]]))]


def is_remote(image: ImagePlace) -> bool:
    """Whether a store has to be asked for an image."""
    return not isinstance(image, Path) and isinstance(image.file, str)


def image_stat(image: str | os.PathLike[str] | Place) -> Stat:
    """What changes when an image does, NO_FILE where there is none.

    Of a file its size in bytes and mtime in ns, of a cell or member those of the file that it is in; of a remote file
    its size and a hash of what its store tells of its version.
    """
    return _file_stat(image.file if isinstance(image, Place) else Path(image))


def stat_of_each() -> Callable[[ImagePlace], Stat]:
    """`image_stat`, which looks only once at a file that holds several images. Safe to call from several threads."""
    of_file = cache(_file_stat)
    return lambda image: of_file(image.file) if isinstance(image, TableCell | TarMember) else image_stat(image)


def image_stats(images: Sequence[ImagePlace]) -> list[Stat]:
    """`image_stat` of each; a file that holds several is looked at once, and stores are asked for many at once."""
    files = list({image.file for image in images if not isinstance(image, Path)})
    of_places = dict(zip(files, at_once(_file_stat, files, waits=any(map(is_remote, images))), strict=True))
    return [_file_stat(image) if isinstance(image, Path) else of_places[image.file] for image in images]


def at_once(work: Callable[[_From], _To], items: Iterable[_From], *, waits: bool) -> Iterator[_To]:
    """`map(work, items)`; in threads if it `waits` for a store."""
    if not waits:
        yield from map(work, items)
        return
    items = iter(items)
    with ThreadPoolExecutor(AT_ONCE, "store") as pool:
        while some := list(islice(items, AT_ONCE)):
            yield from pool.map(work, some)


def image_size(image: str | os.PathLike[str] | Place, stat: Stat | None = None) -> int:
    """How many bytes reading an image takes, 0 where whoever reads it will say why it cannot be."""
    try:
        known = image_stat(image) if stat is None else stat
        return image.size(known) if isinstance(image, Place) else known[0]
    except OSError:
        return 0


def image_bytes(image: str | os.PathLike[str] | Place, limit: int) -> bytes:
    """The bytes of an image. Raises OSError, TooLargeError above `limit` of them; never waits on a pipe or a device."""
    return image.read(limit) if isinstance(image, Place) else read_regular_file(image, limit)


def _file_stat(file: File) -> Stat:
    try:
        if isinstance(file, str):
            return stat_remote(file)
        found = os.stat(file)
    except (OSError, ValueError):
        return NO_FILE
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else NO_FILE


def _within(file: File, root: Path | None) -> File:
    return file.relative_to(root) if isinstance(file, Path) and root and file.is_relative_to(root) else file


def _name(file: File) -> str:
    return file if isinstance(file, str) else file.as_posix()


def _file(name: str) -> File:
    return name if address_of(name) == name else Path(name)
