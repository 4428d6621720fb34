"""Some of the faults that `python -m benchmarks.faults` knows, over all commands, files and kinds of faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the faults happen in forked processes")


def faults(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", *options],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_no_fault_of_a_sample_leaves_anything_wrong() -> None:
    done = faults("--points", "24")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 faults" in done.stdout
    assert "0 failures" in done.stdout
