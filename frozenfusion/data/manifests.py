"""Manifests: one file that lists image–text pairs, with paths relative to the folder that it is in."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frozenfusion.data.folders import IMAGE_SUFFIXES
from frozenfusion.data.listing import Listing
from frozenfusion.data.pair_columns import stored_image
from frozenfusion.data.places import Place
from frozenfusion.data.plain_rows import PlainRows, Row, in_blocks
from frozenfusion.data.records import (
    COLUMNS,
    EMPTY_CELLS,
    MAX_LINE,
    SENTIMENTS,
    Record,
    checked_id,
    checked_label,
    checked_split,
    read_lines,
    renamed,
    require_columns,
    table_lines,
)
from frozenfusion.data.remote import checked_image, checked_text_path
from frozenfusion.data.table_files import suffix_of
from frozenfusion.data.tables import Rows, table_rows
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_few, printable, shown
from frozenfusion.utils.progress import log
from frozenfusion.utils.remote import address_of

NO_IMAGE = "no image given"  # the file name, never there, of a pair whose image cell is empty

TAB = "\t"
MANY_CLASSES = 20  # of one pair each


def manifest_rows(path: Path, columns: Mapping[str, str]) -> Rows:
    """The rows of a .csv, .tsv, .jsonl or .parquet file, each with its source for messages. Raises UserError.

    Columns: id, text or text_path, image, and if wanted label and split; others are left alone.

    columns: what the file calls the columns that it names otherwise.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: not a manifest: expected a folder, or a .csv, .tsv, .jsonl or .parquet file")
    return reader(path, columns)


def read_rows(rows: Iterable[Row], folder: Path, empty: Counter[str], *, remote: bool) -> Iterator[Record]:
    """The records of rows, in their order, whose images are below `folder`. Raises UserError.

    Empty cells stand for nothing: no text, no image, no label, no split. Label cells that stand for none are counted
    in `empty`.

    remote: whether images may be anywhere in object stores.
    """
    for source, row in rows:
        record = _record(row, source, folder, remote)
        if record.label is None and isinstance(row.get("label"), str):
            empty[row["label"].strip()] += 1
        yield record


def list_rows(rows: Rows, folder: Path, listing: Listing, empty: Counter[str], *, remote: bool) -> None:
    """Add what `read_rows` reads to a listing, many rows at a time where all are plain. Raises UserError."""
    plain, is_here = PlainRows(), address_of(folder) is None
    for block in in_blocks(rows):
        columns = _plain_columns(plain, block, folder) if is_here else None
        if columns is None:
            listing.add(read_rows(block, folder, empty, remote=remote))
            continue
        listing.extend(**columns)
        if None in columns["labels"]:
            for cell, count in Counter(_cells([row.get("label") for _, row in block])).items():
                if cell.strip() in EMPTY_CELLS:
                    empty[cell.strip()] += count


def _plain_columns(plain: PlainRows, rows: Sequence[Row], folder: Path) -> dict[str, Any] | None:
    """What Listing.extend takes of some rows; None if any of them needs a closer look."""
    images = [row.get("image") for _, row in rows]
    places = [image for image in images if isinstance(image, Place)]
    are_places = len(places) == len(rows)
    try:
        cells = {name: _cells([row.get(name) for _, row in rows]) for name in COLUMNS if name != "image"}
        cells["image"] = [""] * len(rows) if are_places else _cells(images)
        columns = plain.columns(cells, NO_IMAGE)
    except UserError:  # which is to name its line
        return None
    if columns is not None and are_places:
        columns["addresses"] = [stored_image(image, folder) for image in places]
    return columns


def label_names(labels: Iterable[str | None]) -> tuple[str, ...]:
    """The classes among `labels` in their order: MVSA's three where nothing else occurs, else by number or name."""
    names = {label for label in labels if label is not None}
    if names <= set(SENTIMENTS):
        return SENTIMENTS
    return tuple(sorted(names, key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name)))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 19


def tell_of_labels(source: object, empty: Mapping[str, int], classes: Mapping[str, int]) -> None:
    """Warn of labels that stand for none, and of a column that looks like names of pairs rather than of classes.

    empty, classes: how many cells, and how many pairs, have each.
    """
    told = ", ".join(f"{empty[cell]:,} {cell}" for cell in sorted(EMPTY_CELLS) if empty.get(cell))
    if told:
        log.warning("%s: labels that stand for an empty cell are read as no label: %s", source, told)
    single = sum(count == 1 for count in classes.values())
    if single >= MANY_CLASSES and 2 * single > len(classes):
        told = f"{single:,} of the {len(classes):,} classes have one pair alone"
        log.warning("%s: %s: is the column `label` what is to be learned?", source, told)


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


def _cells(values: Sequence[Any]) -> list[str]:
    """Some cells of a column as `_cell` makes each a string."""
    kinds = set(map(type, values))
    if kinds == {str}:
        return list(values)
    if kinds <= {str, int, type(None)}:
        return ["" if value is None else str(value) for value in values]
    return [_cell(value, "", "") for value in values]


def _delimited(path: Path, columns: Mapping[str, str]) -> Rows:
    columns = {role: name.lower() for role, name in columns.items()}
    csv.field_size_limit(MAX_LINE)
    delimiter = TAB if path.suffix.lower() == ".tsv" else ","
    lines = csv.reader(table_lines(path), delimiter=delimiter, strict=True)
    header: list[str] = []
    file = str(path)
    try:
        for cells in lines:
            source = f"{file}:{lines.line_num}"
            if not any(cells):
                continue
            if not header:
                header = [renamed(cell.strip().lower(), columns) for cell in cells]
                _check_header(cells, header, source, delimiter)
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


def _check_header(cells: Sequence[str], header: Sequence[str], source: str, delimiter: str) -> None:
    """Raise UserError for a first line that has another delimiter than the file's name says, or that is a pair.

    header: what its cells name.
    """
    for other, told in {",": "commas", TAB: "tabs", ";": "semicolons", "|": "bars"}.items():
        if len(cells) == 1 and other != delimiter and other in cells[0]:
            mend = {",": "call it .csv", TAB: "call it .tsv"}.get(other, "save it with commas, or as .tsv with tabs")
            raise UserError(f"{source}: {told} stand between the columns: {mend}")
    is_pair = len(cells) > 1 and any(suffix_of(cell) in IMAGE_SUFFIXES for cell in cells)
    if is_pair and not {*COLUMNS} & {*header}:
        first = first_few([printable(cell) for cell in cells])
        raise UserError(f"{source}: {first}: the first line is a pair: put the names of the columns above it")


def _json_lines(path: Path, columns: Mapping[str, str]) -> Rows:
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    for source, line in read_lines(path):
        try:
            row = decoder.decode(line)
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
