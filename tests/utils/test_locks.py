"""One writer at a time, also beside processes that fork or die; tests/store/test_store_survival.py has a store's."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.locks import WriterLock, lock_path, sweep_lock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.h5"


def test_a_lock_that_is_released_lets_the_next_in_and_leaves_no_file(path: Path) -> None:
    lock = WriterLock(path)
    assert path.with_name("file.h5.lock").exists()
    lock.release()
    assert list(path.parent.iterdir()) == []
    WriterLock(path).release()


def test_a_second_release_does_not_take_the_next_writers_lock_away(path: Path) -> None:
    first = WriterLock(path)
    first.release()
    second = WriterLock(path)
    first.release()
    with pytest.raises(UserError, match="is writing it"):
        WriterLock(path)
    second.release()


def test_a_folder_that_is_not_there_is_made_and_stays_where_something_came_into_it(path: Path) -> None:
    for name, written in (("written", True), ("empty", False)):
        file = path.parent / name / "file.h5"
        with WriterLock(file):
            assert file.parent.is_dir()
            if written:
                file.write_text("done")
        assert file.parent.exists() == written
    (path.parent / "theirs").mkdir()
    WriterLock(path.parent / "theirs" / "file.h5").release()
    assert (path.parent / "theirs").is_dir()


def test_a_lock_file_that_may_not_be_made_is_a_user_error(path: Path) -> None:
    path.with_name("file.h5.lock").mkdir()
    with pytest.raises(UserError, match=r"file\.h5\.lock"):
        WriterLock(path)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_lock_that_cannot_be_made_stops_only_who_writes(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with WriterLock(path) as lock, pytest.raises(UserError, match=r"file\.h5: "):
        lock.require()


def test_the_lock_file_of_a_killed_writer_goes_and_a_held_one_stays(path: Path) -> None:
    lock_path(path).write_text("1")
    sweep_lock(path)
    assert list(path.parent.iterdir()) == []
    with WriterLock(path):
        sweep_lock(path)
        assert lock_path(path).exists()


HOLDER = """
import os, sys, time
from pathlib import Path
from frozenfusion.utils.locks import WriterLock

lock = WriterLock(Path(sys.argv[1]))
if not os.fork():
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_child_that_outlives_its_killed_parent_does_not_hold_the_lock(path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(UserError, match=f"process {holder.pid} is writing it"):
                WriterLock(path)
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            WriterLock(path).release()
            os.kill(child, 0)  # which is still there
        finally:
            os.kill(child, signal.SIGKILL)
    assert list(path.parent.iterdir()) == []


def test_a_child_cannot_release_its_parents_lock(path: Path) -> None:
    lock = WriterLock(path)
    child = os.fork()
    if not child:
        lock.release()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert path.with_name("file.h5.lock").exists()
    with pytest.raises(UserError, match="is writing it"):
        WriterLock(path)
    lock.release()


TAKE_TURNS = """
import sys
from pathlib import Path
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.locks import WriterLock

path, turns = Path(sys.argv[1]), 0
while turns < 100:
    try:
        lock = WriterLock(path)
    except UserError:
        continue
    count = int(path.read_text())
    path.write_text(str(count + 1))
    lock.release()
    turns += 1
"""


def test_no_two_writers_are_ever_in_at_once(path: Path) -> None:
    path.write_text("0")
    writers = [subprocess.Popen([sys.executable, "-c", TAKE_TURNS, path], cwd=ROOT) for _ in range(3)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert path.read_text() == "300"
