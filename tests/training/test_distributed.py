"""Training by several processes: close to one process, equal to itself, and it ends as one."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from several import Launch

import frozenfusion as ff
from frozenfusion.cli import evaluate as evaluate_command
from frozenfusion.cli import train as train_command
from frozenfusion.model.classifier import build_model
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.training.checkpoint import read_state
from frozenfusion.training.trainer import Trainer
from frozenfusion.utils import distributed, launched
from frozenfusion.utils.device import choose_device
from frozenfusion.utils.progress import Progress

# Batches of 4 of 30 pairs: the last has 2, fewer than three processes. What is drawn per process is left out.
CLOSE = {"batch_size": 4, "image_dropout": 0.0, "modality_dropout": 0.4, "lr": 1e-3}
VARIANTS: dict[str, dict[str, Any]] = {
    "hybrid": {"fusion": ("hybrid",), "class_weights": True, "clip": 0.5},
    "linear": {"fusion": ("linear",), "class_weights": True, "focal": 1.0, "alpha": "learned"},
    "concat": {"fusion": ("concat",), "accumulate": 3, "label_smoothing": 0.1},
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tiny.Training:
    return tiny.make_training(tmp_path_factory.mktemp("world"), epochs=2)


def trained(options: tiny.Training) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Figures and parameters after two epochs of each variant, pairs weighing differently in the last."""
    torch.set_num_threads(1)
    found = {}
    with distributed.joined():
        for name, changes in VARIANTS.items():
            inputs = options.but(**CLOSE, **changes).inputs()
            (head,) = inputs.heads
            encoder = inputs.text_encoder(0)
            for module in encoder.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            encoder.config.attention_probs_dropout_prob = 0.0
            model = build_model(inputs.model_config(head), encoder, 0, inputs.tokenizer)
            weights = np.where(np.arange(len(inputs.ids)) % 3 == 0, 0.3, 1).astype(np.float32)
            trainer = Trainer(
                *(model, inputs.dataset(head), inputs.train, inputs.val, inputs.config),
                device=inputs.device,
                weights=weights if name == "concat" else None,
            )
            with Progress(1, "pairs") as told:
                lines = [trainer.epoch(number, told) for number in (1, 2)]
            found[name] = lines, {name: value.numpy().copy() for name, value in model.state_dict().items()}
    return found


def test_several_processes_train_as_one_does(options: tiny.Training, tmp_path: Path) -> None:
    launches = [Launch(count, tmp_path / str(count), trained, options) for count in (2, 3)]
    alone = trained(options)
    for launch in launches:
        first, *others = launch.results()
        for name, (lines, parameters) in alone.items():
            own_lines, own = first[name]
            for line, expected in zip(own_lines, lines, strict=True):
                assert line | {"seconds": 0} == pytest.approx(expected | {"seconds": 0}, abs=1e-5), name
            assert all(np.allclose(own[key], parameters[key], rtol=0, atol=2e-5) for key in parameters), name
            for _, other in (found[name] for found in others):
                assert all(np.array_equal(own[key], other[key]) for key in own), name


def command(options: tiny.Training, *more: str) -> None:
    """train_head.py in a process of a launch."""
    sys.exit(train_command.main([*options.flags(), *more], "train_head.py"))


def wait_for(path: Path) -> None:
    last = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < last, f"no {path}"
        time.sleep(0.02)


def test_a_lost_process_ends_all_and_what_is_resumed_equals_what_nobody_stopped(
    options: tiny.Training, tmp_path: Path, no_plots: None, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = options.but(run=tmp_path / "run", epochs=100_000)
    launch = Launch(2, tmp_path / "killed", command, endless)
    wait_for(endless.run / "checkpoint.safetensors")
    launch.processes[1].kill()
    statuses, (first, second) = launch.end(), launch.said()
    assert 0 not in statuses
    assert first.count("error: ") + first.count("terminated: ") == 1
    assert "the same command resumes" in first
    assert "Traceback" not in first + second
    assert not second
    state = read_state(RunFolder(endless.run))
    assert state is not None
    assert state.made_from["processes"] == 2

    resumed = endless.but(epochs=state.epochs + 2)
    launches = [
        Launch(2, tmp_path / "out" / name, command, resumed.but(run=tmp_path / name)) for name in ("run", "whole")
    ]
    assert [launch.end() for launch in launches] == [[0, 0], [0, 0]], [launch.said() for launch in launches]
    assert f"resumed after epoch {state.epochs}" in launches[0].said()[0]
    assert launches[0].said()[1] == ""
    for name in ("model", "last", "checkpoint"):
        tiny.assert_same_tensors(*(tmp_path / run / f"{name}.safetensors" for run in ("run", "whole")))
    histories = [RunFolder(tmp_path / run).history for run in ("run", "whole")]
    for line, other in zip(*histories, strict=True):
        assert {**line, "seconds": 0} == {**other, "seconds": 0}

    alone = resumed.but(epochs=state.epochs + 3)
    assert train_command.main(alone.flags()) == 0
    assert "trained by another number of processes before (2, now 1)" in capsys.readouterr().err
    state = read_state(RunFolder(endless.run))
    assert state is not None
    assert state.made_from["processes"] == 1


UNLUCKY_HEAD = """
    import os
    import torch
    import frozenfusion as ff

    @ff.register_head("unlucky")
    class Unlucky(ff.FeatureHead):
        def __init__(self, *, width: int, text_width: int, classes: int) -> None:
            super().__init__(width)
            self.classifier = torch.nn.Linear(width, classes)

        def forward(self, inputs: ff.HeadInputs, *, attention: bool = False) -> ff.HeadOutput:
            if os.environ["RANK"] == "1":
                raise {error}
            return ff.HeadOutput(self.classifier(sum(self.fill(inputs))))
"""


@pytest.mark.parametrize("error", ["ff.UserError('no luck')", "ArithmeticError('no luck')"])
def test_the_first_process_tells_what_went_wrong_in_another(options: tiny.Training, tmp_path: Path, error: str) -> None:
    plugin = tmp_path / "unlucky.py"
    plugin.write_text(textwrap.dedent(UNLUCKY_HEAD.format(error=error)))
    unlucky = options.but(run=tmp_path / "run", fusion=("unlucky",))
    launch = Launch(2, tmp_path / "out", command, unlucky, "--import", str(plugin))
    assert 0 not in launch.end()
    first, second = launch.said()
    assert first.rstrip().endswith("no luck (process 1)")
    assert first.count("Traceback") == (0 if "UserError" in error else 1)
    assert second == ""


def test_a_mistake_of_all_is_told_once(options: tiny.Training, tmp_path: Path) -> None:
    launch = Launch(2, tmp_path / "out", command, options.but(run=tmp_path / "run"), "--jobs", "2", "--seeds", "1", "2")
    statuses, (first, second) = launch.end(), launch.said()
    assert statuses[0] in (2, -signal.SIGTERM)  # which comes when all is said
    assert "error: --jobs 2: under torchrun each run takes all processes" in first
    assert second == ""


def many(options: tiny.Training, folder: Path) -> list[Any]:
    """A sweep, a tuning of which one trial fails, and a study of joint learning."""
    pairs = tiny.load_pairs(options.data)
    frozen = options.but(freeze_text=True, text_cache=str(folder / "texts")).config
    with distributed.joined():
        runs = ff.sweep(pairs, options.cache, ["concat", "text"], seeds=(1, 2), config=frozen, folder=folder / "sweep")
        grid = {"lr": [1e-3, 1e30]}
        tuned = ff.tune(pairs, options.cache, ["concat"], grid=grid, config=frozen, folder=folder / "tuned")
        joint = {"joint": ff.JointConfig(joint="self", rounds=2), "fractions": [0.5]}
        taught = ff.study_labels(pairs, options.cache, config=frozen, folder=folder / "taught", **joint)
        again = ff.sweep(pairs, options.cache, ["text"], seeds=(1, 2), config=frozen, folder=folder / "sweep")
    return [*runs, *tuned, *taught, *again]


def test_sweeps_tuning_and_joint_learning_train_each_run_with_all_processes(
    options: tiny.Training, tmp_path: Path
) -> None:
    first, second = Launch(2, tmp_path / "out", many, options, tmp_path).results()
    assert first == second
    assert [run.epochs for run in first] == [2] * 9
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        assert [line["fusion"] for line in csv.DictReader(file)] == ["text", "text"]
    with (tmp_path / "tuned" / "tuning.csv").open(newline="") as file:
        assert [line["val_loss"] == "" for line in csv.DictReader(file)] == [False, True]
    for run in first:
        state = read_state(RunFolder(run.folder))
        assert state is not None
        assert state.made_from["processes"] == 2
    assert not list(tmp_path.rglob("*.lock"))
    assert len(list((tmp_path / "texts").glob("*.h5"))) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_torchrun_and_ctrl_c(options: tiny.Training, tmp_path: Path) -> None:
    endless = options.but(run=tmp_path / "run", epochs=100_000)
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr",
        "127.0.0.1",
        "--nproc-per-node",
        "2",
        "--",
        str(ROOT / "train_head.py"),
    ]
    with subprocess.Popen([sys.executable, *words, *endless.flags()], stderr=subprocess.PIPE, text=True) as launcher:
        wait_for(endless.run / "checkpoint.safetensors")
        launcher.send_signal(signal.SIGINT)
        _, said = launcher.communicate(timeout=60)
    assert said.count("interrupted: finished work is kept, the same command resumes it") == 1
    state = read_state(RunFolder(endless.run))
    assert state is not None
    assert state.made_from["processes"] == 2
    assert not list(tmp_path.rglob("*.lock"))


def test_a_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    assert launched.world_size() == 1  # of whom it is not told where to meet
    monkeypatch.setenv("MASTER_PORT", "1")
    assert (launched.rank(), launched.local_rank(), launched.world_size()) == (1, 1, 2)
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ff.UsageError, match=r"`device=cuda:0`: each process of torchrun has a GPU of its own"):
        choose_device("cuda:0")


def evaluation(arguments: list[str]) -> None:
    """evaluate.py in a process of a launch."""
    sys.exit(evaluate_command.main(arguments, "evaluate.py"))


@pytest.mark.parametrize(("head", "frozen", "batch"), [("hybrid", False, 4), ("concat", True, 512)])
def test_an_evaluation_by_several_processes_is_that_of_one(
    options: tiny.Training, tmp_path: Path, no_plots: None, head: str, frozen: bool, batch: int
) -> None:
    run = options.but(run=tmp_path / "run", fusion=(head,), epochs=1, freeze_text=frozen)
    run.train()
    words = [str(run.run), str(run.data), "--cache", str(run.cache), "--batch-size", str(batch), "--calibrate"]
    launch = Launch(3, tmp_path / "said", evaluation, [*words, "--out", str(tmp_path / "several")])
    assert evaluate_command.main([*words, "--out", str(tmp_path / "one")], "evaluate.py") == 0
    assert launch.end() == [0, 0, 0], launch.said()
    first, *others = launch.said()
    assert f"results in {tmp_path / 'several'}" in first
    assert others == ["", ""]
    for name in ("predictions.csv", "metrics.json"):
        assert (tmp_path / "several" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
