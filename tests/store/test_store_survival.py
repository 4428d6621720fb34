from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from store_worker import SHAPE, check, fill
from stores import IDS, MADE_BY, error_of, made, write, written

from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.status import OK, PENDING
from frozenfusion.store.writer import StoreWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features.h5"


def test_the_second_writer_is_told_who_the_first_is_and_readers_go_on(path: Path) -> None:
    with made(path) as writer:
        for action in (
            lambda: StoreWriter.open(path, MADE_BY),
            lambda: made(path),
            lambda: StoreWriter.rebuild(path, IDS, (3,), "float32", MADE_BY),
        ):
            message = error_of(action)
            assert "features.h5" in message
            assert str(os.getpid()) in message
        write(writer, [2])
        writer.commit()
        assert FeatureStore(path).status[2] == OK
    with StoreWriter.open(path, MADE_BY):
        pass


def test_a_killed_writer_lets_the_next_one_in(path: Path) -> None:
    code = (
        "import sys, time; from frozenfusion.store import StoreWriter\n"
        "writer = StoreWriter.create(sys.argv[1], ['a'], (3,), 'float32', {})\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
        assert f"process {process.pid}" in error_of(lambda: StoreWriter.open(path, {}))
        process.kill()
        process.wait()
    StoreWriter.open(path, {}).close()


def test_a_forked_worker_that_outlives_its_parent_does_not_keep_the_lock(path: Path) -> None:
    reading, writing = os.pipe()
    writer = made(path)
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)  # until the parent closes its end
        os._exit(0)
    try:
        writer.close()
        StoreWriter.open(path, MADE_BY).close()
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


def test_writers_killed_at_random_moments_leave_no_wrong_row(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed.h5", tmp_path / "whole.h5"
    command = [sys.executable, str(ROOT / "tests" / "store_worker.py"), str(killed), "0", "30"]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    ended = FeatureStore(killed)
    check(ended)
    with StoreWriter.create(whole, ended.names(), SHAPE, "float32", ended.fingerprint) as writer:
        fill(writer)
    uninterrupted = FeatureStore(whole)
    for name in ("ids", "status", "features", "crc32", "digest", "stat"):
        assert np.array_equal(getattr(ended, name), getattr(uninterrupted, name)), name


def test_a_power_cut_leaves_no_wrong_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays the writer's own writes: all up to the last sync have happened, of those since any, whole or in part."""
    made(path, shape=(100,)).close()
    image, log = path.read_bytes(), recorded(monkeypatch, path)
    with StoreWriter.open(path, MADE_BY) as writer:
        for version in range(1, 40):
            rows = [version % 5, (version + 2) % 5]
            writer.reset(rows)
            writer.write(rows, np.full((2, 100), version), [bytes([version]) * 16] * 2, np.full((2, 2), version))
            writer.commit()
    chance = random.Random(0)
    for _ in range(100):
        cut = chance.randrange(len(log))
        synced = max((i for i in range(cut) if log[i] is None), default=0)
        survivors = bytearray(image)
        for i, entry in enumerate(log[:cut]):
            if entry is not None and (i < synced or chance.random() < 0.5):
                offset, content = entry
                kept = len(content) if i < synced else chance.randint(1, len(content))
                survivors[offset : offset + kept] = content[:kept]
        path.write_bytes(survivors)
        store = FeatureStore(path)
        assert not len(store.damaged_rows())
        for row in np.flatnonzero(store.status == OK):
            assert set(store.features[row]) == set(store.digest[row]) == set(store.stat[row])


def recorded(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[tuple[int, bytes] | None]:
    """The writes to `path` from now on, as (offset, content); None is a sync."""
    log: list[tuple[int, bytes] | None] = []
    pwrite, sync = os.pwrite, os.fdatasync

    def recording_write(fd: int, content: bytes, offset: int) -> int:
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            log.append((offset, bytes(content)))
        return pwrite(fd, content, offset)

    def recording_sync(fd: int) -> None:
        log.append(None)
        sync(fd)

    monkeypatch.setattr(os, "pwrite", recording_write)
    monkeypatch.setattr(os, "fdatasync", recording_sync)
    return log


# ---- disks that say no


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_refuses_a_new_store_and_keeps_the_old_one(small_disk: Path) -> None:
    path = small_disk / "x.h5"
    assert "full" in error_of(lambda: made(path, shape=(100_000,)))
    assert not list(small_disk.iterdir())
    store = written(path)
    assert "full" in error_of(lambda: StoreWriter.extend(path, [f"{i:06d}" * 50 for i in range(900)], MADE_BY))
    assert "full" in error_of(lambda: StoreWriter.rebuild(path, IDS, (100_000,), "float32", MADE_BY))
    assert list(small_disk.iterdir()) == [path]
    assert (FeatureStore(path).features == store.features).all()


def test_a_disk_that_fills_up_keeps_the_finished_rows_and_the_same_run_goes_on(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "not here")))
    path, ballast = small_disk / "x.h5", small_disk / "ballast"
    block = np.ones((1, 5000), np.float32)
    with made(path, shape=(5000,)) as writer:  # on a file system that cannot reserve
        ballast.write_bytes(bytes(180_000))

        def write_all() -> None:
            for row in range(5):
                writer.write([row], block, [bytes(16)], [(0, 0)])
                writer.commit()

        assert "full" in error_of(write_all)
    kept = FeatureStore(path).counts()
    assert 0 < kept["ok"] < 5
    assert not len(FeatureStore(path).damaged_rows())
    ballast.unlink()
    with StoreWriter.open(path, MADE_BY) as writer:
        for row in np.flatnonzero(writer.store.status == PENDING):
            writer.write([row], block, [bytes(16)], [(0, 0)])
    assert FeatureStore(path).counts()["ok"] == 5


LIMITED = """
import resource, sys
import numpy as np
from frozenfusion.utils.errors import UserError
from frozenfusion.store import StoreWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    StoreWriter.create(sys.argv[1], ["a", "b"], (20_000,), "float32", {})
except UserError as error:
    print(error)
StoreWriter.create(sys.argv[1], ["a", "b"], (1000,), "float32", {}).close()
"""


def test_a_file_size_limit_is_told_in_one_line(path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", LIMITED, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "limit" in run.stdout
    assert len(run.stdout.splitlines()) == 1
    assert FeatureStore(path).n == 2


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from frozenfusion.utils.errors import UserError
from frozenfusion.store import FeatureStore, StoreWriter
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
path = Path(sys.argv[1])
print(FeatureStore(path).n)
for action in (
    lambda: StoreWriter.open(path, {}).mark([0], 2),
    lambda: StoreWriter.extend(path, ["c"], {}),
    lambda: StoreWriter.create(path.with_name("new.h5"), ["a"], (3,), "float32", {}),
):
    try:
        action()
    except UserError as error:
        print(error)
"""


def test_a_read_only_folder_is_read_and_a_writer_told_in_one_line() -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: other users cannot enter that
        folder = Path(name)
        StoreWriter.create(folder / "x.h5", ["a", "b"], (3,), "float32", {}).close()
        folder.chmod(0o555)
        command = [sys.executable, "-c", UNPRIVILEGED, folder / "x.h5"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        folder.chmod(0o755)
        assert run.returncode == 0, run.stderr
        lines = run.stdout.splitlines()
        assert len(lines) == 4
        assert lines[0] == "2"
        assert all("permission denied" in line for line in lines[1:])
        told = [Path(line.split(": ")[0]).name for line in lines[1:]]
        assert told == ["x.h5", "x.h5", "new.h5"]
        assert [entry.name for entry in folder.iterdir()] == ["x.h5"]


def test_rows_whose_sync_fails_stay_pending(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def write_and_fail() -> None:
        with made(path) as writer:
            write(writer, [0])
            monkeypatch.setattr(os, "fdatasync", failing)
            writer.commit()

    error_of(write_and_fail)
    monkeypatch.undo()
    assert FeatureStore(path).counts()["pending"] == 5
    StoreWriter.open(path, MADE_BY).close()


def test_a_disk_that_fails_when_a_grown_store_is_written_is_one_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(path)
    real_replace, real_open = os.replace, os.open

    def failing(name: object, *given: int) -> int:
        if name == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_open(name, *given)

    def replace(source: Path, target: Path) -> None:
        real_replace(source, target)
        monkeypatch.setattr(os, "open", failing)

    monkeypatch.setattr(os, "replace", replace)
    with StoreWriter.extend(path, [*IDS, "f"], MADE_BY) as writer:
        assert str(path) in error_of(lambda: write(writer, [5]))
    monkeypatch.undo()
    with StoreWriter.extend(path, [*IDS, "f"], MADE_BY) as writer:
        assert writer.store.counts() == {
            "pending": 1,
            "ok": 5,
            "missing": 0,
            "unreadable": 0,
            "refused": 0,
            "crashed": 0,
        }
