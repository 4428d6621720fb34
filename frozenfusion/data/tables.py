"""Tables of image–text pairs, one file or many: the images are files that they name, or bytes in their cells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from frozenfusion.data.places import TableCell
from frozenfusion.data.records import COLUMNS, MAX_TABLE_BYTES, require_columns
from frozenfusion.data.table_files import File, Table, open_table
from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import printable, shown

Rows = Iterator[tuple[str, dict[str, Any]]]

_PART = re.compile(r"(?:^|/)(train|test|val|validation|valid|dev)(?=[-_./]|$)", re.IGNORECASE)
NO_CLASS = -1  # as `datasets` writes the label of a row that has none


def table_rows(file: File, columns: Mapping[str, str], name: str | None = None, split: str | None = None) -> Rows:
    """The rows of a .parquet or .arrow file, each with its source for messages; an image of bytes is its TableCell.

    Where images are bytes a row needs no id: it gets `name`, by default the file's, and its number from 0. Raises
    UserError.

    columns: what the table calls the columns that it names otherwise.
    split: of rows without one.
    """
    with open_table(file) as table:
        schema = _fields(table, columns, file)
        needs_id = "id" not in {*schema, *columns}
        holds_bytes = "image" in schema and _holds_bytes(schema["image"], file, needs_id=needs_id)
        require_columns([*schema, *(["id"] if holds_bytes else [])], str(file), columns)
        read = {role: field.name for role, field in schema.items() if role != "image" or not holds_bytes}
        classes = _class_names(table.schema, schema["label"].name) if "label" in schema else None
        unread = set(table.names) - {*COLUMNS, *(field.name for field in schema.values())}
        prefix = name or PurePosixPath(file).stem
        for number, cells in enumerate(table.cells(list(read.values()), MAX_TABLE_BYTES)):
            source = f"{file}: row {number + 1}"
            row = {role: cells[column] for role, column in read.items()}
            if not number:
                row |= dict.fromkeys(name for name in table.names if name in unread)
            if classes is not None:
                row["label"] = _class(row["label"], classes, source)
            if holds_bytes:
                row["image"] = TableCell(file, number, schema["image"].name)
                row.setdefault("id", f"{prefix}-{number:08d}")
            row.setdefault("split", split)
            yield source, row


def rows_of_tables(files: Iterable[File], root: File, columns: Mapping[str, str]) -> Rows:
    """The rows of several files, one after the other; their place below `root` names them, and may name their split."""
    for file in files:
        name = str(PurePosixPath(_text(file).removeprefix(_text(root)).lstrip("/")).with_suffix(""))
        yield from table_rows(file, columns, name.replace("/", "-"), part_of(name))


def part_of(name: str) -> str | None:
    """The split that a file's name or its folder's begins with, as in train-00000-of-00002 and test/0000."""
    found = _PART.findall(name)
    return found[-1].lower() if found else None


def _text(file: File) -> str:
    return file.as_posix() if isinstance(file, Path) else file


def _fields(table: Table, columns: Mapping[str, str], file: File) -> dict[str, Any]:
    """Those of our columns that a table has, each with what it says of it."""
    names = {role: columns.get(role, role) for role in COLUMNS}
    twice = [name for name in names.values() if table.names.count(name) > 1]
    if twice:
        raise UserError(f"{file}: two columns are called {twice[0]}: keep one of them")
    return {role: table.schema.field(name) for role, name in names.items() if name in table.names}


def _holds_bytes(column: Any, file: File, *, needs_id: bool) -> bool:
    """Whether the images are in their cells. Raises UserError where these are neither pictures nor paths of files."""
    from pyarrow import types

    kind, holds_bytes = column.type, _is_bytes(column.type)
    if types.is_nested(kind) and not holds_bytes:
        told = f"column {column.name} holds {printable(kind)}, and not the bytes of picture files (binary)"
        raise UserError(f"{file}: {told} or their paths (string): save it so")
    if needs_id and not holds_bytes:
        told = f"column {column.name} holds {kind}, so its cells are paths of picture files, and each pair needs an id"
        raise UserError(f"{file}: {told}: add a column id, or store the bytes of the pictures (base64 is not read)")
    return holds_bytes


def _is_bytes(kind: Any) -> bool:
    """Whether cells of a type hold a picture: binary, or a struct of `bytes` and more, as `datasets` has it."""
    from pyarrow import types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
    return any(of(kind) for of in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary))


def _class_names(schema: Any, column: str) -> list[str] | None:
    """The names of the classes of a column whose numbers `datasets` wrote; None for any other."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"null"))
        feature = told["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return names if fits.texts(names) else None


def _class(value: Any, names: list[str], source: str) -> Any:
    if value is None or value == NO_CLASS or isinstance(value, str):
        return value if isinstance(value, str) else None
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UserError(f"{source}: label {shown(value)} is none of its {len(names):,} classes: check the table")
    return names[value]
