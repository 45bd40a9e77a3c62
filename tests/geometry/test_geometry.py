import dataclasses
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant_axis.activations.store import Conditions, load_artefact, save_artefact
from assistant_axis.errors import (
    ArtefactMismatchError,
    GeometryError,
    IntegrityError,
    LayerError,
    SettingError,
    UnknownNameError,
    UnsafeFileError,
)
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.geometry.space import PersonaSpace
from assistant_axis.geometry.vectors import PersonaVectors, Samples

CONDITIONS = Conditions(
    model="synthetic",
    fingerprint="f",
    n_layers=6,
    d_model=8,
    hook_point="resid_post",
    span="header",
    template_hash="t",
    system_rule="template",
    dtype="float32",
    personas="bundled",
    personas_hash="p",
    design="d",
    seed=0,
)


def make(n_roles=12, layers=(1, 2, 4), d_model=8, seed=0, samples=True, offset=5.0):
    """Roles along a known direction with known weights, far from the origin; the default beyond its positive end."""
    g = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(len(layers), d_model, generator=g), dim=-1)
    along = torch.linspace(-3, 3, n_roles)
    noise = 0.1 * torch.randn(n_roles, len(layers), d_model, generator=g)
    vectors = offset + along[:, None, None] * direction + noise
    conditions = offset + 4 * direction + 0.05 * torch.randn(5, len(layers), d_model, generator=g)
    kept = None
    if samples:
        role = torch.arange(-1, n_roles).repeat_interleave(6)
        base = torch.cat([conditions.mean(0, keepdim=True), vectors])[role + 1]
        kept = Samples((base + 0.2 * torch.randn(base.shape, generator=g)).half(), role)
    made = PersonaVectors(
        roles=tuple(f"role{k}" for k in range(n_roles)),
        layers=tuple(layers),
        vectors=vectors,
        default=conditions.mean(0),
        default_conditions=conditions,
        counts=torch.arange(n_roles) + 3,
        default_count=30,
        resid_norms=torch.full((len(layers),), 20.0),
        conditions=dataclasses.replace(CONDITIONS, d_model=d_model),
        samples=kept,
    )
    return made, direction


@pytest.fixture(scope="module")
def vectors():
    return make()[0]


# -- vectors -----------------------------------------------------------------------------------------------------------


def same(a, b):
    """Two artefacts with equal fields."""
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
        elif dataclasses.is_dataclass(x):
            same(x, y)
        else:
            assert x == y, field.name


@pytest.mark.parametrize("samples", [True, False])
def test_vectors_round_trip(tmp_path, samples):
    made, _ = make(samples=samples)
    same(PersonaVectors.load(made.save(tmp_path / "v")), made)


def test_samples_may_be_left_out(vectors, tmp_path):
    again = PersonaVectors.load(vectors.save(tmp_path / "v", samples=False))
    assert again.samples is None
    assert torch.equal(again.vectors, vectors.vectors)


def test_loading_another_kind(vectors, tmp_path):
    path = vectors.save(tmp_path / "v")
    with pytest.raises(ArtefactMismatchError, match="persona vectors, but assistant axis"):
        AssistantAxis.load(path)
    with pytest.raises(ArtefactMismatchError):
        PersonaVectors.load(vectors.axis().save(tmp_path / "a"))


def test_roles_given_twice_are_named(vectors):
    with pytest.raises(GeometryError, match="role1"):
        dataclasses.replace(vectors, roles=("role1", "role1", *vectors.roles[2:]))


def test_shapes_that_do_not_fit_are_named(vectors):
    with pytest.raises(GeometryError, match="11 roles and 3 layers"):
        dataclasses.replace(vectors, roles=vectors.roles[:-1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_vectors_name_role_and_layer(vectors, bad):
    spoiled = vectors.vectors.clone()
    spoiled[3, 1, 0] = bad
    with pytest.raises(GeometryError, match="role3 at layer 2"):
        dataclasses.replace(vectors, vectors=spoiled)
    default = vectors.default.clone()
    default[2, 0] = bad
    with pytest.raises(GeometryError, match="default at layer 4"):
        dataclasses.replace(vectors, default=default)


def test_role_by_name(vectors):
    assert torch.equal(vectors.role("role3"), vectors.vectors[3])
    assert torch.equal(vectors.role("default"), vectors.default)
    with pytest.raises(UnknownNameError, match="role"):
        vectors.role("rol3")


def test_layers_are_looked_up_by_number_and_depth(vectors):
    assert [vectors.layer_index(x) for x in (1, 2, 4, -2, 0.4, 4.0)] == [0, 1, 2, 2, 1, 2]
    for bad in (6, -7, 1.5):
        with pytest.raises(LayerError, match="out of range"):
            vectors.layer_index(bad)
    with pytest.raises(LayerError, match="not held; held: 1, 2, 4"):
        vectors.layer_index(3)


def test_select(vectors):
    few = vectors.select(["role4", "role1"], layers=[4, 1])
    assert few.roles == ("role4", "role1")
    assert few.layers == (4, 1)
    assert torch.equal(few.vectors, vectors.vectors[[4, 1]][:, [2, 0]])
    assert torch.equal(few.default, vectors.default[[2, 0]])
    assert few.counts.tolist() == [7, 4]
    assert few.samples.role.tolist() == [-1] * 6 + [1] * 6 + [0] * 6
    own = vectors.samples.activations[vectors.samples.role == 4][:, [2, 0]]
    assert torch.equal(few.samples.activations[few.samples.role == 0], own)
    assert vectors.select(min_count=12).roles == ("role9", "role10", "role11")
    with pytest.raises(GeometryError, match="largest count is 14"):
        vectors.select(min_count=99)
    with pytest.raises(UnknownNameError):
        vectors.select(["nobody"])


def test_the_monitoring_layer_is_the_nearest_held(vectors):
    assert vectors.monitoring_layer == 2  # the middle of six layers is 3
    assert vectors.space().layer == 2


# -- axis --------------------------------------------------------------------------------------------------------------


def test_the_axis_by_hand(vectors):
    axis = vectors.axis()
    torch.testing.assert_close(axis.vectors, vectors.default - vectors.vectors.mean(0))
    torch.testing.assert_close(axis.unit.norm(dim=-1), torch.ones(3))
    assert (axis.project(vectors.default, centered=True) > 0).all()
    assert float(axis.integrity().min()) > 0.99999
    assert torch.equal(axis.at(4), axis.unit[2])


def test_roles_weigh_equally_whatever_their_counts(vectors):
    other = dataclasses.replace(vectors, counts=vectors.counts * 100)
    assert torch.equal(other.axis().vectors, vectors.axis().vectors)


def test_the_axis_finds_a_planted_direction():
    made, direction = make()
    for method in ("contrast", "pc1"):
        axis = made.axis(method)
        assert (torch.cosine_similarity(axis.vectors, direction, dim=-1) > 0.99).all(), method
    assert made.axis("pc1").method == "pc1"
    with pytest.raises(SettingError, match="pc9"):
        inspect.unwrap(AssistantAxis.from_vectors.__func__)(AssistantAxis, made, "pc9")


def test_projection_raw_and_centred(vectors):
    axis = vectors.axis()
    raw, centred = axis.project(vectors.vectors), axis.project(vectors.vectors, centered=True)
    assert raw.shape == (12, 3)
    torch.testing.assert_close(raw - centred, axis.center().expand(12, 3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(centred.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    x = vectors.vectors[0, 1]
    unit = (vectors.default - vectors.role_mean)[1]
    torch.testing.assert_close(axis.project(x, 2), (x @ unit) / unit.norm())
    assert axis.project(vectors.vectors[:, 1].half(), layer=2).shape == (12,)
    assert axis.project(torch.zeros(2, 3, 3, 8)).shape == (2, 3, 3)


@pytest.mark.parametrize("shape", [(3, 7), (2, 8), (8,), (12, 4, 8)])
def test_activations_of_another_shape_are_refused(vectors, shape):
    with pytest.raises(GeometryError, match=r"do not end in \(3, 8\)"):
        vectors.axis().project(torch.zeros(shape))
    with pytest.raises(GeometryError, match=r"do not end in \(8,\)"):
        vectors.axis().project(torch.zeros(3, 7), layer=2)


def test_percentiles_are_those_of_the_samples(vectors):
    axis = vectors.axis()
    assert axis.calibration == "rollouts"
    projected = torch.einsum("sld,ld->sl", vectors.samples.activations.float(), axis.unit).numpy()
    for q in (0, 25, 33.3, 75, 100):
        assert np.allclose(axis.percentile(q), np.percentile(projected, q, axis=0), atol=0.05)
    own = projected[vectors.samples.role.numpy() < 0]
    assert np.allclose(axis.default_percentile(50), np.percentile(own, 50, axis=0), atol=1e-4)
    assert float(axis.percentile(75, 4)) == pytest.approx(float(axis.percentile(75)[2]))
    assert (axis.default_percentile(50) > axis.percentile(90)).all()
    for bad in (-1, 100.1):
        with pytest.raises(SettingError, match="between 0 and 100"):
            axis.percentile(bad)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 100), st.sampled_from([1, 2, 4]))
def test_rank_undoes_percentile(q, layer):
    axis = make()[0].axis()
    assert axis.rank(float(axis.percentile(q, layer)), layer) == pytest.approx(q, abs=0.02)


def test_rank_beyond_the_ends(vectors):
    axis = vectors.axis()
    assert axis.rank(-1e9, 1) == 0
    assert axis.rank(1e9, 1) == 100


def test_without_samples_role_means_calibrate():
    axis = make(samples=False)[0].axis()
    assert axis.calibration == "role means"
    assert torch.isfinite(axis.quantiles).all()


def test_samples_without_the_default_do_not_stop_an_axis(vectors):
    roles_only = vectors.samples.role >= 0
    samples = Samples(vectors.samples.activations[roles_only], vectors.samples.role[roles_only])
    axis = dataclasses.replace(vectors, samples=samples).axis()
    assert torch.isfinite(axis.default_quantiles).all()


def test_axes_that_have_no_direction(vectors):
    with pytest.raises(GeometryError, match="zero at layer 1"):
        dataclasses.replace(vectors, default=vectors.role_mean).axis()
    with pytest.raises(GeometryError, match="at least two roles"):
        vectors.select(["role1"]).axis()
    with pytest.raises(GeometryError, match="not finite at layer 2"):
        dataclasses.replace(vectors.axis(), vectors=torch.tensor([[1.0] * 8, [float("nan")] * 8, [1.0] * 8]))


def test_axis_select(vectors):
    axis = vectors.axis()
    few = axis.select([4, 1])
    assert few.layers == (4, 1)
    assert torch.equal(few.vectors, axis.vectors[[2, 0]])
    assert torch.equal(few.quantiles, axis.quantiles[:, [2, 0]])
    assert few.integrity().shape == (2,)


def test_axis_round_trip(vectors, tmp_path):
    axis = vectors.axis()
    same(AssistantAxis.load(axis.save(tmp_path / "a")), axis)


def test_an_axis_that_is_not_its_vectors_is_refused(vectors, tmp_path):
    path = vectors.axis().save(tmp_path / "a")
    tensors, header = load_artefact(path, "assistant axis")
    tensors["vectors"][1] = tensors["vectors"][1].flip(0)
    save_artefact(path, "assistant axis", tensors, header)
    with pytest.raises(IntegrityError, match="layer 2 has cosine"):
        AssistantAxis.load(path)


def test_an_axis_of_another_model_is_refused(vectors, tiny_model, tmp_path):
    path = vectors.axis().save(tmp_path / "a")
    with pytest.raises(ArtefactMismatchError, match=r"d_model 8.*d_model 32"):
        AssistantAxis.load(path, tiny_model)
    with pytest.raises(ArtefactMismatchError):
        vectors.check(tiny_model)


def test_published_files_are_turned_to_our_sign(tmp_path):
    stored = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    for name, content in (("bare.pt", stored), ("dict.pt", {"axis": stored, "note": "x"})):
        torch.save(content, tmp_path / name)
        ours = AssistantAxis.from_pt(tmp_path / name, stored_as="default-minus-roles")
        theirs = AssistantAxis.from_pt(tmp_path / name, stored_as="roles-minus-default")
        assert torch.equal(ours.vectors, stored.float())
        assert torch.equal(theirs.vectors, -stored.float())
        assert ours.method == "imported"
        assert ours.conditions.sign == "assistant-positive"
        same(AssistantAxis.load(ours.save(tmp_path / "again")), ours)


def test_an_imported_axis_has_no_percentiles(tmp_path):
    torch.save(torch.randn(4, 8), tmp_path / "a.pt")
    axis = AssistantAxis.from_pt(tmp_path / "a.pt", stored_as="default-minus-roles")
    with pytest.raises(GeometryError, match="no calibration"):
        axis.percentile(25)
    with pytest.raises(GeometryError, match="no calibration"):
        axis.rank(1.0, 2)


def test_other_pt_files_are_named(tmp_path):
    path = tmp_path / "x.pt"
    for content in (torch.zeros(3), {"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, [1, 2], "text"):
        torch.save(content, path)
        with pytest.raises(IntegrityError, match="expected one tensor"):
            AssistantAxis.from_pt(path, stored_as="default-minus-roles")
    torch.save({"axis": torch.zeros(2, 2), "f": np.float64}, path)
    with pytest.raises(UnsafeFileError):
        AssistantAxis.from_pt(path, stored_as="default-minus-roles")


def test_the_released_llama_axis(reference):
    path = reference / "llama-3.3-70b" / "contrast_vectors.pt"
    axis = AssistantAxis.from_pt(path, stored_as="roles-minus-default", model="meta-llama/Llama-3.3-70B-Instruct")
    assert axis.vectors.shape == (80, 8192)
    raw = torch.load(path, weights_only=True)
    assert torch.equal(axis.vectors, -raw.float())
    assert axis.at(40).norm().item() == pytest.approx(1.0, abs=1e-4)
    other = AssistantAxis.from_pt(path, stored_as="default-minus-roles")
    assert float(other.at(40) @ axis.at(40)) == pytest.approx(-1.0, abs=1e-4)


# -- space -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zscore", [False, True])
def test_pca_by_hand(vectors, zscore):
    space = vectors.space(2, zscore=zscore)
    x = vectors.vectors[:, 1].double().numpy()
    x = x - x.mean(0)
    if zscore:
        x = x / x.std(0)
    _, s, rows = np.linalg.svd(x, full_matrices=False)
    assert np.allclose(space.variance, s[:8] ** 2 / (s**2).sum(), atol=1e-5)
    assert np.allclose(np.abs((space.components.numpy() * rows[:8]).sum(1)), 1, atol=1e-3)
    assert np.allclose(space.scores(1, "projection").abs(), np.abs(x @ rows[0]), atol=1e-3)
    cosine = np.abs(x @ rows[0]) / np.linalg.norm(x, axis=1)
    assert np.allclose(space.scores(1).abs(), cosine, atol=1e-3)
    assert torch.allclose(space.components @ space.components.T, torch.eye(8), atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 20), st.booleans())
def test_the_default_is_on_the_positive_side_of_every_component(seed, n_roles, zscore):
    space = make(n_roles=n_roles, seed=seed)[0].space(2, zscore=zscore)
    assert (space.components @ space.default >= -1e-5).all()
    assert float(space.variance.sum()) == pytest.approx(1.0, abs=1e-3)
    assert (space.scores().abs() <= 1 + 1e-5).all()
    assert len(space.components) == min(n_roles - 1, 8)


def test_ranking_and_positions(vectors):
    space = vectors.space(2)
    ranking = space.ranking()
    assert ranking[0][0] in ("role11", "role10", "role9")
    assert [s for _, s in ranking] == sorted((s for _, s in ranking), reverse=True)
    assert space.score_of("role0") < 0 < space.score_of("role11")
    assert space.axis_cosine() > 0.95
    assert space.default_position() < 0  # planted beyond all roles
    assert space.default_score() > space.scores(1, "projection").max()
    assert -1 <= space.default_score(kind="cosine") <= 1
    with pytest.raises(UnknownNameError, match="Did you mean 'role11'"):
        space.score_of("role112")


def test_dimensions(vectors):
    space = dataclasses.replace(vectors.space(2), variance=torch.tensor([0.5, 0.2, 0.2, 0.1, 0, 0, 0, 0]))
    assert [space.dimensions(x) for x in (0.4, 0.5, 0.7, 0.71, 0.9, 1.0)] == [1, 1, 2, 3, 3, 4]
    for bad in (0, 1.1):
        with pytest.raises(SettingError):
            space.dimensions(bad)


@pytest.mark.parametrize("pc", [0, -1, 9])
def test_components_that_do_not_exist(vectors, pc):
    with pytest.raises(SettingError, match="numbered 1 to 8"):
        vectors.space(2).scores(pc)


def test_a_huge_coordinate_hides_the_rest_unless_scaled():
    made, direction = make()
    huge = made.vectors.clone()
    huge[:, :, 0] += 3000 * torch.randn(12, 1, generator=torch.Generator().manual_seed(3))
    spoiled = dataclasses.replace(made, vectors=huge)
    assert spoiled.space(2).dimensions(0.9) == 1
    assert spoiled.space(2, zscore=True).dimensions(0.9) >= spoiled.space(2).dimensions(0.9)
    assert abs(float(spoiled.space(2).components[0, 0])) > 0.99
    assert abs(float(spoiled.space(2, zscore=True).components[0, 0])) < 0.9
    del direction


def test_a_constant_coordinate_does_no_harm_when_scaled():
    made, _ = make()
    flat = made.vectors.clone()
    flat[:, :, 3] = 0.1  # whose float32 mean is not 0.1
    space = dataclasses.replace(made, vectors=flat).space(2, zscore=True)
    for tensor in (space.components, space.centered, space.default):
        assert torch.isfinite(tensor).all()
    assert space.default.abs().max() < 100
    assert space.default_position() < 0.2


def test_spaces_that_cannot_be(vectors):
    with pytest.raises(GeometryError, match="at least three roles"):
        vectors.select(["role1", "role2"]).space(2)
    with pytest.raises(GeometryError, match="All role vectors are the same"):
        dataclasses.replace(vectors, vectors=torch.ones(12, 3, 8)).space(2)
    with pytest.raises(LayerError):
        vectors.space(3)


def test_more_roles_than_dimensions_and_fewer(vectors):
    assert len(vectors.space(2).components) == 8
    assert len(vectors.select(["role1", "role5", "role9"]).space(2).components) == 2


def test_reprs(vectors):
    assert "roles=12" in repr(vectors)
    assert "method='contrast'" in repr(vectors.axis())
    assert "layer=2" in repr(PersonaSpace.fit(vectors, 2))
