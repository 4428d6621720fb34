"""The model: how it is shaped, used, saved and loaded."""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.model.classifier import PairClassifier as PairClassifier
    from frozenfusion.model.config import ModelConfig as ModelConfig
    from frozenfusion.model.run_folder import RunFolder as RunFolder

face(
    __name__,
    {
        "PairClassifier": "frozenfusion.model.classifier",
        "ModelConfig": "frozenfusion.model.config",
        "RunFolder": "frozenfusion.model.run_folder",
    },
)
