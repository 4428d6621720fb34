"""How good the runs are, and whether one beats another by more than luck."""

from typing import TYPE_CHECKING

from frozenfusion.utils.lazy import face

if TYPE_CHECKING:
    from frozenfusion.evaluation.comparison import compare as compare
    from frozenfusion.evaluation.config import EvaluateConfig as EvaluateConfig
    from frozenfusion.evaluation.evaluator import Evaluation as Evaluation
    from frozenfusion.evaluation.evaluator import evaluate as evaluate

face(
    __name__,
    {
        "EvaluateConfig": "frozenfusion.evaluation.config",
        "Evaluation": "frozenfusion.evaluation.evaluator",
        "compare": "frozenfusion.evaluation.comparison",
        "evaluate": "frozenfusion.evaluation.evaluator",
    },
)
