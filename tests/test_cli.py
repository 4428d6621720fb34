"""Flags, configuration files, exit statuses: what the three scripts share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from frozenfusion import cli
from frozenfusion.errors import UserError
from frozenfusion.options import EvaluateOptions, ExtractOptions, TrainOptions

SCRIPTS = ("extract_features.py", "train_head.py", "evaluate.py")


def exit_status(kind, arguments, main=lambda options: None):
    return cli.run(kind, main, arguments)


def test_the_defaults_are_the_reference_recipe():
    options = cli.parse(TrainOptions, ["data"])
    assert (options.lr, options.weight_decay, options.batch_size, options.epochs) == (1e-4, 1e-6, 8, 11)
    assert (options.text_encoder, options.max_length, options.fusion) == ("albert-base-v2", 128, ("concat",))
    options = cli.parse(ExtractOptions, ["data"])
    assert (options.backbone, options.image_size, options.pool) == ("efficientnet-b7", 224, "avg")


def test_flags_take_several_values():
    options = cli.parse(TrainOptions, ["data", "--fusion", "concat", "gated", "--seeds", "0", "1", "2"])
    assert options.fusion == ("concat", "gated")
    assert options.seeds == (0, 1, 2)


def test_the_last_path_of_an_evaluation_is_the_data():
    options = cli.parse(EvaluateOptions, ["runs/a", "runs/b", "data"])
    assert options.runs == (Path("runs/a"), Path("runs/b"))
    assert options.data == Path("data")


def test_a_configuration_file_gives_options_and_flags_win(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("data: posts\nbatch-size: 16\nfreeze_text: true\nseeds: [3, 4]\nalpha: learned\nrun: null\n")
    options = cli.parse(TrainOptions, ["--config", str(file), "--batch-size", "4"])
    assert (options.data, options.batch_size, options.freeze_text) == (Path("posts"), 4, True)
    assert (options.seeds, options.alpha, options.run) == ((3, 4), "learned", None)
    assert cli.parse(TrainOptions, [f"--config={file}", "others"]).data == Path("others")


def test_a_configuration_without_data_leaves_data_required(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("epochs: 2\n")
    assert cli.parse(TrainOptions, ["posts", "--config", str(file)]).epochs == 2
    assert exit_status(TrainOptions, ["--config", str(file)]) == 2


def test_the_configuration_saved_with_a_run_is_one(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"format": 1, "options": {"data": "posts", "lr": 0.01}, "model": {}}')
    assert cli.parse(TrainOptions, ["--config", str(file)]).lr == 0.01


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("epoch: 3\n", "unknown option 'epoch'"),
        ("epochs: three\n", "three"),
        ("- epochs\n", "option: value"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['touch hacked']", "not valid YAML"),
    ],
)
def test_a_wrong_configuration_is_named_with_its_file(tmp_path, capsys, content, said):
    file = tmp_path / "options.yaml"
    file.write_text(content)
    assert exit_status(TrainOptions, ["data", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: ")
    assert said in error


def test_a_missing_configuration_is_an_error(tmp_path, capsys):
    assert exit_status(TrainOptions, ["data", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (TrainOptions, ["data", "--epochs", "0"], "--epochs must be at least 1, not 0"),
        (TrainOptions, ["data", "--val-fraction", "1"], "--val-fraction must be below 1"),
        (TrainOptions, ["data", "--lr", "nan"], "--lr must be at least 0, not nan"),
        (TrainOptions, ["data", "--lr", "fast"], "--lr"),
        (TrainOptions, ["data", "--alpha", "2"], "--alpha must be at most 1"),
        (TrainOptions, ["data", "--seeds", "1", "1"], "names a seed twice"),
        (TrainOptions, ["data", "--epoch", "1"], "--epoch"),
        (TrainOptions, [], "folder or manifest"),
        (ExtractOptions, ["data", "--image-size", "8"], "--image-size must be at least 32"),
        (ExtractOptions, ["data", "--batch-size", "0"], "--batch-size must be at least 1"),
        (ExtractOptions, ["data", "--rebuild", "--resume", "never"], "--resume never"),
        (ExtractOptions, ["data", "--max-pixels", "300000000"], "--max-pixels must be at most 178956970"),
        (ExtractOptions, ["cache.h5", "--info", "--verify"], "give one of the two"),
        (EvaluateOptions, ["data"], "run folders and then the data"),
        (EvaluateOptions, ["run", "data", "--split", "half"], "--split"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(capsys, kind, arguments, said):
    assert exit_status(kind, arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_an_expected_failure_is_one_line_and_status_1(capsys):
    def fail(options):
        raise UserError("cache/x.h5: not\nthere: run extract_features.py")

    assert exit_status(TrainOptions, ["data"], fail) == 1
    assert capsys.readouterr().err == "error: cache/x.h5: not there: run extract_features.py\n"


def test_debug_shows_the_traceback(capsys):
    def fail(options):
        raise UserError("no")

    assert exit_status(TrainOptions, ["data", "--debug"], fail) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_is_status_130(capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    assert exit_status(TrainOptions, ["data"], interrupted) == 130
    assert "kept" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_wrong_usage_do_not_import_torch(script):
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: print('status', stop.code)\n"
        "assert not {'torch', 'transformers', 'h5py'} & set(sys.modules)\n"
    )
    for arguments, status in ((["--help"], "0"), (["data", "--nonsense"], "2")):
        done = subprocess.run(
            [sys.executable, "-c", code, script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert f"status {status}" in done.stdout


def test_the_library_imports_without_torch():
    code = "import frozenfusion, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
