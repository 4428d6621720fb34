"""How the tokens of a text become its one vector, and what a folder of sentence-transformers says about it.

Shapes: b texts, l tokens, d hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frozenfusion.utils import fits
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json
from frozenfusion.utils.messages import printable, shown
from frozenfusion.utils.progress import log

# pooler: the model's pooled output, or the first token of a model that has none; cls: the first token; mean, max: over
# the tokens that are no padding.
AUTO, POOLER = "auto", "pooler"
TEXT_POOLS = (POOLER, "cls", "mean", "max")

_MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
_FOLDER = re.compile(r"\w[\w.-]*")


def pool_tokens(hidden: Tensor, mask: Tensor, pool: str) -> Tensor:
    """The vectors (b, d) of texts from their hidden states (b, l, d) and mask (b, l) bool, by cls, mean or max.

    mean and max are float32. A text without any token is zero in both.
    """
    if pool == "cls":
        return hidden[:, 0]
    padding = ~mask[..., None]
    if pool == "mean":
        summed = hidden.float().masked_fill(padding, 0.0).sum(dim=1)
        return summed / mask.sum(dim=1, keepdim=True).clamp(min=1)
    highest = hidden.float().masked_fill(padding, -torch.inf).amax(dim=1)
    return highest.masked_fill(padding.all(dim=1), 0.0)


def listed_pool(folder: Path) -> str | None:
    """The pooling that a folder of sentence-transformers asks for, None where it is no such folder.

    Of its further modules, those that would change the vector, it says in one line that they are not applied. Raises
    UserError for a pooling that is not there, not to be read, or none of ours.
    """
    listed = folder / "modules.json"
    if not listed.is_file():
        return None
    modules = _modules(listed)
    found = [place for place, (kind, _) in enumerate(modules) if kind == "Pooling"]
    if not found:
        return None
    others = [kind for kind, _ in modules[found[0] + 1 :]]
    name = modules[found[0]][1]
    if not isinstance(name, str) or not _FOLDER.fullmatch(name):
        raise UserError(f"{listed}: the pooling's path is {shown(name)}, which it cannot be: restore the file")
    path = folder / name / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: not there, and {listed.name} names it: put it there, or choose `text_pool` yourself")
    pool = _pool_of(read_json(path), path)
    if others:
        log.info("%s also lists %s after its pooling: not applied", listed, printable(", ".join(others)))
    return pool


def _modules(path: Path) -> list[tuple[str, Any]]:
    """Kind and path of each module that a modules.json lists."""
    values = read_json(path)
    if not isinstance(values, list) or any(fits.misfit(module, {"type": fits.text}, ("type",)) for module in values):
        raise UserError(f"{path}: not the modules of a sentence-transformers model: restore the file")
    return [(module["type"].rpartition(".")[2], module.get("path")) for module in values]


def _pool_of(values: Any, path: Path) -> str:
    """The one pooling that a 1_Pooling/config.json turns on."""
    named = values.get("pooling_mode") if isinstance(values, Mapping) else None
    if isinstance(named, str):  # as of sentence-transformers 5
        on = [f"pooling_mode_{named}" + ("_token" if named == "cls" else "_tokens")]
    else:
        wrong = fits.misfit(values, {}) or fits.misfit(values, dict.fromkeys(_switches(values), fits.flag))
        if wrong:
            raise UserError(f"{path}: {wrong}: restore the file")
        on = [name for name in _switches(values) if values[name]]
    if len(on) != 1 or on[0] not in _MODES:
        told = printable(" and ".join(name.removeprefix("pooling_mode_") for name in on)) or "no pooling"
        raise UserError(f"{path}: asks for {told}, which is not among those here: choose `text_pool` yourself")
    return _MODES[on[0]]


def _switches(values: Mapping[str, Any]) -> list[str]:
    return [name for name in values if name.startswith("pooling_mode_")]
