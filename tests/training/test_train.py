"""One training: what it leaves, that it is resumed exactly where it stopped, and what it refuses."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import warm
from tiny import Training

from frozenfusion.data.splits import Split
from frozenfusion.model.classifier import PairClassifier, build_model
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.writer import StoreWriter
from frozenfusion.text.encoder import load_text_encoder
from frozenfusion.training import run as train_module
from frozenfusion.training.checkpoint import read_state
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.run import TrainedRun, read_run
from frozenfusion.training.trainer import Trainer
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import read_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny data, features and text encoder that all tests share."""
    folder = tmp_path_factory.mktemp("train")
    tiny.make_training(folder)
    return folder


@pytest.fixture
def options(no_plots: None, folder: Path, tmp_path: Path) -> Training:
    return tiny.make_training(folder, run=tmp_path / "run")


def changed(options: Training, **changes: Any) -> Training:
    return options.but(**changes)


def train(options: Training) -> TrainedRun:
    return options.train()


def assert_same_runs(one: Path, other: Path) -> None:
    """Same parameters, optimiser state and figures, bit for bit; only the time taken may differ."""
    for path in sorted(one.glob("*.safetensors")):
        tiny.assert_same_tensors(path, other / path.name)
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    lines = [
        [{**json.loads(line), "seconds": 0} for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (one, other)
    ]
    assert lines[0] == lines[1]


def test_a_run_folder_holds_all_that_a_user_of_the_model_needs(folder: Path, tmp_path: Path) -> None:
    run = train(tiny.make_training(folder, run=tmp_path / "run", epochs=6, save_every=2))
    names = {path.name for path in run.folder.iterdir()}
    assert names >= {"config.json", "split.json", "metrics.jsonl", "tokenizer", "text_encoder", "summary.json"}
    assert names >= {"model.safetensors", "last.safetensors", "learning_rate.png", "curves.png"}
    assert {name for name in names if name.startswith("epoch-")} == {f"epoch-0{n}.safetensors" for n in (2, 4, 6)}
    assert not [name for name in names if "tmp" in name or name.endswith(".lock")]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0].keys() == {
        *("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1", "seconds")
    }
    assert Split.load(run.folder / "split.json").seed == 0
    assert read_run(RunFolder(run.folder)) == run
    assert read_json(run.folder / "config.json")["options"]["lr"] == 1e-3


def test_the_best_epoch_is_kept_beside_the_last(options: Training) -> None:
    run = train(changed(options, epochs=5, lr=3e-3, save_every=1))
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    assert run.best_epoch == best["epoch"]
    assert run.val_accuracy == best["val_accuracy"]
    for name, epoch in (("model", run.best_epoch), ("last", 5)):
        tiny.assert_same_tensors(run.folder / f"{name}.safetensors", run.folder / f"epoch-0{epoch}.safetensors")


def test_the_saved_model_predicts_as_the_trained_one_did(options: Training) -> None:
    run = train(options)
    model = PairClassifier.from_pretrained(run.folder)
    inputs = options.inputs()
    trainer = Trainer(
        model, inputs.dataset("concat"), inputs.train, inputs.val, options.config, device=torch.device("cpu")
    )
    found = trainer.validate(1)
    assert found["val_accuracy"] == run.val_accuracy
    assert found["val_loss"] == pytest.approx(run.val_loss, rel=1e-6)


def test_without_a_validation_part_the_last_epoch_is_the_best(options: Training) -> None:
    run = train(changed(options, val_fraction=0.0))
    assert (run.best_epoch, run.val_accuracy) == (3, None)
    assert Split.load(run.folder / "split.json").val == []
    tiny.assert_same_tensors(run.folder / "last.safetensors", run.folder / "model.safetensors")


def test_training_learns(options: Training) -> None:
    run = train(changed(options, epochs=15, lr=5e-3, fusion=("image",), image_dropout=0.0))
    assert read_state(RunFolder(run.folder)).history[-1]["train_accuracy"] > 0.8


@pytest.mark.parametrize("freeze", [False, True], ids=["trained text", "frozen text"])
def test_a_training_stopped_at_any_step_and_resumed_equals_one_that_was_not(
    options: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, freeze: bool
) -> None:
    options = changed(options, freeze_text=freeze, modality_dropout=0.2, save_every=2)
    whole = train(changed(options, run=tmp_path / "whole"))
    for stop in (1, 4, 7, 9):  # of 3 epochs of 4 steps
        run = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_at(patch, stop)
            train(changed(options, run=run))
        train(changed(options, run=run))
        assert_same_runs(run, whole.folder)


def interrupt_at(patch: pytest.MonkeyPatch, stop: int) -> None:
    steps = iter(range(1, stop + 1))
    step = torch.optim.Adam.step

    def interrupted(self: Any, *arguments: Any) -> Any:
        if next(steps) == stop:
            raise KeyboardInterrupt
        return step(self, *arguments)

    patch.setattr(torch.optim.Adam, "step", interrupted)


def train_until_killed(options: Training, writes: int, after: bool) -> None:
    """Train and be killed just before, or just after, so many files took their place."""
    left = iter(range(writes - 1, -1, -1))
    replace = os.replace

    def killing(*paths: Any) -> None:
        last = next(left) == 0
        if not last or after:
            replace(*paths)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = killing
    train_quietly(options)


def train_quietly(options: Training) -> None:
    train_module.plot_curves = train_module.plot_learning_rate = lambda metrics, path: None
    torch.set_num_threads(1)
    train(options)


def exit_status(work: Callable[..., Any], *arguments: Any) -> int | None:
    """Of a process that does the work."""
    process = warm.process(work, *arguments)
    process.start()
    process.join(120)
    return process.exitcode


def test_a_training_killed_at_any_write_and_resumed_equals_one_that_was_not(options: Training, tmp_path: Path) -> None:
    options = changed(options, save_every=2)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert exit_status(train_quietly, changed(options, run=whole)) == 0
    kills = 0
    for writes in range(1, 12):  # each time a little further, in one run folder
        if exit_status(train_until_killed, options, writes, writes % 2 == 0) != -signal.SIGKILL:
            break
        kills += 1
    assert kills >= 6
    assert exit_status(train_quietly, options) == 0
    assert_same_runs(run, whole)


def train_on_little_disk(options: Training) -> None:
    """Train where no file may be larger than 100 kB, which a checkpoint is."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        train_quietly(options)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)


def test_a_full_disk_keeps_the_epochs_before_and_the_same_command_goes_on(options: Training, tmp_path: Path) -> None:
    whole = train(changed(options, run=tmp_path / "whole"))
    train(changed(options, epochs=1))
    assert exit_status(train_on_little_disk, options) == 1
    assert read_state(RunFolder(options.run)).epochs == 1
    assert not list(options.run.glob(".*"))
    assert_same_runs(train(options).folder, whole.folder)


def test_more_epochs_go_on_from_a_finished_run(options: Training, tmp_path: Path) -> None:
    train(options)
    longer = train(changed(options, epochs=5))
    whole = train(changed(options, epochs=5, run=tmp_path / "whole"))
    assert longer.epochs == 5
    assert_same_runs(longer.folder, whole.folder)


def test_a_finished_run_is_left_alone(options: Training, caplog: pytest.LogCaptureFixture) -> None:
    first = train(options)
    before = {path.name: path.stat().st_mtime_ns for path in first.folder.rglob("*") if path.is_file()}
    assert train(options) == first
    assert train(changed(options, epochs=2)) == first
    assert {path.name: path.stat().st_mtime_ns for path in first.folder.rglob("*") if path.is_file()} == before


def test_a_run_that_was_killed_while_it_finished_is_finished(options: Training) -> None:
    first = train(options)
    for name in ("summary.json", "model.safetensors", "last.safetensors"):
        (first.folder / name).unlink()
    best = RunFolder(first.folder).best(first.best_epoch)
    superseded = best.with_name("best-00.safetensors")  # as a kill leaves it after the last checkpoint
    superseded.write_bytes(best.read_bytes())
    assert train(options) == first
    assert (first.folder / "model.safetensors").exists()
    assert not superseded.exists()


def test_the_seed_decides_the_outcome(options: Training, tmp_path: Path) -> None:
    runs = [train(changed(options, run=tmp_path / f"run{i}", seeds=(seed,))) for i, seed in enumerate((0, 0, 1))]
    assert_same_runs(runs[0].folder, runs[1].folder)
    assert runs[0].val_loss != runs[2].val_loss
    splits = [Split.load(run.folder / "split.json") for run in runs]
    assert splits[0] == splits[2]  # --seeds repeats on the split of --seed


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": 1e-2}, "`lr` 0.001 → 0.01"),
        ({"fusion": ("gated",)}, "`head` concat → gated"),
        ({"seeds": (7,)}, "`seed` 0 → 7"),
        ({"batch_size": 4, "schedule": "linear"}, "`batch_size` 8 → 4; `schedule` cosine-restarts → linear"),
        ({"freeze_text": True}, "`freeze_text` False → True"),
        ({"seed": 1, "seeds": (0,)}, "pairs: their texts, labels, images or split are not the same"),
    ],
)
def test_going_on_with_other_options_is_refused_and_each_is_named(
    options: Training, changes: dict[str, Any], told: str
) -> None:
    train(changed(options, epochs=1))
    with pytest.raises(UserError) as error:
        train(changed(options, **changes))
    assert told in str(error.value)
    assert "another `run`" in str(error.value)


def test_going_on_with_another_frozen_encoder_under_the_same_name_is_refused(options: Training, tmp_path: Path) -> None:
    encoder = tiny.make_text_encoder(tmp_path / "encoder")
    options = changed(options, freeze_text=True, text_encoder=str(encoder), text_weights="pretrained")
    for seed in (0, 1):
        load_text_encoder(encoder, "random", seed).save_pretrained(encoder)
        if seed == 0:
            train(changed(options, epochs=1))
    with pytest.raises(UserError, match="frozen text encoder: its weights are not the same"):
        train(options)


def test_going_on_with_other_features_is_refused(options: Training, tmp_path: Path) -> None:
    train(changed(options, epochs=1))
    store = FeatureStore(options.cache)
    other = tmp_path / "other.h5"
    with StoreWriter.create(other, store.names(), store.shape, "float32", {"backbone": "b7", "format": 1}) as writer:
        writer.write(np.arange(store.n), store.features, store.digest, store.stat)
    with pytest.raises(UserError, match="image features: backbone tiny → b7"):
        train(changed(options, cache=other))


def test_resume_always_needs_something_and_never_keeps_off_what_is_there(options: Training) -> None:
    with pytest.raises(UserError, match="no training to resume"):
        train(changed(options, resume="always"))
    train(changed(options, epochs=1, resume="never"))
    with pytest.raises(UserError, match="holds a training"):
        train(changed(options, resume="never"))
    assert train(changed(options, resume="always")).epochs == 3


def test_a_folder_with_other_files_is_not_trained_into(options: Training) -> None:
    options.run.mkdir()
    (options.run / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\): choose another `run`"):
        train(options)
    assert [path.name for path in options.run.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match=r"holds other files \(config.json\)"):  # a text encoder's folder
        train(changed(options, run=Path(options.config.text_encoder)))


def test_two_trainings_in_one_folder_are_refused(options: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(*arguments: Any) -> None:
        with pytest.raises(UserError, match="is writing it"):
            train(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "_run", second)
    with pytest.raises(KeyboardInterrupt):
        train(options)


def test_a_damaged_checkpoint_is_an_error_and_stays_as_it_is(options: Training) -> None:
    train(changed(options, epochs=1))
    path = options.run / "checkpoint.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-100], content[:50], b"", b"\x80\x04\x95pickle" * 20):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            train(options)
        assert path.read_bytes() == damaged


def test_a_checkpoint_of_another_model_names_the_difference(options: Training, tmp_path: Path) -> None:
    train(changed(options, epochs=1))
    encoder = tiny.make_text_encoder(tmp_path / "larger")
    config = read_json(encoder / "config.json")
    (encoder / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    state = read_state(RunFolder(options.run))
    state.made_from["--text-encoder"] = str(encoder)
    trainer = make_trainer(changed(options, text_encoder=str(encoder)))
    with pytest.raises(UserError, match=r"another model .*ffn.*\(64,\) there, \(128,\) here"):
        train_module.restore(RunFolder(options.run), trainer.model, trainer.optimizer)


def make_trainer(options: Training, head: str = "concat", autocast: torch.dtype | None = None) -> Trainer:
    inputs = options.inputs()
    model = build_model(inputs.model_config(head), inputs.text_encoder(0), 0)
    return Trainer(
        model,
        inputs.dataset(head),
        inputs.train,
        inputs.val,
        options.config,
        device=torch.device("cpu"),
        autocast=autocast,
    )


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_epoch(
    options: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = PairClassifier.loss
    calls = iter(range(1000))

    def turning(self: Any, *arguments: Any) -> Any:  # of 4 steps and 1 validation an epoch
        return loss(self, *arguments) * (float("nan") if next(calls) >= 7 else 1.0)

    monkeypatch.setattr(PairClassifier, "loss", turning)
    with pytest.raises(UserError, match=r"epoch 2, step 3 of 4: the loss is nan: .*lower `lr` than 0.001"):
        train(options)
    assert read_state(RunFolder(options.run)).epochs == 1
    assert not (options.run / "summary.json").exists()


def test_cached_features_that_are_not_finite_are_named(options: Training, tmp_path: Path) -> None:
    cache = tmp_path / "broken.h5"
    store = FeatureStore(options.cache)
    features = store.features.copy()
    features[:] = np.inf
    with StoreWriter.create(cache, store.names(), store.shape, "float32", {}) as writer:
        writer.write(np.arange(store.n), features, store.digest, store.stat)
    with pytest.raises(UserError, match=r"the rows of p\d+, .* are damaged or not finite"):
        train(changed(options, cache=cache))


def test_a_missing_cache_or_unknown_head_leaves_no_run_folder(options: Training, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.h5: no such feature file"):
        train(changed(options, cache=tmp_path / "nowhere.h5"))
    with pytest.raises(UserError, match="no such fusion head"):
        train(changed(options, fusion=("concatt",)))
    with pytest.raises(UserError, match="`pool=none`"):
        train(changed(options, fusion=("cross-attention",)))
    assert not options.run.exists()


def test_padding_does_not_change_the_loss(options: Training) -> None:
    trainer = make_trainer(options)
    dataset = options.inputs().dataset("concat")
    trainer.model.eval()
    for rows in (np.arange(8), np.arange(8, 20), np.array([2])):
        batch = dataset.batch(rows)
        padded = dataset.texts.batch(rows, pad_to_multiple=128)
        assert padded["input_ids"].shape[1] == 128 > batch.text["input_ids"].shape[1]
        with torch.inference_mode():
            short = trainer.model.outputs(batch.text, batch.image, batch.present)
            long = trainer.model.outputs(padded, batch.image, batch.present)
            losses = [trainer.model.loss(output, batch.labels) for output in (short, long)]
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)


def test_a_frozen_text_encoder_keeps_its_weights_and_is_not_run_while_training(
    options: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = changed(options, freeze_text=True)
    train(changed(options, epochs=1))
    monkeypatch.setattr(PairClassifier, "encode_text", None)
    run = train(options)
    model = PairClassifier.from_pretrained(run.folder)
    fresh = options.inputs().text_encoder(0)
    saved = model.text_encoder.state_dict()
    assert all(saved[name].equal(tensor) for name, tensor in fresh.state_dict().items())


def test_class_weights_are_inverse_frequencies(options: Training) -> None:
    trainer = make_trainer(changed(options, class_weights=True))
    inputs = options.inputs()
    counts = np.bincount(inputs.dataset("concat").labels[inputs.train].numpy(), minlength=3)
    assert trainer.class_weights.numpy() == pytest.approx(counts.sum() / (3 * counts))


def test_a_class_that_no_training_pair_has_is_told(
    options: Training, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module.log, "propagate", True)
    lines = options.data.read_text().replace("neutral", "positive").splitlines()
    data = tmp_path / "pairs.csv"
    data.write_text("\n".join([*(f"{line},train" for line in lines[1:-1]), f"{lines[-1]},test"]))
    data.write_text(f"{lines[0]},split\n{data.read_text().replace('negative,test', 'neutral,test')}\n")
    train(changed(options, data=data, epochs=1))
    assert "no training pair is neutral" in caplog.text


def test_the_recipe_of_the_reference_is_the_default() -> None:
    options = TrainConfig()
    assert (options.lr, options.weight_decay, options.batch_size, options.epochs) == (1e-4, 1e-6, 8, 11)
    assert (options.schedule, options.image_dropout, options.max_length, options.save_every) == (
        *("cosine-restarts", 0.5, 128, 5),
    )


@pytest.mark.parametrize(("autocast", "attention"), [(None, "sdpa"), (torch.bfloat16, "eager")])
def test_attention_is_fused_but_in_bf16_on_a_cpu(
    options: Training, autocast: torch.dtype | None, attention: str
) -> None:
    encoder = make_trainer(options, autocast=autocast).model.text_encoder
    assert encoder is not None
    assert encoder.config._attn_implementation == attention


def test_a_training_in_bf16_goes_through(options: Training) -> None:
    run = train(changed(options, precision="bf16"))
    assert run.epochs == 3
    assert run.val_loss is not None
