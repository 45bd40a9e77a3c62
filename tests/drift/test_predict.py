"""Ridge against scikit-learn, honest folds, controls, the predictor's file, clusters."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from assistant_axis.drift.clusters import assign, map_messages, rank_clusters
from assistant_axis.drift.embed import Embedder
from assistant_axis.drift.predict import DriftPredictor, Exchanges, _permute, _Ridge, evaluate
from assistant_axis.drift.simulate import SimulatedTurn, Simulation
from assistant_axis.errors import ArtefactMismatchError, ConversationError, IntegrityError, SettingError
from assistant_axis.plots.drift import domain_traces, message_map


class Words:
    """An encoder by hashed letters: the same text, the same row."""

    def encode(self, messages: list[str], **_options: Any) -> np.ndarray:
        rows = np.array([np.random.default_rng(sum(map(ord, m))).normal(size=8) for m in messages])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made(conversations: int = 30, turns: int = 5, signal: float = 1.0, seed: int = 0) -> tuple[Exchanges, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = conversations * turns
    x = rng.normal(size=(n, 12))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = signal * 3 * x[:, 0] + 0.3 * rng.normal(size=n)
    groups = tuple(int(g) for g in np.repeat(np.arange(conversations), turns))
    change = y - np.roll(y, 1)
    change[::turns] = np.nan
    words = ("river", "lake") if signal else ("stone", "stone")
    messages = tuple(f"the {words[int(v > 0)]} number {k}" for k, v in enumerate(x[:, 0]))
    return Exchanges(messages, groups, ("therapy",) * n, y, change), x


def test_ridge_is_that_of_scikit_learn() -> None:
    exchanges, x = made()
    for alpha in (1e-2, 1.0, 30.0):
        theirs = Ridge(alpha=alpha).fit(x, exchanges.next)
        ours = _Ridge(x).weights(exchanges.next[:, None], np.array([alpha]))[:, 0]
        np.testing.assert_allclose(ours, theirs.coef_, rtol=1e-8)


def test_signal_is_found_and_noise_is_not() -> None:
    exchanges, x = made()
    report = evaluate(exchanges, x, permutations=39)
    assert report.grouped > 0.8
    assert report.in_sample >= report.grouped
    assert report.p == pytest.approx(1 / 40)
    assert report.shuffled < 0.02
    noise, x = made(signal=0.0)
    report = evaluate(noise, x, permutations=39)
    assert report.grouped < 0.05
    assert report.p > 0.025
    changes = evaluate(exchanges, x, "change", permutations=0)
    assert changes.n == 30 * 4
    assert math.isnan(changes.p)


def test_conversations_stay_whole() -> None:
    """A target that belongs to the conversation alone is learnt in sample and not across conversations."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 6)
    x = np.repeat(rng.normal(size=(20, 30)), 6, axis=0) + 0.01 * rng.normal(size=(120, 30))
    y = np.repeat(rng.normal(size=20), 6)
    nothing = np.full(120, np.nan)
    exchanges = Exchanges(("m",) * 120, tuple(groups.tolist()), ("",) * 120, y, nothing)
    report = evaluate(exchanges, x, permutations=0)
    assert report.grouped < 0.3


def test_permutations_keep_conversations_together() -> None:
    groups = np.array([2, 0, 0, 1, 2, 1, 2, 0])
    y = groups * 10.0 + np.arange(8)
    rng = np.random.default_rng(0)
    for _ in range(20):
        dealt = _permute(y, groups, rng)
        assert sorted(dealt) == sorted(y)
        order = np.concatenate([np.flatnonzero(groups == g) for g in range(3)])
        source = (dealt[order] // 10).astype(int).tolist()
        assert sum(a != b for a, b in itertools.pairwise(source)) == 2, "each conversation's values stay neighbours"


def test_likeness_within_conversations_is_no_finding() -> None:
    """Messages and answers that both belong to their conversation, and have nothing to do with each other."""
    low = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(12), 10)
        x = np.repeat(rng.normal(size=(12, 3)), 10, axis=0) + 0.1 * rng.normal(size=(120, 3))
        y = np.repeat(rng.normal(size=12), 10) + 0.1 * rng.normal(size=120)
        exchanges = Exchanges(("m",) * 120, tuple(groups.tolist()), ("",) * 120, y, np.full(120, np.nan))
        low += evaluate(exchanges, x, permutations=19).p <= 0.05
    assert low <= 4


def test_too_few_conversations_are_refused() -> None:
    exchanges, x = made(conversations=4)
    with pytest.raises(SettingError, match="at least 5 conversations, and there are 4"):
        evaluate(exchanges, x)
    with pytest.raises(SettingError, match="4"):
        DriftPredictor.fit(exchanges, x)
    with pytest.raises(SettingError, match="embeddings"):
        evaluate(exchanges, x[:-1])
    with pytest.raises(SettingError, match="folds=1"):
        evaluate(exchanges, x, folds=1)
    few, x = made(conversations=6, turns=1)
    with pytest.raises(SettingError, match="6 messages have one"):
        evaluate(few, x)


def test_a_predictor_saves_loads_and_scores(tmp_path: Path) -> None:
    exchanges, _ = made()
    encoder = Embedder("words", model=Words())
    rows = encoder.embed(exchanges.messages)
    fitted = DriftPredictor.fit(exchanges, rows, embedder="words", conditions={"layer": 2})
    again = DriftPredictor.load(fitted.save(tmp_path / "p.safetensors"))
    np.testing.assert_array_equal(fitted.predict(rows), again.predict(rows))
    assert again.conditions["layer"] == 2
    scores = again.score(["the river", "a lake"], encoder)
    assert [s.message for s in scores] == ["the river", "a lake"]
    assert all(0 <= s.percentile <= 100 and s.pulls_away == (s.percentile <= 20) for s in scores)
    with pytest.raises(SettingError, match="fitted on words"):
        again.score(["x"], Embedder("other", model=Words()))
    with pytest.raises(SettingError, match="12 came"):
        again.predict(np.zeros((1, 12)))
    with pytest.raises(ConversationError, match="Message 1"):
        encoder.embed(["x", " "])
    (tmp_path / "p.safetensors").write_bytes((tmp_path / "p.safetensors").read_bytes()[:-8])
    with pytest.raises((IntegrityError, ArtefactMismatchError)):
        DriftPredictor.load(tmp_path / "p.safetensors")


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_clusters_are_ranked_by_what_follows(method: Any) -> None:
    rng = np.random.default_rng(0)
    side = np.repeat([0, 1], 40)
    x = np.eye(6)[side] + 0.02 * rng.normal(size=(80, 6))
    y = np.where(side == 0, -5.0, 5.0) + 0.1 * rng.normal(size=80)
    words = ("grief and sorrow", "compiler and parser")
    groups = tuple(int(k) for k in np.tile(np.arange(20), 4))
    exchanges = Exchanges(tuple(words[s] for s in side), groups, ("d",) * 80, y, np.full(80, np.nan))
    labels = assign(x, method, k=2, smallest=10)
    found = [c for c in rank_clusters(exchanges, x, labels) if c.label >= 0]
    assert [c.kind for c in found] == ["drift", "hold"]
    assert set(found[0].keywords) == {"grief", "sorrow"}
    assert found[1].messages[0] == words[1]
    assert found[0].domains == (("d", 1.0),)
    assert map_messages(x).shape == (80, 2)
    assert message_map(exchanges, map_messages(x)).axes
    with pytest.raises(SettingError):
        assign(x, "kmeans", k=81)


def test_exchanges_of_a_simulation() -> None:
    rows = [
        SimulatedTurn("a", "d", "p", t, f"m{t}", "x", (1,), "stop", raw, raw, 0.1, 50.0)
        for t, raw in enumerate([1.0, 3.0, math.nan])
    ]
    held = Simulation(tuple(rows), {"layer": 1, "model": "m", "user": "u"})
    found = Exchanges.of(held)
    assert found.messages == ("m0", "m1")
    assert math.isnan(found.change[0])
    assert found.change[1] == 2.0
    assert domain_traces(held).axes
