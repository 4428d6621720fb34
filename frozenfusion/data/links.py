"""Links that lead out of a data set's folder: usual in one's own data, in a stranger's a way to other files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from frozenfusion.data.records import Record
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import first_few, printable
from frozenfusion.utils.progress import log

NOT_FOLLOWED = "not followed, a link out of the data folder"  # a folder that is not there, in the place of the link's


def check_inside(root: Path, names: Iterable[str]) -> None:
    """Raise UserError where one of the files or folders that a layout is made of is a link out of `root`."""
    for name in names:
        if not _is_inside(root, root / name):
            raise UserError(f"{root / name}: a link that leads out of {root}, and links are not followed: put a copy")


def without_links(root: Path, records: Iterable[Record]) -> Iterator[Record]:
    """The records; a text or an image that links lead out of `root` is one that is not there, and named as such."""
    if os.path.lexists(root / NOT_FOLLOWED):
        raise UserError(f"{root / NOT_FOLLOWED}: rename it: links that are not followed are called so")
    refused = []
    for record in records:
        paths = {"image": record.image, "text": record.text}
        outside: dict[str, Any] = {
            name: root / NOT_FOLLOWED / path.relative_to(root)
            for name, path in paths.items()
            if isinstance(path, Path) and not _is_inside(root, path)
        }
        refused += [f"{printable(record.id)} ({name})" for name in outside]
        yield dataclasses.replace(record, **outside) if outside else record
    if refused:
        told = f"{len(refused):,} texts and images are links out of the folder, and count as missing"
        log.warning("%s: %s: %s", root, told, first_few(refused))


def _is_inside(root: Path, path: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
