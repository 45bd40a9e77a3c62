"""Weights laid out for products with few rows, while a model generates on a CPU.

A step of generation multiplies a few rows with every matrix of the model, and is bound by reading the matrices. The layout
that PyTorch's default library reads is made for many rows; oneDNN's blocked layout takes .62 of the time at 16 rows, .77 at 64.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

_MOST_ROWS = 256
"""Products with more rows are faster in the plain layout."""
_TYPICAL_ROWS = 16
"""What the layout is chosen for."""
_FEWEST_ROWS = 4
"""From here on a call of `generate` gains; with one row it does not (two and three were not measured)."""
_FEWEST_STEPS = 32
"""Laying out takes as long as six (two threads) to 24 (one thread) steps of generation save."""
_SHARE = 0.25
"""Of the memory that is free: more than this a copy must not take."""


@contextmanager
def packed_linears(model: "HookedChatModel", rows: int, steps: int, *, head_only: bool = False) -> Iterator[int]:
    """On a CPU, lay the weights of every linear layer out for products with few rows, for the length of a `with` block.

    It costs a copy of the weights (the unembedding's alone where all do not fit a quarter of the free memory, none where it
    does not either). Products of more than 256 rows take the plain way. Gives how many layers were laid out: those in
    float32 on a CPU whose PyTorch has oneDNN; none for fewer than 4 `rows` or 32 `steps`, which would not pay for it.

    Args:
        model: its linear layers' `forward` is replaced in place and put back.
        rows: how many rows a step has.
        steps: passes of one token a row to come.
        head_only: the unembedding alone, the largest matrix of a small model.
    """
    head = model.lens.module.get_output_embeddings() if hasattr(model.lens.module, "get_output_embeddings") else None
    head = getattr(head, "original_component", head)
    linears = [m for m in model.lens.module.modules() if _can_be_packed(m)]
    room = _SHARE * psutil.virtual_memory().available
    if head_only or _bytes(linears) > room:
        linears = [m for m in linears if m is head]
    pays = rows >= _FEWEST_ROWS and steps >= _FEWEST_STEPS
    if not pays or not torch.backends.mkldnn.is_available() or _bytes(linears) > room:
        linears = []
    with ExitStack() as stack:
        for linear in linears:
            _pack(linear)
            stack.callback(linear.__dict__.pop, "forward")
        yield len(linears)


def _can_be_packed(module: Any) -> bool:
    return (
        type(module) is torch.nn.Linear
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and "forward" not in module.__dict__
        and not module._forward_hooks
    )


def _bytes(linears: list[Any]) -> int:
    return sum(linear.weight.nbytes for linear in linears)


def _pack(linear: Any) -> None:
    width, bias = linear.in_features, linear.bias
    packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_ROWS)

    def forward(input: Tensor) -> Tensor:
        if input.numel() > _MOST_ROWS * width:
            return torch.nn.functional.linear(input, linear.weight, bias)
        return torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")

    linear.forward = forward
