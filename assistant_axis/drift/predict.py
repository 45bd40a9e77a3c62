"""What a user message does to the next answer: ridge from its embedding to the projection that follows.

Lu et al. 2026 (section 4) report an in-sample R². Messages of one conversation resemble each other, so the honest figure
keeps conversations whole: both are given here, beside a permutation p-value and a control with shuffled messages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assistant_axis.activations.store import load_artefact, save_artefact
from assistant_axis.drift.embed import DEFAULT_EMBEDDER, Embedder
from assistant_axis.drift.simulate import Simulation
from assistant_axis.errors import SettingError

KIND = "drift predictor"
ALPHAS = tuple(float(a) for a in np.logspace(-3, 3, 13))
Target = Literal["next", "change"]
FEWEST_MESSAGES = 10


@dataclass(frozen=True)
class Exchanges:
    """User messages with the projection of the answer that follows.

    Attributes:
        messages: the user's words.
        conversations: to which conversation each belongs, a number.
        domains: its domain, or `""`.
        next: raw projection of the answer that follows, `[message]`.
        change: `next` minus the projection of the answer before; NaN for the first message, `[message]`.
    """

    messages: tuple[str, ...]
    conversations: tuple[int, ...]
    domains: tuple[str, ...]
    next: Float[np.ndarray, "message"]
    change: Float[np.ndarray, "message"]

    def __len__(self) -> int:
        return len(self.messages)

    @classmethod
    def of(cls, simulation: Simulation) -> "Exchanges":
        """The exchanges of a simulation whose answer was not empty."""
        number = {c: k for k, c in enumerate(dict.fromkeys(t.conversation for t in simulation.turns))}
        kept = [t for t in simulation.turns if not math.isnan(t.raw)]
        before = {(t.conversation, t.turn): t.raw for t in kept}
        return cls(
            messages=tuple(t.user for t in kept),
            conversations=tuple(number[t.conversation] for t in kept),
            domains=tuple(t.domain for t in kept),
            next=np.array([t.raw for t in kept]),
            change=np.array([t.raw - before.get((t.conversation, t.turn - 1), math.nan) for t in kept]),
        )

    def target(self, name: Target) -> tuple[Float[np.ndarray, "kept"], np.ndarray]:
        """The values of a target, and the index of the messages that have it."""
        if name not in ("next", "change"):
            raise SettingError(f'target={name!r} is not known; use "next" or "change".')
        values = self.next if name == "next" else self.change
        index = np.flatnonzero(np.isfinite(values))
        return values[index], index


@dataclass(frozen=True)
class RidgeReport:
    """How well the embedding of a user message predicts a target.

    Attributes:
        target: `"next"` projection or its `"change"`.
        n: messages.
        conversations: conversations they come from.
        in_sample: R² on the data that was fitted, α by cross-validation; how it was published.
        grouped: R² over all held-out predictions with conversations kept whole, α chosen inside each training part.
        grouped_folds: the same, fold by fold.
        p: share of permutations of the target with a grouped R² at least as high (plus one over plus one); conversations
            change places as blocks, so that their likeness within is in the null too.
        shuffled: grouped R² when messages are dealt out to the answers at random; about 0 or below if all is well.
        alpha: the α of the in-sample fit.
    """

    target: str
    n: int
    conversations: int
    in_sample: float
    grouped: float
    grouped_folds: tuple[float, ...]
    p: float
    shuffled: float
    alpha: float


def evaluate(
    exchanges: Exchanges,
    embeddings: Float[np.ndarray, "message embedding"],
    target: Target = "next",
    *,
    folds: int = 5,
    permutations: int = 99,
    seed: int = 0,
) -> RidgeReport:
    """In-sample and grouped R², a permutation p-value, and the shuffled-message control.

    Args:
        exchanges: messages and what followed.
        embeddings: one row a message, L2-normalised.
        target: `"next"` or `"change"`.
        folds: of whole conversations.
        permutations: of the target; 0 for none (p is NaN).
        seed: of permutations and shuffling.

    Raises:
        SettingError: fewer conversations than folds, fewer than ten messages with that target, a constant target, or
            embeddings of another length.
    """
    y, index = exchanges.target(target)
    if len(embeddings) != len(exchanges):
        raise SettingError(f"There are {len(exchanges)} messages but {len(embeddings)} embeddings.")
    groups = np.array(exchanges.conversations)[index]
    if folds < 2:
        raise SettingError(f"folds={folds}: at least 2 are needed.")
    if len(np.unique(groups)) < folds:
        raise SettingError(
            f"Grouped folds keep conversations whole: {folds} folds need at least {folds} conversations, and "
            f"there are {len(np.unique(groups))}. Simulate more, or use fewer folds (at least 2)."
        )
    if len(y) < FEWEST_MESSAGES or y.std() == 0:
        raise SettingError(
            f"The {target} projection cannot be predicted: {len(y)} messages have one, with standard deviation "
            f"{y.std() if len(y) else 0:.3g}; at least {FEWEST_MESSAGES} that differ are needed."
        )
    x = np.asarray(embeddings, dtype=np.float64)[index]
    rng = np.random.default_rng(seed)
    whole = _Ridge(x)
    alpha = whole.choose(y[:, None], groups, folds)[0]
    inside = _r2(y, whole.fit_predict(y[:, None], np.array([alpha]))[:, 0])
    splits = _folds(groups, folds, rng)
    permuted = np.stack([y, *(_permute(y, groups, rng) for _ in range(permutations))], axis=1)
    held = _grouped(x, permuted, groups, splits, folds)
    scores = [_r2(permuted[:, k], held[:, k]) for k in range(permuted.shape[1])]
    dealt = rng.permutation(len(y))
    control = _grouped(x[dealt], y[:, None], groups, splits, folds)[:, 0]
    return RidgeReport(
        target=target,
        n=len(y),
        conversations=len(np.unique(groups)),
        in_sample=inside,
        grouped=scores[0],
        grouped_folds=tuple(_r2(y[test], held[test, 0]) for _, test in splits),
        p=(1 + sum(s >= scores[0] for s in scores[1:])) / (1 + permutations) if permutations else math.nan,
        shuffled=_r2(y, control),
        alpha=float(alpha),
    )


@dataclass(frozen=True)
class DriftPredictor:
    """Scores user messages before they are answered: "this message is likely to pull the model away".

    Attributes:
        weights: ridge coefficients, `[embedding]`.
        intercept: raw projection at a zero embedding.
        target: what is predicted.
        quantiles: of the target in the data it was fitted on, at 0, 1, …, 100 %.
        embedder: which embeddings it takes.
        conditions: of the simulation it was fitted on, and its figures.
    """

    weights: Float[Tensor, "embedding"]
    intercept: float
    target: str
    quantiles: Float[Tensor, "quantile"]
    embedder: str
    conditions: dict[str, Any]

    @classmethod
    def fit(
        cls,
        exchanges: Exchanges,
        embeddings: Float[np.ndarray, "message embedding"],
        target: Target = "next",
        *,
        embedder: str = DEFAULT_EMBEDDER,
        folds: int = 5,
        conditions: dict[str, Any] | None = None,
    ) -> "DriftPredictor":
        """Fit on all messages, α by folds of whole conversations.

        Raises:
            SettingError: fewer conversations than folds.
        """
        y, index = exchanges.target(target)
        groups = np.array(exchanges.conversations)[index]
        if len(np.unique(groups)) < folds or folds < 2:
            raise SettingError(f"{max(folds, 2)} folds need as many conversations; there are {len(np.unique(groups))}.")
        ridge = _Ridge(np.asarray(embeddings, dtype=np.float64)[index])
        alpha = ridge.choose(y[:, None], groups, folds)
        weights = ridge.weights(y[:, None], alpha)[:, 0]
        intercept = float(y.mean() - ridge.mean @ weights)
        return cls(
            weights=torch.tensor(weights, dtype=torch.float32),
            intercept=intercept,
            target=target,
            quantiles=torch.tensor(np.quantile(y, np.linspace(0, 1, 101)), dtype=torch.float32),
            embedder=embedder,
            conditions=dict(conditions or {}) | {"n": len(y), "alpha": float(alpha[0])},
        )

    def predict(self, embeddings: Float[np.ndarray, "message embedding"]) -> Float[np.ndarray, "message"]:
        """Predicted raw projection (or its change) for embedded messages."""
        if embeddings.shape[-1] != len(self.weights):
            raise SettingError(
                f"The predictor takes embeddings of {self.embedder} ({len(self.weights)} numbers); "
                f"{embeddings.shape[-1]} came."
            )
        return np.asarray(embeddings, dtype=np.float64) @ self.weights.double().numpy() + self.intercept

    def score(self, messages: Sequence[str], embedder: Embedder | None = None) -> list["MessageScore"]:
        """Score messages that were not answered yet."""
        embedder = embedder or Embedder(self.embedder)
        if embedder.name != self.embedder:
            raise SettingError(f"The predictor was fitted on {self.embedder}, not on {embedder.name}.")
        return [
            MessageScore(m, float(v), self._rank(float(v)))
            for m, v in zip(messages, self.predict(embedder.embed(messages)), strict=True)
        ]

    def save(self, path: str | Path) -> Path:
        """Write safetensors with the conditions in the header."""
        header = {
            "intercept": self.intercept,
            "target": self.target,
            "embedder": self.embedder,
            "conditions": self.conditions,
        }
        return save_artefact(path, KIND, {"weights": self.weights, "quantiles": self.quantiles}, header)

    @classmethod
    def load(cls, path: str | Path) -> "DriftPredictor":
        """Read what `save` wrote.

        Raises:
            IntegrityError: truncated, tampered with, or foreign.
            ArtefactMismatchError: an artefact of another kind.
        """
        tensors, header = load_artefact(path, KIND)
        return cls(**tensors, **header)

    def _rank(self, value: float) -> float:
        return float(torch.searchsorted(self.quantiles.contiguous(), torch.tensor(value)).clamp(0, 100))


@dataclass(frozen=True)
class MessageScore:
    """A message with its predicted value (raw, activation units) and that value's percentile among the fitted data."""

    message: str
    predicted: float
    percentile: float

    @property
    def pulls_away(self) -> bool:
        """Whether it is predicted among the lowest fifth."""
        return self.percentile <= 20

    @property
    def said(self) -> str:
        """One line for people."""
        warning = ": this message is likely to pull the model away" if self.pulls_away else ""
        return f"predicted {self.predicted:+.2f} raw, percentile {self.percentile:.0f}{warning}"


# -- ridge -------------------------------------------------------------------------------------------------------------


class _Ridge:
    """Ridge with an intercept on fixed features, for many targets and strengths from one decomposition.

    scikit-learn's `Ridge` gives the same coefficients; one eigendecomposition serves every permutation and α here.
    """

    def __init__(self, x: np.ndarray) -> None:
        self.mean = x.mean(0)
        self.x = x - self.mean
        values, self.basis = np.linalg.eigh(self.x.T @ self.x)
        self.values = np.maximum(values, 0.0)

    def weights(self, y: np.ndarray, alphas: np.ndarray) -> np.ndarray:
        inner = self.basis.T @ (self.x.T @ (y - y.mean(0)))
        return self.basis @ (inner / (self.values[:, None] + alphas[None, :]))

    def fit_predict(self, y: np.ndarray, alphas: np.ndarray) -> np.ndarray:
        return self.x @ self.weights(y, alphas) + y.mean(0)

    def choose(self, y: np.ndarray, groups: np.ndarray, folds: int) -> np.ndarray:
        """The α of each target with the least squared error over folds of whole conversations, `[target]`."""
        x = self.x + self.mean
        errors = np.zeros((len(ALPHAS), y.shape[1]))
        for train, test in _folds(groups, min(folds, len(np.unique(groups)))):
            part = _Ridge(x[train])
            for a, alpha in enumerate(ALPHAS):
                weights = part.weights(y[train], np.full(y.shape[1], alpha))
                guess = (x[test] - part.mean) @ weights + y[train].mean(0)
                errors[a] += ((y[test] - guess) ** 2).sum(0)
        return np.array(ALPHAS)[errors.argmin(0)]


def _grouped(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, splits: Sequence[tuple[np.ndarray, np.ndarray]], folds: int
) -> np.ndarray:
    """Held-out predictions for every target, α chosen by inner folds of the training conversations."""
    held = np.empty_like(y)
    for train, test in splits:
        ridge = _Ridge(x[train])
        alphas = ridge.choose(y[train], groups[train], folds)
        held[test] = (x[test] - ridge.mean) @ ridge.weights(y[train], alphas) + y[train].mean(0)
    return held


def _folds(
    groups: np.ndarray, folds: int, rng: np.random.Generator | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import GroupKFold

    state = None if rng is None else int(rng.integers(2**31))
    splitter = GroupKFold(folds, shuffle=rng is not None, random_state=state)
    return list(splitter.split(np.zeros((len(groups), 1)), groups=groups))


def _permute(y: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The target dealt out anew: conversations change places as blocks, and turns change places inside them.

    Values of one conversation stay neighbours, so that the null knows how much conversations differ; shuffling single
    values would make chance agreement of whole conversations look like a finding.
    """
    blocks = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    source = np.concatenate([rng.permutation(blocks[k]) for k in rng.permutation(len(blocks))])
    out = np.empty_like(y)
    out[np.concatenate(blocks)] = y[source]
    return out


def _r2(y: np.ndarray, guess: np.ndarray) -> float:
    total = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - guess) ** 2).sum()) / total if total else math.nan
