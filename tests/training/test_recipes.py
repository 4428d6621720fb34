"""What goes beyond the reference's training: every option does what it says, and none loses a resumed training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tiny import Training

from frozenfusion.cli.parsing import parse
from frozenfusion.cli.train import TrainOptions
from frozenfusion.fusion.base import HeadInputs, cross_entropy
from frozenfusion.fusion.registry import build_head, head_class
from frozenfusion.model.classifier import PairClassifier, build_model
from frozenfusion.model.config import ModelConfig
from frozenfusion.model.images import AttentionPool, Standardise
from frozenfusion.model.recipe import LATER
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.training import config as config_module
from frozenfusion.training.checkpoint import State
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.optimizer import rates
from frozenfusion.training.options import meaningless
from frozenfusion.training.plots import plot_learning_rate
from frozenfusion.training.schedule import warmed_up
from frozenfusion.training.trainer import Trainer
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.utils.progress import Progress

EVERYTHING = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "text_lr": 1e-4,
    "head_lr": 3e-3,
    "warmup": 1.5,
    "clip": 0.5,
    "accumulate": 3,  # of the four batches of an epoch: one step of three, one of a single batch
    "label_smoothing": 0.1,
    "standardise_images": True,
    "class_weights": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    tiny.make_training(folder)
    tiny.make_store(folder / "regions.h5", regions=3)
    return folder


@pytest.fixture
def options(no_plots: None, folder: Path, tmp_path: Path) -> Training:
    return tiny.make_training(folder, run=tmp_path / "run")


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in (run / "metrics.jsonl").read_text().splitlines()]


def make_trainer(options: Training, head: str = "concat") -> Trainer:
    inputs = options.inputs()
    model = build_model(inputs.model_config(head), inputs.text_encoder(0), 0)
    device = torch.device("cpu")
    return Trainer(model, inputs.dataset(head), inputs.train, inputs.val, options.config, device=device)


def trained_epoch(options: Training) -> dict[str, torch.Tensor]:
    trainer = make_trainer(options)
    with Progress(1, "pairs") as progress:
        trainer.epoch(1, progress)
    return trainer.model.state_dict()


def test_a_training_with_everything_is_resumed_to_what_it_would_have_become(
    options: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options.but(fusion=("hybrid",), **EVERYTHING)
    whole = options.but(run=tmp_path / "whole").train()
    steps = iter(range(4))  # of three epochs of two
    step = torch.optim.AdamW.step

    def interrupted(self: Any, *arguments: Any) -> Any:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        options.train()
    resumed = options.train()
    for name in ("checkpoint", "last", "model"):
        tiny.assert_same_tensors(resumed.folder / f"{name}.safetensors", whole.folder / f"{name}.safetensors")
    assert lines_of(resumed.folder) == lines_of(whole.folder)


def test_rates_warm_up_step_by_step_and_each_group_has_its_own(options: Training, tmp_path: Path) -> None:
    assert [warmed_up(epochs, 2.0) for epochs in (0.25, 1.0, 2.0, 5.0)] == [0.125, 0.5, 1.0, 1.0]
    assert warmed_up(0.01, 0.0) == 1.0
    options = options.but(text_lr=1e-4, head_lr=1e-2, warmup=2.0, schedule="constant")
    trainer = make_trainer(options)
    seen: list[tuple[float, ...]] = []
    trainer.optimizer.register_step_pre_hook(lambda of, *_: seen.append(tuple(g["lr"] for g in of.param_groups)))
    with Progress(1, "pairs") as progress:
        lines = [trainer.epoch(number, progress) for number in (1, 2, 3)]
    heights = [min(1.0, (step + 1) / 8) for step in range(12)]  # four steps an epoch
    assert [max(lrs) for lrs in seen] == pytest.approx([1e-2 * height for height in heights])
    assert [min(lrs) for lrs in seen] == pytest.approx([1e-4 * height for height in heights])
    assert [line["lr"] for line in lines] == pytest.approx([0.5e-2, 1e-2, 1e-2])
    assert [line["text_lr"] for line in lines] == pytest.approx([0.5e-4, 1e-4, 1e-4])
    plot_learning_rate(lines, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 1000
    config = options.but(freeze_text=True, text_lr=None).config
    assert rates(make_trainer(options.but(freeze_text=True, text_lr=None)).model, config, 2).keys() == {"lr"}


def test_adamw_decays_matrices_apart_from_the_gradient_and_spares_the_rest(options: Training) -> None:
    trainer = make_trainer(options.but(optimizer="adamw", weight_decay=0.1))
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decayed = {
        names[id(parameter)]: group["weight_decay"] > 0
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert decayed.keys() == set(names.values())
    spared = {name for name, decays in decayed.items() if not decays}
    assert {"head.classifier.bias", "head.image_missing_embedding", "text_encoder.embeddings.LayerNorm.weight"} < spared
    assert {"head.classifier.weight", "image_projection.1.weight"} < decayed.keys() - spared
    (group,) = make_trainer(options).optimizer.param_groups  # the reference's: one, and all of it decays
    assert group["weight_decay"] == 1e-6


def test_accumulated_batches_learn_as_one_batch_of_their_pairs(options: Training) -> None:
    """Pairs of all batches of the epoch in one step: whatever cuts them, the gradient is their mean."""
    still = {"image_dropout": 0.0, "freeze_text": True, "epochs": 1}
    one = trained_epoch(options.but(batch_size=1000, **still))
    for size in (5, 8):  # the last batch is smaller
        several = trained_epoch(options.but(batch_size=size, accumulate=1000, **still))
        for name, tensor in one.items():
            torch.testing.assert_close(several[name], tensor, atol=2e-6, rtol=1e-4)


def test_the_gradient_is_clipped_to_a_norm(options: Training) -> None:
    trainer = make_trainer(options.but(clip=1e-3))
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda of, *_: norms.append(
            torch.stack([p.grad.norm() for g in of.param_groups for p in g["params"] if p.grad is not None]).norm()
        )
    )
    with Progress(1, "pairs") as progress:
        trainer.epoch(1, progress)
    assert torch.stack(norms).numpy() == pytest.approx(np.full(4, 1e-3), rel=1e-3)


def test_smoothing_and_focal_are_their_formulas_and_weigh_classes() -> None:
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [9.0, 9.0, 9.0]]), torch.tensor([0, 1, -1])
    weight = torch.tensor([1.0, 3.0, 2.0])
    expected = torch.nn.functional.cross_entropy(logits[:2], labels[:2], weight, label_smoothing=0.2)
    torch.testing.assert_close(cross_entropy(logits, labels, weight, smoothing=0.2), expected)
    p = logits.softmax(1)[[0, 1], [0, 1]]
    each = -((1 - p) ** 2) * p.log()
    torch.testing.assert_close(cross_entropy(logits, labels, None, focal=2.0), each.mean())
    torch.testing.assert_close(
        cross_entropy(logits, labels, weight, focal=2.0), (each * weight[:2]).sum() / weight[:2].sum()
    )
    sure = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    cross_entropy(sure, torch.tensor([0]), None, focal=0.5).backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize("name", ["concat", "max", "hybrid"])
@pytest.mark.parametrize("change", [{"label_smoothing": 0.3}, {"focal": 2.0}])
def test_what_changes_the_loss_changes_it_while_training_alone(
    options: Training, name: str, change: dict[str, float]
) -> None:
    if name == "hybrid":
        plain, other = make_trainer(options, name), make_trainer(options.but(**change), name)
        assert plain.validate(1) == other.validate(1)
    head = build_head(head_class(name), width=4, text_width=4, classes=3)
    torch.manual_seed(0)
    present = torch.ones(5, dtype=torch.bool)
    output = head(HeadInputs(torch.randn(5, 4), torch.randn(5, 4), present, present))
    labels = torch.arange(5) % 3
    usual = head.loss(output, labels)
    for key, value in change.items():
        setattr(head, key, value)
    assert head.loss(output, labels) != usual
    assert head.eval().loss(output, labels) == usual


def test_patience_stops_early_and_more_of_it_goes_on(options: Training, tmp_path: Path) -> None:
    history = [{"epoch": n, "val_accuracy": a, "val_loss": 1.0} for n, a in enumerate([0.4, 0.6, 0.5, 0.5], 1)]
    patient = TrainConfig(epochs=9, patience=2)
    assert [State({}, history[:n]).ended(patient) for n in range(5)] == [False] * 4 + [True]
    assert not State({}, history).ended(TrainConfig(epochs=9))
    still = options.but(lr=0.0, epochs=6, fusion=("image",))  # nothing is learned: the first epoch stays the best
    stopped = still.but(patience=2).train()
    assert (stopped.epochs, stopped.best_epoch) == (3, 1)
    before = (stopped.folder / "checkpoint.safetensors").stat().st_mtime_ns
    assert still.but(patience=2).train() == stopped
    assert (stopped.folder / "checkpoint.safetensors").stat().st_mtime_ns == before
    longer = still.but(patience=4).train()
    whole = still.but(patience=4, run=tmp_path / "whole").train()
    assert longer.epochs == whole.epochs == 5
    tiny.assert_same_tensors(longer.folder / "checkpoint.safetensors", whole.folder / "checkpoint.safetensors")
    with pytest.raises(UsageError, match="`patience` needs a validation part"):
        options.but(patience=2, val_fraction=0.0).train()


def test_a_sweep_that_stopped_early_is_left_alone(options: Training, tmp_path: Path) -> None:
    options = options.but(lr=0.0, epochs=4, patience=1, fusion=("image",), seeds=(0, 1))
    first = options.sweep()
    assert [run.epochs for run in first] == [2, 2]
    before = (options.run / "sweep.csv").stat().st_mtime_ns
    assert options.sweep() == first
    assert (options.run / "sweep.csv").stat().st_mtime_ns == before


def test_images_are_standardised_by_the_train_part_and_so_is_what_is_predicted(options: Training) -> None:
    run = options.but(standardise_images=True, fusion=("image",), epochs=1).train()
    model = PairClassifier.from_pretrained(run.folder)
    inputs = options.inputs()
    rows = inputs.train[inputs.dataset("concat").images.present[inputs.train]]
    assert 0 < len(rows) < len(inputs.ids)
    features = inputs.dataset("concat").images[rows]
    torch.testing.assert_close(model.standardise.mean, features.mean(dim=0))
    torch.testing.assert_close(model.standardise.std, features.std(dim=0, correction=0))
    image = torch.randn(2, tiny.WIDTH)
    present = torch.tensor([[False, True], [False, False]])
    logits = model(None, image, present)
    by_hand = model.image_projection((image - model.standardise.mean) / model.standardise.std)
    torch.testing.assert_close(logits[0], model.head.classifier(by_hand[0]))
    torch.testing.assert_close(logits[1], model.head.classifier(model.head.missing_embedding))


def test_a_constant_number_is_not_blown_up(folder: Path) -> None:
    standardise = Standardise(2)
    standardise.measure([torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 2.0]])])
    assert standardise(torch.tensor([3.0, 0.0])).tolist() == [0.0, -1.0]
    untouched = Standardise(2)
    untouched.measure([])  # no image is there
    assert untouched(torch.tensor([3.0, 4.0])).tolist() == [3.0, 4.0]


@pytest.mark.parametrize("pool", ["flatten", "attention"])
def test_regions_become_a_vector_that_is_trained_saved_and_resumed(
    options: Training, folder: Path, tmp_path: Path, pool: str
) -> None:
    options = options.but(
        cache=folder / "regions.h5", region_pool=pool, standardise_images=True, epochs=2, fusion=("image",)
    )
    whole = options.but(run=tmp_path / "whole").train()
    options.but(epochs=1).train()
    resumed = options.train()
    tiny.assert_same_tensors(resumed.folder / "checkpoint.safetensors", whole.folder / "checkpoint.safetensors")
    model, inputs = PairClassifier.from_pretrained(resumed.folder), options.inputs()
    assert model.config.region_pool == pool
    images = inputs.dataset("image").images[inputs.val]
    assert images.dim() == 3
    assert options.but(region_pool="mean").inputs().dataset("image").images[inputs.val].dim() == 2
    if pool == "attention":  # it has learned to weigh them
        assert not torch.allclose(model.region_pool(images), images.mean(dim=1))
    with pytest.raises(UserError, match="`region_pool`"):
        options.but(region_pool="mean").train()


def test_regions_are_pooled_as_is_said() -> None:
    regions = torch.randn(2, 3, 4)
    pool = AttentionPool(4)
    torch.testing.assert_close(pool(regions), regions.mean(dim=1))  # before it learns
    torch.nn.init.normal_(pool.score.weight)
    weights = torch.softmax((pool.hidden(regions).tanh() @ pool.score.weight[0]), dim=1)
    torch.testing.assert_close(pool(regions), torch.einsum("br,brd->bd", weights, regions))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"region_pool": "flatten"}, "needs image regions"),
        ({"fusion": ("text",), "standardise_images": True}, "`standardise_images` means nothing to text"),
        ({"fusion": ("transformer",), "region_pool": "attention"}, "`region_pool` means nothing to transformer"),
        ({"fusion": ("image",), "text_lr": 1e-5}, "`text_lr` means nothing to image"),
    ],
)
def test_what_means_nothing_is_refused(options: Training, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        options.but(**changes).train()
    assert not options.run.exists()


def test_a_flattened_image_has_a_limit() -> None:
    config = ModelConfig("concat", tiny.LABELS, image_regions=49, image_width=2560, region_pool="flatten")
    with pytest.raises(UserError, match="361 x 2560 = 924,160 numbers, and the widest is 131,072"):
        replace(config, image_regions=361)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: -1} for name in ("warmup", "clip", "focal", "patience", "text_lr", "head_lr", "label_smoothing")),
        *({"accumulate": 0}, {"label_smoothing": 1.0}, {"optimizer": "sgd"}, {"region_pool": "max"}),
        *({"text_lr": 1e-5, "freeze_text": True}, {"focal": 2.0, "label_smoothing": 0.1}, {"warmup": "long"}),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(**changes)
    assert f"`{next(iter(changes))}" in str(error.value)


def test_runs_from_before_the_options_are_the_recipe_of_the_defaults(options: Training) -> None:
    assert {name: getattr(TrainConfig(), name) for name in LATER} == LATER
    run = options.but(epochs=1).train()
    recipe = RunFolder(run.folder).recipe
    path = run.folder / "config.json"
    told = json.loads(path.read_text())
    told["options"] = {name: value for name, value in told["options"].items() if name not in LATER}
    path.write_text(json.dumps(told))
    assert RunFolder(run.folder).recipe == recipe
    other = options.but(epochs=1, clip=1.0, run=options.run.with_name("other")).train()
    assert RunFolder(other.folder).recipe != recipe


def test_a_recipe_lies_below_what_is_given_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        config_module, "RECIPES", {"reference": {}, "tuned": {"clip": 1.0, "head_lr": 1e-3, "standardise_images": True}}
    )

    def told(*words: str) -> tuple[Any, ...]:
        found = parse(TrainOptions, ["data", *words])
        return found.clip, found.head_lr, found.standardise_images, found.epochs

    path = tmp_path / "options.yaml"
    path.write_text("head-lr: 0.5\nepochs: 3\nclip: 2\n")
    assert told("--recipe=tuned", "--clip", "0", "--head-lr", "2e-3") == (0.0, 2e-3, True, 11)
    assert told("--config", str(path), "--recipe", "tuned") == (1.0, 1e-3, True, 3)  # flags win over a file
    path.write_text("recipe: tuned\nclip: 2\n")
    assert told("--config", str(path)) == (2.0, 1e-3, True, 11)
    assert told("--config", str(path), "--recipe", "reference", "--clip", "3") == (3.0, None, False, 11)
    assert TrainConfig.from_recipe("tuned", clip=2.0) == TrainConfig(clip=2.0, head_lr=1e-3, standardise_images=True)
    with pytest.raises(UsageError, match="must be one of reference, tuned, not 'best'"):
        told("--recipe", "best")


@pytest.mark.parametrize("name", ["text", "image", "concat", "hybrid", "transformer", "cross-attention"])
def test_the_tuned_recipe_goes_with_every_head_and_with_frozen_text(name: str) -> None:
    config = TrainConfig.from_recipe("tuned", freeze_text=name != "image")
    usual = {each: getattr(TrainConfig(), each) for each in config_module.recipe("tuned")}
    assert config_module.recipe("tuned") != usual
    assert all(getattr(config, each) == usual[each] for each in usual.keys() & meaningless(head_class(name)))
