"""What comes in: image–text pairs of every layout, their splits, their image files."""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.data.pairs import Pair as Pair
    from frozenfusion.data.pairs import Pairs as Pairs
    from frozenfusion.data.pairs import load_pairs as load_pairs
    from frozenfusion.data.splits import Split as Split
    from frozenfusion.data.splits import split_pairs as split_pairs

face(
    __name__,
    {
        "Pair": "frozenfusion.data.pairs",
        "Pairs": "frozenfusion.data.pairs",
        "Split": "frozenfusion.data.splits",
        "load_pairs": "frozenfusion.data.pairs",
        "split_pairs": "frozenfusion.data.splits",
    },
)
