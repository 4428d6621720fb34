"""Which options of a training make its run what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Options that there were not always, and what runs from before were trained with.
LATER: Mapping[str, Any] = {
    "optimizer": "adam",
    "text_lr": None,
    "head_lr": None,
    "warmup": 0.0,
    "clip": 0.0,
    "accumulate": 1,
    "label_smoothing": 0.0,
    "focal": 0.0,
    "patience": 0,
    "standardise_images": False,
    "region_pool": "mean",
}

# The options of a training that make its run what it is: with another value it would be another run. All but `epochs`
# and `patience`, which say no more than when it ends, are held against the checkpoint; runs that agree in all, and in
# their head, are repetitions of one recipe.
RECIPE = (
    *("text_encoder", "text_weights", "text_pool", "freeze_text", "max_length", "batch_size", "lr"),
    *("weight_decay", "schedule"),
    *("image_dropout", "modality_dropout", "alpha", "head_options", "class_weights", "val_fraction", "precision"),
    *("epochs", *LATER),
)
