"""What several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Two cores and several torch processes at once: one thread each keeps the suite steady, and results the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parent.parent

# Files whose tests are few and long begin first, so that no process is left alone with one at the end.
LONG_FILES = (
    *("test_readme.py", "test_ray.py", "test_faults.py", "test_extension.py", "test_package.py", "test_jobs.py"),
    *("test_distributed.py", "test_every_desktop.py", "test_extract_script.py", "test_train_script.py"),
    *("test_surroundings.py", "test_evaluate_script.py", "test_scaling_docs.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


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
