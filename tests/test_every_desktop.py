"""The main path where nothing of POSIX is to be had, and where no open file can be replaced: as on Windows.

There is no Windows here, so a process takes away what Windows lacks before it imports anything, and watches every
replacement: os.replace fails, as there, for a file that this process has open or mapped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import ROOT

from frozenfusion.cli import extract, train
from frozenfusion.store import FeatureStore
from frozenfusion.utils.files import is_windows_device

WITHOUT_POSIX = """
import builtins, ctypes, mmap, os, signal, sys, types
def without(module, *names):
    lesser = types.ModuleType(module.__name__)
    vars(lesser).update({name: value for name, value in vars(module).items() if name not in names})
    return lesser
def no_library(name=None, *rest, **more):
    raise TypeError("on Windows a library needs a name")
lesser_ctypes = without(ctypes)
lesser_ctypes.CDLL = no_library
# What the package sees; the libraries below it keep theirs, since they have a Windows version of their own.
lesser = {
    "os": without(os, "pwrite", "pread", "fdatasync", "posix_fallocate", "register_at_fork", "fork", "O_DIRECTORY",
                  "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "fchmod", "fchown", "mkfifo", "getuid", "geteuid",
                  "uname", "sched_getaffinity", "getpgid", "killpg", "setsid"),
    "signal": without(signal, "SIGKILL", "SIGSTOP", "SIGHUP", "SIGUSR1", "SIGALRM", "alarm", "setitimer"),
    "mmap": without(mmap, "MADV_DONTNEED", "MADV_WILLNEED", "MAP_SHARED", "PROT_READ"),
    "ctypes": lesser_ctypes,
}
missing = {"fcntl", "resource", "pwd", "grp", "termios", "posix", "tty", "pty"}
real_import = builtins.__import__
def importing(name, globals=None, *rest, **more):
    if (globals or {}).get("__name__", "").startswith("frozenfusion"):
        if name in missing:
            raise ImportError(f"no module named {name}, as on Windows")
        if name in lesser:
            return lesser[name]
    return real_import(name, globals, *rest, **more)
builtins.__import__ = importing
real_replace = os.replace
def in_use(path):
    path = os.path.realpath(path)
    held = {os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")}
    mapped = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if line.count(" ") > 5 and "/" in line}
    return path in held | mapped
def replacing(source, target, **more):
    for path in (source, target):
        if os.path.isfile(path) and in_use(path):
            raise PermissionError(13, "The process cannot access the file because it is being used", str(path))
    if os.path.isdir(target):
        raise PermissionError(5, "Access is denied", str(target))
    return real_replace(source, target, **more)
os.replace = lesser["os"].replace = replacing
sys.path.insert(0, ROOT)
"""


THE_WHOLE_WAY = """
from frozenfusion.cli.main import main
import shutil, pathlib
def call(*words):
    status = main([str(word) for word in words])
    assert status == 0, (status, words)
call("sample", "data", "--pairs", 40)
network = ("--cache", "cache.h5", "--backbone", "efficientnet-b0", "--weights", "random", "--image-size", 32)
encoder = ("--text-encoder", "data/text-encoder", "--text-weights", "random")
later = pathlib.Path("data/data/9.jpg"); kept = later.read_bytes(); later.unlink()
call("extract", "data", *network)
later.write_bytes(kept)
call("extract", "data", *network)
manifest = pathlib.Path("more.csv")
manifest.write_text("id,image,text\\n1,data/data/1.jpg,hello\\nzzz,data/data/2.jpg,again\\n")
call("extract", manifest, *network)  # a larger file takes the place of the one that is mapped
call("extract", "data", *network, "--rebuild")
call("extract", "--verify", "cache.h5")
common = ("data", "--cache", "cache.h5", *encoder)
call("train", *common, "--run", "runs/concat", "--epochs", 1)
call("train", *common, "--run", "runs/concat", "--epochs", 2)
call("train", *common, "--run", "runs/heads", "--fusion", "text", "gated", "--freeze-text", "--epochs", 1)
call("evaluate", "runs/heads", "data", "--cache", "cache.h5", "--bootstrap", 100)
call("extract", "data", "--cache", "there.h5", *network[2:])
call("train", "data", "--cache", "there.h5", *encoder, "--epochs", 1, "--run", "there", "--precision", "float32")
import frozenfusion as ff
model = ff.PairClassifier.from_pretrained("runs/concat")
print(len(model.predict(ff.load_pairs("data")[:3])))
assert not list(pathlib.Path().glob("*.lock"))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a process without POSIX did the whole way, and what it printed."""
    folder = tmp_path_factory.mktemp("work")
    program = WITHOUT_POSIX.replace("ROOT", repr(str(ROOT))) + THE_WHOLE_WAY
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "printed").write_text(done.stdout)
    return folder


def test_the_whole_way_goes_without_posix(work: Path):
    """Sample, extraction, more images, a rebuild, a training that is resumed, frozen text, evaluation, prediction."""
    assert (work / "printed").read_text().splitlines()[-1] == "3"
    assert (work / "runs" / "heads" / "comparison" / "report.html").exists()
    options = json.loads((work / "runs" / "concat" / "config.json").read_text())["options"]
    assert options["run"] == "runs/concat"
    assert "\\" not in (work / "runs" / "heads" / "sweep.csv").read_text()


def test_it_computes_the_same_bits_as_with_posix(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without posix_fallocate, pwrite and madvise the same rows and parameters come out."""
    monkeypatch.chdir(work)
    here, run_here = tmp_path / "here.h5", tmp_path / "here"
    network = ["--backbone", "efficientnet-b0", "--weights", "random", "--image-size", "32"]
    assert extract.main(["data", "--cache", str(here), *network]) == 0
    stores = FeatureStore(here), FeatureStore(work / "there.h5")
    for name in ("ids", "features", "status", "digest", "stat", "crc32"):
        assert np.array_equal(*(getattr(store, name) for store in stores)), name
    flags = ["--text-encoder", "data/text-encoder", "--text-weights", "random", "--epochs", "1"]
    assert train.main(["data", "--cache", str(here), *flags, "--run", str(run_here), "--precision", "float32"]) == 0
    tiny.assert_same_tensors(run_here / "model.safetensors", work / "there" / "model.safetensors")


@pytest.mark.parametrize("name", ["NUL", "nul.txt", "CON.jpg", "com1.txt", "LPT9", "a:b.txt", "aux .txt"])
def test_names_that_mean_a_device_on_windows_are_known(name: str):
    assert is_windows_device(name)


@pytest.mark.parametrize("name", ["1.jpg", "null.txt", "console.txt", "com.txt", "auxiliary", "com10.txt", "nul1"])
def test_names_that_only_look_like_a_device_are_files(name: str):
    assert not is_windows_device(name)
