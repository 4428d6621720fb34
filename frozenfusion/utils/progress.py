"""What a person sees while work goes on: messages and progress bars."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

from frozenfusion.utils.messages import printable

log = logging.getLogger("frozenfusion")

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Progress through `total` units: a bar on a terminal, elsewhere a plain line every few seconds."""

    def __init__(self, total: int, unit: str, label: str = "", done: int = 0) -> None:
        self._total, self._unit, self._label = total, unit, printable(label)
        self._begun_at = done
        self._done = done
        self._started = self._last_line = time.monotonic()
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit=unit, desc=self._label or None) if terminal else None

    def update(self, n: int = 1, **figures: float | str) -> None:
        """Count `n` more units as done and show `figures` (name=value) beside them."""
        self._done += n
        if self._bar is not None:
            self._bar.update(n)
            if figures:
                self._bar.set_postfix(figures, refresh=False)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            log.info(self._line(figures))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what is done meanwhile out of the rate and the time left: it is none of these units."""
        begun = time.monotonic()
        yield
        self._started += time.monotonic() - begun
        if self._bar is not None:
            self._bar.unpause()

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, figures: dict[str, float | str]) -> str:
        rate = (self._done - self._begun_at) / max(time.monotonic() - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        extra = "".join(f", {name} {value}" for name, value in figures.items())
        return (
            f"{self._label}: {self._done:,}/{self._total:,} {self._unit}, "
            f"{rate:.1f} {self._unit}/s, {duration(left)} left{extra}"
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class TqdmHandler(logging.Handler):
    """Prints log records on stderr without tearing a progress bar, each as `say` words it."""

    def __init__(self, say: Callable[[str], str] = str) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + self._say(record.getMessage()), file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42s`, `3m 05s`, `2h 10m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
