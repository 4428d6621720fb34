"""Models on the disk: safetensors and JSON in a run folder, complete in itself, read without running any of it."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frozenfusion.model.calibration import save_calibration
from frozenfusion.model.checksums import CHECKSUMS, check_files, write_checksums
from frozenfusion.model.config import DEFAULT_WIDTH, ModelConfig
from frozenfusion.model.network import PairNetwork, count_parameters
from frozenfusion.model.run_folder import CHECKPOINTS, FORMAT, RESTORED, RunFolder
from frozenfusion.text.encoder import load_text_config, new_encoder
from frozenfusion.text.tokens import load_tokenizer, save_tokenizer
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import link_or_copy, parse_json, write_atomically, write_json, writing
from frozenfusion.utils.messages import one_line
from frozenfusion.utils.tensors import fill, is_whole, read_metadata, read_tensors, weights_sha256, write_tensors

HUB_FILES = [
    "config.json",
    "split.json",
    "calibration.json",
    CHECKSUMS,
    "tokenizer/*",
    "text_encoder/*",
]  # and the weights
SMALL = 2**24  # parameters that any machine has room for
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def save_model(model: PairNetwork, folder: Path, **about: Any) -> None:
    """Write all that is needed to load a model again, on any machine. Raises UserError where the disk says no."""
    run = RunFolder(folder)
    if model.tokenizer is None:
        raise ValueError("the model was built without a tokenizer: give it one, or load it with from_pretrained")
    if not about and run.exists and "options" in run.config:
        raise UserError(f"{folder}: holds a training, which would be lost: choose another folder")
    if not run.exists and folder.exists() and run.foreign_files():
        raise UserError(f"{folder}: holds other files ({run.foreign_files()[0]}): choose another folder")
    save_setup(model, run, **about)
    save_weights(model, run.weights("best"))
    if model.split is not None:
        model.split.save(run.file("split.json"))
    if model.calibration is not None:
        save_calibration(run, "best", model.calibration)
    write_checksums(run.path)


def save_setup(model: PairNetwork, run: RunFolder, *, share: RunFolder | None = None, **about: Any) -> None:
    """Write what training does not change: config.json, tokenizer/, text_encoder/ (with its weights if frozen).

    share: another run; where it has the same frozen text encoder, its file gets a second name here instead of being
    written again. about: further entries of config.json.
    """
    with writing(run.path):
        run.file(CHECKSUMS).unlink(missing_ok=True)  # they are written when all that they are of is there
    encoder = model.text_encoder
    if encoder is not None:
        write_atomically(run.text_encoder / "config.json", encoder.config.to_json_string())
        if model.config.freeze_text:
            _save_frozen(encoder, run.frozen_encoder, share.frozen_encoder if share else None)
    if model.tokenizer is not None:
        save_tokenizer(model.tokenizer, run.tokenizer)
    write_json(run.config_file, {"format": FORMAT, **about, "model": model.config.to_json()})


def save_weights(model: PairNetwork, path: Path) -> None:
    """Write the model's weights, those of a frozen text encoder left out, as safetensors. Raises UserError."""
    write_tensors(path, _own_state(model), {"model": json.dumps(model.config.to_json())})


def load_weights(model: PairNetwork, path: Path) -> None:
    """Put the weights of a safetensors file into the model. Raises UserError that names what differs."""
    own, tensors = _own_state(model), read_tensors(path)
    written = parse_json(read_metadata(path).get("model", "{}"), path)
    if not isinstance(written, dict):
        raise UserError(f"{path}: damaged (its metadata describe no model): restore it")
    ours = json.loads(json.dumps(model.config.to_json()))
    differences = [
        f"{name} {written[name]} there, {ours[name]} here"
        for name in (
            *("fusion", "fusion_options", "label_names", "image_width", "width"),
            *("text_encoder", "text_pool", "freeze_text"),
        )
        if name in written and written[name] != ours[name]
    ]
    if differences:
        raise UserError(f"{path}: weights of another model ({'; '.join(differences)}): use those of this run")
    fill(model, {current_name(name, own): tensor for name, tensor in tensors.items()}, path, own)


def current_name(name: str, own: Container[str]) -> str:
    """A parameter's name as it is now: version 0.1 called the embeddings of missing modalities stand-ins."""
    renamed = name.replace("stand_in", "missing_embedding")
    return renamed if name not in own and renamed in own else name


def load_parts(run: RunFolder) -> tuple[ModelConfig, PreTrainedModel | None, PreTrainedTokenizerBase]:
    """Configuration, text encoder and tokenizer of a run; the encoder's weights only where they are frozen.

    Raises UserError for a folder that is no run, or not whole.
    """
    check_whole(run)
    config, encoder = run.model_config, None
    try:
        tokenizer = load_tokenizer(run.tokenizer)
        encoder_config = load_text_config(run.text_encoder) if config.reads_text else None
    except UserError as error:
        raise UserError(f"{error}; or remove the folder: {RESTORED}") from error
    if encoder_config is not None:
        encoder = new_encoder(encoder_config)
        if config.freeze_text:
            fill(encoder, read_tensors(run.frozen_encoder), run.frozen_encoder)
    return config, encoder, tokenizer


def check_whole(run: RunFolder) -> None:
    """Raise UserError where a part of a run is not there, or not as it was written."""
    lost = run.lost_parts(run.model_config) if run.exists or not run.path.is_dir() else [run.config_file]
    if lost:
        raise UserError(f"{lost[0]}: not there: check the path, or copy all of the run's folder ({RESTORED})")
    check_files(run.path)
    _check_size(run)


def _check_size(run: RunFolder) -> None:
    """Raise UserError where a model is described as larger than its weights, before memory is taken for it."""
    config, encoder = run.model_config, None
    files = [run.frozen_encoder, *map(run.weights, CHECKPOINTS)]
    held = sum(file.stat().st_size for file in files if file.is_file())
    with torch.device("meta"):  # which takes no memory
        if config.reads_text:
            encoder = new_encoder(load_text_config(run.text_encoder))
        width = DEFAULT_WIDTH if encoder is None else int(encoder.config.hidden_size)
        described = count_parameters(PairNetwork(config, encoder, width), trained=False)
    if described > max(held, SMALL):  # a parameter has a byte or more
        raise UserError(
            f"{run.path}: its configuration describes {described:,} parameters, and its weights have {held:,} bytes:"
            " restore config.json and text_encoder/"
        )


def find_run(name_or_path: str | Path, checkpoint: str) -> RunFolder:
    """A run folder on this machine, or what the Hugging Face hub has under a name. Raises UserError for neither."""
    folder = Path(name_or_path).expanduser()
    below = folder.parent != Path() and folder.parent.exists()  # a name of ours, mistyped
    if folder.exists() or below or not _HUB_NAME.fullmatch(str(folder)):
        return RunFolder(folder)
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, files = str(name_or_path), [*HUB_FILES, RunFolder(Path()).weights(checkpoint).name]
    try:
        return RunFolder(Path(huggingface_hub.snapshot_download(name, allow_patterns=files)))
    except Exception as error:  # the network, the hub, the disk: what to do is the same
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
        raise UserError(
            f"{name}: no such folder, and it could not be fetched from the Hugging Face hub ({one_line(cause)}): "
            f"check the path, or get {', '.join(files)} from https://huggingface.co/{name}/tree/main into a folder"
        ) from error


def _own_state(model: PairNetwork) -> Mapping[str, Tensor]:
    frozen = "text_encoder." if model.config.freeze_text else None
    return {name: tensor for name, tensor in model.state_dict().items() if not (frozen and name.startswith(frozen))}


def _save_frozen(encoder: PreTrainedModel, path: Path, same: Path | None) -> None:
    digest = weights_sha256(encoder.state_dict())
    if same is not None and same.is_file() and read_metadata(same).get("digest") == digest:
        if not (path.exists() and path.samefile(same)):
            link_or_copy(same, path)
    elif not (path.is_file() and read_metadata(path).get("digest") == digest and is_whole(path)):
        write_tensors(path, encoder.state_dict(), {"digest": digest})
