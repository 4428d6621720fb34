"""One line of a label file or manifest: its checks, and how its text becomes a string."""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from frozenfusion.data.places import ImagePlace
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.files import (
    NotRegularError,
    TooLargeError,
    file_error,
    open_regular_file,
    read_regular_file,
    reading,
)
from frozenfusion.utils.messages import MOST_NAMED, first_few, printable, shown
from frozenfusion.utils.progress import log
from frozenfusion.utils.remote import as_given

SENTIMENTS = ("positive", "neutral", "negative")  # MVSA's labels 0, 1, 2
NO_LABEL = frozenset({"", "null"})
# How pandas and its like write a cell that is empty, and read it again: a class of that name is an accident.
EMPTY_CELLS = frozenset({"nan", "NaN", "-nan", "None", "NULL", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaT"})

MAX_TABLE_BYTES = 2**36
MAX_LINE = 2**24  # letters of a table's line, or of its cell
MAX_TEXT_BYTES = 2**20
MAX_NAME_BYTES = 255  # what file systems allow in one name
MAX_PATH_BYTES = 4096

COLUMNS = ("id", "text", "text_path", "image", "label", "split")  # of a manifest or table
_DECODED_AT_ONCE = 2**20  # bytes

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO})
_LINE_END = re.compile(r"\r\n|\r|\n")
_WHOLE = re.compile(r"^(-?\d+)\.0$", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Of base64 the beginnings of JPEG, PNG, GIF and WebP.
_PICTURE_AS_TEXT = re.compile(r"data:image/|(/9j/|iVBORw0KGgo|R0lGOD|UklGR)[A-Za-z0-9+/]{50}")
_SPLITS = {"": None, "train": "train", "test": "test", **dict.fromkeys(("val", "valid", "validation", "dev"), "val")}


@dataclass(frozen=True, slots=True)
class Record:
    """A pair as a file names it: nothing of it has been opened yet."""

    id: str
    source: str  # "FILE:LINE", for messages
    image: ImagePlace
    text: str | Path  # the text itself, or the file that holds it
    label: str | None = None
    split: str | None = None


def unique(records: Iterable[Record]) -> list[Record]:
    """The records in the order of their ids. Raises UserError for an id that comes twice."""
    seen: dict[str, Record] = {}
    for record in records:
        first = seen.setdefault(record.id, record)
        if first is not record:
            raise UserError(f"{record.source}: id {record.id!r} was already given at {first.source}: keep one of them")
    return [seen[id] for id in sorted(seen)]


def checked_columns(columns: Mapping[str, str]) -> Mapping[str, str]:
    """Columns by what they are called here. Raises UsageError for a name that is none of ours, or stands for two."""
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns.values()):
        raise UsageError(f"`columns` are names by ours, such as {{'text': 'caption'}}, not {shown(columns)}")
    strange = [name for name in columns if name not in COLUMNS]
    if strange or len(set(columns.values())) < len(columns):
        told = f"{strange[0]} is none" if strange else "a name is given twice"
        raise UsageError(f"`columns` say what a table calls {', '.join(COLUMNS)}, as in text=caption: {told}")
    return columns


def renamed(name: str, columns: Mapping[str, str]) -> str:
    """What a column is called here that its table calls `name`, where `columns` says so: {"text": "caption"}."""
    return next((role for role, given in columns.items() if given == name), "" if name in columns else name)


def require_columns(names: Iterable[str], source: str, columns: Mapping[str, str]) -> None:
    """Raise UserError unless the columns that every manifest has, and those of `columns`, are among `names`."""
    names = list(names)
    present = set(names)
    missing = [name for role, name in columns.items() if role not in present]
    missing += [name for name in ("id", "image") if name not in {*present, *columns}]
    if not {"text", "text_path"} & {*present, *columns}:
        missing.append("text or text_path")
    if missing:
        there = first_few([printable(name) for name in names if name], MOST_NAMED) or "none"
        told = "a manifest has id, text or text_path, and image; `columns` says which are called otherwise"
        raise UserError(f"{source}: no column {', '.join(missing)}, but {there}: {told}")


def checked_id(id: str, source: str) -> str:
    """`id` if it is a name that can stand for files of a data folder. Raises UserError for a path or odd characters."""
    if not id:
        raise UserError(f"{source}: empty id: give every pair a name")
    if "/" in id or "\\" in id or id in {".", ".."}:
        raise UserError(f"{source}: id {shown(id)} is a path: ids are plain names")
    if _CONTROL.search(id):
        raise UserError(f"{source}: id {shown(id)} has control characters: ids are plain names")
    if _encoded_length(id, source) > MAX_NAME_BYTES:
        raise UserError(f"{source}: id {shown(id)} is longer than {MAX_NAME_BYTES} bytes: shorten it")
    return id


def checked_path(folder: Path, name: str, source: str) -> Path:
    """`name` below `folder`, judged by its letters alone. Raises UserError for one that would leave the folder."""
    if _PICTURE_AS_TEXT.match(name):
        raise UserError(f"{source}: {shown(name)} is a picture as text: store it as a file, or as bytes in a .parquet")
    if _CONTROL.search(name):
        raise UserError(f"{source}: path {shown(name)} has control characters: rename the file")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{source}: path {shown(name)} leaves {as_given(folder)}: give paths inside that folder")
    if _encoded_length(name, source) > MAX_PATH_BYTES or any(len(p.encode()) > MAX_NAME_BYTES for p in path.parts):
        raise UserError(f"{source}: path {shown(name)} is longer than a file system allows: shorten it")
    return existing(folder, Path(path))


def checked_label(label: str, source: str) -> str | None:
    """`label` as the name of a class, None for no label. Raises UserError for what is no name.

    A class is the same however a table stores it: whole numbers in a column with gaps are 1.0, accents have two forms.
    """
    name = unicodedata.normalize("NFC", label.strip())
    if name.lower() in NO_LABEL or name in EMPTY_CELLS:
        return None
    if name.lower() in SENTIMENTS:
        return name.lower()
    if _CONTROL.search(name) or _encoded_length(name, source) > MAX_NAME_BYTES:
        raise UserError(f"{source}: label {shown(name)} is no name of a class: give it a short one on one line")
    return _WHOLE.sub(r"\1", name)


def existing(folder: Path, name: Path) -> Path:
    """`name` below `folder`; where it is only there with its accents in their other form, that file."""
    if not str(name).isascii() and not os.path.lexists(folder / name):
        for other in (unicodedata.normalize(form, str(name)) for form in ("NFC", "NFD")):
            if os.path.lexists(folder / other):
                return folder / other
    return folder / name


def checked_split(name: str, source: str) -> str | None:
    """`name` as train, val, test or None for an empty cell. Raises UserError for any other."""
    try:
        return _SPLITS[name.strip().lower()]
    except KeyError:
        raise UserError(f"{source}: unknown split {shown(name)}: expected train, val, test or nothing") from None


def _encoded_length(name: str, source: str) -> int:
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        raise UserError(f"{source}: name {shown(name)} is not valid Unicode: rename it") from None


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a label file that are not blank, each with its "FILE:LINE". Raises UserError."""
    file = str(path)
    for number, line in enumerate(table_lines(path), 1):
        if line := line.strip():
            yield f"{file}:{number}", line


def table_lines(path: Path) -> Iterator[str]:
    """The lines of a label file or manifest with their ends, read as they are asked for. Raises UserError."""
    with reading(path), open_regular_file(path, MAX_TABLE_BYTES) as file:
        encoding = _encoding_of(file)
        if encoding != "utf-8":
            told = "UTF-8, with letters that cannot be read" if encoding == "replaced" else encoding
            log.warning("%s: not UTF-8, read as %s", path, told)
        file.seek(0)
        how = ("utf-8", "replace") if encoding == "replaced" else (encoding, "strict")
        # Closed, not detached: where it is abandoned, the garbage collector may close the file under it first.
        with io.TextIOWrapper(file, *how, newline="") as lines:
            try:
                line, number = lines.readline(MAX_LINE + 1), 1
                if encoding != "replaced":
                    line = line.removeprefix("\ufeff")
                while line:
                    if len(line) > MAX_LINE:
                        raise UserError(f"{path}:{number}: a line of more than {MAX_LINE:,} letters: check the file")
                    yield line
                    line, number = lines.readline(MAX_LINE + 1), number + 1
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: was changed while it was read: run the same command again") from error


def _encoding_of(file: BinaryIO) -> str:
    """How a table is to be read, all of which is looked at: see decode_text."""
    for encoding in _encodings(file.read(2)):
        decoder = codecs.getincrementaldecoder(encoding)()
        file.seek(0)
        try:
            while part := file.read(_DECODED_AT_ONCE):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            continue
        return encoding
    return "replaced"


def read_text(path: Path) -> tuple[str, str]:
    """The text file of a pair and how it was read: "utf-8", "utf-16", "gb18030", "replaced", "empty" or "missing".

    Only its first MAX_TEXT_BYTES count. Raises UserError where a file is there but may not be read.
    """
    try:
        return decode_text(read_regular_file(path, MAX_TEXT_BYTES))
    except TooLargeError:
        return decode_text(_beginning(path), cut=True)
    except NotRegularError:
        return "", "missing"
    except OSError as error:
        if error.errno in _NOT_THERE:
            return "", "missing"
        raise file_error(error, path) from error


def decode_text(data: bytes, *, cut: bool = False) -> tuple[str, str]:
    """A pair's text without the white space around it, and how it was read: see read_text.

    Bytes that begin with UTF-16's mark are that; others are UTF-8, else gb18030, else UTF-8 with replacement
    characters. That order is the reference's: 23 % of MVSA's texts are gb18030. With `cut` the last character may be
    incomplete.
    """
    text, encoding = _decode(data, cut)
    text = text.strip()
    return text, encoding if text else "empty"


def clean_text(text: str) -> str:
    """A text that is a string already, cleaned as texts of files are; halves of characters, as in JSON, go."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()


def line_count(text: str) -> int:
    """How many lines a text has."""
    return len(_LINE_END.split(text))


def _decode(data: bytes, cut: bool = False) -> tuple[str, str]:
    for encoding in _encodings(data):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(data, final=not cut)
        except UnicodeDecodeError:
            continue
        return text.removeprefix("\ufeff"), encoding
    return data.decode("utf-8", errors="replace"), "replaced"


def _encodings(data: bytes) -> tuple[str, ...]:
    """What to try, by the first bytes."""
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # which is in neither of the others
    return ("utf-16", "utf-8", "gb18030") if marked else ("utf-8", "gb18030")


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_TEXT_BYTES)
