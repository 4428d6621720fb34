"""Weights of an image network that are tensors of its shapes, and still no weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frozenfusion.utils.device import choose_device
from frozenfusion.utils.errors import UsageError, UserError
from frozenfusion.vision.weights import fitting


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensor: tensor.to(torch.complex64), "not plain float weights"),
        (lambda tensor: tensor.to_sparse(), "not plain float weights"),
        (lambda tensor: tensor.to(torch.int8), "not plain float weights"),
        (lambda tensor: tensor.to("meta"), "not plain float weights"),
        (torch.zeros_like, "all kernels are 0"),
        (lambda tensor: tensor.double() * 1e300, "not finite"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path: Path, change, told: str) -> None:
    state = {"kernel": torch.ones(2, 3), "bias": torch.ones(2)}
    with pytest.raises(UserError, match=told):
        fitting({name: change(tensor) for name, tensor in state.items()}, state, "network", "weights.pth")


def test_a_bias_of_zeros_is_usual() -> None:
    state = {"kernel": torch.ones(2, 3), "bias": torch.zeros(2)}
    assert fitting(state, state, "network", "weights.pth").keys() == state.keys()


def test_a_device_without_numbers_is_refused() -> None:
    with pytest.raises(UsageError, match="`device=meta`: cannot be used here"):
        choose_device("meta")
