"""Faster ways to what a text encoder computes: the same functions of the same parameters, equal but for rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, NewGELUActivation

from frozenfusion.utils.device import cpu_capabilities


def use_fast_kernels(encoder: nn.Module) -> None:
    """Let the modules of an encoder compute in the fastest way there is; parameters keep their names."""
    linear = _mkl_is_slow()
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):  # ALBERT's: eight kernels for what is one
                setattr(module, name, GELUTanh())
        if linear and type(module) is nn.Linear:
            module.__class__ = OneDNNLinear


def _mkl_is_slow() -> bool:
    """Whether nn.Linear multiplies by an MKL that leaves the CPU's AVX-512 unused (AMD), and oneDNN is there."""
    capabilities = cpu_capabilities()
    able = capabilities.get("avx512_f", False) and torch.backends.mkldnn.is_available()
    return able and "AMD" in capabilities.get("cpu_name", "") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class OneDNNLinear(nn.Linear):
    """nn.Linear, whose products in float32 on a CPU are oneDNN's: twice as fast as MKL's where that is slow."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        autocast = torch.is_autocast_enabled("cpu")  # to bf16, where nn.Linear comes to oneDNN by itself
        float32 = input.dtype == self.weight.dtype == torch.float32
        if autocast or not float32 or input.device.type != "cpu" or not input.numel():
            return super().forward(input)
        output: Tensor = _linear(input, self.weight, self.bias)
        return output


@torch.library.custom_op("frozenfusion::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x wᵀ + b: x (..., i), w (o, i), b (o,)."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _derivatives(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    for_x, for_weight, for_bias = ctx.needs_input_grad
    rows = gradient.reshape(-1, gradient.shape[-1])
    return (
        _linear(gradient, weight.t(), None) if for_x else None,
        _linear(rows.t(), x.reshape(-1, x.shape[-1]).t(), None) if for_weight else None,
        rows.sum(0) if for_bias else None,
    )


_linear.register_autograd(_derivatives, setup_context=_remember)
