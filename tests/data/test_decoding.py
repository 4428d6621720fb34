"""Decoding many files whatever they are: what hangs, crashes or wants too much is one row's fate and nobody else's."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from frozenfusion.data import decoding
from frozenfusion.data.decoding import Budget, Closed, Decoder
from frozenfusion.data.images import BadImage, decode_image
from frozenfusion.data.quick import MOST_TAGS, quick_bytes
from frozenfusion.store.status import REFUSED, UNREADABLE
from frozenfusion.utils.errors import UserError

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
COLOUR = Image.merge("RGB", [Image.fromarray(each) for each in (RAMP, 255 - RAMP, RAMP // 2)])


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def tags(count: int) -> bytes:
    """EXIF of so many tags, all of them the same."""
    return b"II*\0" + struct.pack("<IH", 8, count) + struct.pack("<HHII", 0x10E, 2, 4, 0) * count + bytes(4)


def refusal(decoder: Decoder, data: bytes) -> tuple[int, str]:
    with pytest.raises(BadImage) as caught:
        decoder.decode(data)
    return caught.value.status, caught.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_plain_pictures_are_quick(kind):
    needed = quick_bytes(encoded(COLOUR, kind))
    assert needed is not None
    assert needed >= 4 * COLOUR.width * COLOUR.height
    assert quick_bytes(encoded(COLOUR, kind, exif=b"Exif\0\0" + tags(3) if kind == "JPEG" else tags(3))) == needed
    assert quick_bytes(encoded(COLOUR, "JPEG", progressive=True, quality=95)) is not None


@pytest.mark.parametrize(
    "data",
    [
        many_scans(2000, 100),
        encoded(Image.new("L", (17_000, 2)), "PNG"),
        encoded(Image.new("1", (5000, 5000)), "PNG"),
        encoded(COLOUR, "JPEG", exif=b"Exif\0\0" + tags(MOST_TAGS + 1)),
        encoded(COLOUR, "PNG", exif=tags(MOST_TAGS + 1)),
        encoded(COLOUR, "PNG", save_all=True, append_images=[Image.new("RGB", COLOUR.size)]),
        encoded(COLOUR, "JPEG")[:100],
        *(encoded(COLOUR, kind) for kind in ("GIF", "TIFF", "BMP", "PPM", "TGA")),
    ],
    ids=["scans", "side", "pixels", "tags", "png tags", "animated", "cut", "GIF", "TIFF", "BMP", "PPM", "TGA"],
)
def test_what_may_take_long_is_not_quick(data):
    assert quick_bytes(data) is None


def test_no_process_is_started_for_plain_pictures_and_pages(monkeypatch):
    monkeypatch.setattr(decoding, "_Process", lambda: pytest.fail("started a process"))
    with Decoder(16) as decoder:
        for kind in ("JPEG", "PNG"):
            data = encoded(COLOUR, kind)
            assert np.array_equal(decoder.decode(data), decode_image(data, 16))
        assert "HTML" in refusal(decoder, b"<!DOCTYPE html>")[1]


def test_processes_give_what_threads_do_in_any_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "quick_bytes", lambda data: None)
    files = [
        encoded(COLOUR.resize((40 + n, 60)), kind) for n in range(3) for kind in ("JPEG", "PNG", "GIF", "TIFF", "TGA")
    ]
    alone = [decode_image(data, 20) for data in files]
    with ThreadPoolExecutor(8) as pool, Decoder(20, workers=8) as decoder:
        together = list(pool.map(decoder.decode, files * 3))
        assert refusal(decoder, b"")[0] == UNREADABLE
        assert refusal(decoder, files[0][:-40]) == (UNREADABLE, "image file is truncated")
        large = refusal(decoder, encoded(Image.new("1", (11_000, 11_000)), "TIFF", compression="group4"))
    assert all(np.array_equal(one, two) for one, two in zip(alone * 3, together, strict=True))
    assert large == (REFUSED, "11000 x 11000 pixels, more than 100,000,000")


def test_what_takes_too_long_is_refused_and_its_neighbours_are_not():
    slow, good = many_scans(4000, 20_000), encoded(COLOUR, "GIF")
    with ThreadPoolExecutor(2) as pool, Decoder(16, seconds=1, workers=2) as decoder:
        tried = pool.submit(refusal, decoder, slow)
        assert all(np.array_equal(decoder.decode(good), decode_image(good, 16)) for _ in range(3))
        assert tried.result() == (REFUSED, "takes more than 1 s to decode")
        assert np.array_equal(decoder.decode(good), decode_image(good, 16))


def test_what_is_being_decoded_is_given_up_at_once():
    with ThreadPoolExecutor(1) as pool:
        with Decoder(16, seconds=600) as decoder:
            given_up = pool.submit(decoder.decode, many_scans(4000, 20_000))
            while not decoder._running:
                time.sleep(0.01)
        with pytest.raises(Closed):
            given_up.result(timeout=60)
    with pytest.raises(Closed):
        decoder.decode(encoded(COLOUR, "PNG"))


def test_a_crash_of_a_decoder_is_one_file_s_fate():
    with Decoder(16) as decoder:
        good = encoded(COLOUR, "GIF")
        before = decoder.decode(good)
        (process,) = decoder._idle
        process._popen.terminate()
        process._popen.wait()
        assert refusal(decoder, good) == (UNREADABLE, "makes its decoder crash")
        assert np.array_equal(decoder.decode(good), before)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
def test_the_system_s_end_of_memory_is_no_file_s_fault():
    with Decoder(16) as decoder:
        decoder.decode(encoded(COLOUR, "GIF"))
        (process,) = decoder._idle
        process._popen.kill()
        process._popen.wait()
        with pytest.raises(MemoryError):
            decoder.decode(encoded(COLOUR, "GIF"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux")
def test_a_file_that_asks_for_far_too_much_memory_is_refused():
    """A few megabytes of tags, each of which names all the others as its value."""
    count, about = 60_000, 2_000_000
    entries = b"".join(struct.pack("<HHII", tag, 2, about, 8) for tag in range(count))
    bomb = b"II*\0" + struct.pack("<I", about + 8) + bytes(about) + struct.pack("<H", count) + entries + bytes(4)
    with Decoder(16, seconds=600) as decoder:
        assert refusal(decoder, bomb) == (REFUSED, "takes far more memory than a picture of its size should")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
def test_a_killed_parent_leaves_no_process_behind(tmp_path):
    (tmp_path / "slow.jpg").write_bytes(many_scans(4000, 20_000))
    program = (  # without the guard that multiprocessing needs
        "import sys, threading; from pathlib import Path; from frozenfusion.data.decoding import Decoder\n"
        "decoder = Decoder(16, seconds=600)\n"
        "threading.Thread(target=decoder.decode, args=[Path(sys.argv[1]).read_bytes()], daemon=True).start()\n"
        "while not decoder._running: pass\n"
        "print(next(iter(decoder._running))._popen.pid, flush=True)\n"
        "threading.Event().wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, tmp_path / "slow.jpg"], cwd=ROOT, stdout=subprocess.PIPE)
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while _runs(worker):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_that_cannot_start_is_no_file_s_fault(monkeypatch, tmp_path):
    good = encoded(COLOUR, "GIF")
    monkeypatch.setattr(decoding, "_START", "raise SystemExit(3)")
    with Decoder(16) as decoder, pytest.raises(UserError, match="ended with status 3"):
        decoder.decode(good)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with Decoder(16) as decoder, pytest.raises(UserError, match="cannot start a process"):
        decoder.decode(good)


def test_a_budget_is_never_exceeded_and_what_is_larger_is_held_alone():
    budget, held, most = Budget(10), [], []
    lock = threading.Lock()

    def hold(amount: int) -> None:
        with budget.hold(amount):
            with lock:
                held.append(amount)
                most.append(sum(held))
            time.sleep(0.001)
            with lock:
                held.remove(amount)
                if amount > 10:
                    assert not any(held)  # what holds nothing may run beside it

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [3, 4, 30, 5, 1, 0, 12, 10] * 8))
    assert max(total for total in most if total not in (30, 12)) <= 10
    with budget.hold(10):
        pass
