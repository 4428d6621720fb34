"""Manifests: one file that lists image–text pairs, with paths relative to the folder that it is in."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frozenfusion.data.places import Place
from frozenfusion.data.records import (
    COLUMNS,
    EMPTY_CELLS,
    MAX_TABLE_BYTES,
    SENTIMENTS,
    Record,
    checked_id,
    checked_label,
    checked_split,
    read_lines,
    read_table,
    renamed,
    require_columns,
    unique,
)
from frozenfusion.data.remote import checked_image, checked_text_path
from frozenfusion.data.tables import Rows, table_rows
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import shown
from frozenfusion.utils.progress import log

NO_IMAGE = "no image given"  # the file name, never there, of a pair whose image cell is empty

MANY_CLASSES = 20  # of one pair each


def read_manifest(
    path: Path, columns: Mapping[str, str], *, remote: bool = False
) -> tuple[list[Record], tuple[str, ...]]:
    """The records of a .csv, .tsv, .jsonl or .parquet file by id, and the label names. Raises UserError.

    Columns: id, text or text_path, image, and if wanted label and split; others are left alone. Empty cells stand for
    nothing: no text, no image, no label, no split.

    columns: what the file calls the columns that it names otherwise.
    remote: whether images may be anywhere in object stores.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: not a manifest: expected a folder, or a .csv, .tsv, .jsonl or .parquet file")
    return read_rows(reader(path, columns), path, path.parent, remote=remote)


def read_rows(rows: Rows, path: Path, folder: Path, *, remote: bool) -> tuple[list[Record], tuple[str, ...]]:
    """The records of rows out of `path` by id, and the label names; images are below `folder`. Raises UserError."""
    empty: Counter[str] = Counter()  # labels that stand for none

    def read() -> Iterator[Record]:
        for source, row in rows:
            record = _record(row, source, folder, remote)
            if record.label is None and isinstance(row.get("label"), str):
                empty[row["label"].strip()] += 1
            yield record

    records = unique(read())
    _tell_of_labels(path, {cell: empty[cell] for cell in sorted(EMPTY_CELLS) if empty[cell]}, records)
    return records, label_names(record.label for record in records)


def label_names(labels: Iterable[str | None]) -> tuple[str, ...]:
    """The classes among `labels` in their order: MVSA's three where nothing else occurs, else by number or name."""
    names = {label for label in labels if label is not None}
    if names <= set(SENTIMENTS):
        return SENTIMENTS
    return tuple(sorted(names, key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name)))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 19


def _tell_of_labels(path: Path, empty: Mapping[str, int], records: Sequence[Record]) -> None:
    """Warn of labels that stand for none, and of a column that looks like names of pairs rather than of classes."""
    if empty:
        told = ", ".join(f"{count:,} {name}" for name, count in empty.items())
        log.warning("%s: labels that stand for an empty cell are read as no label: %s", path, told)
    classes = Counter(record.label for record in records if record.label is not None)
    single = sum(count == 1 for count in classes.values())
    if single >= MANY_CLASSES and 2 * single > len(classes):
        told = f"{single:,} of the {len(classes):,} classes have one pair alone"
        log.warning("%s: %s: is the column `label` what is to be learned?", path, told)


def _record(row: dict[str, Any], source: str, folder: Path, remote: bool) -> Record:
    image = row.get("image")
    cells = {name: _cell(row.get(name), name, source) for name in COLUMNS if name != "image"}
    text: str | Path = cells["text"]
    if not text and cells["text_path"]:
        text = checked_text_path(folder, cells["text_path"], source)
    if not isinstance(image, Place):
        name = _cell(image, "image", source).strip()
        image = checked_image(folder, name, source, remote=remote) if name else folder / NO_IMAGE
    return Record(
        id=checked_id(cells["id"].strip(), source),
        source=source,
        image=image,
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


def _delimited(path: Path, columns: Mapping[str, str]) -> Rows:
    columns = {role: name.lower() for role, name in columns.items()}
    csv.field_size_limit(MAX_TABLE_BYTES)  # the file itself is no longer
    lines = csv.reader(
        io.StringIO(read_table(path), newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )
    header: list[str] = []
    try:
        for cells in lines:
            source = f"{path}:{lines.line_num}"
            if not any(cells):
                continue
            if not header:
                header = [renamed(cell.strip().lower(), columns) for cell in cells]
                require_columns(header, source, columns)
                twice = [name for name in COLUMNS if header.count(name) > 1]
                if twice:
                    raise UserError(f"{source}: two columns are called {twice[0]}: keep one of them")
            elif len(cells) != len(header):
                raise UserError(f"{source}: malformed line: {len(cells)} cells where the header has {len(header)}")
            else:
                yield source, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{lines.line_num}: malformed line: {error}") from error


def _json_lines(path: Path, columns: Mapping[str, str]) -> Rows:
    for source, line in read_lines(path):
        try:
            row = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: malformed line: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{source}: malformed line {shown(line)}: expected a JSON object")
        row = {renamed(name, columns): value for name, value in row.items()}
        require_columns(row, source, columns)
        yield source, row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is given twice")
    return row


Reader = Callable[[Path, Mapping[str, str]], Rows]
READERS: dict[str, Reader] = {
    ".csv": _delimited,
    ".tsv": _delimited,
    ".jsonl": _json_lines,
    ".parquet": table_rows,
}  # by a file's suffix
