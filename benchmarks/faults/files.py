"""What files say, apart from how long things took: digests to compare two states of a folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from frozenfusion.data.pairs import load_pairs
from frozenfusion.model.classifier import PairClassifier
from frozenfusion.store.reader import FeatureStore
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.tensors import CHECKSUM

TIMES = {"seconds", "seconds_per_epoch"}
OF_TIMES = {"crc32", "metrics.jsonl"}  # in summary.json and checksums.json: checksums of what has times in it
ROW = ("status", "features", "crc32", "digest")


def snapshot(folder: Path) -> dict[str, str]:
    """A digest of the content of each file below a folder, by its name; folders are there by name."""
    found = sorted(folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): "" if path.is_dir() else digest_of(path) for path in found}


def digest_of(path: Path) -> str:
    """A digest of what a file says: of a store what it holds, of a run's files all but the times."""
    content = path.read_bytes()
    if path.name.startswith("."):  # a temporary file, which may be a part of one
        return _digest(content)
    if path.suffix == ".h5":
        store = FeatureStore(path)
        columns = [getattr(store, name) for name in ("ids", *ROW, "stat")]
        return _digest(*columns, repr((store.fingerprint, store.attributes)))
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            names, about = sorted(file.keys()), dict(file.metadata() or {})
            about.pop(CHECKSUM, None)  # of the times, too
            told = {name: json.loads(value) if value[:1] == "{" else value for name, value in about.items()}
            return _digest(_timeless(names), _timeless(told), *(file.get_tensor(name) for name in names))
    if path.suffix == ".json":
        return _digest(_timeless(json.loads(content)))
    if path.suffix == ".jsonl":
        return _digest(*(_timeless(json.loads(line)) for line in content.splitlines()))
    if path.name == "sweep.csv":
        return _digest(*map(_timeless, csv.DictReader(io.StringIO(content.decode()))))
    return _digest(content)


def rows_of(path: Path) -> dict[str, str]:
    """A digest of each row of a store, by id; "" if it is pending."""
    store = FeatureStore(path)
    columns = [getattr(store, name) for name in ROW]
    return {
        name: _digest(*(column[row] for column in columns)) if store.status[row] else ""
        for row, name in enumerate(store.names())
    }


def predictions_of(run: Path, data: Path, cache: Path) -> str:
    """A digest of what a run predicts, or "" where it is refused in one line."""
    try:
        return _digest(PairClassifier.from_pretrained(run).predict_proba(load_pairs(data), cache))
    except UserError:
        return ""


def _timeless(value: Any) -> str:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(of) for name, of in value.items() if name not in TIMES | OF_TIMES}
        return [without(of) for of in value] if isinstance(value, list) else value

    return json.dumps(without(value), sort_keys=True)


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part if isinstance(part, bytes) else part.tobytes())
        digest.update(b"\0")
    return digest.hexdigest()[:16]
