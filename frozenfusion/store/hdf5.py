"""The HDF5 side of a store: a file of plain contiguous datasets, laid out once and checked when opened.

HDF5 itself never writes to the disk. It lays the file out into a recorder in memory, a few kilobytes whatever the
number of rows; those are put into place together with the ids, and from then on rows are written straight at the
datasets' offsets. So no HDF5 metadata can be left half-written, and a full disk is an ordinary error.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from frozenfusion import __version__
from frozenfusion.store.raw_file import Array, RowFile, Span, byte_count, open_regular
from frozenfusion.store.recorder import Recorder
from frozenfusion.store.status import DIGEST_BYTES
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import writing
from frozenfusion.utils.messages import one_line

FORMAT = "frozen-fusion-store"
FORMAT_VERSION = 2
UNCHECKED_VERSION = 1  # of program version 0.1: without checksums of entries and attributes
CHECKED = "attributes_checksum"
MAX_ATTRIBUTE_BYTES = 32_000  # HDF5's classic attributes end at 64 KiB
MAX_ATTRIBUTES = 500
ANEW = "delete it and run again what made it"
MEND = f"restore it, or {ANEW}"
_PART = "fingerprint."  # prefix of the attributes that repeat the fingerprint's parts for people to read
_HEADER_BYTES = 2**20  # of a file, in which the attributes lie
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ALIGNMENT = 64  # bytes: any element type is aligned in the map
_PAGES = 2**14  # bytes, that features begin at a multiple of: whole pages, so that shards can be mapped side by side

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Layout:
    """What a store's HDF5 metadata says."""

    spans: dict[str, Span]
    ids_crc32: int
    fingerprint: dict[str, Scalar]
    attributes: dict[str, Scalar]


def create_file(
    path: Path,
    ids: Array,
    row_shape: tuple[int, ...],
    dtype: np.dtype[Any],
    fingerprint: Mapping[str, Scalar],
    attributes: Mapping[str, Scalar],
) -> None:
    """Write a whole store with every row pending at `path`, durable and with its disk space reserved.

    The file at `path` is replaced. Raises UserError where the disk says no, and then leaves no file there.
    """
    recorder, spans = _lay_out(ids, row_shape, dtype, fingerprint, attributes)
    with writing(path):
        path.unlink(missing_ok=True)
        try:
            with RowFile(path, spans, os.O_CREAT | os.O_EXCL) as file:
                file.reserve(recorder.size)
                for offset, content in recorder.written:
                    file.put_bytes(content, offset)
                file.put("ids", np.arange(len(ids)), ids)
                file.sync()
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def require_own(path: Path) -> None:
    """Raise UserError unless a file that is to be replaced is a store, be it damaged: nobody else's is."""
    with open_regular(path) as file:
        if FORMAT.encode() not in file.read(_HEADER_BYTES):
            raise UserError(f"{path}: not a feature file, so it is not replaced: choose another path")


def read_layout(file: BinaryIO, path: str | os.PathLike[str]) -> Layout:
    """Check that `file` is a whole store of this format and return its layout.

    Raises UserError, naming `path`, for anything else: a store's datasets are contiguous, inside the file, apart
    from each other, and reached by hard links, so nothing that a foreign file says can lead out of it.
    """
    size = os.fstat(file.fileno()).st_size
    if not size:
        raise UserError(f"{path}: the file is empty: {ANEW}")
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise UserError(f"{path}: not an HDF5 file: check the path (the file was left as it is)")
    try:
        with h5py.File(file, "r") as h5:
            return _checked_layout(h5, size)
    except _NotAStoreError as error:
        raise UserError(f"{path}: {error} (the file was left as it is)") from error
    except Exception as error:  # on damaged metadata HDF5 and h5py raise nearly every kind of exception
        reason = one_line(error).strip("'\"")
        if "truncated file" in reason:
            reason = "truncated"
        raise UserError(
            f"{path}: damaged or not a feature store ({reason}): {MEND} (the file was left as it is)"
        ) from error


class _NotAStoreError(Exception):
    """A sound HDF5 file that is no store of this format: what is wrong, and what to do."""


def _lay_out(
    ids: Array,
    row_shape: tuple[int, ...],
    dtype: np.dtype[Any],
    fingerprint: Mapping[str, Scalar],
    attributes: Mapping[str, Scalar],
) -> tuple[Recorder, dict[str, Span]]:
    recorder = Recorder()
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # the new file reads as zeros, which is what pending rows hold
    plist.set_obj_track_times(False)  # the same rows are the same bytes, whenever and by whomever they were made
    spans = {}
    columns = _columns(len(ids), ids.dtype.itemsize, row_shape, dtype)
    if any(not 0 < byte_count(shape, kind) < 2**60 for kind, shape in columns.values()):
        raise UserError(f"rows of shape {row_shape} for {len(ids):,} ids make no file: check the sizes")
    written = _all_attributes(ids, fingerprint, attributes)
    features = {"features": columns.pop("features")}
    most = byte_count(features["features"][1], dtype)
    for mode, part, least, interval in (("w", columns, 1, _ALIGNMENT), ("r+", features, most, _PAGES)):
        # The earliest format, whatever this library's own default: any HDF5 since 1.6 reads it. Locking is ours.
        with h5py.File(
            recorder, mode, libver=("earliest", "v108"), alignment_threshold=least, alignment_interval=interval
        ) as h5:
            if mode == "w":
                for name, value in {**written, CHECKED: _checksum(written, list(written))}.items():
                    _write_attribute(h5, name, value)
            for name, (kind, shape) in part.items():
                text = h5py.string_dtype("utf-8", kind.itemsize) if kind.kind == "S" else kind
                file_type = h5py.h5t.py_create(text, logical=True)
                dataset = h5py.h5d.create(h5.id, name.encode(), file_type, h5py.h5s.create_simple(shape), plist)
                spans[name] = Span(dataset.get_offset(), shape, kind)
    return recorder, spans


def _columns(
    n: int, id_bytes: int, row_shape: tuple[int, ...], dtype: np.dtype[Any]
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    return {
        "ids": (np.dtype(f"S{id_bytes}"), (n,)),
        "status": (np.dtype("u1"), (n,)),
        "crc32": (np.dtype("<u4"), (n,)),
        "digest": (np.dtype("u1"), (n, DIGEST_BYTES)),
        "stat": (np.dtype("<i8"), (n, 2)),
        "check": (np.dtype("<u8"), (n,)),
        "features": (dtype, (n, *row_shape)),
    }


def _all_attributes(
    ids: Array, fingerprint: Mapping[str, Scalar], attributes: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    own: dict[str, Scalar] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "ids_crc32": zlib.crc32(ids.tobytes()),
        "fingerprint": json.dumps(dict(fingerprint), sort_keys=True, ensure_ascii=False),
        **{_PART + name: value for name, value in fingerprint.items()},
    }
    if {CHECKED, *own} & attributes.keys():
        raise ValueError(f"these attributes are the store's own: {sorted({CHECKED, *own} & attributes.keys())}")
    return {**own, "created_by": f"frozenfusion {__version__}", **attributes}


def _checksum(attributes: Mapping[str, Scalar], names: Sequence[str]) -> str:
    """JSON of the attributes' names, since others may be added, and the CRC-32 of their values."""
    values = json.dumps({name: attributes.get(name) for name in sorted(names)})
    return json.dumps({"crc32": zlib.crc32(values.encode()), "names": sorted(names)})


def _write_attribute(h5: h5py.File, name: str, value: Scalar) -> None:
    if not isinstance(value, str):
        h5.attrs[name] = value
        return
    code = value.encode()
    if len(code) > MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"attribute {name} is longer than {MAX_ATTRIBUTE_BYTES} bytes")
    # Fixed length, so that the text lies in the header and no reader has to follow a reference for it.
    h5.attrs.create(name, code, dtype=h5py.string_dtype("utf-8", max(1, len(code))))


def _checked_layout(h5: h5py.File, file_size: int) -> Layout:
    found = _read_attributes(h5)
    if found.get("format") != FORMAT:
        raise _NotAStoreError("an HDF5 file, but not a feature store: check the path")
    version = found.get("format_version")
    if version not in (FORMAT_VERSION, UNCHECKED_VERSION):
        raise _NotAStoreError(
            f"format version {version}, but this program reads {FORMAT_VERSION}:"
            f" use the program that made it, or {ANEW}"
        )
    checked = str(found.pop(CHECKED, ""))
    if version == FORMAT_VERSION and checked != _checksum(found, json.loads(checked)["names"]):
        raise _NotAStoreError(f"its attributes are damaged: {MEND}")
    features, ids = _dataset(h5, "features"), _dataset(h5, "ids")
    if features.dtype not in (np.dtype("<f4"), np.dtype("<f2")) or len(features.shape) not in (2, 3):
        raise _NotAStoreError(
            f"dataset features is {features.dtype} {features.shape}, not float32 or float16 rows: check the path"
        )
    if ids.dtype.kind != "S":
        raise _NotAStoreError(f"dataset ids is {ids.dtype}, not fixed-length text: check the path")
    expected = _columns(features.shape[0], ids.dtype.itemsize, features.shape[1:], features.dtype)
    if version == UNCHECKED_VERSION:
        del expected["check"]
    spans = {name: _span(h5, name, kind, shape, file_size) for name, (kind, shape) in expected.items()}
    in_order = sorted(spans.values(), key=lambda span: span.offset)
    if any(before.end > after.offset for before, after in itertools.pairwise(in_order)):
        raise _NotAStoreError(f"its datasets overlap: {MEND}")
    fingerprint = json.loads(str(found.get("fingerprint")))
    if not isinstance(fingerprint, dict):
        raise _NotAStoreError(f"its fingerprint is not a JSON object: {MEND}")
    own = {"format", "format_version", "ids_crc32", "fingerprint"}
    attributes = {name: value for name, value in found.items() if name not in own and not name.startswith(_PART)}
    return Layout(spans, int(found["ids_crc32"]), fingerprint, attributes)


def _dataset(h5: h5py.File, name: str) -> h5py.h5d.DatasetID:
    """A dataset as HDF5 itself has it: h5py's own objects take most of the time of opening a file."""
    code = name.encode()
    # Looked at before it is followed: a soft or external link could lead into another file.
    if code in h5.id and h5.id.links.get_info(code).type == h5py.h5l.TYPE_HARD:
        found = h5py.h5o.open(h5.id, code)
        if isinstance(found, h5py.h5d.DatasetID):
            return found
    raise _NotAStoreError(f"an HDF5 file without a dataset {name} of its own: check the path")


def _span(h5: h5py.File, name: str, kind: np.dtype[Any], shape: tuple[int, ...], file_size: int) -> Span:
    dataset = _dataset(h5, name)
    if dataset.dtype != kind or dataset.shape != shape:
        raise _NotAStoreError(f"dataset {name} is {dataset.dtype} {dataset.shape}, not {kind} {shape}: check the path")
    plist = dataset.get_create_plist()
    offset = dataset.get_offset()
    plain = plist.get_layout() == h5py.h5d.CONTIGUOUS and not plist.get_external_count() and not plist.get_nfilters()
    if not plain or offset is None or 0 in shape:
        raise _NotAStoreError(
            f"dataset {name} is empty, chunked, compressed or stored elsewhere, and a store's are contiguous:"
            f" use the file as it was written, or {ANEW}"
        )
    span = Span(int(offset), shape, kind)
    if span.offset < len(_SIGNATURE) or span.end > file_size:
        raise _NotAStoreError(f"dataset {name} lies outside the file, which is truncated: {MEND}")
    return span


def _read_attributes(h5: h5py.File) -> dict[str, Scalar]:
    """The short scalar attributes; any other kind is no store's and is passed over unread."""
    count = h5py.h5a.get_num_attrs(h5.id)
    if count > MAX_ATTRIBUTES:
        raise _NotAStoreError(f"it has {count:,} attributes, which no store has: check the path")
    found: dict[str, Scalar] = {}
    for name in h5.attrs:
        attribute = h5.attrs.get_id(name)
        kind = attribute.get_type()
        fixed_text = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
        number = isinstance(kind, h5py.h5t.TypeIntegerID | h5py.h5t.TypeFloatID | h5py.h5t.TypeEnumID)
        if attribute.shape != () or attribute.get_storage_size() > 2**16 or not (fixed_text or number):
            continue
        value = np.empty((), attribute.dtype)
        attribute.read(value)
        found[name] = bytes(value[()]).decode(errors="replace") if fixed_text else value.item()
    return found
