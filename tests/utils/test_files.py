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
from frozenfusion.utils.files import MAX_JSON_BYTES, read_json, replacing, write_atomically, write_json


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
