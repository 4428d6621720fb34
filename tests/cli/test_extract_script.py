"""extract_features.py as a process: killed, interrupted, started twice, out of disk."""

from __future__ import annotations

import io
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from warm import Script

import extract_features
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import PENDING
from frozenfusion.utils.errors import UserError

IMAGES = 60
KILLS = 4
# While there is a file "slow" beside it, it takes seconds, of which the first rows are ok after one.
NETWORK = """
import time
from pathlib import Path
import torch
from frozenfusion import register_backbone

class Network(torch.nn.Conv2d):
    def forward(self, images):
        if Path(__file__).with_name("slow").exists():
            time.sleep(0.15)
        return super().forward(images)

@register_backbone("patches")
def patches(weights):
    torch.manual_seed(0)
    return Network(3, 1280, 16, stride=16)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "patches.py"
    path.write_text(NETWORK)
    return path


@pytest.fixture
def slow(plugin):
    """A file that makes the network slow, as long as it is there."""
    path = plugin.with_name("slow")
    path.touch()
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("posts")
    random_pixels = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = random_pixels.integers(0, 255, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number:02d}.png")
    (folder / "p30.png").write_bytes(b"<html>")
    return folder


@pytest.fixture(scope="module")
def started(plugin):
    def start(data, cache, *more, **options):
        network = ("--import", plugin, "--backbone", "patches", "--image-size", "32", "--batch-size", "2")
        return Script("extract_features.py", data, "--cache", cache, *network, *more, **options)

    return start


def wait_for_rows(process, cache, count):
    """Until so many rows are ok, or the process has ended."""
    while process.poll() is None:
        try:
            if FeatureStore(cache).counts()["ok"] >= count:
                return
        except UserError:
            pass
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(started, data, tmp_path_factory):
    cache = tmp_path_factory.mktemp("whole") / "features.h5"
    status, out, err = started(data, cache).finish()
    assert status == 0, err
    assert f"{IMAGES - 1} ok" in out
    return FeatureStore(cache)


def test_killed_at_random_moments_and_resumed_it_ends_as_if_uninterrupted(started, data, slow, uninterrupted, tmp_path):
    cache, moments, begun = tmp_path / "features.h5", random.Random(0), []
    for kill in range(KILLS):
        process = started(data, cache)
        wait_for_rows(process, cache, kill * IMAGES // KILLS)
        time.sleep(moments.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.finish()
        if cache.exists():
            store = FeatureStore(cache)
            ok = store.status == 1
            begun.append(int(ok.sum()))
            assert np.array_equal(store.features[ok], uninterrupted.features[ok])
    assert begun == sorted(begun)  # nothing finished was lost
    slow.unlink()
    assert started(data, cache).finish().status == 0
    store = FeatureStore(cache)
    for name in ("ids", "features", "status", "digest", "crc32", "stat"):
        assert np.array_equal(getattr(store, name), getattr(uninterrupted, name)), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.bad.csv", "features.h5"]


def test_interrupted_within_an_image_that_takes_for_ever_it_ends_at_once(started, data, slow, tmp_path):
    shutil.copytree(data, tmp_path / "posts")
    file = io.BytesIO()
    Image.new("L", (4000, 4000)).save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    (tmp_path / "posts" / "p20.png").write_bytes(jpeg[:last] + jpeg[last:-2] * 20_000 + jpeg[-2:])
    cache = tmp_path / "features.h5"
    process = started(tmp_path / "posts", cache, "--image-seconds", "600")
    wait_for_rows(process, cache, 1)
    process.send_signal(signal.SIGINT)
    assert process.finish().status == 130
    assert FeatureStore(cache).status[20] == PENDING


@pytest.mark.parametrize(("how", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_or_terminated_it_keeps_its_rows_and_says_so(started, data, slow, tmp_path, how, expected):
    cache = tmp_path / "features.h5"
    process = started(data, cache)
    wait_for_rows(process, cache, 1)
    process.send_signal(how)
    status, _, err = process.finish()
    assert status == expected
    assert "kept" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert FeatureStore(cache).counts()["ok"] >= 1


def test_a_second_writer_is_refused_and_the_first_goes_on(started, data, slow, tmp_path):
    cache = tmp_path / "features.h5"
    first = started(data, cache)
    wait_for_rows(first, cache, 1)
    first.send_signal(signal.SIGSTOP)  # so that it is surely still at work
    status, _, err = started(data, cache).finish()
    slow.unlink()
    first.send_signal(signal.SIGCONT)
    assert status == 1
    assert f"process {first.pid} is writing it" in err.splitlines()[-1]
    status, out, _ = first.finish()
    assert status == 0
    assert f"{IMAGES - 1} ok" in out


def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_without_room_it_fails_in_one_line_and_goes_on_once_there_is_some(started, data, tmp_path):
    cache = tmp_path / "features.h5"
    status, _, err = started(data, cache, first=limit).finish()
    assert status == 1
    assert err.splitlines()[-1].startswith("error: ")
    assert "file-size limit" in err
    assert "Traceback" not in err
    assert not cache.exists()
    assert started(data, cache).finish().status == 0


@pytest.mark.parametrize("flag", ["--info", "--verify"])
def test_what_is_no_folder_and_no_manifest_is_looked_at_as_a_feature_file(flag, uninterrupted, tmp_path, capsys):
    named_otherwise = shutil.copy(uninterrupted.path, tmp_path / "features.backup")
    assert extract_features.main([flag, str(named_otherwise)], "extract_features.py") == 0
    assert "features.backup" in capsys.readouterr().out
    assert extract_features.main([flag, str(tmp_path / "nothing.h6")], "extract_features.py") == 1
    assert "nothing.h6: no such feature file" in capsys.readouterr().err


def test_a_reader_that_has_gone_ends_the_program_without_a_traceback(uninterrupted):
    process = subprocess.Popen(
        [sys.executable, "extract_features.py", "--info", uninterrupted.path],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1
