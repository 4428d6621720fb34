"""How far a run is that is found in its folder, and whether it may go on as it is asked to."""

from __future__ import annotations

from pathlib import Path

from frozenfusion.fusion.registry import head_class
from frozenfusion.model.recipe import RECIPE
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.text.choices import OPTIONS
from frozenfusion.training.checkpoint import HEAD_OPTIONS, State, read_state
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.inputs import TrainingInputs
from frozenfusion.training.options import effective, meaningless
from frozenfusion.training.origin import PAIRS, PROCESSES, as_flag, refuse_changes
from frozenfusion.utils import distributed
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.progress import log


def found_run(
    folder: RunFolder, config: TrainConfig, inputs: TrainingInputs, head: str
) -> tuple[State, list[Path] | None]:
    """How far the run is, and what it lacks if it is finished, None where its training has not ended.

    Raises UserError where `resume`, or an option that changed since, forbids to resume.
    """
    state = _state(folder, config, inputs, head)
    return state, _lost_files(folder, state, config, inputs, head)


def note_processes(folder: RunFolder, state: State) -> None:
    """Have the checkpoint say how many processes train, and warn where other epochs had another number."""
    before, now = state.made_from.get(PROCESSES, 1), distributed.world()
    if state.epochs and before != now:
        log.warning(
            "%s: trained by another number of processes before (%d, now %d): what comes out is close to what either"
            " would make alone, and not equal",
            *(folder.path, before, now),
        )
    state.made_from = {**state.made_from, **({PROCESSES: now} if before != now else {})}


def _state(folder: RunFolder, config: TrainConfig, inputs: TrainingInputs, head: str) -> State:
    """How far the run is."""
    kind = head_class(head)
    fixed = [name for name in RECIPE if name not in {"epochs", "patience", "head_options", *meaningless(kind)}]
    fixed += OPTIONS if config.is_recurrent else ()
    made_from = {
        "--fusion": head,
        "--seed": config.seed,
        **{as_flag(name): getattr(config, name) for name in fixed},
        HEAD_OPTIONS: dict(effective(config, kind).head_options),
        "image features": dict(inputs.store.fingerprint),
        PAIRS: inputs.digest,
    }
    if config.resume == "never" and folder.exists:
        raise UserError(f"{folder.path}: holds a training, and `resume=never` keeps off those: choose another `run`")
    state = read_state(folder)
    if state is None:
        if config.resume == "always":
            raise UserError(f"{folder.path}: no training to resume, and `resume=always` asks for one: check `run`")
        return State(made_from)
    refuse_changes(folder, state, made_from)
    return state


def _lost_files(
    folder: RunFolder, state: State, config: TrainConfig, inputs: TrainingInputs, head: str
) -> list[Path] | None:
    """What a finished run lacks; None where the training has not ended."""
    finished = state.ended(config) and folder.is_finished(state.epochs)
    return folder.lost_files(inputs.model_config(head)) if finished else None
