"""Frozen image networks, and how they are run fast."""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.vision.backbone import Backbone as Backbone
    from frozenfusion.vision.backbone import build_backbone as build_backbone
    from frozenfusion.vision.registry import backbone_names as backbone_names
    from frozenfusion.vision.registry import register_backbone as register_backbone

face(
    __name__,
    {
        "Backbone": "frozenfusion.vision.backbone",
        "build_backbone": "frozenfusion.vision.backbone",
        "register_backbone": "frozenfusion.vision.registry",
        "backbone_names": "frozenfusion.vision.registry",
    },
)
