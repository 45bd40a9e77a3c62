import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import conditions, vectors

from assistant_axis.errors import ArtefactMismatchError, GeometryError, PersonaFileError, SettingError, UnknownNameError
from assistant_axis.geometry.controls import CONTROLS, control_axis, controls, correlate
from assistant_axis.geometry.layers import recommend_layer
from assistant_axis.geometry.published import compare_published, published, published_names
from assistant_axis.geometry.stability import seeds_agree, split_half, stability, stability_curve

NAMES = tuple(f"role{k}" for k in range(40))


def test_published_figures_are_whole(reference):
    import csv

    qwen = published("qwen3-32b")
    assert published_names() == ("qwen3-32b",)
    text = (reference / "qwen3-32b_role_projections.csv").read_text()
    rows = {r["role"]: float(r["projection"]) for r in csv.DictReader(text.splitlines())}
    assert set(rows) == set(qwen.roles)
    assert np.allclose(qwen.projections, [rows[r] for r in qwen.roles], atol=1e-4)
    assert qwen.ranking()[0][0] == "summarizer"


def test_a_run_that_is_the_published_one_correlates_fully():
    qwen = published("qwen3-32b")
    v = vectors(qwen.roles, layers=1, noise=0.0)
    direction = torch.linalg.qr(torch.randn(24, 1, generator=torch.Generator().manual_seed(0)))[0][:, 0]
    made = torch.from_numpy(qwen.projections).float()[:, None, None] * direction
    v = replace(v, vectors=made, default=torch.zeros(1, 24), default_conditions=torch.zeros(5, 1, 24), samples=None)
    c = compare_published(v, layer=0, resamples=50)
    assert c.axis.spearman == pytest.approx(1, abs=1e-6)
    assert c.pc1.pearson > 0.8  # on a line, cosines are signs: ties
    assert len(c.roles) == 275
    assert c.missing == ()
    assert len(c.outliers(3)) == 3
    assert c.halves[0][1].n + c.halves[1][1].n == 275
    assert "half 2" in str(c)


def test_published_errors(tmp_path):
    with pytest.raises(UnknownNameError, match="qwen3-32b"):
        published("qwen3-23b")
    with pytest.raises(GeometryError, match="at least 20"):
        compare_published(vectors(NAMES))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(PersonaFileError, match=r"x\.json"):
        published(tmp_path / "x.json")


def test_correlate():
    x = np.arange(30.0)
    c = correlate(x, x**3)
    assert c.spearman == pytest.approx(1)
    assert c.pearson_interval.low <= c.pearson <= c.pearson_interval.high + 1e-9
    assert c.p < 0.01
    with pytest.raises(GeometryError, match="same value"):
        correlate(x, np.ones(30))
    with pytest.raises(GeometryError, match="finite"):
        correlate(x, np.where(x > 5, np.nan, x))


def test_stability_follows_noise():
    quiet, loud = stability(vectors(NAMES, noise=0.05)), stability(vectors(NAMES, noise=20.0))
    assert quiet.split_half.min() > 0.999
    assert loud.split_half.max() < 0.9
    assert (quiet.bootstrap_low > 0.9).all()
    assert quiet.layers == (0, 1, 2)


def test_split_half_is_disjoint_and_complete():
    v = vectors(NAMES, rollouts=6)
    a, b = split_half(v, seed=3)
    assert torch.allclose((a.vectors + b.vectors) / 2, v.vectors, atol=1e-2)
    assert a.counts.tolist() == [3] * 40
    assert not torch.equal(a.vectors, b.vectors)
    with pytest.raises(GeometryError, match="keep_samples"):
        split_half(replace(v, samples=None))


def test_curve_rises():
    v = vectors(NAMES, rollouts=16, noise=12.0)
    c = stability_curve(v, 1, over="rollouts")
    assert c.sizes == (1, 2, 4, 8)
    assert c.cosine[-1] > c.cosine[0]
    assert stability_curve(v, 1, over="roles").sizes[-1] == 20
    assert c.enough(0.0) == 1
    assert c.enough(1.1) is None
    with pytest.raises(SettingError, match="half"):
        stability_curve(v, 1, over="rollouts", sizes=(9,))


def test_two_seeds():
    v = vectors(NAMES)
    assert seeds_agree(v, v).min() > 0.9999
    with pytest.raises(ArtefactMismatchError, match="span"):
        seeds_agree(v, replace(v, conditions=conditions(span="response")))


@pytest.mark.parametrize("kind", CONTROLS)
def test_controls_have_the_axis_norm_and_a_seed(kind):
    v = vectors(NAMES, width=200)
    a, again, other = control_axis(v, kind), control_axis(v, kind), control_axis(v, kind, seed=1)
    assert torch.allclose(a.norms, v.axis().norms, rtol=1e-4)
    assert torch.equal(a.vectors, again.vectors)
    assert not torch.equal(a.vectors, other.vectors)
    assert control_axis(replace(v, samples=None), kind).method == f"control: {kind}"


def test_the_axis_stands_out_from_controls():
    t = controls(vectors(NAMES, width=200), 1, draws=50)
    assert t.p("random")[0] < 0.05
    assert t.axis_gap > np.median(t.gap)
    with pytest.raises(SettingError):
        control_axis(vectors(NAMES), "none")


def test_recommended_layer_is_the_good_one():
    v = vectors(NAMES)
    noisy = v.vectors.clone()
    x = v.samples.activations.clone()
    g = torch.Generator().manual_seed(0)
    x[:, [0, 2]] = torch.randn(x[:, [0, 2]].shape, generator=g).half()
    role = v.samples.role
    means = torch.stack([x[role == r].float().mean(0) for r in range(-1, 40)])
    noisy, default = means[1:], means[0]
    bad = replace(v, vectors=noisy, default=default, samples=replace(v.samples, activations=x))
    choice = recommend_layer(bad)
    assert choice.layer == 1
    assert "along PC1" in choice.reasons.why
    assert "Recommended layer: 1" in str(choice)
    assert recommend_layer(replace(v, samples=None)).notes


@pytest.mark.parametrize(("roles", "width"), [(40, 200), (40, 24), (30, 30)])
def test_components_are_those_of_scikit_learn(roles, width):
    from sklearn.decomposition import PCA

    v = vectors(tuple(f"r{k}" for k in range(roles)), width=width, noise=0.5)
    space = v.space(1)
    by_hand = PCA(svd_solver="full").fit(v.vectors[:, 1].double().numpy())
    count = min(roles - 1, width)
    theirs = torch.from_numpy(by_hand.components_[:count]).float()
    theirs = theirs * torch.sign(theirs @ space.default)[:, None]
    assert space.components.shape == (count, width)
    assert torch.allclose(space.components, theirs, atol=1e-5)
    assert torch.allclose(
        space.variance, torch.from_numpy(by_hand.explained_variance_ratio_[:count]).float(), atol=1e-6
    )
    assert torch.allclose(space.components @ space.components.T, torch.eye(count), atol=1e-5)


def test_a_layer_at_the_edge_is_said_to_be_one():
    v = vectors(NAMES)
    x, g = v.samples.activations.clone(), torch.Generator().manual_seed(0)
    x += (torch.tensor([0.0, 3.0, 15.0])[:, None] * torch.randn(x.shape, generator=g)).half()
    means = torch.stack([x[v.samples.role == r].float().mean(0) for r in range(-1, 40)])
    noisy = replace(v, vectors=means[1:], default=means[0], samples=replace(v.samples, activations=x))
    choice = recommend_layer(noisy, within=(1 / 3, 1))
    assert choice.layer == 1
    assert any("edge of the depths" in n for n in choice.notes)
