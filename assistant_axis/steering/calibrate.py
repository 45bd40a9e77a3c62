"""Thresholds and doses: where answers project, layer by layer, and what a dose means."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assistant_axis.errors import GeometryError, SettingError
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.models.hook_points import ResidPost
from assistant_axis.personas.library import DEFAULT
from assistant_axis.personas.rollouts import Rollout
from assistant_axis.progress import track
from assistant_axis.steering.direction import Direction, DirectionLike

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

Over = Literal["responses", "tokens"]
_GRID = 101


@dataclass(frozen=True, eq=False)
class Calibration:
    """Where answers project on a direction, raw, Assistant-positive.

    The mean over a response varies less than its single tokens do, so the two kinds of percentile differ: a floor at the 25th
    percentile of response means (as the paper takes it) touches more or fewer than a quarter of the tokens. `tokens_below`
    says how many.

    Attributes:
        direction: what was projected on.
        layers: block indices, in the order of the columns.
        responses: mean projection of each answer, `[answer, layer]`.
        default: which answers are the default persona's.
        token_quantiles: of single tokens, at 0, 1, …, 100 %, `[quantile, layer]`.
        tokens: how many tokens those are over.
        seed: of the bootstrap.
    """

    direction: Direction
    layers: tuple[int, ...]
    responses: Float[Tensor, "answer layer"]
    default: tuple[bool, ...]
    token_quantiles: Float[Tensor, "quantile layer"]
    tokens: int
    seed: int = 0

    def percentile(self, q: float | int, layer: int, over: Over = "responses") -> float:
        """The projection below which `q` percent of the responses (or tokens) lie.

        Raises:
            SettingError: q out of range.
        """
        if not 0 <= q <= 100:
            raise SettingError(f"A percentile lies between 0 and 100; got {q}.")
        k = self._column(layer)
        if over == "responses":
            return float(torch.quantile(self.responses[:, k], q / 100))
        column, below = self.token_quantiles[:, k], int(q)
        return float(column[below] if below == q else torch.lerp(column[below], column[below + 1], q - below))

    def interval(self, q: float | int, layer: int, resamples: int = 500) -> tuple[float, float]:
        """95 % bootstrap interval of a response percentile: how far a small run can be trusted."""
        values = self.responses[:, self._column(layer)]
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randint(len(values), (resamples, len(values)), generator=generator)
        drawn = torch.quantile(values[rows], q / 100, dim=1)
        low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975])).tolist()
        return low, high

    def default_rank(self, layer: int) -> float:
        """Percentile of the default's mean among all responses; NaN without default rollouts."""
        column = self.responses[:, self._column(layer)]
        own = column[torch.tensor(self.default)]
        return float((column < own.mean()).float().mean() * 100) if len(own) else float("nan")

    def tokens_below(self, threshold: float, layer: int) -> float:
        """Share of the calibration tokens below a threshold: what a floor there would touch in unsteered answers."""
        column = self.token_quantiles[:, self._column(layer)].contiguous()
        return min(int(torch.searchsorted(column, threshold)), 100) / 100

    def calibrated(self, over: Over = "responses") -> Direction:
        """The direction at these layers with these percentiles, ready for `Cap.calibrated`."""
        at = [self.direction.index(x) for x in self.layers]
        grid = torch.linspace(0, 1, _GRID)
        quantiles = torch.quantile(self.responses, grid, dim=0) if over == "responses" else self.token_quantiles
        d = self.direction
        return replace(
            d,
            layers=self.layers,
            unit=d.unit[at],
            norms=d.norms[at],
            resid_norms=None if d.resid_norms is None else d.resid_norms[at],
            landmarks={name: value[at] for name, value in d.landmarks.items()},
            quantiles=quantiles,
        )

    def rows(self, percentiles: Sequence[float | int] = (25, 50, 75)) -> list[dict[str, float]]:
        """One row a layer: percentiles of responses with intervals, of tokens, and where the default sits."""
        found = []
        for layer in self.layers:
            row: dict[str, float] = {"layer": layer, "default rank": self.default_rank(layer)}
            for q in percentiles:
                low, high = self.interval(q, layer)
                value = self.percentile(q, layer)
                row |= {f"p{q:g}": value, f"p{q:g} low": low, f"p{q:g} high": high}
                row |= {f"token p{q:g}": self.percentile(q, layer, "tokens")}
                row |= {f"tokens below p{q:g}": self.tokens_below(value, layer)}
            found.append(row)
        return found

    def _column(self, layer: int) -> int:
        self.direction.index(layer)
        return self.layers.index(layer)


def calibrate(
    axis: DirectionLike,
    model: "HookedChatModel",
    rollouts: Sequence[Rollout],
    *,
    layers: Iterable[int | float] | int | float | None = None,
    batch_size: int = 16,
    seed: int = 0,
    force: bool = False,
    progress: bool = False,
) -> Calibration:
    """Project answers on a direction: response means and single tokens, per layer.

    Args:
        axis: the direction.
        model: unsteered.
        rollouts: answers with their token ids; a few hundred suffice, and `interval` says how well. Those of the default
            persona have the role `"default"`.
        layers: default: every layer the direction holds.
        batch_size: rollouts a pass.
        seed: of the bootstrap.
        force: accept a direction of another model.
        progress: show a bar.

    Raises:
        GeometryError: no rollout with an answer.
        ArtefactMismatchError: a direction of another model.
    """
    direction = Direction.of(axis)
    direction.check(model, force=force)
    chosen = model.layers(direction.layers if layers is None else layers)
    units = {x: direction.unit[direction.index(x)] for x in chosen}
    said = sorted((r for r in rollouts if r.answer_ids), key=lambda r: len(r.prompt_ids) + len(r.answer_ids))
    if not said:
        raise GeometryError("There is no rollout with an answer to calibrate on.")
    means: list[Tensor] = []
    tokens: list[Tensor] = []
    with track(len(said), "Calibrating", show=progress) as advance:
        for start in range(0, len(said), batch_size):
            batch = said[start : start + batch_size]
            ids, mask = model.pad([[*r.prompt_ids, *r.answer_ids] for r in batch])
            along: dict[int, Tensor] = {}

            def keep(x: Tensor, layer: int, along: dict[int, Tensor] = along) -> None:
                along[layer] = (x.float() @ units[layer].to(x.device)).cpu()

            hooks = [(ResidPost(x), lambda t, x=x, keep=keep: keep(t, x)) for x in chosen]
            with model.hooks(hooks):
                model.forward(ids, mask, until=max(chosen))
            for k, r in enumerate(batch):
                span = slice(len(r.prompt_ids), len(r.prompt_ids) + len(r.answer_ids))
                own = torch.stack([along[x][k, span] for x in chosen], dim=-1)
                tokens.append(own)
                means.append(own.mean(0))
            advance(len(batch))
    every = torch.cat(tokens)
    grid = torch.linspace(0, 1, _GRID)
    # One column at a time: torch.quantile refuses more than 16 million values.
    quantiles = torch.stack([torch.quantile(column, grid) for column in every.unbind(1)], dim=1)
    return Calibration(
        direction, chosen, torch.stack(means), tuple(r.role == DEFAULT for r in said), quantiles, len(every), seed
    )


def calibrate_on_samples(axis: DirectionLike, vectors: PersonaVectors) -> Direction:
    """A direction with percentiles over the rollouts that persona vectors keep; for control directions above all.

    Raises:
        GeometryError: vectors without samples, or without a layer of the direction.
    """
    direction = Direction.of(axis)
    if vectors.samples is None:
        raise GeometryError("These persona vectors keep no single rollouts; extract them with keep_samples > 0.")
    at = [vectors.layer_index(x) for x in direction.layers]
    columns = [vectors.samples.activations[:, k].float() @ direction.unit[n] for n, k in enumerate(at)]
    quantiles = torch.quantile(torch.stack(columns, dim=1), torch.linspace(0, 1, _GRID), dim=0)
    return replace(direction, quantiles=quantiles)


def shuffled_direction(vectors: PersonaVectors, seed: int = 0) -> Direction:
    """A control: default minus roles with the labels of the rollouts shuffled, at the true axis's length.

    Raises:
        GeometryError: vectors without samples.
    """
    if vectors.samples is None:
        raise GeometryError("These persona vectors keep no single rollouts, so no labels can be shuffled.")
    true = Direction.of(vectors.axis())
    own = vectors.samples.role < 0
    mixed = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))]
    activations = vectors.samples.activations
    apart = activations[mixed].float().mean(0) - activations[~mixed].float().mean(0)
    unit = apart / apart.norm(dim=-1, keepdim=True)
    control = replace(true, unit=unit, quantiles=None, landmarks={}, name=f"shuffled labels (seed {seed})")
    return calibrate_on_samples(control, vectors)


def control_directions(
    axis: DirectionLike,
    *,
    vectors: PersonaVectors | None = None,
    model: "HookedChatModel | None" = None,
    rollouts: Sequence[Rollout] | None = None,
    layers: Iterable[int | float] | int | float | None = None,
    randoms: int = 3,
) -> list[Direction]:
    """Directions that should do nothing, calibrated as the axis was: random ones of equal length, and shuffled labels.

    Args:
        axis: the direction that they are to be compared with.
        vectors: persona vectors with single rollouts: gives the shuffled-label direction, and calibrates all of them
            unless rollouts are given.
        model: reads `rollouts`.
        rollouts: calibrates the controls on answers, as `calibrate` does.
        layers: of that calibration; default: all that the axis holds.
        randoms: how many random directions (seeds 0, 1, …).

    Raises:
        SettingError: neither vectors nor a model with rollouts: a floor at a percentile needs a calibration.
    """
    direction = Direction.of(axis)
    found = [direction.random(seed) for seed in range(randoms)]
    if vectors is not None:
        found.append(shuffled_direction(vectors.select(layers=direction.layers)))
    if rollouts is not None and model is not None:
        return [calibrate(d, model, rollouts, layers=layers).calibrated() for d in found]
    if vectors is None:
        raise SettingError("Control directions need a calibration: give vectors, or model and rollouts.")
    return [calibrate_on_samples(d, vectors) for d in found]


def dose_table(
    axis: DirectionLike, layers: Sequence[int] | None = None, doses: Sequence[float] = (-0.5, -0.25, 0.25, 0.5)
) -> list[dict[str, float]]:
    """What doses in units of the residual norm are in activation units and in lengths of the axis, one row a layer.

    Raises:
        SettingError: a direction without residual norms.
    """
    direction = Direction.of(axis)
    if direction.resid_norms is None:
        raise SettingError(f"The {direction.name} keeps no residual norms.")
    rows = []
    for layer in layers if layers is not None else direction.layers:
        k = direction.index(layer)
        norm, length = float(direction.resid_norms[k]), float(direction.norms[k])
        row: dict[str, float] = {"layer": layer, "residual norm": norm, "axis length": length}
        for dose in doses:
            row |= {f"{dose:+g} raw": dose * norm, f"{dose:+g} axis": dose * norm / length}
        rows.append(row)
    return rows
