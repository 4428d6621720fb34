"""Joint learning: each modality labels what it is surest of and teaches the other, where labels are few."""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.joint.config import JointConfig as JointConfig
    from frozenfusion.joint.run import train_jointly as train_jointly
    from frozenfusion.joint.study import study_labels as study_labels

face(
    __name__,
    {
        "JointConfig": "frozenfusion.joint.config",
        "study_labels": "frozenfusion.joint.study",
        "train_jointly": "frozenfusion.joint.run",
    },
)
