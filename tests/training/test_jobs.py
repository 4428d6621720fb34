"""Runs side by side, in real processes: the same parameters, one crash loses one run, and nothing is left behind."""

from __future__ import annotations

import csv
import os
import pickle
import signal
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from conftest import ROOT
from warm import Script

import frozenfusion as ff
from frozenfusion.data import listing
from frozenfusion.fusion.base import HEADS
from frozenfusion.model.run_folder import RunFolder
from frozenfusion.training.checkpoint import read_state
from frozenfusion.training.job_worker import Setup
from frozenfusion.training.jobs import Job
from frozenfusion.training.ray_jobs import train_there
from frozenfusion.training.trackers import TRACKERS
from frozenfusion.utils.plugins import import_plugin
from frozenfusion.utils.progress import log

SECONDS = 120

DOOMED_HEAD = """
    import os, signal
    from pathlib import Path
    import torch
    import frozenfusion as ff

    @ff.register_head("doomed")
    class Doomed(ff.FeatureHead):
        def __init__(self, *, width: int, text_width: int, classes: int) -> None:
            super().__init__(width)
            self.classifier = torch.nn.Linear(width, classes)

        def forward(self, inputs: ff.HeadInputs, *, attention: bool = False) -> ff.HeadOutput:
            if Path(__file__).with_name("doom").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            text, image = self.fill(inputs)
            return ff.HeadOutput(self.classifier(text * image))

    @ff.register_tracker("lines")
    class Lines(ff.Tracker):
        def __init__(self, run: ff.TrackedRun) -> None:
            self.folder = run.folder

        def log(self, epoch, figures) -> None:
            with (self.folder / "lines").open("a") as file:
                print(epoch, file=file)
"""
# As people write one: without `if __name__ == "__main__"`.
SCRIPT = """
    import sys
    sys.path[:0] = [{root!r}, {tests!r}]
    from pathlib import Path
    import tiny

    print("begun", flush=True)
    options = tiny.make_training(Path({folder!r}), epochs=100_000, freeze_text=True, fusion=("concat", "text", "image"))
    tiny.sweep(
        tiny.load_pairs(options.data), options.cache, options.fusion, config=options.config, folder={run!r}, jobs=2
    )
"""


def test_runs_side_by_side_equal_those_one_at_a_time_and_a_crash_loses_one(tmp_path: Path) -> None:
    plugin = tmp_path / "doomed_heads.py"
    plugin.write_text(textwrap.dedent(DOOMED_HEAD))
    options = tiny.make_training(tmp_path, epochs=2, freeze_text=True, track=["lines"])
    pairs, threads = ff.load_pairs(options.data), torch.get_num_threads()
    heads = ["concat", "doomed", "transformer"]

    def sweep(name: str, jobs: int) -> list[ff.TrainedRun]:
        return ff.sweep(pairs, options.cache, heads, config=options.config, folder=tmp_path / name, jobs=jobs)

    import_plugin(str(plugin))
    try:
        plugin.with_name("doom").touch()
        with pytest.raises(ff.UserError, match=r"1 of 3 runs failed, the first \S+doomed \(.* ended by SIGKILL"):
            sweep("beside", jobs=2)
        lines = (tmp_path / "beside" / "sweep.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in lines] == ["fusion", "concat", "transformer"]
        assert (tmp_path / "beside" / "concat" / "tracking" / "lines" / "lines").read_text().split() == ["1", "2"]
        plugin.with_name("doom").unlink()
        runs = sweep("beside", jobs=2)  # one is left, for which no process is worth starting
        assert [run.fusion for run in runs] == heads
        for alone in sweep("alone", jobs=1):
            for name in ("model", "last"):
                file = Path(alone.folder.name, f"{name}.safetensors")
                tiny.assert_same_tensors(tmp_path / "beside" / file, tmp_path / "alone" / file)
    finally:
        HEADS.remove("doomed")
        TRACKERS.remove("lines")
    assert torch.get_num_threads() == threads


def test_a_process_that_finds_other_files_than_the_command_has_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("handlers", "propagate"):
        monkeypatch.setattr(log, name, getattr(log, name))  # which a worker changes
    monkeypatch.setattr(listing, "MOST_FILES", 0)  # texts are read when they are needed
    options = tiny.make_training(tmp_path, fusion=("image",))
    lines = list(csv.DictReader(options.data.read_text().splitlines()))
    for line in lines:
        options.data.with_name(f"{line['id']}.txt").write_text(line["text"])
    listed = ["id,text_path,image,label", *(f"{of['id']},{of['id']}.txt,x.jpg,{of['label']}" for of in lines)]
    options.data.write_text("\n".join(listed))
    inputs = options.inputs()
    job = Job("image", options.config, RunFolder(options.run))
    setup = pickle.dumps(Setup.of(inputs, [job]))

    def told(where: tuple[str, Path, Path], job: Job) -> str:
        failure, _ = train_there(setup, "token", where, job)
        assert failure is not None
        return failure.reason

    options.data.with_name(f"{inputs.ids[0]}.txt").unlink()
    assert "let all machines have the same files" in told((os.getcwd(), options.data, options.cache), job)
    assert not options.run.exists()
    elsewhere = replace(job, folder=RunFolder(Path("image")))
    where = str(tmp_path / "nowhere"), Path("s3://bucket/pairs.csv"), options.cache
    assert "give image as an absolute path" in told(where, elsewhere)


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal's Ctrl-C is another there")
def test_ctrl_c_ends_every_process_and_keeps_finished_epochs(tmp_path: Path) -> None:
    script, run = tmp_path / "script.py", tmp_path / "run"
    tests = str(ROOT / "tests")
    script.write_text(textwrap.dedent(SCRIPT).format(root=str(ROOT), tests=tests, folder=str(tmp_path), run=str(run)))
    process = Script(script, first=os.setsid)
    files = [run / head / "metrics.jsonl" for head in ("concat", "text")]
    try:
        end = time.monotonic() + SECONDS
        while not all(file.exists() for file in files):
            assert time.monotonic() < end
            assert process.poll() is None, process.finish()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all
        status, output, messages = process.finish()
    finally:
        process.send_signal(signal.SIGKILL)
    assert status == -signal.SIGINT
    assert output == "begun\n"  # once: no process ran the script again
    assert messages.count("Traceback") == 1, messages  # the script's own
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    for head in ("concat", "text"):
        state = read_state(RunFolder(run / head))
        assert state is not None
        assert state.epochs >= 1
    assert not [path for path in run.rglob("*") if ".tmp" in path.name or path.suffix == ".lock"]
    assert not (run / "image").exists()
