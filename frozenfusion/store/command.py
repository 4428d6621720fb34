"""The command that makes or updates a feature file, as messages tell it, and the name that a file has by default.

Data is a path or an address, or a DataSource, which knows the flags that its commands need.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from frozenfusion.utils.messages import printable
from frozenfusion.utils.remote import as_given, check_no_url

FOLDER = Path("cache")
ARRAYS = "arrays"  # the backbone of features that another program computed
DRAFT = "jpeg draft"  # in what a fingerprint says of resampling

# Options of stage one that a fingerprint tells: its part, and what needs no flag.
_OPTIONS = {
    "backbone": ("backbone", "efficientnet-b7"),
    "pool": ("pooling", "avg"),
    "image_size": ("image_size", 224),
    "precision": ("precision", "float32"),
    "dtype": ("dtype", "float32"),
}


@dataclass(frozen=True)
class DataSource(os.PathLike[str]):
    """Data as it was given: a folder, a manifest or an address, and the flags by which a command reads it so again."""

    path: Path
    flags: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, path: Path, *, follow_links: bool = True, remote: bool = False, columns: Mapping[str, str] | None = None
    ) -> DataSource:
        """Data that is read as `load_pairs` is told to. Raises UserError for a URL that is not read."""
        check_no_url(path)
        flags = [] if follow_links else ["--no-follow-links"]
        flags += ["--remote"] if remote else []
        if columns:
            flags += ["--columns", ",".join(f"{role}={name}" for role, name in columns.items())]
        return cls(path, tuple(flags))

    def __str__(self) -> str:
        return as_given(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def words(self) -> list[str]:
        """What a command line says to read it."""
        return [as_given(self.path.as_posix()), *self.flags]


def extraction_command(
    data: str | os.PathLike[str],
    cache: str | os.PathLike[str] | None,
    fingerprint: Mapping[str, object],
    weights: object = "imagenet",
    *flags: str,
) -> str:
    """The command by which stage one puts features of such a fingerprint, by such weights, into a feature file.

    cache: None for the file that is named after the data.
    """
    source = data if isinstance(data, DataSource) else DataSource(Path(data))
    words = [*source.words, *([] if cache is None else ["--cache", Path(cache).as_posix()])]
    from_arrays = fingerprint.get("backbone") == ARRAYS
    for option, (part, default) in _OPTIONS.items():
        if option == "backbone" and from_arrays:
            continue
        if option == "image_size" and ":" in str(fingerprint.get("backbone")):
            default = None  # a pretrained network has a size of its own
        if fingerprint.get(part, default) != default:
            words += [f"--{option.replace('_', '-')}", printable(fingerprint[part])]
    if weights not in ("", "imagenet"):
        words += ["--from-arrays" if from_arrays else "--weights", str(weights)]
    if DRAFT in str(fingerprint.get("resampling")):
        words.append("--jpeg-draft")
    return f"python extract_features.py {shlex.join([*words, *flags])}"


def default_cache(data: str | os.PathLike[str], backbone: str) -> Path:
    """Where the features of a data folder or manifest lie by default: cache/NAME-b7.h5, of efficientnet-b7."""
    folder = Path(backbone).expanduser()
    short = folder.resolve().name if folder.is_dir() else backbone.removeprefix("efficientnet-")
    safe = "".join(letter if letter.isalnum() else "_" for letter in short)  # a name that is_default_cache tells apart
    return FOLDER / f"{_name(data)}-{safe}.h5"


def is_default_cache(path: Path, data: str | os.PathLike[str]) -> bool:
    """Whether a file is called as `default_cache` calls those of the data, whatever the backbone.

    Nothing but NAME-BACKBONE.h5 is, where BACKBONE is one word: no list of bad images, no text features beside it, and
    no file of a data set whose name only begins alike.
    """
    prefix = f"{_name(data)}-"
    backbone = path.stem.removeprefix(prefix)
    return path.suffix == ".h5" and path.stem.startswith(prefix) and backbone.replace("_", "").isalnum()


def _name(data: str | os.PathLike[str]) -> str:
    path = Path(os.path.abspath(data))  # which has a name, where "." and ".." have none
    name = (path.name if path.is_dir() else path.stem) or "data"
    return re.sub(r"[*?]", lambda found: f"%{ord(found[0]):X}", name)  # of patterns, which no file of Windows may have
