"""The arithmetic of interventions: out of place, projections in float32, constants copied once to every device."""

from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor


class Constant:
    """One tensor, copied once to every device and dtype it is needed on; a model may move, or span several devices."""

    def __init__(self, value: Tensor) -> None:
        self._host = value.detach().to("cpu", torch.float32)
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        key = (device, dtype)
        if key not in self._copies:
            # An inference tensor could not be used later in a pass that keeps gradients.
            with torch.inference_mode(False):
                self._copies[key] = self._host.to(device, dtype)
        return self._copies[key]


class Shift:
    """`h + shift`."""

    def __init__(self, shift: Float[Tensor, "d_model"]) -> None:
        self.shift = Constant(shift)

    def __call__(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        moved = x + self.shift.on(x.device, x.dtype)
        return moved if where is None else torch.where(where[..., None], moved, x)


class Clamp:
    """`h + (clamp(⟨h, v̂⟩, low, high) − ⟨h, v̂⟩) · v̂`: one matrix-vector product and one rank-1 update."""

    def __init__(self, unit: Float[Tensor, "d_model"], low: float, high: float) -> None:
        self.unit, self.low, self.high = Constant(unit), low, high

    def __call__(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        unit = self.unit.on(x.device, torch.float32)
        along = x.to(torch.float32) @ unit
        step = along.clamp(self.low, self.high) - along
        if where is not None:
            step = step * where
        return torch.addcmul(x, step[..., None], unit).to(x.dtype)


Rule: TypeAlias = Shift | Clamp
