"""Learning rates over the epochs."""

from __future__ import annotations

import pytest
import torch

from frozenfusion.training.schedule import learning_rate


def rates(schedule: str, epochs: int, highest: float = 1e-4) -> list[float]:
    return [learning_rate(schedule, epoch=epoch, epochs=epochs, highest=highest) for epoch in range(1, epochs + 1)]


def test_restarts_are_those_of_the_reference() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=1, eta_min=1e-6)
    expected = []
    for _ in range(25):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates("cosine-restarts", 25) == pytest.approx(expected, rel=1e-12)
    assert rates("cosine-restarts", 11)[10] == 1e-4


def test_cosine_and_linear_fall_from_the_highest_rate_and_constant_stays() -> None:
    for schedule in ("cosine", "linear"):
        found = rates(schedule, 8)
        assert found[0] == 1e-4
        assert found == sorted(found, reverse=True)
        assert 0 < found[-1] < 2e-5
    assert rates("linear", 4) == pytest.approx([1e-4, 0.75e-4, 0.5e-4, 0.25e-4])
    assert rates("constant", 3) == [1e-4] * 3


@pytest.mark.parametrize("schedule", ["cosine-restarts", "cosine", "linear", "constant"])
def test_no_rate_is_above_a_very_low_highest_one(schedule: str) -> None:
    assert max(rates(schedule, 12, highest=1e-8)) == 1e-8
