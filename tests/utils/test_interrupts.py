"""Work that is ended by a signal ends in order, whatever further signals come; real processes, real signals."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = """
import sys, time
from frozenfusion.utils.interrupts import Terminated, held_back, interruptible

def say(word):
    print(word, flush=True)
    time.sleep(0.3)
with interruptible():
    try:
        with held_back():
            say("commit")
            say("committed")
        say("never")
    except Terminated:
        say("terminated")
        sys.exit(143)
    except KeyboardInterrupt:
        say("interrupted")
        say("ended")
        sys.exit(130)
"""


@pytest.mark.parametrize(
    ("signals", "status", "said"),
    [
        ({"commit": signal.SIGINT}, 130, ["commit", "committed", "interrupted", "ended"]),
        ({"commit": signal.SIGTERM}, 143, ["commit", "committed", "terminated"]),
        (
            {"commit": signal.SIGINT, "committed": signal.SIGINT, "interrupted": signal.SIGTERM},
            130,
            ["commit", "committed", "interrupted", "ended"],
        ),
        (
            {"commit": signal.SIGINT, "interrupted": signal.SIGINT, "ended": signal.SIGINT},
            -signal.SIGINT,
            ["commit", "committed", "interrupted", "ended"],
        ),
    ],
)
def test_a_commit_ends_the_first_signal_counts_the_second_is_passed_over_and_a_third_kills(
    signals: dict[str, signal.Signals], status: int, said: list[str]
) -> None:
    told = []
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            told.append(line.strip())
            if told[-1] in signals:
                process.send_signal(signals[told[-1]])
        assert process.stderr.read() == ""
    assert (process.returncode, told) == (status, said)


def test_what_a_process_ignores_stays_ignored() -> None:
    code = f"import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{PROGRAM.replace('commit', 'x')}"
    code = code.replace('say("x")', "os.kill(os.getpid(), signal.SIGINT)").replace("0.3", "0")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "xted\nnever\n", "")
