"""Vectors that ship with the package: small, whole, and true to what was measured."""

import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from assistant_axis import load_precomputed, load_precomputed_axis
from assistant_axis.activations.store import Conditions
from assistant_axis.cli.main import app
from assistant_axis.errors import ArtefactMismatchError, GeometryError, UnknownNameError
from assistant_axis.geometry.compare import compare
from assistant_axis.geometry.precomputed import load_compact, precomputed_names, save_compact
from assistant_axis.geometry.vectors import PersonaVectors, Samples
from assistant_axis.pipeline.precompute import KEPT, READER, SPEAKER

runner = CliRunner()


def made(massive: float = 0.0) -> PersonaVectors:
    """Random vectors; every role shares a coordinate of that size, as Gemma's do."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30 * 4 + 20, 2, 16, generator=g)
    x[..., 3] += massive
    who = torch.cat([torch.arange(30).repeat_interleave(4), torch.full((20,), -1)])
    means = torch.stack([x[who == r].mean(0) for r in (*range(30), -1)])
    return PersonaVectors(
        roles=tuple(f"role{k:02d}" for k in range(30)),
        layers=(0, 2),
        vectors=means[:-1],
        default=means[-1],
        default_conditions=torch.stack([x[120:130].mean(0), x[130:].mean(0)]),
        counts=torch.full((30,), 4),
        default_count=20,
        resid_norms=torch.full((2,), 5.0),
        conditions=Conditions("t", "f", 4, 16, "resid_post", "response", "t", "template", "float32", "p", "h", "d", 0),
        samples=Samples(x.half(), who),
    )


@pytest.mark.parametrize("massive", [0.0, 40_000.0])
def test_half_the_space_and_nothing_lost(massive: float, tmp_path: Path) -> None:
    vectors = made(massive)
    found, _ = load_compact(save_compact(vectors, tmp_path / "compact"))
    away = (vectors.vectors - vectors.default).norm(dim=-1)
    assert float(((found.vectors - vectors.vectors).norm(dim=-1) / away).max()) < 3e-3
    assert torch.equal(found.default, vectors.default)
    assert (found.roles, found.layers, found.default_count, found.samples) == (vectors.roles, (0, 2), 20, None)
    assert torch.equal(found.counts, vectors.counts)
    assert found.conditions == vectors.conditions
    assert float(torch.cosine_similarity(found.axis().vectors, vectors.axis().vectors).min()) > 0.99999


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    vectors = made()
    with pytest.raises(GeometryError, match="keep none"):
        save_compact(replace(vectors, samples=None), tmp_path / "c")
    far = vectors.vectors.clone()
    far[3, 1, 2] = 1e5
    with pytest.raises(GeometryError, match="half precision"):
        save_compact(replace(vectors, vectors=far), tmp_path / "c")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArtefactMismatchError, match="precomputed"):
        load_compact(vectors.save(tmp_path / "plain"))


def test_both_embedded_models_ship() -> None:
    assert precomputed_names() == tuple(sorted((SPEAKER, READER)))
    folder = resources.files("assistant_axis.geometry") / "data" / "precomputed"
    with resources.as_file(folder) as path:
        assert sum(f.stat().st_size for f in path.iterdir()) <= 10e6
    spoken, heard = load_precomputed(), load_precomputed(READER)
    for vectors, name in ((spoken, SPEAKER), (heard, READER)):
        assert vectors.layers == KEPT[name]
        assert vectors.conditions.model == name
        assert vectors.conditions.span == "response"
        assert "64 tokens" in vectors.conditions.design
        assert len(vectors.roles) == 275
        assert int(vectors.counts.min()) >= 15  # an empty answer has no token
        assert int(vectors.counts.median()) >= 16
        assert vectors.vectors.isfinite().all()
    assert f"read by {READER}" in heard.conditions.design
    assert heard.roles == spoken.roles


def test_the_order_of_roles_is_the_published_one() -> None:
    spoken, heard = load_precomputed(), load_precomputed(READER)
    assert spoken.compare_published("qwen3-32b", 22).pc1.spearman > 0.8
    assert spoken.space(22).axis_cosine() > 0.7
    assert compare(spoken, heard, (27, 16), resamples=50).pcs[0].pearson > 0.9


def test_the_axis_has_percentiles_over_rollouts() -> None:
    for method in ("contrast", "pc1"):
        axis = load_precomputed_axis(SPEAKER, method)
        again = load_precomputed(SPEAKER).axis(method)
        assert torch.equal(axis.vectors, again.vectors)
        assert axis.calibration == "rollouts"
        low, high = axis.percentile(5), axis.percentile(95)
        assert (low < high).all()
        # single rollouts scatter more than the means of roles do
        assert ((high - low) > (again.percentile(95) - again.percentile(5))).all()
        assert (axis.default_percentile(50) > axis.percentile(50)).all()


def test_unknown_names_have_close_matches() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'smollm2-135m-instruct'"):
        load_precomputed("smollm2-135m")


def test_commands_take_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = runner.invoke(app, ["axis", SPEAKER])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "axis.safetensors").is_file()
    said = runner.invoke(app, ["space", SPEAKER, "--layer", "22", "--figures", "drawn"])
    assert said.exit_code == 0, said.output
    names = {p.name for p in (tmp_path / "drawn").iterdir()}
    assert {"scree.png", "role_map.png", "role_map_3d.png", "role_ranking.png", "axis_cosines.png"} <= names
    page = (tmp_path / "drawn" / "persona_map.html").read_text()
    assert "accountant" in page
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=.https?:", page)
    said = runner.invoke(app, ["compare", SPEAKER, READER, "--layers", "27,16", "--figure", "pair.png"])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "pair.png").is_file()
    said = runner.invoke(app, ["stability", SPEAKER])
    assert said.exit_code != 0  # single rollouts do not ship


@pytest.mark.real
def test_they_belong_to_the_embedded_models(real_model) -> None:
    load_precomputed(SPEAKER).check(real_model)
    with pytest.raises(ArtefactMismatchError):
        load_precomputed(READER).check(real_model)
