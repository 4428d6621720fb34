"""How many pixels there are, and how they are normalised, where a network does not say."""

from __future__ import annotations

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET = "imagenet"  # the name of the two in a feature file's fingerprint
IMAGE_SIZE = 224
