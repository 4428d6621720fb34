"""Tables that hold images as bytes, Parquet and Arrow: their rows but for the images, and one image at a time.

An image is read with its neighbours, and those are kept for whoever asks next: reading in the order of the rows decodes
every part of a file once, however large its row groups are.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import NotRegularError, TooLargeError, file_error, is_regular
from frozenfusion.utils.messages import one_line
from frozenfusion.utils.remote import UnreachableError, open_remote, remote_error

PARQUET, ARROW = ".parquet", ".arrow"
MOST_OPEN = 4
BATCH_BYTES, BATCH_ROWS = 4 * 2**20, 256  # of images decoded at once
KEPT_BYTES = 64 * 2**20  # of those that were asked for, since some threads ask a little later
TEXT_ROWS = 4096
_BUFFER = 2**20

File = Path | str  # a string is the address of a remote file


class NoImageError(OSError):
    """A cell without an image."""


class DamagedError(OSError):
    """A table that does not hold what it says."""


class _Parquet:
    """A Parquet file. Its images are decoded from a row on, as far as they are asked for."""

    def __init__(self, file: File) -> None:
        from pyarrow import parquet

        source = open_remote(file) if isinstance(file, str) else file
        self._file = parquet.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self._groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self._starts = list(accumulate((group.num_rows for group in self._groups), initial=0))
        self._column: str | None = None
        self._coming: Iterator[Any] = iter(())
        self._kept: deque[tuple[int, Any]] = deque()
        self._end = 0  # of the rows that were decoded

    def batches(self, columns: list[str], limit: int) -> Iterator[Any]:
        for number, group in enumerate(self._groups):
            if self._bytes_of(group, columns) > limit:
                told = f"holds more than {limit:,} bytes beside its images"
                raise ValueError(f"row group {number} {told}: write it with smaller ones")
        return self._file.iter_batches(TEXT_ROWS, columns=columns, use_threads=False)  # type: ignore[no-any-return]

    def cell(self, row: int, column: str) -> Any:
        if column != self._column or not self._has_soon(row):
            self._begin(row, column)
        while row >= self._end:
            try:
                values = next(self._coming).column(0)
            except Exception:
                self._kept.clear()  # nothing more comes: whoever asks next begins anew
                if self._group_of(row) == self._group_of(self._end):
                    raise
                self._begin(row, column)  # it was another group's
                continue
            self._kept.append((self._end, values))
            self._end += len(values)
            while len(self._kept) > 2 and sum(part.nbytes for _, part in self._kept) > KEPT_BYTES:
                self._kept.popleft()
        start, values = next(part for part in reversed(self._kept) if part[0] <= row)
        return values[row - start]

    def _has_soon(self, row: int) -> bool:
        """Whether a row is among those that are kept, or comes in the row group that is decoded or the next."""
        return bool(self._kept) and self._kept[0][0] <= row and self._group_of(row) <= self._group_of(self._end) + 1

    def _group_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _begin(self, row: int, column: str) -> None:
        first = self._group_of(row)
        group = self._groups[first]
        of_each = self._bytes_of(group, [column]) // max(group.num_rows, 1)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(of_each, 1)))
        self._column, self._end = column, self._starts[first]
        self._kept.clear()
        self._coming = chain.from_iterable(  # each by itself: no batch is lost with the group after its own
            self._file.iter_batches(rows, row_groups=[number], columns=[column], use_threads=False)
            for number in range(first, len(self._groups))
        )

    @staticmethod
    def _bytes_of(group: Any, columns: list[str]) -> int:
        chunks = (group.column(number) for number in range(group.num_columns))
        return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)


class _Arrow:
    """An Arrow file as `datasets` writes it, which is mapped: what is not asked for is not read."""

    def __init__(self, file: File) -> None:
        import pyarrow as arrow

        if isinstance(file, str):
            raise ValueError("Arrow files are read where they are on this machine: copy the folder")
        source = arrow.memory_map(str(file))
        try:
            self._table = arrow.ipc.open_stream(source).read_all()
        except arrow.ArrowInvalid:
            source.seek(0)
            self._table = arrow.ipc.open_file(source).read_all()
        self.schema = self._table.schema
        self._checked: set[str] = set()

    def batches(self, columns: list[str], limit: int) -> Iterator[Any]:
        for column in columns:
            self._check(column)
        return iter(self._table.select(columns).to_batches(TEXT_ROWS))

    def cell(self, row: int, column: str) -> Any:
        self._check(column)
        return self._table.column(column)[row]

    def _check(self, column: str) -> None:
        """Raise ValueError for offsets that lead out of the file: Arrow follows them as they are."""
        if column not in self._checked:
            self._table.column(column).validate(full=True)
            self._checked.add(column)


class Table:
    """A table, with its `schema` of Arrow and the `names` of its columns. Safe to use from several threads.

    Raises OSError where it cannot be read: UnreachableError, NotRegularError, or what the system says.
    """

    _table: _Parquet | _Arrow

    def __init__(self, file: File) -> None:
        self._remote, self._lock = isinstance(file, str), threading.Lock()
        if isinstance(file, Path) and not is_regular(file):
            raise NotRegularError("not a regular file")
        with self._told():
            self._table = _Arrow(file) if suffix_of(file) == ARROW else _Parquet(file)
            self.schema = self._table.schema
            self.names = self.schema.names  # which Arrow reads only now

    def cells(self, columns: list[str], limit: int) -> Iterator[dict[str, Any]]:
        """The cells of some columns, row by row; those of a row group may take no more than `limit` bytes."""
        with self._told():
            for batch in self._table.batches(columns, limit):
                yield from batch.to_pylist()

    def image(self, row: int, column: str) -> Any:
        """An image's buffer. Raises OSError, NoImageError for an empty cell."""
        with self._lock, self._told():
            value = self._table.cell(row, column)
            told = "no image in its row"
            if value.is_valid and hasattr(value, "keys"):  # a picture and its path
                told = "no image in its row, but its path alone" if "path" in value else told
                value = value["bytes"]
            if not value.is_valid:
                raise NoImageError(told)
            return value.as_buffer()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            known = NoImageError | UnreachableError | NotRegularError | FileNotFoundError
            if error.errno is None and not isinstance(error, known):
                raise DamagedError(None, one_line(error)) from error  # Arrow's own
            raise
        except MemoryError:
            raise
        except Exception as error:  # Arrow raises nearly every kind of exception on damaged files, each store its own
            if self._remote and not isinstance(error, ValueError):
                raise UnreachableError(one_line(error)) from error
            raise DamagedError(None, one_line(error)) from error


def suffix_of(file: File) -> str:
    """The ending of a file's name, in small letters."""
    return Path(file).suffix.lower()


@contextmanager
def open_table(file: File) -> Iterator[Table]:
    """A table to read rows of. Raises UserError where it cannot be read, then or later."""
    kind = suffix_of(file).removeprefix(".").capitalize()
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError(f"{file}: reading {kind} needs pyarrow: pip install pyarrow, or save it as .csv") from error
    try:
        yield Table(file)
    except DamagedError as error:
        raise UserError(f"{file}: cannot be read as {kind} ({error.strerror}): check the file") from error
    except NotRegularError as error:
        raise UserError(f"{file}: {error}, which no file of this kind is: check the path") from error
    except OSError as error:
        raise remote_error(error, file) if isinstance(file, str) else file_error(error, file) from error


_open: OrderedDict[tuple[File, tuple[int, int]], Table] = OrderedDict()  # the least recently used first
_lock = threading.Lock()


def cell_size(file: File, row: int, column: str) -> int:
    """How many bytes the image in a cell has. Raises OSError."""
    return int(_table(file).image(row, column).size)


def cell_bytes(file: File, row: int, column: str, limit: int) -> bytes:
    """The bytes of the image in a cell. Raises OSError, TooLargeError above `limit`, NoImageError for an empty cell."""
    buffer = _table(file).image(row, column)
    if buffer.size > limit:
        raise TooLargeError(f"{buffer.size:,} bytes, more than {limit:,}")
    return buffer.to_pybytes()  # type: ignore[no-any-return]


def _table(file: File) -> Table:
    """A table that stays open for a while, unless it was replaced."""
    version = (0, 0) if isinstance(file, str) else (file.stat().st_mtime_ns, file.stat().st_size)
    with _lock:
        table = _open.pop((file, version), None) or Table(file)
        _open[file, version] = table
        while len(_open) > MOST_OPEN:
            _open.popitem(last=False)
        return table
