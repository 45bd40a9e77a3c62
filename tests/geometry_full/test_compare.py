import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import rotated, vectors

from assistant_axis.errors import ArtefactMismatchError, GeometryError, SettingError
from assistant_axis.geometry.compare import compare, compare_all, role_scores

NAMES = tuple(f"role{k}" for k in range(40))
FAST = {"resamples": 50}


@pytest.fixture(scope="module")
def run():
    return vectors(NAMES)


@pytest.mark.parametrize(("width", "scale"), [(24, 1.0), (40, 7.5), (40, -0.01), (64, -3.0)])
def test_rotation_scale_and_flip_are_seen_through(run, width, scale):
    c = compare(run, rotated(run, width, scale), (1, 1), **FAST)
    for pc in c.pcs:
        assert pc.pearson == pytest.approx(1, abs=1e-4)
        assert pc.spearman > 0.999
    assert [(i, j) for i, j, _ in c.matched] == [(k, k) for k in range(1, 6)]
    assert c.rsa.value == pytest.approx(1, abs=1e-4)
    assert c.cka.value == pytest.approx(1, abs=1e-6)
    assert c.pcs[0].p < 0.05
    assert c.rsa.p < 0.05
    assert c.heat.shape == (3, 3)
    assert np.allclose(c.default_positions[0], c.default_positions[1], atol=1e-3)


def test_scores_agree_with_the_persona_space(run):
    ours = role_scores(run, 4)
    for k in run.layers:
        space = run.space(k)
        for pc in range(1, 5):
            assert np.allclose(ours.values[k, pc - 1], space.scores(pc).numpy(), atol=1e-4)
            assert ours.default[k, pc - 1] == pytest.approx(space.default_position(pc), abs=1e-4)


def test_unrelated_runs_do_not_correlate(run):
    c = compare(run, vectors(NAMES, seed=9, model="other"), (0, 0), **FAST)
    assert abs(c.pcs[0].pearson) < 0.5
    assert c.pcs[0].p > 0.02
    assert c.cka.value < 0.7


def test_best_layers_come_with_held_out_roles(run):
    other = rotated(run.select(layers=[2, 0, 1]), 30, 2.0)
    other = replace(other, layers=(0, 1, 2))
    c = compare(run, other, "best", **FAST)
    assert (c.layers[0], c.layers[1]) in {(0, 1), (1, 2), (2, 0)}
    assert c.held_out is not None
    assert c.held_out.pearson > 0.999
    assert c.held_out.n == 20
    assert c.pcs[0].p == pytest.approx(1 / 51)


def test_noise_of_shared_rollouts_is_told():
    noisy = vectors(NAMES, noise=3.0)
    c = compare(noisy, noisy, (1, 1), **FAST)
    assert c.noise is not None
    assert c.noise.shared == pytest.approx(1)
    assert c.noise.disjoint < 0.99
    assert c.noise.corrected == pytest.approx(1, abs=0.02)


def test_other_conditions_are_refused_unless_forced(run):
    for field, value in (("span", "response"), ("personas_hash", "q")):
        other = rotated(run, 24, 1.0, **{field: value})
        with pytest.raises(ArtefactMismatchError, match="force=True"):
            compare(run, other)
        assert any("differ" in n for n in compare(run, other, force=True, **FAST).notes)


def test_bad_input(run):
    with pytest.raises(GeometryError, match="share 19 roles"):
        compare(run, run.select(roles=NAMES[:19]))
    flat = replace(run, vectors=torch.ones_like(run.vectors))
    with pytest.raises(GeometryError, match="the same"):
        compare(run, flat)
    with pytest.raises(SettingError, match="monitoring"):
        compare(run, run, "middle")
    thin = replace(run, counts=torch.tensor([1, *[8] * 39]))
    assert compare(run, thin, min_count=2, **FAST).only[0] == ("role0",)


def test_several_runs(run):
    m = compare_all([run, rotated(run, 40, 2.0), run], **FAST)
    assert m.names == ("toy", "other", "toy (2)")
    assert np.allclose(m.pc1, 1, atol=1e-3)
    assert m.pairs["toy", "other"].outliers(3)
    with pytest.raises(SettingError):
        compare_all([run])
    assert "PC1" in str(m.pairs["toy", "other"])
