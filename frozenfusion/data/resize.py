"""How large a picture becomes before the network sees it: by which filter, in which shape, and what is cut off."""

from __future__ import annotations

from dataclasses import dataclass

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # as Pillow numbers them
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Resize:
    """What makes a picture a square of `size` pixels per side; by default both sides are resized to it.

    Args:
        size: of what is left in the end.
        edge: pixels per side before the middle is cut out; by default `size`, so that nothing is.
        keeps_shape: whether `edge` is the shorter side and the other follows, instead of both.
        filter: Pillow's number of the filter, which is wide enough for what it shrinks.
    """

    size: int
    edge: int = 0
    keeps_shape: bool = False
    filter: int = FILTERS.index("bilinear")

    def __post_init__(self) -> None:
        object.__setattr__(self, "edge", self.edge or self.size)
        if self.edge < self.size:
            raise ValueError(f"cannot cut {self.size} pixels out of {self.edge}")

    def __str__(self) -> str:
        """What a fingerprint says of it beside the size; of the default no more than version 0.1 did."""
        cut = f", {'shorter side' if self.keeps_shape else 'both sides'} {self.edge}, centre crop"
        return f"pillow-{FILTERS[self.filter]}" + (cut if self.keeps_shape or self.edge != self.size else "")

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture before its middle is cut out."""
        if not self.keeps_shape:
            return self.edge, self.edge
        short = min(width, height)
        return int(self.edge * width / short), int(self.edge * height / short)

    def middle(self, width: int, height: int) -> Box:
        """What is cut out of a picture of the target's size."""
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return left, top, left + self.size, top + self.size


def as_resize(size: int | Resize) -> Resize:
    """A number of pixels stands for both sides resized to it."""
    return size if isinstance(size, Resize) else Resize(size)
