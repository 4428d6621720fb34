"""Classify image–text pairs with a frozen, cached image network and a trained text-and-fusion head.

    import frozenfusion as ff

What this package hands out is loaded when it is first asked for.
"""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.data.pairs import Pair as Pair
    from frozenfusion.data.pairs import Pairs as Pairs
    from frozenfusion.data.pairs import load_pairs as load_pairs
    from frozenfusion.data.splits import Split as Split
    from frozenfusion.data.splits import split_pairs as split_pairs
    from frozenfusion.evaluation.config import EvaluateConfig as EvaluateConfig
    from frozenfusion.evaluation.evaluator import Evaluation as Evaluation
    from frozenfusion.evaluation.evaluator import evaluate as evaluate
    from frozenfusion.extraction.config import ExtractConfig as ExtractConfig
    from frozenfusion.extraction.extractor import extract as extract
    from frozenfusion.fusion.base import FeatureHead as FeatureHead
    from frozenfusion.fusion.base import FusionHead as FusionHead
    from frozenfusion.fusion.base import HeadInputs as HeadInputs
    from frozenfusion.fusion.base import HeadOutput as HeadOutput
    from frozenfusion.fusion.base import register_head as register_head
    from frozenfusion.fusion.registry import head_names as head_names
    from frozenfusion.joint.config import JointConfig as JointConfig
    from frozenfusion.joint.run import train_jointly as train_jointly
    from frozenfusion.joint.study import study_labels as study_labels
    from frozenfusion.model.classifier import PairClassifier as PairClassifier
    from frozenfusion.store.reader import FeatureStore as FeatureStore
    from frozenfusion.training.config import TrainConfig as TrainConfig
    from frozenfusion.training.run import TrainedRun as TrainedRun
    from frozenfusion.training.run import train as train
    from frozenfusion.training.sweeps import sweep as sweep
    from frozenfusion.training.trackers import TrackedRun as TrackedRun
    from frozenfusion.training.trackers import Tracker as Tracker
    from frozenfusion.training.trackers import register_tracker as register_tracker
    from frozenfusion.training.tuning import tune as tune
    from frozenfusion.utils.errors import UsageError as UsageError
    from frozenfusion.utils.errors import UserError as UserError
    from frozenfusion.vision.registry import backbone_names as backbone_names
    from frozenfusion.vision.registry import register_backbone as register_backbone

__version__ = "0.2.0"

face(
    __name__,
    {
        "EvaluateConfig": "frozenfusion.evaluation.config",
        "Evaluation": "frozenfusion.evaluation.evaluator",
        "ExtractConfig": "frozenfusion.extraction.config",
        "FeatureHead": "frozenfusion.fusion.base",
        "FeatureStore": "frozenfusion.store.reader",
        "FusionHead": "frozenfusion.fusion.base",
        "HeadInputs": "frozenfusion.fusion.base",
        "HeadOutput": "frozenfusion.fusion.base",
        "JointConfig": "frozenfusion.joint.config",
        "Pair": "frozenfusion.data.pairs",
        "PairClassifier": "frozenfusion.model.classifier",
        "Pairs": "frozenfusion.data.pairs",
        "Split": "frozenfusion.data.splits",
        "TrainConfig": "frozenfusion.training.config",
        "TrackedRun": "frozenfusion.training.trackers",
        "Tracker": "frozenfusion.training.trackers",
        "TrainedRun": "frozenfusion.training.run",
        "UsageError": "frozenfusion.utils.errors",
        "UserError": "frozenfusion.utils.errors",
        "backbone_names": "frozenfusion.vision.registry",
        "evaluate": "frozenfusion.evaluation.evaluator",
        "extract": "frozenfusion.extraction.extractor",
        "head_names": "frozenfusion.fusion.registry",
        "load_pairs": "frozenfusion.data.pairs",
        "register_backbone": "frozenfusion.vision.registry",
        "register_head": "frozenfusion.fusion.base",
        "register_tracker": "frozenfusion.training.trackers",
        "split_pairs": "frozenfusion.data.splits",
        "study_labels": "frozenfusion.joint.study",
        "sweep": "frozenfusion.training.sweeps",
        "train": "frozenfusion.training.run",
        "train_jointly": "frozenfusion.joint.run",
        "tune": "frozenfusion.training.tuning",
    },
)
