"""Folders of image–text pairs: the reference's, the raw MVSA archive's, the course release's, and unlabelled ones."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from frozenfusion.data.records import NO_LABEL, SENTIMENTS, Record, checked_id, read_lines, unique
from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import file_error
from frozenfusion.utils.messages import first_few, shown
from frozenfusion.utils.progress import log

DATA = "data"
RAW_LABELS = "labelResultAll.txt"
REFERENCE_LABELS = "ID-label.txt"
REFERENCE_PARTS = {"ID-label-train.txt": "train", "ID-label-val.txt": "val", "ID-label-test.txt": "test"}
UNLABELLED_COURSE_PART = "test_without_label.txt"
COURSE_PARTS = {"train.txt": "train", "val.txt": "val", "test.txt": "test", UNLABELLED_COURSE_PART: "test"}

LAYOUT_FILES = (DATA, RAW_LABELS, REFERENCE_LABELS, *REFERENCE_PARTS, *COURSE_PARTS)

CONTRADICTING = "contradicting labels"
UNLISTED = "not in the label files"

# Where an id has several images, the first of these that is there is taken.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".tga", ".ico", ".psd", ".qoi", ".pcx", ".sgi"),
)


def read_folder(root: Path) -> tuple[str, list[Record], dict[str, int]]:
    """The layout's name, the records by id, and how many pairs were left out for which reason. Raises UserError."""
    if any((root / name).is_file() for name in (REFERENCE_LABELS, *REFERENCE_PARTS)):
        layout, files = "reference", DataFolder(root / DATA)
        records = _reference_records(root, files)
    elif (root / RAW_LABELS).is_file():
        layout, files = "mvsa", DataFolder(root / DATA)
        records = unique(_raw_records(root / RAW_LABELS, files))
    elif any(_is_course_file(root / name) for name in COURSE_PARTS):
        _require_headers(root)
        layout, files = "course", DataFolder(root / DATA)
        records = unique(_course_records(root, files))
    else:
        _require_headers(root)
        return "unlabelled", _unlabelled_records(root), {}
    dropped = {
        CONTRADICTING: sum(record.label == CONTRADICTING for record in records),
        UNLISTED: len(set(files.images.values()) - {record.image.name for record in records}),
    }
    kept = [record for record in records if record.label != CONTRADICTING]
    return layout, kept, {reason: count for reason, count in dropped.items() if count}


class DataFolder:
    """The files of a data folder by id, listed once. Raises UserError where the folder cannot be listed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        strange = []
        try:
            names = os.listdir(folder)
        except OSError as error:
            raise file_error(error, folder) from error
        for name in names:
            id, suffix = os.path.splitext(name)
            if name.startswith("."):
                continue
            if not fits.text(name):
                strange.append(os.fsencode(name).decode("utf-8", "backslashreplace"))
            if suffix.lower() in IMAGE_SUFFIXES:
                self.images[id] = min(self.images.get(id, name), name, key=_preference)
            elif suffix == ".txt":
                self.texts[id] = name
        if strange:
            told = f"{len(strange):,} file names are not UTF-8, so that no pair can have them"
            log.warning("%s: %s: %s: rename them", folder, told, first_few(strange))

    def record(self, id: str, source: str, label: str | None = None, split: str | None = None) -> Record:
        """The pair `id` with the paths of its two files, or where they should be."""
        image = _named(self.images, checked_id(id, source)) or f"{id}.jpg"
        text = _named(self.texts, id) or f"{id}.txt"
        return Record(id, source, self.folder / image, self.folder / text, label, split)


def _named(names: dict[str, str], id: str) -> str | None:
    """The file of an id, whose accents can have another form on the disk: macOS writes them so."""
    forms = (id, unicodedata.normalize("NFC", id), unicodedata.normalize("NFD", id))
    return next((names[form] for form in forms if form in names), None)


def _preference(name: str) -> tuple[int, str]:
    return IMAGE_SUFFIXES.index(os.path.splitext(name)[1].lower()), name


def _reference_records(root: Path, files: DataFolder) -> list[Record]:
    """Every id of ID-label.txt, with the split whose file repeats it; without that file, every id of the splits'."""
    parts = unique(
        record
        for name, split in REFERENCE_PARTS.items()
        if (root / name).is_file()
        for record in _coded_records(root / name, files, split)
    )
    if not (root / REFERENCE_LABELS).is_file():
        return parts
    whole = {record.id: record for record in unique(_coded_records(root / REFERENCE_LABELS, files, None))}
    for part in parts:
        if part.id not in whole:
            raise UserError(f"{part.source}: id {shown(part.id)} is not in {REFERENCE_LABELS}: add or remove it")
        if part.label != whole[part.id].label:
            raise UserError(f"{part.source}: another label than at {whole[part.id].source}: make the two agree")
        whole[part.id] = part
    return list(whole.values())


def _coded_records(path: Path, files: DataFolder, split: str | None) -> Iterator[Record]:
    """`ID,label` lines with labels 0, 1, 2 below a header that contains ID."""
    for position, (source, line) in enumerate(read_lines(path)):
        id, label = _fields(line, ",", "ID,label", source)
        if position == 0 and "ID" in line and not label.isdigit():
            continue
        if label not in {"0", "1", "2"}:
            raise UserError(f"{source}: unknown label {shown(label)}: expected 0, 1 or 2")
        yield files.record(id, source, SENTIMENTS[int(label)], split)


def _raw_records(path: Path, files: DataFolder) -> Iterator[Record]:
    """`ID<TAB>text label,image label` lines joined by the rule that everyone uses; see reference.md."""
    for position, (source, line) in enumerate(read_lines(path)):
        id, labels = _fields(line, "\t", "ID<TAB>text label,image label", source)
        text, image = _fields(labels, ",", "ID<TAB>text label,image label", source)
        if position == 0 and (text, image) == ("text", "image"):
            continue
        yield files.record(id, source, joined_label(_sentiment(text, source), _sentiment(image, source)))


def joined_label(text: str, image: str) -> str:
    """MVSA's one label for a pair: equal stays, polar wins over neutral, and opposites are CONTRADICTING."""
    if text == image or image == "neutral":
        return text
    return image if text == "neutral" else CONTRADICTING


def _course_records(root: Path, files: DataFolder) -> Iterator[Record]:
    """`guid,tag` lines; the tag null stands for no label."""
    for name, split in COURSE_PARTS.items():
        if not _is_course_file(root / name):
            continue
        for position, (source, line) in enumerate(read_lines(root / name)):
            id, tag = _fields(line, ",", "guid,tag", source)
            if position > 0:
                label = None if tag.lower() in NO_LABEL else _sentiment(tag, source)
                yield files.record(id, source, label, split)


def _require_headers(root: Path) -> None:
    """Raise UserError for a label file of the course whose header is gone: it would not be taken for one."""
    for name in COURSE_PARTS:
        path = root / name
        if path.is_file() and not _is_course_file(path):
            source, line = next(iter(read_lines(path)), ("", ""))
            if line.rpartition(",")[2].strip().lower() in {*SENTIMENTS, *NO_LABEL} and "," in line:
                raise UserError(f"{source}: a label file without its header: put the line guid,tag above it")


def course_ids(root: Path) -> list[str]:
    """The ids of the course's pairs without labels, in the order of its file; none where there is no such file."""
    path = root / UNLABELLED_COURSE_PART
    lines = list(read_lines(path))[1:] if _is_course_file(path) else []
    return [_fields(line, ",", "guid,tag", source)[0] for source, line in lines]


def _is_course_file(path: Path) -> bool:
    return path.is_file() and next((line for _, line in read_lines(path)), "").replace(" ", "").lower() == "guid,tag"


def _fields(line: str, separator: str, form: str, source: str) -> list[str]:
    fields = [field.strip() for field in line.split(separator)]
    if len(fields) != 2:
        raise UserError(f"{source}: malformed line {shown(line)}: expected {form}")
    return fields


def _sentiment(name: str, source: str) -> str:
    if name.lower() not in SENTIMENTS:
        raise UserError(f"{source}: unknown label {shown(name)}: expected one of {', '.join(SENTIMENTS)}")
    return name.lower()


def _unlabelled_records(root: Path) -> list[Record]:
    """The pairs of a data/ folder, or the images (with their texts) that lie in the folder itself."""
    inner = (root / DATA).is_dir()
    files = DataFolder(root / DATA if inner else root)
    ids = set(files.images)
    if inner:
        ids |= {id for id in files.texts if _named(files.images, id) is None}
    if not files.images:
        raise UserError(
            f"{root}: no image–text pairs: expected {REFERENCE_LABELS}, {RAW_LABELS} or train.txt (guid,tag) beside "
            f"{DATA}/, a folder of ID.jpg and ID.txt, a manifest file (.csv, .tsv, .jsonl, .parquet), or tars"
        )
    return [files.record(id, str(files.folder)) for id in sorted(ids)]
