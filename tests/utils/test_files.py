"""Whole files or none, and file errors in a user's words."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.files import (
    MAX_JSON_BYTES,
    keep_current,
    link_or_copy,
    read_json,
    replacing,
    sweep,
    sweep_folder,
    temporary_beside,
    write_atomically,
    write_json,
)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, "first")
    write_atomically(path, "second é")
    assert path.read_text(encoding="utf-8") == "second é"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_a_failure_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_survives_a_round_trip(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1, 2.5, None]}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_malformed_json_is_a_user_error(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_json(path)


def test_a_huge_json_file_is_refused_unread(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 10)
    with pytest.raises(UserError, match="more than"):
        read_json(path)


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "none.json")


def test_a_file_where_a_folder_should_be_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        write_atomically(tmp_path / "file" / "a.json", "x")


def test_a_file_size_limit_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    code = (
        "import sys\n"
        "from frozenfusion.utils.errors import UserError\n"
        "from frozenfusion.utils.files import write_atomically\n"
        "try: write_atomically(sys.argv[1], b'x' * 5000)\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert "file-size limit" in done.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX's")
def test_json_is_not_waited_for_at_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "summary.json")
    with pytest.raises(UserError, match=r"summary\.json: not a regular file"):
        read_json(tmp_path / "summary.json")


KILLED = """
import os, signal, sys
from frozenfusion.utils.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("half", flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def half_written(path, how):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), how], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_what_a_killed_writer_left_goes_with_the_next_write_and_what_a_living_one_holds_stays(tmp_path):
    path, backup = tmp_path / "file.csv", tmp_path / ".file.csv.backup.tmp.csv"
    backup.write_text("of somebody else")
    with half_written(path, "killed") as killed:
        assert killed.communicate()[0] == b"half\n"
    assert len(list(tmp_path.iterdir())) == 2
    with half_written(path, "living") as living:
        assert living.stdout.readline() == b"half\n"
        write_atomically(path, "whole")
        assert len(list(tmp_path.iterdir())) == 3  # the killed one's is gone, the living one's is there
        assert path.read_text() == "whole"
        living.communicate()
        assert living.returncode == 0
    assert path.read_text() == "half"
    assert sorted(tmp_path.iterdir()) == [backup, path]


@pytest.mark.parametrize("name", ["a.csv", "a", "a.b.h5", ".hidden", "[a].*"])
def test_of_a_folder_only_what_bears_our_names_is_swept(tmp_path, name):
    temporary_beside(tmp_path / name).touch()
    others = ["x.tmp", ".x.tmp", ".a.csv.0123abcd.tmp.txt", ".a.csv.0123ABCD.tmp.csv", "a.csv.0123abcd.tmp.csv"]
    for other in others:
        (tmp_path / other).touch()
    sweep(tmp_path / "b.csv")
    assert len(list(tmp_path.iterdir())) == len(others) + 1
    sweep_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_file_that_says_the_same_already_is_not_written(tmp_path):
    path = tmp_path / "file.csv"
    keep_current(path, "é")
    before = path.stat()
    keep_current(path, "é")
    assert path.stat() == before
    keep_current(path, "e")
    assert path.read_text() == "e"


def test_a_second_name_is_given_where_there_is_one_already_and_to_itself(tmp_path):
    one, two, three = (tmp_path / name for name in ("one.bin", "two.bin", "three.bin"))
    one.write_text("1")
    two.write_text("2")
    for target in (two, two, three):
        link_or_copy(one, target)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["1", "1", "1"]
