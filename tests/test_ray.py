"""Stage one and sweeps on a real Ray cluster of two nodes: killed workers, nodes and drivers, and the same bytes."""

from __future__ import annotations

import csv
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import ROOT, write_posts
from PIL import Image

import frozenfusion as ff
from frozenfusion.cli import extract as extract_command
from frozenfusion.cli import train as train_command
from frozenfusion.extraction.bad_images import read_rows
from frozenfusion.extraction.extractor import ExtractSummary, update_features
from frozenfusion.extraction.inspection import info, verify
from frozenfusion.extraction.merging import merge_shards
from frozenfusion.fusion.base import HEADS
from frozenfusion.store.plan import shard_path
from frozenfusion.store.reader import FeatureStore
from frozenfusion.utils import ray_cluster
from frozenfusion.utils.plugins import import_plugin
from frozenfusion.vision.registry import BACKBONES

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

SECONDS = 60
IMAGES, ROWS, POISON = 12, 2, "p07"
NETWORK: dict[str, Any] = {"backbone": "small", "image_size": 32, "batch_size": 2}
# Waits as long as there is a file "hold" beside it, and kills its process at a white picture where there is "poison".
# Its head does so once, after the first epoch of a run that "doom" names.
SMALL = """
import os, time
from pathlib import Path
import torch
from frozenfusion import FeatureHead, HeadOutput, register_backbone, register_head

HERE = Path(__file__).parent

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 4, 16, stride=16)

    def forward(self, images):
        while len(images) > 1 and (HERE / "hold").exists():  # not as it is tried out for its description
            time.sleep(0.02)
        if (HERE / "poison").exists() and (images.amin((1, 2, 3)) == 1).any():
            os._exit(7)
        return self.layer(images)

@register_backbone("small", mean=(0, 0, 0), std=(1, 1, 1))
def small(weights):
    return Small()

@register_head("mortal")
class Mortal(FeatureHead):
    def __init__(self, *, width, text_width, classes):
        super().__init__(width)
        self.classifier = torch.nn.Linear(width, classes)

    def forward(self, inputs, *, attention=False):
        doom = HERE / "doom"
        if self.training and doom.exists() and Path(doom.read_text(), "metrics.jsonl").exists():
            doom.unlink()
            os._exit(7)
        text, image = self.fill(inputs)
        return HeadOutput(self.classifier(text * image))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    quick = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("plugin") / "small.py"
    path.write_text(SMALL)
    import_plugin(str(path))
    yield path
    BACKBONES.remove("small")
    HEADS.remove("mortal")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_posts(tmp_path_factory.mktemp("data") / "posts", IMAGES)
    Image.new("RGB", (50, 40), "white").save(folder / f"{POISON}.png")
    return folder


@pytest.fixture(scope="module")
def whole(plugin: Path, data: Path) -> Path:
    """What one machine makes of it."""
    return run(data, data.parent / "whole.h5").cache


def run(data: Path, cache: Path, **options: Any) -> ExtractSummary:
    return update_features(ff.load_pairs(data), cache, ff.ExtractConfig(**NETWORK, **options))


class Beside(threading.Thread):
    """A call in a thread, and what it returned."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call, self._result, self._error = call, None, None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(SECONDS)
        if self._error is not None:
            raise self._error
        assert not self.is_alive()
        return self._result


def workers_at(folder: Path, count: int, but: set[int], still_going: Callable[[], bool]) -> set[int]:
    """The processes that compute shards of a folder, as soon as there are so many beside those of `but`."""
    ends, found = time.monotonic() + SECONDS, set[int]()
    while len(found) < count:
        assert time.monotonic() < ends
        assert still_going()
        time.sleep(0.02)
        found = {int(path.name.rsplit("-", 2)[1]) for path in folder.glob("shard-*.partial")} - but
    return found


def test_tuning_on_the_cluster_equals_one_run_at_a_time_though_a_process_dies(
    cluster: Cluster, plugin: Path, tmp_path: Path, no_plots: None
) -> None:
    plugin.with_name("doom").write_text(str(tmp_path / "there" / "trials" / "mortal-000"))
    options = tiny.make_training(tmp_path, epochs=2, freeze_text=True)
    given = ff.load_pairs(options.data), options.cache, ["image", "mortal"]

    def tune(name: str, **where: Any) -> list[ff.TrainedRun]:
        grid = {"lr": [1e-3, 1e38]}
        return ff.tune(*given, grid=grid, config=options.config, folder=tmp_path / name, **where)

    def tried(name: str) -> list[dict[str, str]]:
        with (tmp_path / name / "tuning.csv").open(newline="") as file:
            return [{**line, "seconds": ""} for line in csv.DictReader(file)]

    with pytest.raises(ff.UsageError, match=r"no node of the cluster has more than 0"):
        tune("there", ray=cluster.address, ray_gpus_per_worker=2)
    assert not (tmp_path / "there").exists()
    there = tune("there", ray=cluster.address)
    assert not plugin.with_name("doom").exists()
    for run, alone in zip(there, tune("alone", jobs=1), strict=True):
        assert (run.fusion, run.val_loss) == (alone.fusion, alone.val_loss)
        for name in ("model", "last"):
            tiny.assert_same_tensors(run.folder / f"{name}.safetensors", alone.folder / f"{name}.safetensors")
    assert tried("there") == tried("alone")
    assert [line["val_loss"] == "" for line in tried("there")] == [False, True, False, True]
    again = ff.sweep(*given, config=options.config, folder=tmp_path / "there", ray="nowhere:1")
    assert again == there  # nothing is left to do, for which no cluster is asked


def test_a_study_of_labels_on_the_cluster_equals_one_run_at_a_time(
    cluster: Cluster, tmp_path: Path, no_plots: None
) -> None:
    options = tiny.make_training(tmp_path, epochs=1, freeze_text=True)

    def study(name: str, **where: Any) -> list[ff.TrainedRun]:
        given = {"joint": ff.JointConfig(joint="self", rounds=2), "fractions": [0.3], "folder": tmp_path / name}
        return ff.study_labels(ff.load_pairs(options.data), options.cache, config=options.config, **given, **where)

    for run, alone in zip(study("there", ray=cluster.address), study("alone", jobs=1), strict=True):
        tiny.assert_same_tensors(run.folder / "model.safetensors", alone.folder / "model.safetensors")


def test_a_node_without_the_package_is_told(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = tiny.make_training(tmp_path, fusion=("image", "text"))
    monkeypatch.setattr(ray_cluster, "_environment", dict)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ff.UserError, match=r"could not begin \(.*see whether all nodes have the package"):
        ff.sweep(ff.load_pairs(options.data), options.cache, options.fusion, config=options.config, ray=cluster.address)


def test_killed_drivers_lost_nodes_and_images_that_kill_leave_all_other_rows_as_one_machine_makes_them(
    cluster: Cluster, plugin: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    folder, hold, poison = tmp_path / "big", plugin.with_name("hold"), plugin.with_name("poison")
    hold.touch()
    poison.touch()
    command = [sys.executable, "extract_features.py", str(data), "--cache", str(folder), "--shards", str(ROWS)]
    command += ["--ray", cluster.address, "--import", str(plugin)]
    command += [word for name, value in NETWORK.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = workers_at(folder, 1, set(), lambda: driver.poll() is None)
    driver.kill()
    driver.communicate()

    node = cluster.add_node(num_cpus=1)
    again = Beside(lambda: run(data, folder, ray=cluster.address))
    second = workers_at(folder, 2, first, again.is_alive)
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    workers_at(folder, 1, first | second, again.is_alive)  # that of the new node goes on
    hold.unlink()
    summary = again.result()
    assert (summary.counts["ok"], summary.counts["unreadable"], summary.counts["crashed"]) == (IMAGES - 2, 1, 1)
    assert "by 2 workers" in str(summary)
    assert "1 crashed" in info(folder)
    assert f"all {IMAGES - 2} rows are as they were written" in verify(folder, data)
    bad = read_rows(shard_path(folder, int(POISON[1:]) // ROWS))[POISON]
    assert (bad["status"], "died" in bad["reason"]) == ("crashed", True)
    assert not [path for path in folder.iterdir() if "claim" in path.name or path.name.endswith((".lock", "partial"))]
    store, single = FeatureStore(folder), FeatureStore(whole)
    usable = store.status == single.status
    assert store.names(np.flatnonzero(~usable)) == [POISON]
    assert np.array_equal(store.features[usable], single.features[usable])

    poison.unlink()
    assert run(data, folder).counts["crashed"] == 1
    assert run(data, folder, retry_failed=True).counts["crashed"] == 0
    merge_shards(folder, tmp_path / "one.h5")
    assert (tmp_path / "one.h5").read_bytes() == whole.read_bytes()


def test_what_cannot_be_asked_for_is_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(main: Callable[..., int], *words: object) -> str:
        assert main([str(word) for word in (data, *words)]) in (1, 2)
        return capsys.readouterr().err

    sharded = ("--cache", tmp_path / "big", "--shards", 3)
    extract, train = extract_command.main, train_command.main
    assert "--ray hands out all shards: give one" in told(extract, *sharded, "--ray", "local", "--shard", "1/2")
    assert "mean nothing without --ray" in told(extract, *sharded, "--ray-workers", 2)
    assert "give --shards as well" in told(extract, "--cache", tmp_path / "x.h5", "--ray", "local")
    assert "a part of one or a whole number" in told(extract, *sharded, "--ray", "local", "--ray-gpus-per-worker", 1.5)
    assert "give one of them" in told(train, "--fusion", "all", "--jobs", 2, "--ray", "local")
    assert "several heads, seeds or label" in told(train, "--fusion", "concat", "--ray", "local")
    assert "several heads, seeds or label" in told(train, "--joint", "self", "--ray", "local")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install frozenfusion[ray]" in told(extract, *sharded, "--ray", "local")
    monkeypatch.undo()
    assert "no connection" in told(extract, *sharded, "--ray", "127.0.0.1:1")
    assert not (tmp_path / "big").exists()
