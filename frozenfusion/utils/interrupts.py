"""Ctrl-C and SIGTERM: how work ends by them, and what they do not disturb."""

from __future__ import annotations

import atexit
import contextlib
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """The end as a service or a scheduler asks for it: like Ctrl-C."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does. While it ends, a second signal is passed over; a third kills.

    Only the main thread hears of signals; what the process ignores stays ignored.
    """
    came: list[int] = []

    def end(number: int, _: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    before = {each: signal.getsignal(each) for each in _heard() if signal.getsignal(each) is not signal.SIG_IGN}
    try:
        for each in before:
            signal.signal(each, end)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler or signal.SIG_DFL)
        if came:
            atexit.register(pass_over_signals)  # the libraries' own end takes a moment too


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let the block, which is short, come to its end: Ctrl-C and SIGTERM meanwhile count when it has."""
    came: list[int] = []
    before = {each: signal.getsignal(each) for each in _heard() if callable(signal.getsignal(each))}
    try:
        for each in before:
            signal.signal(each, lambda number, _: came.append(number))
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)


def _heard() -> tuple[signal.Signals, ...]:
    return _SIGNALS if threading.current_thread() is threading.main_thread() else ()


def pass_over_signals() -> None:
    """Let the process, which is about to end, come to its end undisturbed."""
    for each in _heard():
        signal.signal(each, signal.SIG_IGN)
