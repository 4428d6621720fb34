"""Manifests: one file that lists image–text pairs, with paths relative to the folder that it is in."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frozenfusion.data.listing import Listing
from frozenfusion.data.plain_rows import PlainRows, Row, in_blocks
from frozenfusion.data.records import (
    EMPTY_CELLS,
    MAX_LINE,
    MAX_TABLE_BYTES,
    SENTIMENTS,
    Record,
    checked_id,
    checked_label,
    checked_path,
    checked_split,
    read_lines,
    table_lines,
)
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import check_regular
from frozenfusion.utils.messages import one_line, shown
from frozenfusion.utils.progress import log

NO_IMAGE = "no image given"  # the file name, never there, of a pair whose image cell is empty

MANY_CLASSES = 20  # of one pair each

_PARQUET_ROWS = 4096  # at once
_COLUMNS = ("id", "text", "text_path", "image", "label", "split")


def read_manifest(path: Path, empty: Counter[str]) -> Iterator[Record]:
    """The records of a .csv, .tsv, .jsonl or .parquet file, as it lists them. Raises UserError.

    Columns: id, text or text_path, image, and if wanted label and split; others are left alone. Empty cells stand for
    nothing: no text, no image, no label, no split. Label cells that stand for none are counted in `empty`.
    """
    return _records(path, _reader(path)(path), empty)


def list_manifest(path: Path, listing: Listing, empty: Counter[str]) -> None:
    """Add what `read_manifest` reads to a listing, many rows at a time where all are plain. Raises UserError."""
    plain = PlainRows()
    for rows in in_blocks(_reader(path)(path)):
        try:
            cells = {name: _cells([row.get(name) for _, row in rows]) for name in _COLUMNS}
            columns = plain.columns(cells, NO_IMAGE)
        except UserError:  # which is to name its line
            columns = None
        if columns is None:
            listing.add(_records(path, rows, empty))
            continue
        listing.extend(**columns)
        for cell, count in Counter(cells["label"]).items():
            if cell.strip() in EMPTY_CELLS:
                empty[cell.strip()] += count


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: not a manifest: expected a folder, or a .csv, .tsv, .jsonl or .parquet file")
    return reader


def _records(path: Path, rows: Iterable[Row], empty: Counter[str]) -> Iterator[Record]:
    for source, row in rows:
        record = _record(row, source, path.parent)
        if record.label is None and isinstance(row.get("label"), str):
            empty[row["label"].strip()] += 1
        yield record


def label_names(labels: Iterable[str | None]) -> tuple[str, ...]:
    """The classes among `labels` in their order: MVSA's three where nothing else occurs, else by number or name."""
    names = {label for label in labels if label is not None}
    if names <= set(SENTIMENTS):
        return SENTIMENTS
    return tuple(sorted(names, key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name)))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 19


def tell_of_labels(path: Path, empty: Mapping[str, int], classes: Mapping[str, int]) -> None:
    """Warn of labels that stand for none, and of a column that looks like names of pairs rather than of classes.

    empty, classes: how many cells, and how many pairs, have each.
    """
    told = ", ".join(f"{empty[cell]:,} {cell}" for cell in sorted(EMPTY_CELLS) if empty.get(cell))
    if told:
        log.warning("%s: labels that stand for an empty cell are read as no label: %s", path, told)
    single = sum(count == 1 for count in classes.values())
    if single >= MANY_CLASSES and 2 * single > len(classes):
        told = f"{single:,} of the {len(classes):,} classes have one pair alone"
        log.warning("%s: %s: is the column `label` what is to be learned?", path, told)


def _record(row: dict[str, Any], source: str, folder: Path) -> Record:
    cells = {name: _cell(row.get(name), name, source) for name in _COLUMNS}
    text: str | Path = cells["text"]
    if not text and cells["text_path"]:
        text = checked_path(folder, cells["text_path"], source)
    image = cells["image"].strip()
    return Record(
        id=checked_id(cells["id"].strip(), source),
        source=source,
        image=checked_path(folder, image or NO_IMAGE, source),
        text=text,
        label=checked_label(cells["label"], source),
        split=checked_split(cells["split"], source),
    )


def _cell(value: Any, name: str, source: str) -> str:
    """A cell as a string; numbers stand for their digits, and 1.0 for 1, as tables with gaps store whole numbers."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        raise UserError(f"{source}: {name} is {shown(value)}: expected a string or a number")
    return str(value)


def _cells(values: Sequence[Any]) -> list[str]:
    """Some cells of a column as `_cell` makes each a string."""
    kinds = set(map(type, values))
    if kinds == {str}:
        return list(values)
    if kinds <= {str, int, type(None)}:
        return ["" if value is None else str(value) for value in values]
    return [_cell(value, "", "") for value in values]


def _require_columns(names: Iterable[str], source: str) -> None:
    present = set(names)
    missing = [name for name in ("id", "image") if name not in present]
    if not {"text", "text_path"} & present:
        missing.append("text or text_path")
    if missing:
        raise UserError(f"{source}: no column {', '.join(missing)}: a manifest has id, text or text_path, and image")


def _delimited(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(MAX_LINE)
    lines = csv.reader(table_lines(path), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    header: list[str] = []
    file = str(path)
    try:
        for cells in lines:
            source = f"{file}:{lines.line_num}"
            if not any(cells):
                continue
            if not header:
                header = [cell.strip().lower() for cell in cells]
                _require_columns(header, source)
                twice = [name for name in _COLUMNS if header.count(name) > 1]
                if twice:
                    raise UserError(f"{source}: two columns are called {twice[0]}: keep one of them")
            elif len(cells) != len(header):
                raise UserError(f"{source}: malformed line: {len(cells)} cells where the header has {len(header)}")
            else:
                yield source, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{lines.line_num}: malformed line: {error}") from error


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    for source, line in read_lines(path):
        try:
            row = decoder.decode(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: malformed line: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{source}: malformed line {shown(line)}: expected a JSON object")
        _require_columns(row, source)
        yield source, row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is given twice")
    return row


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow, or save it as .csv") from error
    check_regular(path, MAX_TABLE_BYTES)
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:  # which would keep all that was read
            names = file.schema_arrow.names
            _require_columns(names, str(path))
            row_number = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=[name for name in _COLUMNS if name in names]):
                for row in batch.to_pylist():
                    row_number += 1
                    yield f"{path}: row {row_number}", row
    except (arrow.ArrowException, ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({one_line(error)}): check the file") from error


READERS = {".csv": _delimited, ".tsv": _delimited, ".jsonl": _json_lines, ".parquet": _parquet}  # by a file's suffix
