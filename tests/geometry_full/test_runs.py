import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import vectors

from assistant_axis.errors import ArtefactMismatchError, GeometryError, SettingError, UnknownNameError
from assistant_axis.geometry.traits import TraitVectors
from assistant_axis.personas.library import load_personas
from assistant_axis.personas.rollouts import read_rollouts
from assistant_axis.pipeline.extract import Sampling, extract_persona_vectors
from assistant_axis.pipeline.read_with import read_with
from assistant_axis.pipeline.traits import extract_trait_vectors

QUIET = {"progress": False}


def test_traits_from_poles():
    v = vectors([f"{n}{p}" for n in ("calm", "bold", "wry", "dry") for p in (":positive", ":negative")])
    t = TraitVectors.from_poles(v)
    assert t.traits == ("calm", "bold", "wry", "dry")
    assert torch.equal(t.trait("bold"), v.role("bold:positive") - v.role("bold:negative"))
    assert t.counts.tolist() == [16] * 4
    assert t.reliability.min() > 0.9
    axis = v.axis()
    ranking = t.ranking(axis, 1)
    assert [c for _, c in ranking] == sorted((c for _, c in ranking), reverse=True)
    assert t.space(1, axis).components.shape == (3, 24)
    assert t.space(1).variance.sum() == pytest.approx(1, abs=1e-5)
    assert 1 <= t.space(1).dimensions() <= 3
    with pytest.raises(UnknownNameError, match="calm"):
        t.trait("clam")
    with pytest.raises(ArtefactMismatchError, match="force=True"):
        t.cosines(replace(axis, conditions=replace(axis.conditions, model="x")), 1)
    with pytest.raises(GeometryError, match="both sides"):
        TraitVectors.from_poles(vectors(["a", "b"]))


def test_traits_save_and_load(tmp_path):
    v = vectors(["calm:positive", "calm:negative", "odd:positive"])
    t = TraitVectors.from_poles(v)
    assert t.traits == ("calm",)
    again = TraitVectors.load(t.save(tmp_path / "t"))
    assert torch.equal(again.vectors, t.vectors)
    assert again.conditions == t.conditions


def test_trait_extraction_is_the_difference_of_means(tiny_model, tmp_path):
    names = [t.name for t in load_personas().traits[:4]]
    t = extract_trait_vectors(tiny_model, traits=names, pairs=2, questions_per_pair=2, out=tmp_path, **QUIET)
    assert t.traits == tuple(names)
    assert (tmp_path / "traits.safetensors").is_file()
    trait = load_personas().trait(names[1])
    assert t.vectors.shape == (4, tiny_model.n_layers, tiny_model.d_model)
    assert t.counts.tolist() == [8] * 4
    from assistant_axis.personas.library import PersonaLibrary, Role, plan

    library = load_personas()
    asks = plan(
        PersonaLibrary((Role("p", trait.positive), Role("n", trait.negative)), library.default, library.questions),
        prompts_per_role=2,
        questions_per_prompt=2,
    )
    sides = [
        torch.stack([tiny_model.activations(a.messages, "header") for a in asks if a.role == r]).mean(0) for r in "pn"
    ]
    assert torch.allclose(t.vectors[1], sides[0] - sides[1], atol=1e-4)
    with pytest.raises(SettingError, match="pairs=6"):
        extract_trait_vectors(tiny_model, traits=names, pairs=6)
    with pytest.raises(UnknownNameError):
        extract_trait_vectors(tiny_model, traits=["clam"])


@pytest.fixture(scope="module")
def spoken(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    roles = load_personas().role_names[:5]
    v = extract_persona_vectors(
        tiny_model, "response", roles=roles, prompts_per_role=1, questions_per_prompt=3,
        sampling=Sampling(max_new_tokens=8), out=folder, **QUIET,
    )  # fmt: skip
    return folder, v


def test_reading_ones_own_answers_gives_ones_own_vectors(tiny_model, spoken):
    """Where an answer's text is tokenised as it was generated, re-reading is the same measurement."""
    folder, v = spoken
    again = read_with(tiny_model, folder, **QUIET)
    assert again.layers == v.layers
    texts = {r.role for r in read_rollouts(folder / "rollouts.parquet") if r.answer.strip()}
    assert set(again.roles) == texts - {"default"}
    assert again.conditions.span == "response"
    assert "read by" in again.conditions.design
    assert again.default_count <= v.default_count
    one = next(r for r in read_rollouts(folder / "rollouts.parquet") if r.role == again.roles[0] and r.answer.strip())
    alone = read_with(tiny_model, [one, *_defaults(folder)], source=v, **QUIET)
    assert torch.allclose(alone.vectors[0], tiny_model.activations(one.messages, "response"), atol=1e-4)


def test_a_base_model_reads_with_the_plain_template(spoken):
    folder, v = spoken
    base = tiny.make_pair("llama", tokenizer=tiny.make_tokenizer(None, eos="<eos>"), name="tiny-base")[0]
    assert base.chat.plain
    read = read_with(base, folder, keep_samples=4, **QUIET)
    assert read.conditions.model == "tiny-base"
    assert read.conditions.personas_hash == v.conditions.personas_hash
    assert torch.isfinite(read.vectors).all()
    assert len(read.samples.role) <= 5


def test_read_with_errors(tiny_model, spoken):
    folder, v = spoken
    rollouts = read_rollouts(folder / "rollouts.parquet")
    with pytest.raises(SettingError, match="no rollouts"):
        read_with(tiny_model, [], source=v)
    with pytest.raises(SettingError, match="source="):
        read_with(tiny_model, rollouts)
    with pytest.raises(GeometryError, match="default"):
        read_with(tiny_model, [r for r in rollouts if r.role != "default"], source=v, **QUIET)
    with pytest.raises(GeometryError, match="at least 99"):
        read_with(tiny_model, rollouts, source=v, min_count=99, **QUIET)


def _defaults(folder):
    return [r for r in read_rollouts(folder / "rollouts.parquet") if r.role == "default"]
