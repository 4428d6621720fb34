"""What several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two cores and several torch processes at once: one thread each keeps the suite steady, and results the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parent.parent


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
