"""The C library is asked to keep memory, and where there is no such one nothing happens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from frozenfusion.utils import memory


def test_glibc_is_asked_to_give_no_block_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *given: asked.append(given)))
    memory.keep_freed_memory()
    assert dict(asked) == {-1: -1, -4: 0}  # M_TRIM_THRESHOLD never, M_MMAP_MAX none, by the numbers of malloc.h


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    class Other:
        def __init__(self, _: None) -> None:
            if error is OSError:
                raise OSError

    monkeypatch.setattr(memory.ctypes, "CDLL", Other)
    memory.keep_freed_memory()
