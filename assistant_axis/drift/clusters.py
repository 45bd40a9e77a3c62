"""Which kinds of user messages are followed by drift: clusters, their keywords, the drift-and-hold table, a 2-D map."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from assistant_axis.drift.predict import Exchanges
from assistant_axis.errors import SettingError


@dataclass(frozen=True)
class Cluster:
    """User messages that resemble each other.

    Attributes:
        label: its number; −1 gathers what HDBSCAN leaves alone.
        n: messages.
        conversations: conversations they come from.
        next: mean raw projection of the answers that follow.
        change: mean change from the answer before; NaN if all are first messages.
        stderr: standard error of `next` over conversation means; NaN for one conversation.
        kind: `"drift"` or `"hold"` where the 95 % interval of `next` lies below or above the mean of all messages, else `""`.
        keywords: words that set it apart (class-based TF-IDF).
        messages: the messages nearest its centre.
        domains: share of each domain, largest first.
    """

    label: int
    n: int
    conversations: int
    next: float
    change: float
    stderr: float
    kind: str
    keywords: tuple[str, ...]
    messages: tuple[str, ...]
    domains: tuple[tuple[str, float], ...]


def assign(
    embeddings: Float[np.ndarray, "message embedding"],
    method: Literal["kmeans", "hdbscan"] = "kmeans",
    *,
    k: int = 20,
    smallest: int = 10,
    seed: int = 0,
) -> Int[np.ndarray, "message"]:
    """A cluster number for every message.

    Args:
        embeddings: L2-normalised rows.
        method: `"kmeans"`, or `"hdbscan"` on the first 10 principal components (densities mean little in hundreds of
            dimensions); the latter leaves outliers alone as −1.
        k: clusters of k-means.
        smallest: smallest cluster of HDBSCAN.
        seed: of the starting centres.

    Raises:
        SettingError: more clusters than messages, or an unknown method.
    """
    from sklearn.cluster import HDBSCAN, KMeans
    from sklearn.decomposition import PCA

    n = len(embeddings)
    if method == "kmeans":
        if not 2 <= k <= n:
            raise SettingError(f"k={k} clusters of {n} messages: k must be between 2 and the number of messages.")
        options: dict[str, Any] = {"n_clusters": k, "n_init": 4, "random_state": seed}
        return KMeans(**options).fit_predict(embeddings).astype(np.int64)
    if method != "hdbscan":
        raise SettingError(f'method={method!r} is not known; use "kmeans" or "hdbscan".')
    if not 2 <= smallest <= n:
        raise SettingError(f"smallest={smallest}: a cluster has 2 to {n} messages here.")
    reduced = PCA(min(10, *embeddings.shape), random_state=seed).fit_transform(embeddings)
    options = {"min_cluster_size": smallest, "copy": True}
    return HDBSCAN(**options).fit_predict(reduced).astype(np.int64)


def rank_clusters(
    exchanges: Exchanges,
    embeddings: Float[np.ndarray, "message embedding"],
    labels: Int[np.ndarray, "message"],
    *,
    examples: int = 3,
    words: int = 8,
) -> list[Cluster]:
    """Clusters by the projection that follows, the one that drifts most first.

    Args:
        exchanges: messages and what followed.
        embeddings: one row a message.
        labels: from `assign`.
        examples: representative messages a cluster.
        words: keywords a cluster.
    """
    if not len(exchanges) == len(embeddings) == len(labels):
        raise SettingError(
            f"{len(exchanges)} messages, {len(embeddings)} embeddings, {len(labels)} labels: these differ."
        )
    numbers = sorted(set(labels.tolist()))
    keywords = _keywords([[exchanges.messages[i] for i in np.flatnonzero(labels == c)] for c in numbers], words)
    conversations = np.array(exchanges.conversations)
    overall = float(exchanges.next.mean())
    out: list[Cluster] = []
    for c, keys in zip(numbers, keywords, strict=True):
        rows = np.flatnonzero(labels == c)
        own = [float(exchanges.next[rows[conversations[rows] == g]].mean()) for g in np.unique(conversations[rows])]
        stderr = float(np.std(own, ddof=1) / np.sqrt(len(own))) if len(own) > 1 else float("nan")
        mean = float(exchanges.next[rows].mean())
        changes = exchanges.change[rows][np.isfinite(exchanges.change[rows])]
        near = rows[np.argsort(-(embeddings[rows] @ embeddings[rows].mean(0)))][:examples]
        names, counts = np.unique([exchanges.domains[i] for i in rows], return_counts=True)
        share = sorted(zip(names.tolist(), (counts / len(rows)).tolist(), strict=True), key=lambda d: -d[1])
        out.append(
            Cluster(
                label=int(c),
                n=len(rows),
                conversations=len(own),
                next=mean,
                change=float(changes.mean()) if len(changes) else float("nan"),
                stderr=stderr,
                kind=_kind(mean, stderr, len(own), overall),
                keywords=keys,
                messages=tuple(exchanges.messages[i] for i in near),
                domains=tuple(share),
            )
        )
    return sorted(out, key=lambda cluster: cluster.next)


def map_messages(embeddings: Float[np.ndarray, "message embedding"]) -> Float[np.ndarray, "message 2"]:
    """Two principal components of the embeddings, for a map."""
    from sklearn.decomposition import PCA

    if min(embeddings.shape) < 2:
        raise SettingError(f"A map needs two messages and two dimensions; the embeddings are {embeddings.shape}.")
    return PCA(2, svd_solver="full").fit_transform(np.asarray(embeddings, dtype=np.float64))


def _kind(mean: float, stderr: float, n: int, overall: float) -> str:
    from scipy import stats

    if n < 2 or not np.isfinite(stderr):
        return ""
    half = float(stats.t.ppf(0.975, n - 1)) * stderr
    return "drift" if mean + half < overall else "hold" if mean - half > overall else ""


def _keywords(groups: Sequence[Sequence[str]], words: int) -> list[tuple[str, ...]]:
    """Class-based TF-IDF: a word's share of its cluster times log(1 + mean words a cluster / its count anywhere)."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b")
    try:
        found: Any = vectorizer.fit_transform([" ".join(g) for g in groups])
    except ValueError:  # nothing but stop words
        return [() for _ in groups]
    counts = found.toarray().astype(np.float64)
    names = vectorizer.get_feature_names_out()
    sizes = counts.sum(1, keepdims=True)
    weight = counts / np.maximum(sizes, 1) * np.log(1 + sizes.mean() / counts.sum(0))
    order = np.argsort(-weight, axis=1)[:, :words]
    return [tuple(str(names[i]) for i in row if weight[k, i] > 0) for k, row in enumerate(order)]
