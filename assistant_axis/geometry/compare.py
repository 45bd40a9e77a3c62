"""Comparison of persona spaces across models, widths and depths.

Vectors of two models share no coordinates, so what is compared is how the roles lie: the cosine of every centred role
vector with each principal component (Lu et al. 2026, section 2), and the geometry of the roles as a whole (RSA, CKA).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from torch import Tensor

from assistant_axis.errors import ArtefactMismatchError, GeometryError, SettingError
from assistant_axis.geometry.controls import Array, Correlation, Interval, correlate, interval, pearson_rows
from assistant_axis.geometry.published import MIN_ROLES
from assistant_axis.geometry.stability import split_half
from assistant_axis.geometry.vectors import PersonaVectors, Samples

Layers = tuple[int | float, int | float]
FEW = 4
"""Roles with fewer rollouts are named in a comparison's notes."""
UNRELIABLE = 0.5
"""Below this split-half reliability a corrected correlation is not to be trusted, and the notes say so."""
LOOSE = 0.1
"""A component on which the default is nearer to the roles' mean (in their standard deviations) has no firm sign."""


@dataclass(frozen=True)
class Similarity:
    """A similarity of two role spaces as wholes.

    Attributes:
        value: 1 for the same geometry up to rotation and scale.
        interval: 95 %, from random halves of the roles (delete-half jackknife, Shao & Wu 1989), centred on `value`. A
            bootstrap would count roles drawn twice as alike and come out too high.
        p: permutation of role labels, `(k + 1) / (permutations + 1)`.
    """

    value: float
    interval: Interval
    p: float

    def __str__(self) -> str:
        return f"{self.value:.3f} {self.interval}, permutation p {self.p:.2g}"


@dataclass(frozen=True)
class Noise:
    """PC1 correlation when sampling noise is not shared.

    Two models that read the same transcripts share what those transcripts happened to say, so their correlation
    flatters itself. Here one model's PC1 comes from one half of the rollouts, the other's from the other half, each with
    the sign of its own model's PC1.

    Attributes:
        shared: Pearson r with both models on the same half (mean over the two halves).
        disjoint: with each model on its own half (mean over both ways).
        disjoint_interval: 95 % bootstrap over roles.
        reliability: of each model, its two halves against one another.
        corrected: `disjoint / sqrt(reliability_a · reliability_b)` (Spearman 1904): what the correlation would be had
            both models been measured without noise; it may exceed 1 by chance. NaN where a reliability is not positive.
        corrected_interval: 95 % bootstrap over roles.
        n: roles with two rollouts in both runs.
        splits: random splits averaged over.
    """

    shared: float
    disjoint: float
    disjoint_interval: Interval
    reliability: tuple[float, float]
    corrected: float
    corrected_interval: Interval
    n: int
    splits: int


@dataclass(frozen=True)
class SameWidth:
    """What can be compared coordinate by coordinate, where two residual streams are equally wide.

    It means something where one model was trained from the other (a base model and its chat model), and nothing
    otherwise: streams of unrelated models share no coordinates, and then every cosine is near 0.

    Attributes:
        pcs: |cos| of every component with that of the same number, `[pc]` (paper, Gemma 2 27B: .93, .87, .83).
        axis: cosine of the two Assistant Axes.
        roles: cosine of each role's centred vectors, `[role]`. Uncentred ones are near 1 for any two roles.
        chance: what |cos| of two random directions of this width averages, `sqrt(2 / (π d_model))`.
    """

    pcs: Float[Array, "pc"]
    axis: float
    roles: Float[Array, "role"]
    chance: float

    def __str__(self) -> str:
        pcs = " ".join(f"{c:.2f}" for c in self.pcs)
        return (
            f"axes {self.axis:.3f}, components {pcs}, centred role vectors {float(np.median(self.roles)):.3f} (median); "
            f"random directions {self.chance:.3f}"
        )


@dataclass(frozen=True)
class Comparison:
    """Two runs, compared.

    Attributes:
        models: names of the two models.
        layers: block index in each.
        chosen: how the layers were chosen: `"given"`, `"monitoring"` or `"best"`.
        roles: the shared roles.
        only: roles that only one run has.
        dropped: roles of each run with fewer than `min_count` rollouts.
        rollouts: rollouts a shared role in each run: fewest, median and most.
        scores: cosine scores per component, sign fixed by the default, `[model, pc, role]`.
        pcs: correlation of the scores, component by component.
        held_out: for `"best"`: PC1 at the layers that one half of the roles prefers, over the other half alone.
        heat: Pearson r of PC1 scores for every pair of layers, `[layer_a, layer_b]`.
        heat_layers: block indices along both sides of `heat`.
        cross: Pearson r of every component of one with every component of the other, `[pc_a, pc_b]`.
        matched: components paired by the largest total |r| (Hungarian method): (PC of a, PC of b, r).
        default_positions: relative position of the default on every component (0 its own extreme), `[model, pc]`.
        rsa: Spearman correlation of the two role-by-role cosine matrices (Kriegeskorte et al. 2008).
        cka: linear centred kernel alignment (Kornblith et al. 2019).
        noise: PC1 without shared sampling noise, if both runs keep single rollouts.
        same_width: cosines in shared coordinates, if the widths are equal.
        notes: what to know before trusting the figures: conditions in which the runs differ, roles left out or resting
            on few rollouts, components whose sign hangs by a thread.
    """

    models: tuple[str, str]
    layers: tuple[int, int]
    chosen: str
    roles: tuple[str, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    dropped: tuple[tuple[str, ...], tuple[str, ...]]
    rollouts: tuple[tuple[int, int, int], tuple[int, int, int]]
    scores: Float[Array, "model pc role"]
    pcs: tuple[Correlation, ...]
    held_out: Correlation | None
    heat: Float[Array, "layer_a layer_b"]
    heat_layers: tuple[tuple[int, ...], tuple[int, ...]]
    cross: Float[Array, "pc_a pc_b"]
    matched: tuple[tuple[int, int, float], ...]
    default_positions: Float[Array, "model pc"]
    rsa: Similarity
    cka: Similarity
    noise: Noise | None
    same_width: SameWidth | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        (a, b), (i, j) = self.models, self.layers
        lines = [f"{a} (layer {i}) and {b} (layer {j}; {self.chosen}), {len(self.roles)} shared roles"]
        lines += [f"  PC{k}: {c}" for k, c in enumerate(self.pcs[:3], start=1)]
        if self.held_out is not None:
            lines.append(f"  PC1 on held-out roles: {self.held_out}")
        if self.noise is not None:
            n = self.noise
            lines.append(
                f"  PC1, halves of the rollouts: same half {n.shared:.3f}, disjoint halves {n.disjoint:.3f} "
                f"{n.disjoint_interval}, reliability {n.reliability[0]:.3f} and {n.reliability[1]:.3f}, corrected for it "
                f"{n.corrected:.3f} {n.corrected_interval}"
            )
        lines += [f"  RSA {self.rsa}", f"  CKA {self.cka}"]
        lines.append("  matched: " + ", ".join(f"PC{k} ~ PC{m} ({r:+.2f})" for k, m, r in self.matched))
        if self.same_width is not None:
            lines.append(f"  same width, cosines of: {self.same_width}")
        lines += [f"  note: {n}" for n in self.notes]
        return "\n".join(lines)

    def outliers(self, count: int = 8, pc: int = 1) -> list[tuple[str, float]]:
        """Roles furthest from the common line: (role, residual of standardised scores, a − b)."""
        x, y = self.scores[0, pc - 1], self.scores[1, pc - 1]
        gap = (x - x.mean()) / x.std() - (y - y.mean()) / y.std()
        return [(self.roles[k], float(gap[k])) for k in np.argsort(-np.abs(gap), kind="stable")[:count]]


@dataclass(frozen=True)
class ComparisonMatrix:
    """All pairs of several runs.

    Attributes:
        names: of the runs.
        pc1: Pearson r of PC1 scores, `[run, run]`.
        spearman: the same with ranks, `[run, run]`.
        cka: linear CKA, `[run, run]`.
        pairs: the comparisons behind it.
    """

    names: tuple[str, ...]
    pc1: Float[Array, "run run"]
    spearman: Float[Array, "run run"]
    cka: Float[Array, "run run"]
    pairs: Mapping[tuple[str, str], Comparison]


@dataclass(frozen=True)
class RoleScores:
    """Cosine scores of all roles on the leading components of every layer.

    Attributes:
        values: `[layer, pc, role]`, sign fixed by the default.
        default: relative position of the default in the roles' range of projections, `[layer, pc]`.
        default_offset: its distance from the roles' mean on the component, in standard deviations of the roles,
            `[layer, pc]`; near 0 the sign of the component hangs by a thread.
    """

    values: Float[Array, "layer pc role"]
    default: Float[Array, "layer pc"]
    default_offset: Float[Array, "layer pc"]


def role_scores(vectors: PersonaVectors, pcs: int = 5) -> RoleScores:
    """Cosine of every centred role vector with the leading components, at every layer.

    Computed from the role-by-role Gram matrix, so the width costs one product a layer: for `X = U S Vᵀ` the score of
    role `i` on component `k` is `U_ik S_k / ‖x_i‖`. Agrees with [`PersonaSpace.scores`][assistant_axis.PersonaSpace].

    Raises:
        GeometryError: all role vectors are the same at some layer.
        SettingError: more components than roles less one.
    """
    n = len(vectors.roles)
    if not 1 <= pcs <= min(n - 1, vectors.d_model):
        raise SettingError(f"pcs={pcs}: {n} roles of width {vectors.d_model} have 1 to {min(n - 1, vectors.d_model)}.")
    values, places, offsets = [], [], []
    for k, layer in enumerate(vectors.layers):
        x = vectors.vectors[:, k].double()
        mean = x.mean(0)
        centered, default = x - mean, vectors.default[k].double() - mean
        size = centered.norm(dim=1, keepdim=True)
        if not float(size.max()) > 1e-9 * max(float(mean.norm()), 1e-9):
            raise GeometryError(f"All role vectors are the same at layer {layer}: there is nothing to compare.")
        energy, rows = torch.linalg.eigh(centered @ centered.T)
        energy, rows = energy.flip(0)[:pcs].clamp_min(0), rows.flip(1)[:, :pcs]
        length = energy.sqrt().clamp_min(1e-12)
        own = (centered @ default) @ rows / length  # the default's projection on each component
        side = torch.where(own < 0, -1.0, 1.0)
        along = rows * length * side
        values.append((along / size.clamp_min(1e-12)).T.numpy())
        high, low = along.max(0).values, along.min(0).values
        places.append(((high - own * side) / (high - low).clamp_min(1e-12)).numpy())
        offsets.append((own.abs() / along.std(0, correction=0).clamp_min(1e-12)).numpy())
    return RoleScores(np.stack(values), np.stack(places), np.stack(offsets))


def compare(
    a: PersonaVectors,
    b: PersonaVectors,
    layers: Layers | str = "monitoring",
    *,
    pcs: int = 5,
    min_count: int | None = None,
    resamples: int = 1000,
    splits: int = 5,
    seed: int = 0,
    force: bool = False,
) -> Comparison:
    """Compare the persona spaces of two models, whatever their widths and depths.

    >>> print(compare(smollm2, gemma))   # doctest: +SKIP

    Args:
        a, b: two runs over the same roles; of one model too.
        layers: a pair of indices or depths; `"monitoring"` for each model's own; `"best"` for the pair with the largest
            PC1 correlation. A best pair flatters itself, so it comes with `held_out`, and its p-value is over the
            largest of all pairs under permutation.
        pcs: components compared.
        min_count: drop roles with fewer rollouts in either run; the result names them.
        resamples: bootstrap resamples and permutations.
        splits: random splits of the rollouts for `noise`.
        seed: of all randomness.
        force: compare runs of different spans or persona sets all the same; the result says so.

    Raises:
        ArtefactMismatchError: different spans or persona sets.
        GeometryError: fewer than 20 shared roles, or role vectors that do not differ.
        LayerError: a layer that is not held.
    """
    notes = _check(a, b, force)
    dropped = tuple(_thin(v, min_count or 0) for v in (a, b))
    if min_count is not None:
        a, b = a.select(min_count=min_count), b.select(min_count=min_count)
        notes += [
            f"{len(thin)} roles of {v.conditions.model} have fewer than {min_count} rollouts and were left out: {_some(thin)}"
            for v, thin in zip((a, b), dropped, strict=True)
            if thin
        ]
    shared = tuple(r for r in a.roles if r in set(b.roles))
    if len(shared) < MIN_ROLES:
        raise GeometryError(
            f"The runs share {len(shared)} roles (of {len(a.roles)} and {len(b.roles)}); at least {MIN_ROLES} are needed."
            + (f" min_count={min_count} left out {len(dropped[0])} and {len(dropped[1])}." if any(dropped) else "")
        )
    only = (tuple(r for r in a.roles if r not in shared), tuple(r for r in b.roles if r not in shared))
    a, b = a.select(roles=shared), b.select(roles=shared)
    for v, alone in zip((a, b), only, strict=True):
        if thin := _thin(v, FEW):
            notes.append(
                f"{len(thin)} roles of {v.conditions.model} rest on fewer than {FEW} rollouts (the fewest "
                f"{int(v.counts.min())}): {_some(thin)}; min_count={FEW} leaves them out"
            )
        if alone:
            notes.append(f"{len(alone)} roles are in the run of {v.conditions.model} alone: {_some(alone)}")
    pcs = min(pcs, len(shared) - 1, a.d_model, b.d_model)
    all_a, all_b = role_scores(a, pcs), role_scores(b, pcs)
    first_a, first_b = all_a.values[:, 0], all_b.values[:, 0]
    heat = _cross(first_a, first_b)
    held_out = None
    if layers == "best":
        i, j = _argmax(heat)
        halves = np.random.default_rng(seed).permutation(len(shared))
        pick, test = halves[::2], halves[1::2]
        p, q = _argmax(_cross(first_a[:, pick], first_b[:, pick]))
        held_out = correlate(first_a[p, test], first_b[q, test], resamples=resamples, seed=seed)
    elif layers == "monitoring":
        i, j = a.layer_index(a.monitoring_layer), b.layer_index(b.monitoring_layer)
    elif isinstance(layers, str):
        raise SettingError(f'layers={layers!r} is not known; use a pair, "monitoring" or "best".')
    else:
        i, j = a.layer_index(layers[0]), b.layer_index(layers[1])
    x, y = all_a.values[i], all_b.values[j]
    found = [correlate(x[k], y[k], resamples=resamples, seed=seed, what=f"PC{k + 1} scores") for k in range(pcs)]
    if layers == "best":
        found[0] = _with_p(found[0], _max_p(first_a, first_b, float(heat[i, j]), resamples, seed))
    cross = _cross(x, y)
    rows, columns = linear_sum_assignment(-np.abs(cross))
    rsa, cka = _wholes(a, b, i, j, resamples, seed)
    left, right = a.select(layers=[a.layers[i]]), b.select(layers=[b.layers[j]])
    noise = _noise(left, right, splits, resamples, seed)
    if isinstance(noise, str):
        notes.append(f"the noise that the runs share could not be told: {noise}")
    elif min(noise.reliability) < UNRELIABLE:
        notes.append(
            f"halves of the rollouts agree with one another only to {noise.reliability[0]:.2f} and {noise.reliability[1]:.2f}: "
            "the correction divides by little, so do not lean on it; measure more rollouts"
        )
    for v, offsets in ((a, all_a.default_offset[i]), (b, all_b.default_offset[j])):
        if loose := [f"PC{k + 1}" for k in range(pcs) if offsets[k] < LOOSE]:
            notes.append(
                f"the sign of {', '.join(loose)} of {v.conditions.model} hangs by a thread: the default lies within {LOOSE} "
                "standard deviations of the roles' mean there, so only the size of r means something"
            )
    return Comparison(
        models=(a.conditions.model, b.conditions.model),
        layers=(a.layers[i], b.layers[j]),
        chosen=layers if isinstance(layers, str) else "given",
        roles=shared,
        only=only,
        dropped=(dropped[0], dropped[1]),
        rollouts=(_spread(a), _spread(b)),
        scores=np.stack([x, y]),
        pcs=tuple(found),
        held_out=held_out,
        heat=heat,
        heat_layers=(a.layers, b.layers),
        cross=cross,
        matched=tuple((int(r) + 1, int(c) + 1, float(cross[r, c])) for r, c in zip(rows, columns, strict=True)),
        default_positions=np.stack([all_a.default[i], all_b.default[j]]),
        rsa=rsa,
        cka=cka,
        noise=None if isinstance(noise, str) else noise,
        same_width=_same_width(left, right, pcs) if a.d_model == b.d_model else None,
        notes=tuple(notes),
    )


def compare_all(
    runs: Mapping[str, PersonaVectors] | Sequence[PersonaVectors],
    layers: str = "monitoring",
    **options: int | bool | None,
) -> ComparisonMatrix:
    """Every pair of several runs; see [`compare`][assistant_axis.geometry.compare.compare].

    Args:
        runs: by name, or a list (named by their models, numbered where models repeat).
        layers: `"monitoring"` or `"best"`.
        options: passed to `compare`.

    Raises:
        SettingError: fewer than two runs.
    """
    named = dict(runs) if isinstance(runs, Mapping) else _named(runs)
    if len(named) < 2:
        raise SettingError(f"compare_all needs at least two runs; got {len(named)}.")
    names = tuple(named)
    tables = [np.eye(len(names)) for _ in range(3)]
    pairs: dict[tuple[str, str], Comparison] = {}
    for (i, m), (j, n) in combinations(enumerate(names), 2):
        c = compare(named[m], named[n], layers, **options)  # pyright: ignore[reportArgumentType]
        pairs[m, n] = c
        for table, value in zip(tables, (c.pcs[0].pearson, c.pcs[0].spearman, c.cka.value), strict=True):
            table[i, j] = table[j, i] = value
    return ComparisonMatrix(names, tables[0], tables[1], tables[2], pairs)


# -- inside ------------------------------------------------------------------------------------------------------------


def _check(a: PersonaVectors, b: PersonaVectors, force: bool) -> list[str]:
    left, right = a.conditions, b.conditions
    wrong = [f for f in ("span", "personas_hash", "hook_point") if getattr(left, f) != getattr(right, f)]
    said = [f"{f.removesuffix('_hash')}: {getattr(left, f)!r} and {getattr(right, f)!r}" for f in wrong]
    if wrong and not force:
        raise ArtefactMismatchError(
            f"These runs were measured under different conditions ({'; '.join(said)}), so a difference between them would "
            "not be the models'. Extract both in the same way, or pass force=True."
        )
    told = []
    for one, other in ((left, right), (right, left)):
        if other.design.startswith(f"{one.design}; spoken by"):
            told.append(
                f"{other.model} reads what {one.model} spoke, so both share the noise of these answers: the correlation of "
                "disjoint halves does not"
            )
    said += [
        f"{f}: {getattr(left, f)!r} and {getattr(right, f)!r}"
        for f in ("design", "seed", "judge")
        if getattr(left, f) != getattr(right, f) and not (f == "design" and told)
    ]
    return told + [f"the runs differ in {s}" for s in said]


def _thin(v: PersonaVectors, least: int) -> tuple[str, ...]:
    return tuple(r for r, n in zip(v.roles, v.counts.tolist(), strict=True) if n < least)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _spread(v: PersonaVectors) -> tuple[int, int, int]:
    return int(v.counts.min()), int(v.counts.median()), int(v.counts.max())


def _named(runs: Sequence[PersonaVectors]) -> dict[str, PersonaVectors]:
    out: dict[str, PersonaVectors] = {}
    for run in runs:
        name, k = run.conditions.model, 2
        while name in out:
            name, k = f"{run.conditions.model} ({k})", k + 1
        out[name] = run
    return out


def _cross(x: Float[Array, "m role"], y: Float[Array, "n role"]) -> Float[Array, "m n"]:
    """Pearson r of every row of one with every row of the other."""
    return pearson_rows(x[:, None, :], y[None, :, :])


def _argmax(table: Array) -> tuple[int, int]:
    i, j = np.unravel_index(int(np.nanargmax(table)), table.shape)
    return int(i), int(j)


def _max_p(x: Array, y: Array, found: float, permutations: int, seed: int) -> float:
    """p of the best of all pairs: the null is the largest r of any pair under one permutation of roles."""
    rng = np.random.default_rng(seed)
    x = (x - x.mean(-1, keepdims=True)) / np.linalg.norm(x - x.mean(-1, keepdims=True), axis=-1, keepdims=True)
    y = (y - y.mean(-1, keepdims=True)) / np.linalg.norm(y - y.mean(-1, keepdims=True), axis=-1, keepdims=True)
    null = [float((x @ y[:, rng.permutation(y.shape[1])].T).max()) for _ in range(permutations)]
    return (sum(n >= found - 1e-12 for n in null) + 1) / (permutations + 1)


def _with_p(c: Correlation, p: float) -> Correlation:
    return Correlation(c.pearson, c.spearman, c.pearson_interval, c.spearman_interval, p, c.n)


def _centered(v: PersonaVectors, k: int) -> Float[Array, "role d_model"]:
    x = v.vectors[:, k].double()
    return (x - x.mean(0)).numpy()


def _cka(k: Float[Array, "role role"], m: Float[Array, "role role"]) -> float:
    k, m = _twice_centered(k), _twice_centered(m)
    return float((k * m).sum() / (np.linalg.norm(k) * np.linalg.norm(m)))


def _twice_centered(k: Array) -> Array:
    return k - k.mean(0) - k.mean(1, keepdims=True) + k.mean()


def _wholes(
    a: PersonaVectors, b: PersonaVectors, i: int, j: int, resamples: int, seed: int
) -> tuple[Similarity, Similarity]:
    """RSA and CKA with intervals and permutation nulls, all from the role-by-role Gram matrices."""
    x, y = _centered(a, i), _centered(b, j)
    k, m = x @ x.T, y @ y.T
    sizes = [np.sqrt(np.clip(np.diag(g), 1e-24, None)) for g in (k, m)]
    ck, cm = k / np.outer(sizes[0], sizes[0]), m / np.outer(sizes[1], sizes[1])
    n = len(x)
    upper = np.triu_indices(n, 1)
    rk, rm = np.zeros((n, n)), np.zeros((n, n))
    rk[upper], rm[upper] = rankdata(ck[upper]), rankdata(cm[upper])
    rk, rm = rk + rk.T, rm + rm.T
    rsa, cka = float(pearson_rows(rk[upper], rm[upper])), _cka(k, m)
    rng = np.random.default_rng(seed)
    draws = min(resamples, 200)  # each costs a pass over all pairs of roles
    drawn, null = [], []
    km, mm = _twice_centered(k), _twice_centered(m)
    scale = np.linalg.norm(km) * np.linalg.norm(mm)
    for _ in range(draws):
        rows = np.sort(rng.permutation(n)[: n // 2])
        part = np.ix_(rows, rows)
        pairs = np.triu_indices(len(rows), 1)
        drawn.append((float(pearson_rows(rk[part][pairs], rm[part][pairs])), _cka(k[part], m[part])))
        shuffled = rng.permutation(n)
        moved = np.ix_(shuffled, shuffled)
        null.append((float(pearson_rows(rk[upper], rm[moved][upper])), float((km * mm[moved]).sum() / scale)))
    halved, chance = np.array(drawn), np.array(null)
    return tuple(  # pyright: ignore[reportReturnType]
        Similarity(
            value,
            interval(np.minimum(halved[:, c] - halved[:, c].mean() + value, 1.0)),
            (int((chance[:, c] >= value - 1e-12).sum()) + 1) / (draws + 1),
        )
        for c, value in enumerate((rsa, cka))
    )


def _noise(a: PersonaVectors, b: PersonaVectors, splits: int, resamples: int, seed: int) -> Noise | str:
    """PC1 correlations between halves of the rollouts; where they cannot be had, the reason."""
    for v in (a, b):
        if v.samples is None:
            return f"the run of {v.conditions.model} keeps no single rollouts"
        if not torch.isfinite(v.samples.activations).all():
            return f"single rollouts of {v.conditions.model} are not finite (beyond half precision)"
    same = _same_rollouts(a, b)
    if same is None:
        return "the runs share answers, and which of them both keep is not recorded"
    a, b = same
    scores: list[Float[Array, "half role"]] = []
    for s in range(splits):
        try:
            halves = [*split_half(a, seed=seed + s), *split_half(b, seed=seed + s)]
        except GeometryError as e:
            return str(e)
        names = [r for r in halves[0].roles if r in set(halves[2].roles)]
        if len(names) < MIN_ROLES:
            return f"{len(names)} shared roles keep two single rollouts; at least {MIN_ROLES} are needed"
        part = []
        for half, run in zip(halves, (a, a, b, b), strict=True):
            own, whole = (role_scores(v.select(roles=names), 1).values[0, 0] for v in (half, run))
            part.append(own if float(own @ whole) >= 0 else -own)  # a half may put the default on the other side
        scores.append(np.stack(part))
    table = np.stack(scores)
    plain = _halves(table[..., None, :])[:, 0]
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, table.shape[-1], (min(resamples, 1000), table.shape[-1]))
    drawn = _halves(table[..., rows])
    return Noise(
        shared=float(plain[0]),
        disjoint=float(plain[1]),
        disjoint_interval=interval(drawn[1]),
        reliability=(float(plain[2]), float(plain[3])),
        corrected=float(plain[4]),
        corrected_interval=interval(drawn[4]) if np.isfinite(drawn[4]).any() else Interval(float("nan"), float("nan")),
        n=table.shape[-1],
        splits=splits,
    )


def _same_rollouts(a: PersonaVectors, b: PersonaVectors) -> tuple[PersonaVectors, PersonaVectors] | None:
    """Where one run read what the other spoke, or both are one run's, both with the rollouts that both keep, in one order: else the halves of
    one would not be disjoint from the halves of the other. `None` if the rollouts cannot be told."""
    assert a.samples is not None
    assert b.samples is not None
    one, other = a.conditions, b.conditions
    shared = "spoken by" in one.design + other.design or (one.model, one.seed) == (other.model, other.seed)
    if not shared or torch.equal(a.samples.role, b.samples.role):
        return a, b
    if a.samples.question is None or b.samples.question is None:
        return None
    keys = []
    for samples in (a.samples, b.samples):
        assert samples.question is not None
        seen: Counter[tuple[int, int]] = Counter()
        own: dict[tuple[int, int, int], int] = {}
        for row, what in enumerate(zip(samples.role.tolist(), samples.question.tolist(), strict=True)):
            own[*what, seen[what]] = row
            seen[what] += 1
        keys.append(own)
    both = [k for k in keys[0] if k in keys[1]]
    rows = [torch.tensor([own[k] for k in both], dtype=torch.long) for own in keys]
    return replace(a, samples=_only(a.samples, rows[0])), replace(b, samples=_only(b.samples, rows[1]))


def _only(samples: Samples, rows: Int[Tensor, "kept"]) -> Samples:
    question = None if samples.question is None else samples.question[rows]
    return Samples(samples.activations[rows], samples.role[rows], question)


def _halves(x: Float[Array, "split half resample role"]) -> Float[Array, "figure resample"]:
    """Same half, disjoint halves, the two reliabilities, and the corrected r; means over splits."""
    a1, a2, b1, b2 = x.swapaxes(0, 1)
    means = [
        np.mean([pearson_rows(p, q) for p, q in pairs], axis=(0, 1))
        for pairs in ([(a1, b1), (a2, b2)], [(a1, b2), (a2, b1)], [(a1, a2)], [(b1, b2)])
    ]
    sound = np.minimum(means[2], means[3]) > 0
    size = np.sqrt(np.where(sound, means[2] * means[3], 1.0))
    return np.stack([*means, np.where(sound, means[1] / size, np.nan)])


def _same_width(a: PersonaVectors, b: PersonaVectors, pcs: int) -> SameWidth:
    """Cosines of components, axes and centred role vectors at one layer each, in the coordinates both share."""
    left, right = a.space(a.layers[0]), b.space(b.layers[0])
    return SameWidth(
        pcs=(left.components[:pcs] * right.components[:pcs]).sum(1).abs().double().numpy(),
        axis=float(left.axis @ right.axis),
        roles=torch.cosine_similarity(left.centered, right.centered, dim=1).double().numpy(),
        chance=float(np.sqrt(2 / (np.pi * a.d_model))),
    )
