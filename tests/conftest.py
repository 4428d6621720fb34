"""What several test files share."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

# Two cores and several torch processes at once: one thread each keeps the suite steady, and results the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

# Every run tries the same inputs; `pytest --hypothesis-profile random` tries others.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("same", settings.get_profile("random"), derandomize=True)
settings.load_profile("same")

ROOT = Path(__file__).resolve().parent.parent

# Files whose tests are few and long begin first, so that no process is left alone with one at the end.
LONG_FILES = (
    *("test_readme.py", "test_ray.py", "test_faults.py", "test_distributed.py", "test_package.py", "test_jobs.py"),
    *("test_every_desktop.py", "test_surroundings.py", "test_architecture.py", "test_extract_script.py"),
    *("test_train_script.py", "test_extension.py", "test_scaling_docs.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def write_manifest(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A manifest of rows that have the same columns, of the kind that its suffix says."""
    kind = path.suffix[1:]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist(list(rows)), path)
    else:
        lines = io.StringIO(newline="")
        table = csv.DictWriter(lines, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
        table.writeheader()
        table.writerows(rows)
        path.write_bytes(lines.getvalue().encode("utf-8", "replace"))
    return path


def write_posts(folder: Path, count: int) -> Path:
    """Pictures of noise, p00.png and so on, of which p04.png is none, in a new folder."""
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number:02d}.png")
    (folder / "p04.png").write_bytes(b"<html>")
    return folder


def run_python(code: str) -> None:
    """Run `code` in a Python process of its own, from the project's folder, and require that it succeeds."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def mvsa_sample() -> Path:
    """Folder of 301 real MVSA-Single pairs, where it lies beside the project; tests skip elsewhere."""
    folder = ROOT.parent / "shared" / "mvsa-sample"
    if not folder.is_dir():
        pytest.skip("the real MVSA-Single pairs are not on this machine")
    return folder


@pytest.fixture
def albert_tokenizer() -> Path:
    """Folder of ALBERT's real tokenizer and configuration, where it lies beside the project; tests skip elsewhere."""
    folder = ROOT.parent / "shared" / "albert-tokenizer"
    if not folder.is_dir():
        pytest.skip("ALBERT's tokenizer is not on this machine")
    return folder


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the second that drawing a training takes."""
    from frozenfusion.training import run

    for name in ("plot_curves", "plot_learning_rate"):
        monkeypatch.setattr(run, name, lambda metrics, path: None)
