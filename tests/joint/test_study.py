"""A study of several fractions of the labels, its runs side by side in real processes."""

from __future__ import annotations

import csv
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import tiny
from conftest import ROOT

import frozenfusion as ff
from frozenfusion.cli import train as train_command
from frozenfusion.training.trackers import TRACKERS

SECONDS = 300
HELD = "concat-co-0.3-seed0"
# Holds one run after its second epoch as long as there is a file "hold" beside it.
HOLDING = f"""
    import time
    from pathlib import Path
    import frozenfusion as ff

    @ff.register_tracker("holding")
    class Holding(ff.Tracker):
        def __init__(self, run: ff.TrackedRun) -> None:
            self.run = run

        def log(self, epoch, figures) -> None:
            while epoch == 2 and "{HELD}" in str(self.run.folder) and Path(__file__).with_name("hold").exists():
                time.sleep(0.02)
"""


def files_of(study: Path) -> set[Path]:
    return {path.relative_to(study) for path in study.rglob("*") if path.is_file() and path.suffix != ".png"}


def figures_of(study: Path) -> list[list[str]]:
    with (study / "sweep.csv").open(newline="") as file:
        return [[line[name] for name in ("fusion", "seed", "epochs", "val_loss")] for line in csv.DictReader(file)]


def test_a_study_killed_in_the_middle_of_two_runs_ends_in_what_one_at_a_time_makes(
    tmp_path: Path, no_plots: None
) -> None:
    plugin = tmp_path / "holding.py"
    plugin.write_text(textwrap.dedent(HOLDING))
    plugin.with_name("hold").touch()
    options = tiny.make_training(tmp_path, epochs=3, freeze_text=True)

    def words(name: str) -> list[str]:
        flags = options.but(run=tmp_path / name).flags()
        more = ("--joint", "co", "--rounds", "2", "--label-fraction", "0.3", "1", "--track", "holding")
        return [*flags, "--import", str(plugin), *more]

    killed = subprocess.Popen(
        [sys.executable, "train_head.py", *words("killed"), "--jobs", "2"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    study = tmp_path / "killed"
    try:
        end = time.monotonic() + SECONDS
        while not all((study / name).exists() for name in (f"{HELD}/metrics.jsonl", "sweep.csv")):
            assert time.monotonic() < end
            assert killed.poll() is None, killed.communicate()
            time.sleep(0.05)
    finally:
        killed.kill()
    _, said = killed.communicate(timeout=SECONDS)  # which ends with the processes that train
    assert "1/4  " in said
    assert not (study / HELD / "summary.json").exists()
    plugin.with_name("hold").unlink()
    try:
        assert train_command.main([*words("killed"), "--jobs", "1"]) == 0
        for lost in ("pseudo.csv", "model.safetensors"):
            (study / HELD / lost).unlink()
        for name in ("killed", "alone"):
            assert train_command.main([*words(name), "--jobs", "1"]) == 0
    finally:
        TRACKERS.remove("holding")
    alone = tmp_path / "alone"
    assert files_of(study) == files_of(alone)
    assert figures_of(study) == figures_of(alone)
    names = [f"concat-{how}-0.3-seed0" for how in ("labels", "self", "co")]
    assert {path.name for path in study.iterdir() if path.is_dir()} == {*names, "concat-labels-1-seed0"}
    for path in files_of(alone):
        if path.name in ("model.safetensors", "last.safetensors"):
            tiny.assert_same_tensors(study / path, alone / path)
        elif path.name in ("joint.json", "pseudo.csv", "split.json", "config.json"):
            told, expected = ((of / path).read_text(encoding="utf-8") for of in (study, alone))
            assert told.replace(study.as_posix(), alone.as_posix()) == expected


def test_a_run_of_a_study_that_fails_stops_no_other(tmp_path: Path, no_plots: None) -> None:
    options = tiny.make_training(tmp_path, epochs=1, freeze_text=True)
    given = {"fractions": [0.3], "seeds": [0, 1], "config": options.config, "folder": tmp_path / "study", "jobs": 1}
    (tmp_path / "study" / "concat-labels-0.3-seed0").mkdir(parents=True)
    (tmp_path / "study" / "concat-labels-0.3-seed0" / "mine.txt").touch()
    with pytest.raises(ff.UserError, match=r"1 of 2 runs failed, the first \S+seed0 \(.*holds other files"):
        ff.study_labels(ff.load_pairs(options.data), options.cache, **given)
    assert (tmp_path / "study" / "concat-labels-0.3-seed1" / "summary.json").exists()
