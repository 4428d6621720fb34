"""Flags, configuration files, exit statuses: what the three scripts share."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_python

from frozenfusion.cli import parsing as cli
from frozenfusion.cli.evaluate import EvaluateOptions
from frozenfusion.cli.extract import ExtractOptions
from frozenfusion.cli.main import main
from frozenfusion.cli.sample import SampleOptions
from frozenfusion.cli.train import TrainOptions
from frozenfusion.cli.wording import worded
from frozenfusion.utils.errors import UserError

SCRIPTS = ("extract_features.py", "train_head.py", "evaluate.py")


def exit_status(kind, arguments, main=lambda options: ""):
    return cli.run(kind, main, arguments, "script.py")


def test_the_defaults_are_the_reference_recipe():
    options = cli.parse(TrainOptions, ["data"])
    assert (options.lr, options.weight_decay, options.batch_size, options.epochs) == (1e-4, 1e-6, 8, 11)
    assert (options.text_encoder, options.max_length, options.fusion) == ("albert-base-v2", 128, ("concat",))
    options = cli.parse(ExtractOptions, ["data"])
    assert (options.backbone, options.image_size, options.pool) == ("efficientnet-b7", None, "avg")  # its own size


def test_flags_take_several_values():
    options = cli.parse(TrainOptions, ["data", "--fusion", "concat", "gated", "--seeds", "0", "1", "2"])
    assert options.fusion == ("concat", "gated")
    assert options.seeds == (0, 1, 2)


def test_the_last_path_of_an_evaluation_is_the_data():
    options = cli.parse(EvaluateOptions, ["runs/a", "runs/b", "data"])
    assert options.paths == (Path("runs/a"), Path("runs/b"), Path("data"))


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
        ('{"format": 1, "model": {"fusion": "concat"}}', "a model that was saved by itself"),
        ("import: my_heads.py\n", "on the command line alone"),
        ("epochs: false\n", "epochs is false, which it cannot be"),
        ("epochs: 3\nepochs: 4\n", "epochs is given twice"),
        ('{"lr": 1, "lr": 2}', "lr is given twice"),
        ("cache: --rebuild\n", "looks like a flag"),
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
        (TrainOptions, ["data", "--epoch", "1"], "--epoch: no such option, perhaps --epochs: see --help"),
        (TrainOptions, ["data", "--nonsense"], "--nonsense: no such option, or a word too many: see --help"),
        (TrainOptions, ["data", "--alpha", "learnd"], "--alpha must be a number or learned, not 'learnd': see --help"),
        (TrainOptions, ["data", "--epochs", "x"], "--epochs must be a whole number, not 'x': see --help"),
        (TrainOptions, ["data", "--resume", "no"], "--resume must be one of auto, always, never, not 'no': see --help"),
        (TrainOptions, ["data", "--lr"], "--lr needs a value: see --help"),
        (ExtractOptions, [], "DATA is missing: folder or manifest of image"),
        (ExtractOptions, ["data", "--workers", "x"], "--workers must be a whole number, not 'x': see --help"),
        (TrainOptions, [], "folder or manifest"),
        (ExtractOptions, ["data", "--image-size", "8"], "--image-size must be at least 32"),
        (ExtractOptions, ["data", "--batch-size", "0"], "--batch-size must be at least 1"),
        (ExtractOptions, ["data", "--rebuild", "--resume", "never"], "--resume never"),
        (ExtractOptions, ["data", "--max-pixels", "300000000"], "--max-pixels must be at most 178956970"),
        (ExtractOptions, ["cache.h5", "--info", "--verify"], "give one of the two"),
        (ExtractOptions, ["cache.h5", "--info", "--rebuild"], "--info only looks at a feature file"),
        (ExtractOptions, ["data", "--backbone", "vgg"], "--backbone vgg: no such image network"),
        (TrainOptions, ["data", "--head-option", "layers"], "--head-option layers: expected NAME=VALUE"),
        (TrainOptions, ["data", "--head-option", "alpha=0.3"], "give --alpha"),
        (TrainOptions, ["data", "--seed", "-1"], "--seed must be at least 0, not -1"),
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


def test_help_and_wrong_usage_do_not_import_torch():
    run_python(
        "import runpy, sys\n"
        f"for script in {SCRIPTS}:\n"
        "    for words, status in ((['--help'], 0), (['data', '--nonsense'], 2)):\n"
        "        sys.argv = [script, *words]\n"
        "        try: runpy.run_path(script, run_name='__main__')\n"
        "        except SystemExit as stop: assert stop.code == status, sys.argv\n"
        "        assert not {'torch', 'transformers', 'h5py'} & set(sys.modules), sys.argv\n"
    )


def test_the_library_imports_without_torch():
    run_python("import frozenfusion, sys; assert 'torch' not in sys.modules")


@pytest.mark.parametrize("kind", [ExtractOptions, TrainOptions, EvaluateOptions, SampleOptions])
def test_every_option_is_in_one_group_of_the_help(kind):
    listed = [name for names in kind.groups.values() for name in names]
    fields = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    assert len(listed) == len(set(listed))
    assert set(listed) == fields - {"head_options"}  # what head_option says


def test_one_command_has_all_of_them(tmp_path, capsys):
    command = [sys.executable, "-m", "frozenfusion"]
    assert "evaluate" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sample = str(tmp_path / "sample")
    for words, status, told in (
        (["--version"], 0, "frozenfusion 0.2"),
        (["extarct"], 2, "error: extarct: no such command"),
        (["sample", sample, "--pairs", "40"], 0, sample),
        (["extract", sample, "--cache", "x.h5", "--image-size", "8"], 2, "error: --image-size must be at least 32"),
        (["train", "--help"], 0, "frozenfusion train"),
    ):
        assert main(words) == status
        said = capsys.readouterr()
        assert told in said.out + said.err


def test_messages_speak_the_language_of_who_reads_them():
    told = "`lr` is 1 and `strict=True`, `resume=never`, `no_flag`: run python extract_features.py DATA"
    assert worded(told, TrainOptions, "train_head.py") == (
        "--lr is 1 and `strict=True`, --resume never, `no_flag`: run python extract_features.py DATA"
    )
    assert worded("`features`: `head=x`, `rebuild=True`: python evaluate.py", ExtractOptions, "frozenfusion train") == (
        "--cache: --fusion x, --rebuild: frozenfusion evaluate"
    )


def test_a_configuration_of_an_evaluation_leaves_the_paths_to_the_command_line(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("bootstrap: 500\nsplit: val\n")
    options = cli.parse(EvaluateOptions, ["runs/a", "data", "--config", str(file), "--split", "train"])
    assert (options.paths, options.bootstrap, options.split) == ((Path("runs/a"), Path("data")), 500, "train")


@pytest.mark.parametrize("content", ["head_option: [layers=2, heads=4]\n", "head_options: {layers: 2, heads: 4}\n"])
def test_options_of_a_head_in_a_file_are_laid_over_by_name(tmp_path, content):
    file = tmp_path / "options.yaml"
    file.write_text(content)
    options = cli.parse(TrainOptions, ["data", "--config", str(file), "--head-option", "layers=3"])
    assert options.head_options == {"layers": 3, "heads": 4}


def test_what_the_flags_mend_in_a_file_is_not_refused(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("rebuild: true\nresume: never\n")
    assert cli.parse(ExtractOptions, ["data", "--config", str(file), "--resume", "auto"]).rebuild


@pytest.mark.parametrize("flag", ["--info", "--verify"])
def test_a_configuration_of_extracting_is_passed_over_where_a_file_is_only_looked_at(tmp_path, capsys, flag):
    file = tmp_path / "extract.yaml"
    file.write_text("backbone: efficientnet-b0\nimage_size: 64\ncache: features.h5\n")
    options = cli.parse(ExtractOptions, ["data", flag, "--config", str(file)])
    assert (options.cache, options.image_size) == (Path("features.h5"), None)
    assert exit_status(ExtractOptions, ["data", flag, "--config", str(file), "--image-size", "64"]) == 2
    assert f"{flag} only looks at a feature file: leave out --image-size" in capsys.readouterr().err


def test_help_shows_the_groups_and_ends_on_a_narrow_terminal():
    code = (
        "import os\n"
        "from frozenfusion.cli.train import main\n"
        "for columns in (1, 3, 39, 80):\n"
        "    os.environ['COLUMNS'] = str(columns)\n"
        "    assert main(['--help'], 'train_head.py') == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--epochs") == 4
    for group in TrainOptions.groups:
        assert f"─ {group} options ─" in done.stdout
