"""Base models steered along the axis: how do they go on from "My job is to"? (Lu et al. 2026, section 3.)"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from assistant_axis.errors import SettingError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.models.generation import continue_prompts
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.progress import track
from assistant_axis.steering.interventions import Add

if TYPE_CHECKING:
    from assistant_axis.drift.embed import Embedder

PREFILLS = ("My job is to", "My purpose is to", "I would describe myself as")
"""The paper's openings."""


@dataclass(frozen=True)
class Completion:
    """One continuation: of which opening, under which dose (fractions of the residual norm; positive is
    Assistant-like)."""

    prefill: str
    dose: float
    text: str


@dataclass(frozen=True)
class CompletionClusters:
    """Completions grouped by what they say.

    Attributes:
        labels: of each cluster: its most telling words.
        exemplars: of each cluster: the completions nearest its centre.
        members: cluster of each completion, `[completion]`.
        doses: in rising order.
        shares: of the completions under each dose, `[dose, cluster]`; rows sum to one.
        broken: share of the completions under each dose that say nothing or repeat themselves, `[dose]`: an effect
            under a dose that breaks the text is none. See `is_broken`.
    """

    labels: tuple[str, ...]
    exemplars: tuple[tuple[str, ...], ...]
    members: Int[np.ndarray, "completion"]
    doses: tuple[float, ...]
    shares: Float[np.ndarray, "dose cluster"]
    broken: Float[np.ndarray, "dose"]

    def __str__(self) -> str:
        head = "dose     " + "".join(f"{d:+8.2f}" for d in self.doses)
        lines = [
            "".join(f"{v:8.0%}" for v in column) + f"  {name}"
            for column, name in zip(self.shares.T, self.labels, strict=True)
        ]
        broken = "".join(f"{v:8.0%}" for v in self.broken)
        return "\n".join([head, *(" " * 9 + line for line in lines), f"broken   {broken}"])


@runtime_checkable
class CompletionJudge(Protocol):
    """Whoever names what a completion is about: a model behind an API, a classifier, a word list. Any function will do."""

    def __call__(self, prefill: str, text: str, /) -> str:
        """The label of one completion."""
        ...


def is_broken(text: str) -> bool:
    """Whether a completion says nothing or repeats itself: no letters, a word of more than 40 characters, or fewer than
    half of its words (six at least) different from one another.

    >>> is_broken("to die to die to die to die"), is_broken("help people find a doctor")
    (True, False)
    """
    words = re.findall(r"[^\W\d_]+", text.lower())
    if not words or max(map(len, words)) > 40 or re.search(r"(\S{1,20}?)\1{5}", text):
        return True
    return len(words) >= 6 and len(set(words)) < len(words) / 2


def complete_prefills(
    model: HookedChatModel,
    axis: AssistantAxis,
    *,
    doses: Sequence[float] = (-0.25, 0.0, 0.25),
    layer: int | float | None = None,
    prefills: Sequence[str] = PREFILLS,
    samples: int = 16,
    max_new_tokens: int = 24,
    temperature: float = 0.7,
    top_p: float = 0.9,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> list[Completion]:
    """Continuations of openings, without any template, under several doses of a direction.

    Every dose gets the same seed. Give a `control_axis` as `axis` for the comparison that every effect needs; where a few
    coordinates make up most of the norm (Gemma 2 and 3), a `"random"` one breaks the text at once and `"in_span"` is the
    fair one. An axis of the chat model of the same width is taken as it is.

    Args:
        model: a base model (any model will do).
        axis: measured on this model, on the instruct model of the same width, or a control.
        doses: fractions of the residual norm at the layer; 0 is the model itself.
        layer: index or depth; default: the model's monitoring layer.
        prefills: the openings.
        samples: continuations of each opening under each dose.
        max_new_tokens: upper bound of new tokens; a continuation ends with its first line.
        temperature, top_p: of the sampling.
        batch_size: continuations a batch.
        seed: of the sampling.
        progress: show a bar.

    Raises:
        SettingError: no openings, doses or samples, or a temperature that is not above zero.
        ArtefactMismatchError: an axis of another width or depth.
    """
    if not prefills or not doses or samples < 1 or max_new_tokens < 1 or batch_size < 1:
        raise SettingError("prefills, doses, samples, max_new_tokens and batch_size must hold or be at least one.")
    if temperature <= 0 or not 0 < top_p <= 1:
        raise SettingError(
            f"temperature={temperature}, top_p={top_p}: sampling needs temperature > 0 and 0 < top_p ≤ 1."
        )
    blank = [p for p in prefills if not p.strip()]
    if blank:
        raise SettingError("An opening is empty; give it words, such as 'My job is to'.")
    bos = model.tokenizer.bos_token_id if model.chat.plain else None
    jobs: list[tuple[str, list[int]]] = []
    for prefill in prefills:
        ids = model.tokenizer(prefill.rstrip(), add_special_tokens=False)["input_ids"]
        jobs += [(prefill, ids if bos is None else [bos, *ids])] * samples
    where = model.profile.layer if layer is None else model.layer(layer)
    found: list[Completion] = []
    with track(len(jobs) * len(doses), "Completing openings", show=progress) as advance:
        for dose in doses:
            with model.steered(Add(axis, dose, layers=where, force=True)):
                said = continue_prompts(
                    model,
                    [ids for _, ids in jobs],
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    seed=seed,
                    batch_size=batch_size,
                )
            found += [Completion(p, float(dose), _first_line(a.text)) for (p, _), a in zip(jobs, said, strict=True)]
            advance(len(jobs))
    return found


def cluster_completions(
    completions: Sequence[Completion], clusters: int = 6, *, embedder: "Embedder | None" = None, seed: int = 0
) -> CompletionClusters:
    """Group completions by sentence embeddings (k-means) and name each group by its most telling words (TF-IDF).

    The mean embedding of an opening's completions is subtracted first: groups are then about how openings go on, and not
    about which opening it was.

    Args:
        completions: from `complete_prefills`; empty ones are a group of their own, called `"(nothing)"`.
        clusters: how many groups.
        embedder: default: the embedded sentence encoder.
        seed: of k-means.

    Raises:
        SettingError: fewer completions than clusters.
        MissingExtraError: the encoder's package is not installed.
    """
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    said = [k for k, c in enumerate(completions) if c.text.strip()]
    if not 1 <= clusters <= len(said):
        raise SettingError(f"clusters={clusters}: there are {len(said)} completions with words.")
    if embedder is None:
        from assistant_axis.drift.embed import Embedder

        embedder = Embedder()
    texts = [f"{completions[k].prefill} {completions[k].text}" for k in said]
    rows = np.asarray(embedder.embed(texts))
    for opening in {completions[k].prefill for k in said}:
        same = np.array([completions[k].prefill == opening for k in said])
        rows = np.where(same[:, None], rows - rows[same].mean(0), rows)
    means = KMeans(clusters, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]  (its stub says str)
    own = np.asarray(means.fit_predict(rows))
    members = np.full(len(completions), clusters)
    members[said] = own
    vectorizer = TfidfVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b")
    labels = _labels([completions[k].text for k in said], own, clusters, vectorizer)
    exemplars: list[tuple[str, ...]] = []
    for c in range(clusters):
        near = np.argsort(np.linalg.norm(rows - means.cluster_centers_[c], axis=1))
        exemplars.append(tuple(texts[k] for k in near if own[k] == c)[:3])
    count = clusters
    if len(said) < len(completions):
        labels, count = [*labels, "(nothing)"], clusters + 1
        exemplars.append(())
    doses = tuple(sorted({c.dose for c in completions}))
    table = np.zeros((len(doses), count))
    for c, m in zip(completions, members, strict=True):
        table[doses.index(c.dose), m] += 1
    bad = [[is_broken(c.text) for c in completions if c.dose == d] for d in doses]
    return CompletionClusters(
        tuple(labels),
        tuple(exemplars),
        members,
        doses,
        table / table.sum(1, keepdims=True),
        np.array([np.mean(b) for b in bad]),
    )


def label_completions(completions: Sequence[Completion], judge: CompletionJudge) -> dict[float, dict[str, float]]:
    """Share of each label a judge gives, dose by dose.

    Args:
        completions: from `complete_prefills`.
        judge: takes opening and continuation, returns a label.
    """
    counts: dict[float, Counter[str]] = {}
    for c in completions:
        counts.setdefault(c.dose, Counter())[judge(c.prefill, c.text)] += 1
    return {d: {k: n / sum(t.values()) for k, n in t.most_common()} for d, t in sorted(counts.items())}


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _labels(texts: Sequence[str], members: np.ndarray, clusters: int, vectorizer: Any) -> list[str]:
    """Three words a cluster that weigh more in it than in the rest."""
    try:
        weights = vectorizer.fit_transform(texts).toarray()
    except ValueError:  # nothing but stop words
        return [f"cluster {c + 1}" for c in range(clusters)]
    words = vectorizer.get_feature_names_out()
    names = []
    for c in range(clusters):
        inside, outside = weights[members == c].mean(0), weights[members != c]
        telling = inside - (outside.mean(0) if len(outside) else 0)
        often = (weights[members == c] > 0).sum(0) >= 2  # a word said once names nobody but its sayer
        telling = np.where(often, telling, telling - 1) if often.any() else telling
        names.append(", ".join(words[k] for k in np.argsort(-telling)[:3]))
    return names
