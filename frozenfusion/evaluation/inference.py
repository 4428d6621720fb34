"""What a score would be of new trainings and new pairs: its interval, and whether two heads differ by more than luck.

Every pair meets every training of a head, so luck enters a mean in three ways: which pairs were tested, how each
training went as a whole, and how each training went on each pair. The variance of the mean is put together from them
by a two-way analysis (method of moments; Satterthwaite, Biometrics Bull. 2 (1946), for the degrees of freedom), and
Student's t does the rest. The trainings of two heads are independent, equal seed numbers or not: they share neither
parameters nor gradients. How training varies cannot be known from one of it: then the result holds for this very
training, as for a baseline. `python -m benchmarks.inference` measures errors, power and coverage beside other tests.

Shapes: n pairs, s seeds (of the first) and t (of the second); "..." are analyses made at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_SHARE = 0.25  # of the variance by pairs alone: few seeds that agree by chance do not prove more than that


@dataclass(frozen=True, eq=False)
class Inference:
    """A mean, how far it may lie from what it estimates, and how well that is known; arrays (...), or numbers."""

    mean: Floats
    error: Floats  # standard error
    freedom: Floats  # degrees of freedom of the standard error
    varies: NDArray[np.bool_] | bool = True  # whether anything did: else the standard error is a bound, no estimate

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """The interval that holds what is estimated with this probability."""
        reach = self._quantile((1 + level) / 2) * self.error
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> Floats:
        """Two-sided p-value of a mean of zero."""
        from scipy.special import stdtr

        return np.asarray(2 * stdtr(self.freedom, -np.abs(self.mean) / self.error), dtype=np.float64)

    def detectable(self, power: float = 0.8, level: float = 0.05) -> Floats:
        """The smallest true mean that a test finds with this power, infinite where nothing varied, which tells nothing.

        Source: Bloom, Eval. Rev. 19 (1995).
        """
        least = (self._quantile(1 - level / 2) + self._quantile(power)) * self.error
        return np.where(self.varies, least, np.inf)

    def _quantile(self, probability: float) -> Floats:
        from scipy.special import stdtrit

        return np.asarray(stdtrit(self.freedom, probability), dtype=np.float64)


def analyse(first: Floats, second: Floats | None = None) -> Inference:
    """The mean of `first` (..., s, n), or by how much it exceeds that of `second` (..., t, n) on the same pairs.

    Values are what each pair adds to each training's score: 1 where it is right and 0 where not, for accuracy;
    `metrics.contributions` has them for other figures. A single pair tells nothing: the standard error is infinite.
    """
    heads = [first] if second is None else [first, second]
    pairs, most_seeds = first.shape[-1], max(head.shape[-2] for head in heads)
    by_pair = first.mean(-2) - (0 if second is None else second.mean(-2))
    mean = np.asarray(by_pair.mean(-1), dtype=np.float64)
    if pairs < 2:
        return Inference(mean, np.full_like(mean, np.inf), np.ones_like(mean))
    of_these = by_pair.var(-1, ddof=1) / pairs  # the variance for these very trainings
    repeated = [head for head in heads if head.shape[-2] > 1]
    by_training = np.stack(
        [np.zeros_like(mean), *(head.mean(-1).var(-1, ddof=1) / head.shape[-2] for head in repeated)]
    )
    # The rest, what neither pairs nor trainings explain, is in both of these: it is counted with the trainings.
    of_pairs = np.maximum(of_these - sum(map(_rest, repeated)), 0)
    of_trainings = by_training.sum(0)
    counts = np.array([1, *(head.shape[-2] for head in repeated)]).reshape(-1, *[1] * mean.ndim)
    # Satterthwaite's approximation twice: for the trainings of both heads, and for them with the pairs. The squares in
    # the first are estimated without bias (the mean of S⁴ is σ⁴ (s + 1) / (s - 1)), which matters for few seeds.
    freedom = _ratio(of_trainings**2, (by_training**2 / (counts + 1)).sum(0), 3.0) - 2
    total = of_pairs + of_trainings
    freedom = _ratio(total**2, of_pairs**2 / (pairs - 1) + of_trainings**2 / freedom, pairs - 1)
    variance = np.maximum(total, LEAST_SHARE * of_these)
    one_decision = 1 / (pairs * most_seeds)  # heads that agree in all decisions may disagree in the next
    return Inference(mean, np.maximum(np.sqrt(variance), one_decision), freedom, variance > 0)


def _rest(values: Floats) -> Floats:
    """Of trainings (..., s, n), s > 1: the variance of their mean by what neither pairs nor trainings explain (...)."""
    seeds, pairs = values.shape[-2:]
    rest = values.var(-1).mean(-1) - values.mean(-2).var(-1)
    return np.asarray(rest / ((seeds - 1) * (pairs - 1)), dtype=np.float64)


def _ratio(part: Floats, whole: Floats, otherwise: float) -> Floats:
    """part / whole, and `otherwise` where whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, otherwise), where=whole > 0)
