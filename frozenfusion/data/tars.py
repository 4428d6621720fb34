"""WebDataset's tars: KEY.jpg with KEY.txt, KEY.json or KEY.cls. Nothing is unpacked: members are known by offset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from frozenfusion.data.folders import IMAGE_SUFFIXES
from frozenfusion.data.places import TarMember
from frozenfusion.data.records import MAX_TEXT_BYTES, decode_text
from frozenfusion.data.table_files import File
from frozenfusion.data.tables import Rows, part_of
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import check_regular, file_error
from frozenfusion.utils.messages import one_line, shown
from frozenfusion.utils.progress import log
from frozenfusion.utils.remote import open_remote, remote_error

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_HEADER_BYTES = 2**20  # of the names and attributes of one member
MAX_HELD_BYTES = 2**30  # of the texts, labels and JSON of a tar, which are in memory together
TEXT, METADATA, CLASS = ".txt", ".json", ".cls"
_TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)
_IMAGES = {suffix: place for place, suffix in enumerate(IMAGE_SUFFIXES)}


def rows_of_tars(files: Iterable[File], columns: Mapping[str, str]) -> Rows:
    """A row for each key of some tars, in the order in which the keys come in each. Raises UserError.

    columns: what KEY.json calls the columns that it names otherwise.
    """
    for file in files:
        split = part_of(PurePosixPath(file).name)
        with _opened(file) as raw:
            for key, parts in _by_key(file, raw).items():
                source = f"{file}: {key}"
                row = _described(parts[METADATA], columns, source) if METADATA in parts else {}
                row["id"] = key.replace("/", "-")
                if TEXT in parts:
                    row["text"] = decode_text(parts[TEXT], cut=len(parts[TEXT]) == MAX_TEXT_BYTES)[0]
                if CLASS in parts:
                    row["label"] = decode_text(parts[CLASS])[0]
                row.setdefault("split", split)
                row["image"] = parts.get("image")
                yield source, row


def _by_key(file: File, raw: Any) -> dict[str, dict[str, Any]]:
    """What a tar holds by key, in its order: the image's place as "image", the bytes of the others by their endings."""
    found: dict[str, dict[str, Any]] = {}
    held = 0
    for member in _members(file, raw):
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        stem, dot, ending = name.partition(".")
        key, suffix = f"{folder}/{stem}".lstrip("/"), f"{dot}{ending.lower()}"
        if not stem or suffix not in (*_IMAGES, TEXT, METADATA, CLASS):
            continue
        parts = found.setdefault(key, {})
        if suffix in parts:
            raise UserError(f"{file}: {shown(member.name)} is in it twice: keep one")
        if suffix not in _IMAGES:
            parts[suffix] = _content(raw, member)
            held += len(parts[suffix])
            if held > MAX_HELD_BYTES:
                raise UserError(f"{file}: holds more than {MAX_HELD_BYTES:,} bytes beside its images: cut it in parts")
        elif _IMAGES[suffix] < _IMAGES.get(parts.get("suffix", ""), len(_IMAGES)):
            place = TarMember(file, member.offset_data, member.size, member.name)
            parts |= {"image": place, "suffix": suffix, suffix: b""}
    return found


def _content(raw: Any, member: tarfile.TarInfo) -> bytes:
    raw.seek(member.offset_data)
    return raw.read(min(member.size, MAX_TEXT_BYTES))  # type: ignore[no-any-return]


def _members(file: File, raw: Any) -> Iterator[tarfile.TarInfo]:
    """The whole members of a tar that are ordinary files; the others are told."""
    end = raw.seek(0, io.SEEK_END)
    raw.seek(0)
    try:
        tar = tarfile.TarFile(fileobj=_Bounded(raw))  # type: ignore[arg-type]  # it needs no more
    except _TAR_ERRORS as error:
        raise UserError(f"{file}: not a tar archive ({one_line(error)}): check the file") from error
    strange, cut = 0, False
    try:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
            if member.size < 0:  # which leads back, and before Python 3.11.14 or 3.12.12 round and round
                cut = True
                break
            if member.isfile() and not member.issparse():
                if member.offset_data + member.size > end:
                    cut = True
                    break
                yield member
            elif not member.isdir():
                strange += 1
        else:
            raw.seek(tar.offset)
            cut = any(raw.read(tarfile.BLOCKSIZE))  # else the zeros at the end, or nothing
    except _TAR_ERRORS:
        cut = True
    if strange:
        log.warning("%s: %s links, devices and sparse files are passed over", file, f"{strange:,}")
    if cut:
        log.warning("%s: damaged or cut short: what is whole before that is read, the rest is not", file)


class _Bounded:
    """A file whose headers are of bounded size: a tar can say that a name has gigabytes."""

    def __init__(self, raw: Any) -> None:
        self._raw, self.tell, self.seek = raw, raw.tell, raw.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:  # below 0 would be all that there is
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._raw.read(size)  # type: ignore[no-any-return]


def _described(content: bytes, columns: Mapping[str, str], source: str) -> dict[str, Any]:
    """What KEY.json says of a pair, of the columns text, label and split."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}.json: not valid JSON ({one_line(error)}): mend it") from error
    if not isinstance(told, dict):
        raise UserError(f"{source}.json: expected a JSON object, not {shown(told)}")
    names = {role: columns.get(role, role) for role in ("text", "label", "split")}
    return {role: told[name] for role, name in names.items() if name in told}


@contextmanager
def _opened(file: File) -> Iterator[Any]:
    """A tar to read and seek in. Raises UserError where that cannot be."""
    if PurePosixPath(file).name.lower().endswith(COMPRESSED):
        raise UserError(f"{file}: compressed, so that no image in it can be found without the others: decompress it")
    try:
        if isinstance(file, Path):
            check_regular(file)
        with file.open("rb") if isinstance(file, Path) else open_remote(file) as raw:
            yield raw
    except OSError as error:
        raise file_error(error, file) if isinstance(file, Path) else remote_error(error, file) from error
