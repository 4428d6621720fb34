"""Progress tells the rate and the time left of what it counts."""

from __future__ import annotations

import logging

import pytest

from frozenfusion.utils import progress as module
from frozenfusion.utils.progress import Progress


def test_what_is_done_while_it_pauses_counts_for_no_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO)
    with Progress(100, "pairs", "evaluation") as progress:
        with progress.paused():
            now += 1000
        now += 10
        progress.update(20)
        with progress.paused():
            now += 500
        now += 10
        progress.update(20)
    assert caplog.messages == [
        "evaluation: 20/100 pairs, 2.0 pairs/s, 40s left",
        "evaluation: 40/100 pairs, 2.0 pairs/s, 30s left",
    ]
