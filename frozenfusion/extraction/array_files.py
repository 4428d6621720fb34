"""Files of image features that other programs computed: NumPy's, Parquet, and the folders of clip-retrieval.

They are read in blocks of rows, never whole, and nothing in them is unpickled.
Shapes: n rows of a part, k of a block, `shape` what one row is, (d,) or (r, d).
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from frozenfusion.data.records import MAX_LINE, read_lines, table_lines
from frozenfusion.store.raw_file import Array, byte_count
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import check_regular, file_error
from frozenfusion.utils.messages import first_few, one_line

BLOCK_BYTES = 2**24
MAX_ROW_BYTES = 2**26
MAX_IDS_BYTES = 2**30
PARQUET_ROWS = 4096  # at once
FORMATS = "a .npz, .npy or .parquet file, or a folder of clip-retrieval with img_emb/ and metadata/"


@dataclass(frozen=True)
class Part:
    """An array of features with the id of each row; `blocks` gives its rows, (k, *shape), from the first on."""

    path: Path
    ids: list[str]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterator[Array]]


def read_parts(path: Path) -> list[Part]:
    """The arrays in a file, or in a folder of clip-retrieval. Raises UserError for what is none of FORMATS."""
    if path.is_dir():
        return _clip_retrieval(path)
    readers = {".npz": _npz, ".npy": _npy, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: not a file of features: expected {FORMATS}")
    return [readers[path.suffix.lower()](path)]


def files_of(path: Path) -> list[Path]:
    """The files that `read_parts` reads of `path`, in order."""
    if path.is_dir():
        return [file for pair in _clip_files(path) for file in pair]
    return [path] if path.suffix.lower() != ".npy" else [path, _ids_beside(path)]


def _npz(path: Path) -> Part:
    with _opened(path) as raw, zipfile.ZipFile(raw) as archive:
        lacking = [name for name in ("ids", "features") if f"{name}.npy" not in archive.namelist()]
        if lacking:
            there = first_few([name.removesuffix(".npy") for name in archive.namelist()])
            raise UserError(f"{path}: has no array {' and no '.join(lacking)} (but {there}): save ids= and features=")
        with archive.open("ids.npy") as file:
            ids = _ids_in(file, path)
        with archive.open("features.npy") as file:
            count, shape, dtype = _header(file, path)

    def blocks() -> Iterator[Array]:
        with _opened(path) as raw, zipfile.ZipFile(raw) as archive, archive.open("features.npy") as file:
            yield from _blocks(file, path)

    return _part(path, ids, count, shape, dtype, blocks)


def _npy(path: Path, ids: list[str] | None = None) -> Part:
    with _opened(path) as file:
        count, shape, dtype = _header(file, path)

    def blocks() -> Iterator[Array]:
        with _opened(path) as file:
            yield from _blocks(file, path)

    return _part(path, _ids_of_table(_ids_beside(path)) if ids is None else ids, count, shape, dtype, blocks)


def _parquet(path: Path) -> Part:
    with _parquet_file(path) as (file, schema):
        types = {field.name: field.type for field in schema}
        vectors = [name for name, kind in types.items() if hasattr(kind, "value_type")]
        named = [name for name in vectors if name in ("features", "embedding", "embeddings")] or vectors
        told = f"{path}: has columns {first_few(list(types), 8)}"
        if "id" not in types:
            raise UserError(f"{told}: expected id, the pairs' ids")
        if len(named) != 1:
            several = "several" if vectors else "none"
            raise UserError(f"{told}: expected one of vectors, and {several} are: call it features or embedding")
        column, ids = named[0], _column(file, "id", path)
        first = next(iter(_vectors(file, column, path, rows=1)), np.zeros((0, 0)))
    return _part(path, ids, len(ids), first.shape[1:], first.dtype, lambda: _parquet_blocks(path, column))


def _parquet_blocks(path: Path, column: str) -> Iterator[Array]:
    with _parquet_file(path) as (file, _):
        yield from _vectors(file, column, path)


def _vectors(file: Any, column: str, path: Path, rows: int = PARQUET_ROWS) -> Iterator[Array]:
    width, first = 0, 0
    for batch in file.iter_batches(batch_size=rows, columns=[column]):
        vectors = batch.column(0)
        values = vectors.flatten()
        width = width or len(values) // len(vectors)
        if set(vectors.value_lengths().to_pylist()) != {width} or values.null_count:
            raise UserError(
                f"{path}: rows {first + 1} to {first + len(vectors)} of column {column} are not all vectors of one "
                "length: leave out those that lack numbers"
            )
        yield values.to_numpy(zero_copy_only=False).reshape(len(vectors), width)
        first += len(vectors)


def _clip_retrieval(folder: Path) -> list[Part]:
    parts = []
    for array, table in _clip_files(folder):
        with _parquet_file(table) as (file, schema):
            if "image_path" not in schema.names:
                raise UserError(f"{table}: has no column image_path: make it with metadata enabled")
            names = _column(file, "image_path", table)
        parts.append(_npy(array, [PurePosixPath(name.replace("\\", "/")).stem for name in names]))
    return parts


def _clip_files(folder: Path) -> list[tuple[Path, Path]]:
    """The arrays of a folder of clip-retrieval, each with the table that names its rows."""
    arrays = sorted(file for file in folder.glob("img_emb/*.npy") if re.fullmatch(r"img_emb_\d+\.npy", file.name))
    if not arrays:
        raise UserError(f"{folder}: has no img_emb/img_emb_0.npy: expected {FORMATS}")
    tables = [folder / "metadata" / f"metadata_{array.stem.removeprefix('img_emb_')}.parquet" for array in arrays]
    for array, table in zip(arrays, tables, strict=True):
        if not table.exists():
            raise UserError(f"{table}: is not there, and says what the rows of {array} are of: make it again")
    return list(zip(arrays, tables, strict=True))


def _part(
    path: Path,
    ids: list[str],
    count: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    blocks: Callable[[], Iterator[Array]],
) -> Part:
    """A part, once it is sure that its rows are numbers, each with an id."""
    told = f"{path}: features are {dtype} {(count, *shape)}"
    if dtype.kind not in "fiu":
        raise UserError(f"{told}: expected real numbers, as in features.astype('float32')")
    if len(shape) not in (1, 2) or 0 in (count, *shape):
        raise UserError(f"{told}: expected a row for each image, (n, d), or rows of its regions, (n, r, d)")
    if byte_count(shape, dtype) > MAX_ROW_BYTES:
        raise UserError(f"{told}: rows of more than {MAX_ROW_BYTES:,} bytes: check the file")
    if len(ids) != count:
        raise UserError(f"{path}: {len(ids):,} ids for {count:,} rows of features: give an id for each row")
    return Part(path, ids, shape, dtype, blocks)


def _header(file: IO[bytes], path: Path, what: str = "features") -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """How many rows a file of NumPy's holds, the shape of each, and its type; reads as far as the numbers begin."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UserError(f"{path}: an array of records, or of a NumPy to come: save plain numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    if dtype.hasobject:
        wanted = "str" if what == "ids" else "'float32'"
        raise UserError(f"{path}: {what} are Python objects, which are not unpickled: save {what}.astype({wanted})")
    if not shape:
        raise UserError(f"{path}: has a single value in the place of an array: save one row for each image")
    if by_columns and len(shape) > 1:
        raise UserError(f"{path}: is stored by columns: save np.ascontiguousarray(features)")
    return shape[0], shape[1:], dtype


def _blocks(file: IO[bytes], path: Path) -> Iterator[Array]:
    count, shape, dtype = _header(file, path)
    size = max(1, BLOCK_BYTES // byte_count(shape, dtype))
    for first in range(0, count, size):
        rows = min(size, count - first)
        yield np.frombuffer(_exactly(file, rows * byte_count(shape, dtype), path), dtype).reshape(rows, *shape)


def _ids_in(file: IO[bytes], path: Path) -> list[str]:
    count, shape, dtype = _header(file, path, "ids")
    if shape or dtype.kind not in "USiu":
        raise UserError(f"{path}: ids are {dtype} {(count, *shape)}: expected one text or whole number for each row")
    size = byte_count((count,), dtype)
    if size > MAX_IDS_BYTES:
        raise UserError(f"{path}: ids of {size:,} bytes, more than {MAX_IDS_BYTES:,}: check the file")
    values = np.frombuffer(_exactly(file, size, path), dtype).tolist() if size else [""] * count
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _exactly(file: IO[bytes], size: int, path: Path) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise UserError(f"{path}: is truncated: copy or save it again")
    return content


def _ids_beside(path: Path) -> Path:
    """The table of ids beside an array: NAME.txt, one on each line, or NAME.csv with a column id."""
    tables = [path.with_suffix(suffix) for suffix in (".txt", ".csv")]
    there = [table for table in tables if table.exists()]
    if len(there) != 1:
        told = "both are there" if there else "neither is there"
        raise UserError(f"{path}: its ids are expected beside it in {tables[0].name} or {tables[1].name}, and {told}")
    return there[0]


def _ids_of_table(path: Path) -> list[str]:
    if path.suffix.lower() == ".txt":
        return [line for _, line in read_lines(path)]
    csv.field_size_limit(MAX_LINE)
    try:
        lines = [cells for cells in csv.reader(table_lines(path), strict=True) if cells]
        place = [cell.strip().lower() for cell in lines[0]].index("id")
        return [cells[place].strip() for cells in lines[1:]]
    except (csv.Error, LookupError, ValueError) as error:
        raise UserError(f"{path}: no table with a column id ({one_line(error)}): check the file") from error


def _column(file: Any, name: str, path: Path) -> list[str]:
    ids: list[str] = []
    for batch in file.iter_batches(columns=[name]):
        ids += ["" if value is None else str(value) for value in batch.column(0).to_pylist()]
    return ids


@contextmanager
def _parquet_file(path: Path) -> Iterator[tuple[Any, Any]]:
    """A Parquet file and its columns. Raises UserError where it cannot be read."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow, or save it as .npz") from error
    with _opened(path) as raw, parquet.ParquetFile(raw, pre_buffer=False) as file:
        yield file, file.schema_arrow


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A regular file, open for reading. What NumPy, zip, Arrow and the system say of it becomes a UserError."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            yield file
    except UserError:
        raise
    except OSError as error:
        if error.errno is None:  # Arrow's own
            raise UserError(f"{path}: cannot be read ({one_line(error)}): check the file") from error
        raise file_error(error, path) from error
    except Exception as error:  # on damaged files they raise nearly every kind of exception
        raise UserError(f"{path}: cannot be read ({one_line(error)}): check the file") from error
