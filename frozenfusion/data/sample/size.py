"""How large the sample is."""

from __future__ import annotations

PAIRS = 600
FEWEST_PAIRS = 40  # with which every kind of dirt occurs
