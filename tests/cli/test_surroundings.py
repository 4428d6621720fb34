"""The commands among what surrounds them: streams that nobody reads, signals, read-only disks, kills, hostile names."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import ROOT
from PIL import Image
from trained import make_run, make_world
from warm import Script

from frozenfusion.cli import evaluate, extract, train
from frozenfusion.cli.evaluate import EvaluateOptions
from frozenfusion.cli.extract import ExtractOptions
from frozenfusion.cli.parsing import CommonOptions, run
from frozenfusion.store.reader import FeatureStore
from frozenfusion.utils.files import temporary_beside

NETWORK = ("--backbone", "efficientnet-b0", "--weights", "random", "--image-size", "32", "--batch-size", "2")
SECONDS = 120


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images, one of which is none, and one whose name is a formula."""
    folder = tmp_path_factory.mktemp("posts")
    for name in ("a", "b", "c", "d"):
        pixels = np.random.default_rng(ord(name)).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "=cmd|' !A0.png").write_bytes(b"<html>")
    return folder


@pytest.fixture(scope="module")
def cache(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "features.h5"
    assert extract.main([str(images), "--cache", str(path), *NETWORK], "extract_features.py") == 0
    return path


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return make_world(tmp_path / "world")


def trains(world: Path, *more: str) -> list[str]:
    return [
        *(str(world / "data" / "pairs.csv"), "--cache", str(world / "features.h5"), "--device", "cpu"),
        *("--text-encoder", str(world / "encoder"), "--text-weights", "random", "--precision", "float32", *more),
    ]


# --- streams


def in_a_shell(command: list[object], redirections: str) -> subprocess.CompletedProcess[str]:
    line = f"{shlex.join([sys.executable, *map(str, command)])} {redirections}"
    return subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize(
    ("redirections", "status", "told"),
    [
        (">&-", 1, "error: the work is done, but standard output could not be written"),
        (">/dev/full", 1, "No space left on device"),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">&- 2>&-", 1, ""),
    ],
)
def test_a_stream_that_is_closed_or_full_is_told_by_the_exit_status(
    cache: Path, redirections: str, status: int, told: str
) -> None:
    done = in_a_shell(["extract_features.py", "--info", cache], redirections)
    assert done.returncode == status
    assert told in done.stderr
    assert done.stderr.count("\n") == bool(told)
    assert ("features.h5" in done.stdout) == (status == 0)


def test_work_goes_on_to_its_end_where_no_stream_is_open(images: Path, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    done = in_a_shell(["extract_features.py", images, "--cache", path, *NETWORK], "<&- >&- 2>&-")
    assert done.returncode == 1
    one, other = FeatureStore(path), FeatureStore(cache)
    assert np.array_equal(one.status, other.status)
    assert np.array_equal(one.features, other.features)


def test_a_wrong_option_is_told_by_its_status_where_nobody_reads_messages(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert extract.main([str(cache), "--nonsense"], "extract_features.py") == 2
    assert extract.main([str(cache), "--info"], "extract_features.py") == 1
    assert sys.stdout is None


# --- signals


SLOW_COMMITS = """
import sys, time
from pathlib import Path
from frozenfusion.cli.main import main
from frozenfusion.store.raw_file import RowFile
from frozenfusion.training import checkpoint

marks, slow = Path(sys.argv[1]), {}
def slowed(kind, action):
    def slowly(*given):
        number = slow[kind] = slow.get(kind, 0) + 1
        (marks / f"{kind}-{number}").touch()
        time.sleep(0.4)
        return action(*given)
    return slowly
RowFile.sync = slowed("sync", RowFile.sync)
checkpoint.write_tensors = slowed("checkpoint", checkpoint.write_tensors)
sys.exit(main(sys.argv[2:]))
"""


def signalled(marks: Path, arguments: list[str], when: str, signals: list[signal.Signals]) -> tuple[int | None, str]:
    """Exit status and messages of a command that gets signals while it commits, as soon as there is a mark."""
    marks.mkdir()
    (marks / "slow_commits.py").write_text(SLOW_COMMITS)
    process, deadline = Script(marks / "slow_commits.py", marks, *arguments), time.monotonic() + SECONDS
    while not (marks / when).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    for each in signals:
        process.send_signal(each)
        time.sleep(0.1)
    status, _, messages = process.finish()
    return status, messages


def test_a_second_signal_while_rows_are_committed_loses_none(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    extracts = ["extract", str(images), "--cache", str(path), *NETWORK]
    found, messages = signalled(
        tmp_path / "marks", extracts, "sync-2", [signal.SIGTERM, signal.SIGINT]
    )  # the first lays the file out
    assert (found, "Traceback" in messages) == (143, False), messages
    assert messages.splitlines()[-1].endswith("finished work is kept, the same command resumes it")
    assert FeatureStore(path).counts()["pending"] <= 1  # five images are a commit; on a slow machine the first four
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["features.bad.csv", "features.h5", "marks"]


def test_a_second_signal_while_an_epoch_of_a_sweep_is_committed_keeps_it(world: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    arguments = trains(world, "--epochs", "3", "--run", str(sweep), "--fusion", "image", "text")
    found, messages = signalled(
        tmp_path / "marks", ["train", *arguments], "checkpoint-2", [signal.SIGINT, signal.SIGINT]
    )
    assert (found, "Traceback" in messages) == (130, False), messages
    assert messages.splitlines()[-1].startswith("interrupted: finished work is kept")
    assert len((sweep / "image" / "metrics.jsonl").read_text().splitlines()) == 2
    assert not [path for path in sweep.rglob("*") if ".tmp" in path.name or path.suffix == ".lock"]
    assert train.main(arguments, "train_head.py") == 0
    assert len((sweep / "image" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        (EvaluateOptions, ["run", "data"], "interrupted: the same command begins anew\n"),
        (ExtractOptions, ["cache.h5", "--verify"], "interrupted: the same command begins anew\n"),
        (ExtractOptions, ["data"], "interrupted: finished work is kept, the same command resumes it\n"),
    ],
)
def test_what_an_interruption_leaves_is_told_as_it_is(
    kind: type[CommonOptions], arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: CommonOptions) -> str:
        raise KeyboardInterrupt

    assert run(kind, interrupted, arguments, "script.py") == 130
    assert capsys.readouterr().err == told


# --- read-only disks


ON_A_READ_ONLY_DISK = """
import json, shutil, sys
from pathlib import Path
from frozenfusion.cli import evaluate, extract, train
from frozenfusion.utils.locks import WriterLock

images, cache, world, spare = sys.argv[1:5]
trains = json.loads(sys.argv[5])
evaluates = [f"{world}/runs/frozen", f"{world}/data/pairs.csv", "--cache", f"{world}/features.h5", "--bootstrap", "100"]
try:
    Path(cache).touch()
except OSError:
    pass
else:
    sys.exit(77)
def call(main, *words):
    print("#", file=sys.stderr)
    statuses.append(main(list(words), "script.py"))
statuses = []
network = sys.argv[6:]
call(extract.main, images, "--cache", cache, *network)
call(extract.main, images, "--cache", cache, *network, "--retry-failed")
call(extract.main, images, "--cache", str(Path(cache).with_name("new.h5")), *network)
call(train.main, *trains)
call(train.main, *trains, "--epochs", "2")
call(evaluate.main, *evaluates)
call(evaluate.main, *evaluates, "--out", f"{spare}/out")
call(evaluate.main, *evaluates, "--out", f"{spare}/out", "--text-cache", f"{spare}/texts")
call(train.main, *trains, "--epochs", "2", "--freeze-text", "--run", f"{spare}/run")
call(train.main, *trains, "--epochs", "2", "--freeze-text", "--run", f"{spare}/run", "--text-cache", f"{spare}/texts")
print(json.dumps(statuses))
"""


def test_who_has_nothing_to_write_needs_no_disk_that_can_be_written(
    images: Path, cache: Path, world: Path, tmp_path: Path
) -> None:
    make_run(world, "frozen", "gated", freeze_text=True)
    arguments = trains(world, "--run", str(world / "runs" / "done"), "--epochs", "1")
    assert train.main(arguments, "train_head.py") == 0
    touched = images / "a.png"  # so that its size and time have to be noted again
    os.utime(touched, ns=(1, touched.stat().st_mtime_ns + 1))
    spare = tmp_path / "spare"
    spare.mkdir()
    read_only = "; ".join(
        f"mount --bind {place} {place} && mount -o remount,ro,bind {place}" for place in (cache.parent, world)
    )
    code = [sys.executable, "-c", ON_A_READ_ONLY_DISK, images, cache, world, spare, json.dumps(arguments), *NETWORK]
    line = f"{read_only}; exec {shlex.join(map(str, code))}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("nobody may mount here")
    assert done.returncode == 0, done.stderr
    extracted, retried, new, finished, more, nowhere, elsewhere, kept, no_texts, texts = done.stderr.split("#\n")[1:]
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 1, 1, 0, 1, 1, 0, 0, 1, 0], done.stderr
    assert "error" not in extracted + finished + elsewhere + kept + texts
    for told, path in ((retried, cache), (new, cache.with_name("new.h5")), (more, world / "runs" / "done")):
        assert f"error: {path}" in told
        assert "read-only" in told
    assert "(--out names another folder for the results)" in nowhere
    assert "warning" in elsewhere
    assert "--text-cache" in elsewhere
    assert "read-only" not in kept
    assert "(--text-cache names another folder for text features)" in no_texts
    assert len(list((spare / "texts").glob("features.text-*.h5"))) >= 1


def test_a_folder_for_texts_means_nothing_where_texts_are_trained(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(trains(world, "--text-cache", "texts"), "train_head.py") == 2
    assert "--text-cache means nothing without --freeze-text" in capsys.readouterr().err


# --- what a killed process leaves


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(images: Path, cache: Path, world: Path) -> None:
    sweep = world / "sweep"
    arguments = trains(world, "--run", str(sweep), "--fusion", "gated", "text", "--freeze-text", "--epochs", "1")
    assert train.main(arguments, "train_head.py") == 0
    assert extract.main([str(images), "--cache", str(cache), *NETWORK], "extract_features.py") == 0
    (texts,) = world.glob("features.text-*.h5")
    run = sweep / "gated"
    for path in (
        *(run / "text_encoder" / "model.safetensors", run / "checkpoint.safetensors", run / "tokenizer" / "x.json"),
        *(sweep / "sweep.csv", cache.with_name("features.bad.csv"), cache),
    ):
        temporary_beside(path).write_bytes(b"half")
    for path in (texts, cache, run / "checkpoint.safetensors"):
        path.with_name(path.name + ".lock").write_text("1")
    others = {run / ".notes.tmp", sweep / ".sweep.csv.backup", cache.with_name(".features.bad.csv.0123abcd.tmp.csv~")}
    for path in others:
        path.write_text("of somebody else")
    assert train.main([*arguments, "--epochs", "2"], "train_head.py") == 0
    assert extract.main([str(images), "--cache", str(cache), *NETWORK], "extract_features.py") == 0
    there = {path for place in (world, cache.parent) for path in place.rglob("*")}
    assert {path for path in there if path.name.startswith(".") or path.suffix == ".lock"} == others


# --- what others wrote


HOSTILE = ("+red", "\u202edesrever", "=cmd|' /C calc'!A0")


def test_names_neither_steer_the_terminal_nor_break_tables_nor_run_in_spreadsheets(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "data" / "pairs.csv"
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    names = dict(zip(tiny.LABELS, HOSTILE, strict=True))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys())
        writer.writeheader()
        writer.writerows({**line, "label": names[line["label"]]} for line in lines)
    run = tmp_path / "run\x1b[2J"
    assert train.main(trains(world, "--run", str(run), "--epochs", "1"), "train_head.py") == 0
    words = [str(run), str(path), "--cache", str(world / "features.h5"), "--bootstrap", "100"]
    assert evaluate.main(words, "evaluate.py") == 0
    assert evaluate.main([*words, "--split", "\x1b[2J"], "evaluate.py") == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    with (run / "evaluation" / "predictions.csv").open(newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert "'=cmd|' /C calc'!A0" in cells
    assert not [cell for cell in cells if cell.startswith("=") or "\n" in cell or "\x1b" in cell]


def test_the_list_of_bad_images_holds_no_formula_and_is_read_back(
    images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cache.with_name("features.bad.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["id"] == "'=cmd|' !A0"
    before = cache.stat().st_mtime_ns
    assert extract.main([str(images), "--cache", str(cache), *NETWORK], "extract_features.py") == 0
    assert cache.stat().st_mtime_ns == before  # its reason is known, so that it was not tried again
