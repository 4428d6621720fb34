"""What a run was made from, held against what is asked for now: with another value it would be another run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frozenfusion.model.recipe import LATER
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.text.pooling import AUTO
from frozenfusion.training.checkpoint import TEXT_POOL, State
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.hub import settled

TEXT_ENCODER, WORD_VECTORS = "--text-encoder", "--word-vectors"
PAIRS, FROZEN_WEIGHTS, VOCABULARY = "pairs", "frozen text encoder", "vocabulary"
PROCESSES = "processes"  # that train together; not there of one alone
_TOLD = {
    PAIRS: "pairs: their texts, labels, images or split are not the same",
    FROZEN_WEIGHTS: "frozen text encoder: its weights are not the same",
    VOCABULARY: "vocabulary: another version cuts the texts into other words",
}


def as_flag(name: str) -> str:
    """An option as checkpoints name it."""
    return f"--{name.replace('_', '-')}"


def refuse_changes(folder: RunFolder, state: State, made_from: Mapping[str, Any]) -> None:
    """Raise UserError, naming each difference, unless the run was made from just that.

    What it does not tell, since there was no such option then, is what it was trained with all the same.
    """
    before = {**{as_flag(name): value for name, value in LATER.items()}, **state.made_from}
    changes = [
        _change(name, before.get(name), value)
        for name, value in made_from.items()
        if not _is_same(name, before.get(name), value)
    ]
    if changes:
        raise UserError(
            f"{folder.path}: was trained otherwise ({'; '.join(changes)}): give the same again, choose another `run`, "
            "or delete the folder to train it anew"
        )


def _is_same(name: str, old: Any, new: Any) -> bool:
    if name in (TEXT_ENCODER, WORD_VECTORS) and isinstance(old, str) and new and settled(old) == settled(new):
        return True
    if name == TEXT_POOL and AUTO in (old, new):  # it was settled when the run began, if its head reads text
        return True
    return bool(old == new)


def _change(name: str, old: Any, new: Any) -> str:
    if name in _TOLD:
        return _TOLD[name]
    if name.startswith("--"):  # as checkpoints name options
        name = name.removeprefix("--").replace("-", "_")
        name = f"`{ {'fusion': 'head', 'head_option': 'head_options'}.get(name, name) }`"
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        parts = sorted(part for part in old.keys() | new.keys() if old.get(part) != new.get(part))
        return f"{name}: " + ", ".join(f"{part} {old.get(part)} → {new.get(part)}" for part in parts)
    return f"{name} {old} → {new}"
