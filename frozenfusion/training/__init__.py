"""Stage two: text encoder and fusion head against the cached features."""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.training.config import TrainConfig as TrainConfig
    from frozenfusion.training.run import TrainedRun as TrainedRun
    from frozenfusion.training.run import train as train
    from frozenfusion.training.sweeps import sweep as sweep
    from frozenfusion.training.tuning import tune as tune

face(
    __name__,
    {
        "TrainConfig": "frozenfusion.training.config",
        "TrainedRun": "frozenfusion.training.run",
        "sweep": "frozenfusion.training.sweeps",
        "train": "frozenfusion.training.run",
        "tune": "frozenfusion.training.tuning",
    },
)
