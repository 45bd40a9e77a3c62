"""`Add`, `Cap` and `Ablate`: changes to the residual stream, as values that compile to hooks.

Positive is Assistant-like: `Add(axis, +0.25)` makes a model more of an assistant, `Cap(axis, floor=τ)` keeps it from being
less of one than τ. An intervention holds no model and no hook; `model.steered(...)` puts it in force. Hooks never edit in
place, compute projections in float32 whatever the model runs in, and are left out altogether where they would do nothing,
so that a zero dose is the unsteered model bit for bit.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from assistant_axis.errors import LayerError, ModelError, SettingError
from assistant_axis.models.hook_points import HookPoint, ResidPost
from assistant_axis.models.lens import HookFunction
from assistant_axis.steering.direction import Direction, DirectionLike
from assistant_axis.steering.placement import SAID, Layers, Where, default_window, is_quantised, say_layers
from assistant_axis.steering.rules import Clamp, Rule, Shift

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

Unit: TypeAlias = Literal["resid_norm", "axis", "raw"]
"""`"resid_norm"`: the mean norm of the residual stream at the layer. `"axis"`: the length of the axis there (default minus
roles). `"raw"`: activation units."""
Threshold: TypeAlias = float | int | Sequence[float | int] | Tensor | Mapping[int, float | int] | None


@dataclass(frozen=True, eq=False)
class Change:
    """What all interventions share; use [`Add`][assistant_axis.Add], [`Cap`][assistant_axis.Cap] or
    [`Ablate`][assistant_axis.Ablate].

    Attributes:
        axis: the direction: an `AssistantAxis`, a `Direction`, or `{layer: tensor [d_model]}`.
        layers: block indices or depths.
        positions: which tokens.
        force: accept a model other than the one the direction was measured on, if the width is the same.
        quantised: say that the model is quantised and that you know it: its activations differ from the ones measured.
        direction: `axis` made ready.
    """

    axis: DirectionLike
    layers: Layers = field(default=None, kw_only=True)
    positions: str = field(default="all", kw_only=True)
    force: bool = field(default=False, kw_only=True)
    quantised: bool = field(default=False, kw_only=True)
    direction: Direction = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.positions not in get_args(Where):
            raise SettingError(f"positions={self.positions!r} is not known; use one of {', '.join(get_args(Where))}.")
        if isinstance(self.layers, Iterable):  # a range or a generator, read once
            object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "direction", Direction.of(self.axis))

    # -- for a model ---------------------------------------------------------------------------------------------------

    def compile(self, model: "HookedChatModel") -> list[tuple[HookPoint, HookFunction]]:
        """Hooks for a model, one a layer; none where nothing would change.

        Raises:
            ArtefactMismatchError: the direction was made for another model (see `force`).
            LayerError: a layer that the model or the direction does not have.
            SettingError: a unit or threshold that the direction cannot express.
            ModelError: a quantised model (see `quantised`).
        """
        self.check(model)
        made: list[tuple[HookPoint, HookFunction]] = []
        for layer in self.resolved(model):
            change = self._change(layer)
            if change is not None:
                made.append((ResidPost(layer), self._at_positions(model, change)))
        return made

    def check(self, model: "HookedChatModel") -> None:
        """Refuse a model that this does not belong to; raises as `compile` does."""
        self.direction.check(model, force=self.force)
        if not self.quantised and is_quantised(model):
            raise ModelError(
                f"{model.name} is quantised, so its activations differ from those of the full model. "
                "Say that you know: quantised=True. Better, extract the axis from the quantised model itself."
            )

    def resolved(self, model: "HookedChatModel") -> tuple[int, ...]:
        """The layers this acts on in `model`, in rising order.

        Raises:
            LayerError: outside the model, or not held by the direction.
        """
        chosen = self._default_layers(model) if self.layers is None else model.layers(self.layers)
        missing = [x for x in chosen if x not in self.direction.layers]
        if missing:
            raise LayerError(
                f"The {self.direction.name} holds no vector for layer {', '.join(map(str, missing))}; "
                f"it holds {list(self.direction.layers)}."
            )
        return tuple(sorted(chosen))

    def explain(self, model: "HookedChatModel") -> None:
        """Print, before anything runs, which layers, tokens, doses and signs this means for a model."""
        print(self.describe(model))

    def describe(self, model: "HookedChatModel") -> str:
        """What `explain` prints."""
        self.check(model)
        layers = self.resolved(model)
        lines = [
            f"{type(self).__name__} along the {self.direction.name} of {model.name}: positive is Assistant-like",
            f"  layers     {say_layers(layers)} of 0–{model.n_layers - 1}, output of each block (resid_post)",
            f"  tokens     {SAID[self.positions]}",
        ]
        active = [x for x in layers if self._change(x) is not None]
        lines += [f"  layer {x:<4} {self._describe(x)}" for x in active]
        if not active:
            lines.append("  nothing: the model runs as it is, bit for bit")
        return "\n".join(lines)

    # -- what each kind says -------------------------------------------------------------------------------------------

    @abstractmethod
    def _change(self, layer: int) -> Rule | None:
        """What happens to a layer, or `None` if nothing does."""

    @abstractmethod
    def _describe(self, layer: int) -> str: ...

    def _default_layers(self, model: "HookedChatModel") -> tuple[int, ...]:
        return (model.profile.layer,)

    def _at_positions(self, model: "HookedChatModel", rule: Rule) -> HookFunction:
        which = self.positions
        if which == "all":
            return rule

        def hook(x: Tensor) -> Tensor:
            if not model.positions.active:
                raise ModelError(
                    f'positions="{which}" needs to follow the passes of the model: use model.steered(intervention) '
                    "instead of attaching its hooks yourself."
                )
            return rule(x, model.positions.select(which, x))

        return hook


@dataclass(frozen=True, eq=False)
class Add(Change):
    """Steering: `h ← h + coef · s · v̂` at every selected token (Lu et al. 2026, section 3).

    >>> with model.steered(Add(axis, -0.25)):      # doctest: +SKIP
    ...     model.generate(messages)               # less of an assistant

    Args:
        axis: the direction; positive is Assistant-like.
        coef: the dose; positive makes the model more Assistant-like.
        layers: default: the model's monitoring layer. The dose goes to each of them.
        unit: what a dose of 1 is: `"resid_norm"` (s = mean residual norm at the layer), `"axis"` (s = length of the axis
            there), `"raw"` (s = 1).
        positions: `"all"`, `"response"`, `"prompt"` or `"last"`.

    Raises:
        SettingError: a dose that is not finite, an unknown unit, or one that the direction cannot express.
    """

    coef: float | int = 0.0
    unit: str = field(default="resid_norm", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.coef):
            raise SettingError(f"The dose must be a finite number; got {self.coef}.")
        if self.unit not in get_args(Unit):
            raise SettingError(f"unit={self.unit!r} is not known; use one of {', '.join(get_args(Unit))}.")
        if self.unit == "resid_norm" and self.direction.resid_norms is None:
            raise SettingError(
                f'The {self.direction.name} keeps no residual norms, so a dose in unit="resid_norm" cannot be told. '
                'Use unit="axis" or unit="raw", or an axis extracted here.'
            )

    def size(self, layer: int) -> float:
        """Signed length of what is added at a layer, in activation units."""
        return self.coef * self._scale(layer)

    def _scale(self, layer: int) -> float:
        k = self.direction.index(layer)
        if self.unit == "resid_norm":
            assert self.direction.resid_norms is not None  # checked when this was made
            return float(self.direction.resid_norms[k])
        return float(self.direction.norms[k]) if self.unit == "axis" else 1.0

    def _change(self, layer: int) -> Rule | None:
        if self.coef == 0:
            return None
        return Shift(self.size(layer) * self.direction.unit[self.direction.index(layer)])

    def _describe(self, layer: int) -> str:
        size, k = self.size(layer), self.direction.index(layer)
        parts = [f"{size:+.4g} activation units", f"{size / float(self.direction.norms[k]):+.3g} × axis"]
        if self.direction.resid_norms is not None:
            parts.append(f"{size / float(self.direction.resid_norms[k]):+.3g} × residual norm")
        side = "toward" if size > 0 else "away from"
        return f"add {' = '.join(parts)} ({side} the Assistant)"


@dataclass(frozen=True, eq=False)
class Cap(Change):
    """Activation capping: keep `floor ≤ ⟨h, v̂⟩ ≤ ceiling` at every selected token, and touch nothing else.

    `h ← h + (clamp(p, floor, ceiling) − p) · v̂` with `p = ⟨h, v̂⟩` (Lu et al. 2026, section 5, a floor; the released files say
    the same as a ceiling on the negated vector). Each layer has its own vector and thresholds.

    >>> with model.steered(Cap.calibrated(axis, percentile=75, layers=range(20, 28))):   # doctest: +SKIP
    ...     model.generate(messages)

    Args:
        axis: the direction; positive is Assistant-like.
        floor: lowest projection allowed: a number for all layers, one for each layer of `layers`, one for each layer that
            the axis holds (as `axis.percentile(75)` gives), or `{layer: number}`. −inf or `None`: no floor.
        ceiling: highest projection allowed, in the same ways. +inf or `None`: no ceiling.
        layers: default: the published window of the model, or 70–90 % of its depth.
        positions: `"all"`, `"response"`, `"prompt"` or `"last"`.

    Raises:
        SettingError: a floor above its ceiling, NaN, or a wrong number of thresholds.
    """

    floor: Threshold = None
    ceiling: Threshold = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("floor", "ceiling"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, {int(k): _number(v, name) for k, v in value.items()})
            elif isinstance(value, (Sequence, Tensor)) and not (isinstance(value, Tensor) and value.ndim == 0):
                values = value.tolist() if isinstance(value, Tensor) else list(value)
                object.__setattr__(self, name, self._per_layer(name, [_number(v, name) for v in values]))
            elif value is not None:
                object.__setattr__(self, name, _number(value, name))
        for layer in self.direction.layers:
            low, high = self._bound("floor", layer, -math.inf), self._bound("ceiling", layer, math.inf)
            if low > high:
                raise SettingError(f"At layer {layer} the floor {low:g} lies above the ceiling {high:g}.")

    @classmethod
    def calibrated(
        cls,
        axis: DirectionLike,
        percentile: float | int = 75.0,
        *,
        ceiling_percentile: float | int | None = None,
        layers: Layers = None,
        positions: str = "all",
        force: bool = False,
        quantised: bool = False,
    ) -> "Cap":
        """A cap whose floor is a percentile of the calibration rollouts at each layer.

        Args:
            axis: an axis that keeps its calibration.
            percentile: over Assistant-positive projections: 75 is what the released files call "p0.25", and touches about
                three quarters of the calibration answers.
            ceiling_percentile: a ceiling too.
            layers, positions, force, quantised: as in `Cap`.

        Raises:
            SettingError: an axis without calibration.
        """
        direction = Direction.of(axis)
        floor = {x: direction.percentile(percentile, x) for x in direction.layers}
        ceiling = None
        if ceiling_percentile is not None:
            ceiling = {x: direction.percentile(ceiling_percentile, x) for x in direction.layers}
        return cls(direction, floor, ceiling, layers=layers, positions=positions, force=force, quantised=quantised)

    def thresholds(self, layer: int) -> tuple[float, float]:
        """(floor, ceiling) at a layer, −inf and inf where there is none."""
        return self._bound("floor", layer, -math.inf), self._bound("ceiling", layer, math.inf)

    def resolved(self, model: "HookedChatModel") -> tuple[int, ...]:
        chosen = super().resolved(model)
        for name in ("floor", "ceiling"):
            value = getattr(self, name)
            missing = [x for x in chosen if isinstance(value, Mapping) and x not in value]
            if missing:
                raise SettingError(f"There is no {name} for layer {', '.join(map(str, missing))}.")
        return chosen

    def _per_layer(self, name: str, values: list[float]) -> dict[int, float]:
        held = self.direction.layers
        asked = self.layers if isinstance(self.layers, tuple) else None
        if asked is not None and len(asked) == len(values):
            if any(isinstance(x, float) or x < 0 for x in asked):
                raise SettingError(f"{name} has one value a layer, so layers must be block indices; got {asked}.")
            if len(values) == len(held) and tuple(asked) != tuple(held):
                raise SettingError(
                    f"{name} has {len(values)} values, for the layers {list(asked)} or for those of the direction "
                    f"{list(held)}? Give {{layer: number}}."
                )
            return dict(zip((int(x) for x in asked), values, strict=True))
        if len(values) == len(held):
            return dict(zip(held, values, strict=True))
        said = f"{len(asked)} of `layers` or " if asked is not None else ""
        raise SettingError(
            f"{name} has {len(values)} values; expected {said}{len(held)}, one for each layer of the direction."
        )

    def _bound(self, name: str, layer: int, missing: float) -> float:
        value = getattr(self, name)
        if isinstance(value, Mapping):
            return value.get(layer, missing)
        return missing if value is None else value

    def _change(self, layer: int) -> Rule | None:
        low, high = self.thresholds(layer)
        if low == -math.inf and high == math.inf:
            return None
        return Clamp(self.direction.unit[self.direction.index(layer)], low, high)

    def _describe(self, layer: int) -> str:
        low, high = self.thresholds(layer)
        parts = []
        if low > -math.inf:
            parts.append(f"keep ⟨h, v̂⟩ ≥ {low:.4g}{self._rank(low, layer)}")
        if high < math.inf:
            parts.append(f"keep ⟨h, v̂⟩ ≤ {high:.4g}{self._rank(high, layer)}")
        return ", ".join(parts)

    def _rank(self, value: float, layer: int) -> str:
        if self.direction.quantiles is None:
            return ""
        column = self.direction.quantiles[:, self.direction.index(layer)].contiguous()
        rank = min(int(torch.searchsorted(column, value)), 100)
        return f" (percentile {rank} of the calibration answers)"

    def _default_layers(self, model: "HookedChatModel") -> tuple[int, ...]:
        return default_window(model)


@dataclass(frozen=True, eq=False)
class Ablate(Change):
    """Project a direction out: `h ← h + (t − ⟨h, v̂⟩) · v̂`, so that every selected token has the projection t.

    Args:
        axis: the direction.
        to: `"zero"` (t = 0, directional ablation), `"role_mean"` or `"default"` (mean ablation with that reference), or a
            number.
        layers: default: every layer that the direction holds.
        positions: `"all"`, `"response"`, `"prompt"` or `"last"`.

    Raises:
        SettingError: a reference that the direction does not keep.
    """

    to: str | float | int = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("zero", *self.direction.landmarks)
        if isinstance(self.to, str) and self.to not in known:
            raise SettingError(
                f"to={self.to!r} is not a reference of the {self.direction.name}; use {', '.join(known)} or a number."
            )
        if not isinstance(self.to, str):
            _number(self.to, "to")

    def target(self, layer: int) -> float:
        """The projection that every selected token gets at a layer, in activation units."""
        if not isinstance(self.to, str):
            return float(self.to)
        return 0.0 if self.to == "zero" else float(self.direction.landmarks[self.to][self.direction.index(layer)])

    def _change(self, layer: int) -> Rule | None:
        target = self.target(layer)
        return Clamp(self.direction.unit[self.direction.index(layer)], target, target)

    def _describe(self, layer: int) -> str:
        named = f" (that of the {self.to.replace('_', ' ')})" if isinstance(self.to, str) and self.to != "zero" else ""
        return f"set ⟨h, v̂⟩ to {self.target(layer):.4g}{named}"

    def _default_layers(self, model: "HookedChatModel") -> tuple[int, ...]:
        return self.direction.layers


@dataclass(frozen=True, eq=False)
class Chain:
    """Several interventions as one; where two act on one layer, they act in the order given.

    >>> Chain(Cap.calibrated(axis, 75), Add(other, 0.1)).explain(model)   # doctest: +SKIP
    """

    parts: tuple["Change | Chain", ...]

    def __init__(self, *parts: "Change | Chain") -> None:
        object.__setattr__(self, "parts", parts)

    @property
    def positions(self) -> str:
        """`"all"` if that is true of every part, else `"mixed"`."""
        return "all" if all(p.positions == "all" for p in self.parts) else "mixed"

    def compile(self, model: "HookedChatModel") -> list[tuple[HookPoint, HookFunction]]:
        """The hooks of every part, in order."""
        return [hook for part in self.parts for hook in part.compile(model)]

    def explain(self, model: "HookedChatModel") -> None:
        """Print what every part means for a model."""
        print(self.describe(model))

    def describe(self, model: "HookedChatModel") -> str:
        """What `explain` prints."""
        return "\n".join(f"{k}. {part.describe(model)}" for k, part in enumerate(self.parts, start=1))


def _number(value: object, name: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as e:
        raise SettingError(f"{name} must be a number; got {value!r}.") from e
    if math.isnan(number):
        raise SettingError(f"{name} is NaN; it must be a number.")
    return number
