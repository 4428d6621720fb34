"""The fusion heads, one class each."""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.fusion.base import FeatureHead as FeatureHead
    from frozenfusion.fusion.base import FusionHead as FusionHead
    from frozenfusion.fusion.base import HeadInputs as HeadInputs
    from frozenfusion.fusion.base import HeadOutput as HeadOutput
    from frozenfusion.fusion.base import register_head as register_head
    from frozenfusion.fusion.options import Range as Range
    from frozenfusion.fusion.registry import head_names as head_names

face(
    __name__,
    {
        "FusionHead": "frozenfusion.fusion.base",
        "FeatureHead": "frozenfusion.fusion.base",
        "HeadInputs": "frozenfusion.fusion.base",
        "HeadOutput": "frozenfusion.fusion.base",
        "Range": "frozenfusion.fusion.options",
        "register_head": "frozenfusion.fusion.base",
        "head_names": "frozenfusion.fusion.registry",
    },
)
