"""Typed hook points: where in a block the residual stream is read or changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, order=True)
class HookPoint:
    """A named place in a decoder block; `layer` is the zero-based block index.

    Use one of the kinds: [`ResidPost`][assistant_axis.ResidPost] (the output of block `layer`, where the
    paper measures), [`ResidPre`][assistant_axis.ResidPre] (its input), [`AttnOut`][assistant_axis.AttnOut]
    and [`MlpOut`][assistant_axis.MlpOut] (what attention and MLP add; only with `hooks="all"`).
    All of them hold tensors of shape `[batch, pos, d_model]`.
    """

    layer: int
    suffix: ClassVar[str] = ""
    in_residual_set: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The TransformerLens name, such as `blocks.18.hook_resid_post`."""
        return f"blocks.{self.layer}.{self.suffix}"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, order=True)
class ResidPost(HookPoint):
    """Residual stream after block `layer`: the output of the decoder block (Lu et al. 2026, section 2)."""

    suffix: ClassVar[str] = "hook_resid_post"


@dataclass(frozen=True, order=True)
class ResidPre(HookPoint):
    """Residual stream entering block `layer`."""

    suffix: ClassVar[str] = "hook_resid_pre"


@dataclass(frozen=True, order=True)
class AttnOut(HookPoint):
    """What attention adds to the residual stream in block `layer` (full hook set only)."""

    suffix: ClassVar[str] = "hook_attn_out"
    in_residual_set: ClassVar[bool] = False


@dataclass(frozen=True, order=True)
class MlpOut(HookPoint):
    """What the MLP adds to the residual stream in block `layer` (full hook set only)."""

    suffix: ClassVar[str] = "hook_mlp_out"
    in_residual_set: ClassVar[bool] = False
