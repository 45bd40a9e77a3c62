"""How far the axis would move if it were measured again: split halves, bootstrap, and how much data is enough."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assistant_axis.errors import ArtefactMismatchError, GeometryError, SettingError
from assistant_axis.geometry.controls import Array
from assistant_axis.geometry.questions import QuestionEffects
from assistant_axis.geometry.vectors import PersonaVectors, Samples


@dataclass(frozen=True)
class Stability:
    """Agreement of the axis with itself, layer by layer.

    Attributes:
        layers: block index of each entry.
        split_half: cosine between the axes of two disjoint halves of the rollouts, mean over splits, `[layer]`.
        split_half_low, split_half_high: 2.5 and 97.5 % over splits, `[layer]`.
        full: what the split-half cosine promises for all rollouts together (Spearman-Brown, 2r / (1 + r)), `[layer]`.
        bootstrap: cosine between the axis and that of resampled roles and rollouts, mean, `[layer]`.
        bootstrap_low: the 2.5 % of it, `[layer]`.
        splits, resamples: how many of each.
        rollouts: single rollouts behind all this.
    """

    layers: tuple[int, ...]
    split_half: Float[Array, "layer"]
    split_half_low: Float[Array, "layer"]
    split_half_high: Float[Array, "layer"]
    full: Float[Array, "layer"]
    bootstrap: Float[Array, "layer"]
    bootstrap_low: Float[Array, "layer"]
    splits: int
    resamples: int
    rollouts: int

    def at(self, layer: int) -> float:
        """Split-half cosine at one layer."""
        return float(self.split_half[self.layers.index(layer)])


@dataclass(frozen=True)
class Curve:
    """Agreement of two axes measured from disjoint data, against how much data each had.

    Attributes:
        over: `"roles"` or `"rollouts a role"`.
        layer: block index.
        sizes: how many, for each point.
        cosine: mean over draws, `[point]`.
        low, high: 2.5 and 97.5 % over draws, `[point]`.
    """

    over: str
    layer: int
    sizes: tuple[int, ...]
    cosine: Float[Array, "point"]
    low: Float[Array, "point"]
    high: Float[Array, "point"]

    def enough(self, cosine: float = 0.95) -> int | None:
        """The smallest size that reaches a cosine, if any does."""
        return next((s for s, c in zip(self.sizes, self.cosine, strict=True) if c >= cosine), None)


def stability(vectors: PersonaVectors, *, splits: int = 20, resamples: int = 100, seed: int = 0) -> Stability:
    """Split-half and bootstrap stability of the contrast axis at every layer.

    A split sends every role's rollouts to two disjoint halves, the same questions for all roles, and the default's
    alike; each half gives an axis. A bootstrap resample draws roles, and rollouts within each role and the default,
    with replacement. Of a run with `spread=True`, each half and each resample takes out its own question effects.

    Args:
        vectors: with `samples`: single rollouts.
        splits: random splits.
        resamples: bootstrap resamples.
        seed: of both.

    Raises:
        GeometryError: no single rollouts are kept, or too few of them.
    """
    if splits < 1 or resamples < 1:
        raise SettingError(f"splits={splits}, resamples={resamples}: at least one of each is needed.")
    samples = _samples(vectors)
    groups = _groups(samples, len(vectors.roles))
    rng = np.random.default_rng(seed)
    asked = _asked(vectors, samples)
    rows = [row for _ in range(splits) for row in _split_weights(groups, asked, rng)]
    rows += [_bootstrap_weights(groups, asked, rng) for _ in range(resamples)]
    weights = torch.from_numpy(np.stack(rows)).float()
    whole = vectors.default - vectors.role_mean
    halves, drawn = [], []
    for k in range(len(vectors.layers)):
        axes = weights @ samples.activations[:, k].float()
        halves.append(torch.cosine_similarity(axes[: 2 * splits : 2], axes[1 : 2 * splits : 2], dim=-1).numpy())
        drawn.append(torch.cosine_similarity(axes[2 * splits :], whole[k][None], dim=-1).numpy())
    split, boot = np.stack(halves).astype(np.float64), np.stack(drawn).astype(np.float64)
    mean = split.mean(1)
    return Stability(
        layers=vectors.layers,
        split_half=mean,
        split_half_low=np.percentile(split, 2.5, axis=1),
        split_half_high=np.percentile(split, 97.5, axis=1),
        full=2 * mean / (1 + mean),
        bootstrap=boot.mean(1),
        bootstrap_low=np.percentile(boot, 2.5, axis=1),
        splits=splits,
        resamples=resamples,
        rollouts=len(samples.role),
    )


def stability_curve(
    vectors: PersonaVectors,
    layer: int | float | None = None,
    *,
    over: str = "roles",
    sizes: tuple[int, ...] | None = None,
    draws: int = 20,
    seed: int = 0,
) -> Curve:
    """How many roles, or rollouts a role, are enough.

    Every point compares two axes that share nothing: disjoint sets of `size` roles with disjoint halves of the
    default's rollouts, or all roles with disjoint sets of `size` rollouts each and a like share of the default's.

    Args:
        vectors: with `samples`.
        layer: index or depth; default: the model's monitoring layer.
        over: `"roles"` or `"rollouts"`.
        sizes: at most half of what there is; default: doubling.
        draws: random draws a point.
        seed: of the draws.

    Raises:
        GeometryError: no single rollouts, or too few.
        SettingError: sizes out of range, or an unknown `over`.
    """
    if over not in ("roles", "rollouts"):
        raise SettingError(f'over={over!r} is not known; use "roles" or "rollouts".')
    samples = _samples(vectors)
    groups = _groups(samples, len(vectors.roles))
    k = vectors.layer_index(vectors.monitoring_layer if layer is None else layer)
    usable = [g for g in groups[:-1] if len(g) >= 2]
    most = len(usable) // 2 if over == "roles" else min(len(g) for g in usable) // 2
    chosen = sizes or _doubling(most)
    if not chosen or min(chosen) < 1 or max(chosen) > most:
        raise SettingError(f"sizes={chosen}: between 1 and {most} {over} (half of what there is) can be compared.")
    x, asked = samples.activations[:, k].float(), _asked(vectors, samples)
    rng = np.random.default_rng(seed)
    found = []
    for size in chosen:
        rows = []
        for _ in range(draws):
            rows += _disjoint_weights(usable, groups[-1], asked, size, over, most, rng)
        axes = torch.from_numpy(np.stack(rows)).float() @ x
        found.append(torch.cosine_similarity(axes[::2], axes[1::2], dim=-1).numpy().astype(np.float64))
    table = np.stack(found)
    return Curve(
        over="roles" if over == "roles" else "rollouts a role",
        layer=vectors.layers[k],
        sizes=tuple(chosen),
        cosine=table.mean(1),
        low=np.percentile(table, 2.5, axis=1),
        high=np.percentile(table, 97.5, axis=1),
    )


def split_half(vectors: PersonaVectors, *, seed: int = 0) -> tuple[PersonaVectors, PersonaVectors]:
    """Two sets of persona vectors from disjoint halves of the rollouts.

    The same seed splits two runs over the same transcripts in the same way, so that the first half of one and the
    second half of the other share no rollout. Roles with a single rollout are left out; of a run with `spread=True`,
    each half takes out its own question effects.

    Raises:
        GeometryError: no single rollouts are kept, or fewer than two for the default or for all roles.
    """
    samples = _samples(vectors)
    groups = _groups(samples, len(vectors.roles))
    coins = _coins(groups, np.random.default_rng(seed))
    keep = [i for i, g in enumerate(groups[:-1]) if len(g) >= 2]
    if not keep:
        raise GeometryError("No role has two single rollouts: there is nothing to split.")
    made = []
    for half in (0, 1):
        rows = [_side(groups[i], coins, half) for i in (*keep, -1)]
        chosen = torch.from_numpy(np.concatenate(rows))
        counts = torch.tensor([len(r) for r in rows])
        whose = torch.arange(len(rows)).repeat_interleave(counts)
        means = torch.stack([_mean(samples.activations, r) for r in rows])
        part = replace(
            vectors,
            roles=tuple(vectors.roles[i] for i in keep),
            vectors=means[:-1],
            default=means[-1],
            default_conditions=means[-1:],
            counts=counts[:-1],
            default_count=int(counts[-1]),
            samples=Samples(
                samples.activations[chosen],
                torch.where(whose == len(keep), -1, whose),
                None if samples.question is None else samples.question[chosen],
            ),
        )
        made.append(replace(part.adjust_questions() if vectors.spread else part, samples=None))
    return made[0], made[1]


def seeds_agree(a: PersonaVectors, b: PersonaVectors) -> Float[Tensor, "layer"]:
    """Cosine between the axes of two runs of one model (two seeds, two designs), at the layers both hold.

    Raises:
        ArtefactMismatchError: the runs are of different models, spans or templates, or share no layer.
    """
    differ = a.conditions.check_same_frame(b.conditions)
    if differ:
        said = "; ".join(f"{f}: {getattr(a.conditions, f)!r} and {getattr(b.conditions, f)!r}" for f in differ)
        raise ArtefactMismatchError(
            f"These two runs do not share one space ({said}). Compare them by role scores: compare(a, b)."
        )
    layers = [x for x in a.layers if x in b.layers]
    if not layers:
        raise ArtefactMismatchError(f"The runs share no layer: {a.layers} and {b.layers}.")
    left, right = a.select(layers=layers).axis(), b.select(layers=layers).axis()
    return torch.cosine_similarity(left.vectors, right.vectors, dim=-1)


# -- weights of rollouts: an axis is a weighted sum of them --------------------------------------------------------------


def _samples(vectors: PersonaVectors) -> Samples:
    if vectors.samples is None or not len(vectors.samples.role):
        raise GeometryError(
            "These persona vectors keep no single rollouts, so nothing can be resampled. Extract with keep_samples > 0, "
            "and save with samples=True."
        )
    if not vectors.samples.activations.isfinite().all():
        raise GeometryError(
            "Some single rollouts are not finite: activations beyond 65,504 do not fit half precision. Leave those layers "
            "out with select(layers=…)."
        )
    return vectors.samples


def _asked(vectors: PersonaVectors, samples: Samples) -> Int[Array, "sample"]:
    """The question of every rollout; one and the same where all roles were asked the same, so that none is taken out."""
    if not vectors.spread:
        return np.zeros(len(samples.role), dtype=np.int64)
    if samples.question is None:
        raise GeometryError("The roles were asked different questions, and it is not recorded which. Extract again.")
    return samples.question.numpy()


def _groups(samples: Samples, roles: int) -> list[Int[Array, "sample"]]:
    """Rows of every role's rollouts, the default's last."""
    whose = samples.role.numpy()
    groups = [np.flatnonzero(whose == r) for r in (*range(roles), -1)]
    if len(groups[-1]) < 2:
        raise GeometryError(
            f"Only {len(groups[-1])} single rollouts of the default are kept; at least two are needed. Raise keep_samples."
        )
    if sum(len(g) >= 2 for g in groups[:-1]) < 2:
        raise GeometryError("Fewer than two roles have two single rollouts each. Raise keep_samples.")
    return groups


def _side(rows: Array, coins: Array, half: int) -> Array:
    """A role's rollouts on one side. Neighbours in the plan share their system prompt: of every two, a coin sends one
    to each side, so that both sides have all prompts, and all roles keep the same questions together."""
    ordinal = np.arange(len(rows))
    return rows[(ordinal % 2 ^ coins[ordinal // 2]) == half]


def _coins(groups: list[Array], rng: np.random.Generator) -> Array:
    return rng.integers(0, 2, max(len(g) for g in groups) // 2 + 1)


def _split_weights(groups: list[Array], asked: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    coins = _coins(groups, rng)
    usable = [g for g in groups[:-1] if len(g) >= 2]
    first, second = (
        _weights([_side(g, coins, half) for g in usable], _side(groups[-1], coins, half), asked) for half in (0, 1)
    )
    return first, second


def _bootstrap_weights(groups: list[Array], asked: Array, rng: np.random.Generator) -> Array:
    usable = [g for g in groups[:-1] if len(g)]
    drawn = [usable[i] for i in rng.integers(0, len(usable), len(usable))]
    default = groups[-1]
    return _weights([rng.choice(g, len(g)) for g in drawn], rng.choice(default, len(default)), asked)


def _disjoint_weights(
    roles: list[Array], default: Array, asked: Array, size: int, over: str, most: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    own = rng.permutation(default)
    middle = len(own) // 2
    if over == "roles":
        order = rng.permutation(len(roles))
        sets = [[roles[i] for i in order[:size]], [roles[i] for i in order[size : 2 * size]]]
        share = middle
    else:
        shuffled = [rng.permutation(g) for g in roles]
        sets = [[g[:size] for g in shuffled], [g[size : 2 * size] for g in shuffled]]
        share = max(1, round(middle * size / most))
    return (
        _weights(sets[0], own[:share], asked),
        _weights(sets[1], own[middle : middle + share], asked),
    )


def _weights(roles: list[Array], default: Array, asked: Array) -> Float[Array, "sample"]:
    """The axis as one weight a rollout: default minus the mean of roles, roles weighing equally, questions taken out."""
    rows = np.concatenate([*roles, default])
    whose = np.repeat(np.arange(len(roles) + 1), [len(r) for r in (*roles, default)])
    fit = QuestionEffects.of(torch.from_numpy(whose), torch.from_numpy(asked[rows]), connected=False)
    axis = torch.full((1, len(roles) + 1), -1.0 / len(roles))
    axis[0, -1] = 1.0
    out = np.zeros(len(asked))
    np.add.at(out, rows, fit.weights(axis)[0].numpy())
    return out


def _doubling(most: int) -> tuple[int, ...]:
    sizes = [s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if 1.4 * s < most]
    return (*sizes, most) if most >= 1 else ()


def _mean(activations: Tensor, rows: Array) -> Float[Tensor, "layer d_model"]:
    return activations[torch.from_numpy(rows)].float().mean(0)
