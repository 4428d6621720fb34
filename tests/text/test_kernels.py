"""Faster ways of a text encoder give what the plain ones give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel
from transformers.activations import NewGELUActivation

from frozenfusion.text import kernels

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN product",
)


@pytest.fixture(params=["AMD", "Intel"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A CPU with AVX-512, as torch describes it."""
    capabilities = {"avx512_f": True, "cpu_name": f"{request.param} some model"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    return str(request.param)


def both(shape: tuple[int, ...], out: int, *, bias: bool, seed: int = 0) -> tuple[nn.Linear, nn.Linear, Tensor]:
    """A linear layer, the same one by oneDNN, and an input."""
    torch.manual_seed(seed)
    plain, fast = nn.Linear(shape[-1], out, bias=bias), nn.Linear(shape[-1], out, bias=bias)
    fast.load_state_dict(plain.state_dict())
    fast.__class__ = kernels.OneDNNLinear
    return plain, fast, torch.randn(shape)


def outcome(layer: nn.Module, given: Tensor) -> list[Tensor]:
    """What a layer returns, and the derivatives of a loss by its input and its parameters."""
    x = given.clone().requires_grad_()
    output = layer(x)
    (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
    return [output.detach(), *(of.grad for of in (x, *layer.parameters()) if of.grad is not None)]


@needs_onednn
@settings(max_examples=60)
@given(
    leading=st.lists(st.integers(0, 5), max_size=3),
    width=st.integers(1, 70),
    out=st.integers(1, 70),
    bias=st.booleans(),
)
def test_a_linear_layer_by_onednn_is_the_same_with_all_derivatives(
    leading: list[int], width: int, out: int, bias: bool
) -> None:
    plain, fast, x = both((*leading, width), out, bias=bias)
    expected = outcome(plain, x)
    assert len(expected) == 3 + bias
    assert_close(outcome(fast, x), expected, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_parameter_gets_no_derivative(frozen: str) -> None:
    plain, fast, x = both((4, 6, 8), 16, bias=True)
    for layer in (plain, fast):
        getattr(layer, frozen).requires_grad_(False)
    assert_close(outcome(fast, x), outcome(plain, x))
    assert getattr(fast, frozen).grad is None


@needs_onednn
def test_strided_inputs_are_read_as_they_are() -> None:
    plain, fast, x = both((12, 8, 4), 16, bias=True)
    plain.weight, fast.weight = (nn.Parameter(torch.randn(12, 16).t()) for _ in range(2))
    fast.load_state_dict(plain.state_dict())
    assert_close(outcome(fast, x.transpose(0, 2)), outcome(plain, x.transpose(0, 2)))


@needs_onednn
def test_other_arithmetic_is_torchs_own() -> None:
    plain, fast, x = both((4, 8), 16, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), plain(x))
    assert torch.equal(fast.double()(x.double()), plain.double()(x.double()))


@needs_onednn
def test_a_compiled_layer_is_the_same() -> None:
    plain, fast, x = both((4, 6, 8), 16, bias=True)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True, dynamic=True)
    output = compiled(x)
    output.square().sum().backward()
    expected = plain(x)
    expected.square().sum().backward()
    assert_close(output, expected)
    assert_close(fast.weight.grad, plain.weight.grad)


@needs_onednn
def test_encoders_get_fast_kernels_and_stay_what_they_are(processor: str, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny.make_text_encoder(tmp_path, layers=2))
    assert config.hidden_act == "gelu_new"
    plain: Any = AutoModel.from_config(config).eval()
    fast: Any = AutoModel.from_config(config).eval()
    fast.load_state_dict(plain.state_dict())
    kernels.use_fast_kernels(fast)
    assert any(isinstance(module, NewGELUActivation) for module in plain.modules())
    assert not any(isinstance(module, NewGELUActivation) for module in fast.modules())
    by_onednn = {type(module) for module in fast.modules() if isinstance(module, nn.Linear)}
    assert by_onednn == {kernels.OneDNNLinear if processor == "AMD" else nn.Linear}
    assert fast.state_dict().keys() == plain.state_dict().keys()
    ids = torch.arange(20).reshape(2, 10) % config.vocab_size
    outputs = [model(input_ids=ids) for model in (fast, plain)]
    assert_close(outputs[0].last_hidden_state, outputs[1].last_hidden_state, rtol=0, atol=5e-6)
    assert_close(outputs[0].pooler_output, outputs[1].pooler_output, rtol=0, atol=5e-6)
    for output in outputs:
        output.pooler_output.square().sum().backward()
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
