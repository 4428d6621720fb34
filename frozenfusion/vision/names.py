"""What stands before the names of networks that come from elsewhere."""

from __future__ import annotations

TIMM = "timm:"  # before the name that timm has for it
TRANSFORMERS = "transformers:"  # before the name of a class
RANDOM = "random:"  # before the name or folder of what is built with random weights
