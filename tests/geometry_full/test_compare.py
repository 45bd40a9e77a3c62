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
from assistant_axis.geometry.vectors import Samples

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
    assert c.noise.disjoint_interval.low < c.noise.disjoint < c.noise.disjoint_interval.high
    assert c.noise.corrected == pytest.approx(c.noise.disjoint / np.sqrt(np.prod(c.noise.reliability)))
    assert c.noise.n == 40
    assert "disjoint halves" in str(c)


def test_noise_is_of_the_rollouts_that_both_runs_keep():
    """A reader that lost some answers is compared on the others, so that halves stay disjoint."""
    noisy = vectors(NAMES, noise=3.0)
    question = torch.arange(8).repeat(41)
    own = replace(noisy, samples=replace(noisy.samples, question=question))
    keep = torch.arange(len(question)) % 8 != 3
    samples = Samples(own.samples.activations[keep], own.samples.role[keep], question[keep])
    design = f"{own.conditions.design}; spoken by toy, read by reader"
    reader = replace(own, samples=samples, conditions=replace(own.conditions, model="reader", design=design))
    c = compare(own, reader, (1, 1), **FAST)
    assert c.noise is not None
    assert c.noise.shared == pytest.approx(1)
    assert any("reads what toy spoke" in n for n in c.notes)
    blind = replace(reader, samples=replace(samples, question=None))
    assert compare(own, blind, (1, 1), **FAST).noise is None
    assert any("not recorded" in n for n in compare(own, blind, (1, 1), **FAST).notes)


def test_why_noise_is_not_told_stands_in_the_notes(run):
    c = compare(run, rotated(run, 30, 2.0), (1, 1), **FAST)
    assert c.noise is None
    assert any("keeps no single rollouts" in n for n in c.notes)
    x = run.samples.activations.clone()
    x[5, 1, 0] = float("inf")
    c = compare(run, replace(run, samples=replace(run.samples, activations=x)), (1, 1), **FAST)
    assert c.noise is None
    assert any("not finite" in n for n in c.notes)
    loud = vectors(NAMES, noise=40.0)
    assert any("lean on it" in n for n in compare(loud, loud, (1, 1), **FAST).notes)


def test_intervals_of_whole_geometries_hold_their_value():
    c = compare(vectors(NAMES), vectors(NAMES, seed=0, noise=6.0, model="other"), (0, 0), **FAST)
    for s in (c.rsa, c.cka):
        assert s.interval.low < s.value < s.interval.high <= 1


def test_equal_widths_are_compared_in_their_own_coordinates(run):
    near = replace(run, vectors=run.vectors + 0.01, default=run.default + 0.01)
    c = compare(run, near, (1, 1), **FAST)
    assert c.same_width is not None
    assert c.same_width.pcs.min() > 0.999
    assert c.same_width.axis > 0.999
    assert c.same_width.roles.min() > 0.99
    turned = compare(run, rotated(run, 24, 1.0), (1, 1), **FAST)
    assert turned.pcs[0].pearson > 0.999
    assert turned.same_width.pcs[0] < 0.7
    assert "same width" in str(turned)
    assert compare(run, rotated(run, 25, 1.0), (1, 1), **FAST).same_width is None


def test_a_component_without_a_firm_sign_is_named(run):
    amid = replace(run, default=run.role_mean.clone() + 1e-4)
    notes = compare(run, amid, (1, 1), **FAST).notes
    assert any("hangs by a thread" in n and "PC1" in n for n in notes)


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
    c = compare(run, thin, min_count=2, **FAST)
    assert c.only[0] == ("role0",)
    assert c.dropped == ((), ("role0",))
    assert any("left out: role0" in n for n in c.notes)
    assert c.rollouts == ((8, 8, 8), (8, 8, 8))
    told = compare(run, thin, **FAST)
    assert told.rollouts[1] == (1, 8, 8)
    assert any("fewer than 4 rollouts" in n and "role0" in n for n in told.notes)
    with pytest.raises(GeometryError, match="No role is left"):
        compare(run, thin, min_count=9)
    with pytest.raises(GeometryError, match="left out 0 and 21"):
        compare(run, replace(run, counts=torch.tensor([*[1] * 21, *[8] * 19])), min_count=2)
    with pytest.raises(GeometryError, match="twice"):
        replace(run, roles=("role1", *run.roles[1:]))
    broken = run.vectors.clone()
    broken[3, 1, 0] = float("nan")
    with pytest.raises(GeometryError, match="role3 at layer 1 is not finite"):
        replace(run, vectors=broken)


def test_several_runs(run):
    m = compare_all([run, rotated(run, 40, 2.0), run], **FAST)
    assert m.names == ("toy", "other", "toy (2)")
    assert np.allclose(m.pc1, 1, atol=1e-3)
    assert m.pairs["toy", "other"].outliers(3)
    with pytest.raises(SettingError):
        compare_all([run])
    assert "PC1" in str(m.pairs["toy", "other"])
