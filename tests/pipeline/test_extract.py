import dataclasses

import pytest
import tiny
import torch

from assistant_axis.errors import (
    ArtefactMismatchError,
    GeometryError,
    NonFiniteError,
    RunLockedError,
    SettingError,
    UnknownNameError,
)
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.models.hook_points import ResidPost
from assistant_axis.models.prefixes import group_by_prefix
from assistant_axis.personas.library import DEFAULT_PROMPTS, PersonaLibrary, Question, Role, plan
from assistant_axis.personas.rollouts import read_rollouts
from assistant_axis.pipeline import extract
from assistant_axis.pipeline.extract import Sampling, display_name, extract_persona_vectors, report_yield
from assistant_axis.pipeline.parts import open_parts
from assistant_axis.steering.interventions import Cap

ROLES = tuple(
    Role(
        f"role{k}",
        tuple(f"You are {who}, and you answer as {who} would. {how}" for how in ("Speak.", "Stay so.", "Be it.")),
    )
    for k, who in enumerate(["a pirate", "the moon", "a doctor", "the wind", "a tutor", "a ghost", "the sea"])
)
QUESTIONS = tuple(
    Question(k, f"{w} is the answer?", "abc"[k % 3])
    for k, w in enumerate(["What", "Who", "Why", "Where", "When", "Which"])
)
LIBRARY = PersonaLibrary(ROLES, Role("default", DEFAULT_PROMPTS), QUESTIONS, source="test")
SIZES = {"prompts_per_role": 2, "questions_per_prompt": 2, "progress": False}
SPOKEN = {"sampling": Sampling(max_new_tokens=3, batch_size=16), "samples_per_question": 2}


def run(model, span="header", **changes):
    return extract_persona_vectors(model, span, **{"personas": LIBRARY, **SIZES, **changes})


def slow(model, hf, readings_of):
    """Sums by hand: every rollout alone through an untouched HF model, float64 means per role."""
    roles, default = {}, []
    for ask, ids, at in readings_of:
        mean = tiny.slow_residuals(hf, ids)[:, at].double().mean(1)
        default.append(mean) if ask.role == "default" else roles.setdefault(ask.role, []).append(mean)
    return torch.stack([torch.stack(v).mean(0) for v in roles.values()]).float(), torch.stack(default).mean(0).float()


def close(a, b):
    assert ((a - b).norm(dim=-1) / b.norm(dim=-1)).max() < 1e-4


def test_header_vectors_by_hand(tiny_pair):
    model, hf = tiny_pair
    library = LIBRARY.select(["role0", "role1", "role2"])
    got = run(model, personas=library)
    asks = plan(library, prompts_per_role=2, questions_per_prompt=2, model_name=display_name(model.name))
    rows = []
    for ask in asks:
        text = (
            "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in ask.messages)
            + "<|im_start|>assistant\n"
        )
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        rows.append((ask, ids, [len(ids) - 1]))
    roles, default = slow(model, hf, rows)
    assert got.roles == library.role_names
    assert got.layers == (0, 1, 2, 3)
    close(got.vectors, roles)
    close(got.default, default)
    assert got.counts.tolist() == [4, 4, 4]
    assert got.default_count == 10
    assert got.default_conditions.shape == (5, 4, 32)
    close(got.default_conditions.mean(0), default)
    norms = torch.stack([tiny.slow_residuals(hf, ids)[:, at].norm(dim=-1).mean(1) for _, ids, at in rows]).mean(0)
    torch.testing.assert_close(got.resid_norms, norms, rtol=1e-4, atol=1e-4)


def test_response_vectors_by_hand(tiny_pair, tmp_path):
    model, hf = tiny_pair
    library = LIBRARY.select(["role0", "role1"])
    got = run(model, "response", personas=library, out=tmp_path, **SPOKEN)
    rollouts = read_rollouts(tmp_path / "rollouts.parquet")
    asks = plan(library, prompts_per_role=2, questions_per_prompt=2, samples=2, model_name=display_name(model.name))
    assert [(r.role, r.prompt, r.question_id, r.sample) for r in rollouts] == [
        (a.role, a.prompt, a.question.id, a.sample) for a in asks
    ]
    assert len({r.answer_ids for r in rollouts}) > len(rollouts) / 2  # samples of one question differ
    rows = []
    for ask, r in zip(asks, rollouts, strict=True):
        assert r.prompt_ids == model.chat.encode_prompt(ask.messages).ids
        at = list(range(len(r.prompt_ids), len(r.prompt_ids) + len(r.answer_ids)))
        if at:
            rows.append((ask, (*r.prompt_ids, *r.answer_ids), at))
    roles, default = slow(model, hf, rows)
    close(got.vectors, roles)
    close(got.default, default)
    assert int(got.counts.sum()) + got.default_count == len(rows)


def test_the_conditions_travel(tiny_model, tmp_path):
    got = run(tiny_model, out=tmp_path, layers=[1, 3], seed=5)
    again = PersonaVectors.load(tmp_path / "vectors.safetensors")
    c = again.conditions
    assert (c.model, c.span, c.seed, c.personas_hash) == ("tiny-llama", "header", 5, LIBRARY.hash)
    assert c.design == "2 prompts × 2 questions a role"
    assert again.layers == (1, 3)
    assert torch.equal(again.vectors, got.vectors)
    assert torch.equal(again.samples.activations, got.samples.activations)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vectors.safetensors"]
    again.check(tiny_model)


def test_layers_chosen_are_those_of_a_whole_run(tiny_model):
    torch.testing.assert_close(run(tiny_model, layers=[3, 1]).vectors, run(tiny_model).vectors[:, [3, 1]])


def test_parts_do_not_matter(tiny_model, monkeypatch):
    whole = run(tiny_model)
    monkeypatch.setattr(extract, "ROLES_A_PART", 3)
    close(run(tiny_model).vectors, whole.vectors)


def test_same_seed_same_result(tiny_model):
    a, b = run(tiny_model, "response", **SPOKEN), run(tiny_model, "response", **SPOKEN)
    assert torch.equal(a.vectors, b.vectors)
    c = run(tiny_model, "response", seed=1, **SPOKEN)
    assert not torch.equal(a.vectors, c.vectors)


def _interrupt(monkeypatch, after):
    """KeyboardInterrupt inside the `after`-th part."""
    whole, parts = extract._Job._read, 0

    def cut(means):
        yield next(iter(means))
        raise KeyboardInterrupt

    def read(*args, **kwargs):
        nonlocal parts
        parts += 1
        means, *others = whole(*args, **kwargs)
        return cut(means) if parts == after else means, *others

    monkeypatch.setattr(extract._Job, "_read", read)
    return whole


@pytest.mark.parametrize("span", ["header", "response"])
def test_an_interrupted_run_goes_on_and_gives_the_same_bits(tiny_model, tmp_path, monkeypatch, span):
    monkeypatch.setattr(extract, "ROLES_A_PART", 3)
    more = SPOKEN if span == "response" else {}
    expected = run(tiny_model, span, out=tmp_path / "whole", **more)
    original = _interrupt(monkeypatch, after=3)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, span, out=tmp_path / "cut", **more)
    left = {p.name for p in (tmp_path / "cut" / "parts").iterdir()}
    assert {"conditions.json", "00000.safetensors", "00001.safetensors"} <= left
    assert not any(n.endswith(".part") or n.startswith("00002") for n in left)
    assert not (tmp_path / "cut" / "vectors.safetensors").exists()

    done = []

    def count(*args, **kwargs):
        done.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(extract._Job, "_read", count)
    got = run(tiny_model, span, out=tmp_path / "cut", **more)
    assert len(done) == 2  # 12 buckets in parts of 3 are four parts, two of which were there
    for name in ("vectors", "default", "default_conditions", "counts", "resid_norms"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    assert torch.equal(got.samples.activations, expected.samples.activations)
    assert torch.equal(got.samples.role, expected.samples.role)
    assert not (tmp_path / "cut" / "parts").exists()
    if span == "response":
        assert read_rollouts(tmp_path / "cut" / "rollouts.parquet") == read_rollouts(
            tmp_path / "whole" / "rollouts.parquet"
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"questions_per_prompt": 3}, "design: .*3 questions"),
        ({"layers": [0]}, "layers"),
        ({"span": "prompt"}, "span: 'header' there, 'prompt' now"),
        ({"personas": LIBRARY.select(["role0", "role1", "role3"])}, "personas_hash"),
        ({"keep_samples": 7}, "keep_samples"),
    ],
)
def test_an_unfinished_run_with_other_settings_is_refused(tiny_model, tmp_path, monkeypatch, changes, said):
    monkeypatch.setattr(extract, "ROLES_A_PART", 3)
    original = _interrupt(monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, out=tmp_path)
    monkeypatch.setattr(extract._Job, "_read", original)
    with pytest.raises(ArtefactMismatchError, match=said):
        run(tiny_model, **{"out": tmp_path, **changes})
    other, _ = tiny.make_pair("llama", seed=9)
    with pytest.raises(ArtefactMismatchError, match="fingerprint"):
        run(other, out=tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign", "rollouts"])
def test_damaged_parts_are_made_again(tiny_model, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(extract, "ROLES_A_PART", 3)
    expected = run(tiny_model, "response", **SPOKEN)
    original = _interrupt(monkeypatch, after=3)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, "response", out=tmp_path, **SPOKEN)
    monkeypatch.setattr(extract._Job, "_read", original)
    part = tmp_path / "parts" / "00001.safetensors"
    whole = part.read_bytes()
    if damage == "truncate":
        part.write_bytes(whole[:-10])
    elif damage == "flip":
        part.write_bytes(whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:])
    elif damage == "foreign":
        part.write_bytes((tmp_path / "parts" / "00000.safetensors").read_bytes())
    else:
        rollouts = part.with_suffix(".parquet")
        rollouts.write_bytes(rollouts.read_bytes()[:-5])
    got = run(tiny_model, "response", out=tmp_path, **SPOKEN)
    assert torch.equal(got.vectors, expected.vectors)


def test_a_damaged_marker_is_no_excuse(tiny_model, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "conditions.json").write_text("{")
    with pytest.raises(ArtefactMismatchError, match="unreadable"):
        run(tiny_model, out=tmp_path)


def test_samples_are_kept_evenly(tiny_model):
    got = run(tiny_model, keep_samples=10)
    assert 8 <= len(got.samples.role) <= 20
    assert (got.samples.role < 0).any()
    assert set(got.samples.role.tolist()) >= set(range(7))
    assert run(tiny_model, keep_samples=0).samples is None
    every = run(tiny_model)
    assert len(every.samples.role) == 7 * 4 + 5 * 2
    one = every.samples.activations[every.samples.role == 3].float().mean(0)
    torch.testing.assert_close(one, every.vectors[3], rtol=0.01, atol=0.01)


def test_empty_answers_count_for_nothing(tiny_model, monkeypatch):
    generate = type(tiny_model).generate

    def some_silent(self, conversations, **options):
        answers = generate(self, conversations, **options)
        return [
            dataclasses.replace(a, ids=(), text="", means=None) if "the moon" in c[0]["content"] else a
            for a, c in zip(answers, conversations, strict=True)
        ]

    monkeypatch.setattr(type(tiny_model), "generate", some_silent)
    got = run(tiny_model, "response", personas=LIBRARY.select(["role0", "role1", "role2"]), **SPOKEN)
    assert got.roles == ("role0", "role2")  # a role that never spoke has no vector
    monkeypatch.setattr(
        type(tiny_model),
        "generate",
        lambda self, c, **o: [dataclasses.replace(a, ids=(), text="", means=None) for a in generate(self, c, **o)],
    )
    with pytest.raises(GeometryError, match="no answer at all"):
        run(tiny_model, "response", **SPOKEN)


def test_bad_settings(tiny_model):
    with pytest.raises(SettingError, match="footer"):
        run(tiny_model, "footer")
    with pytest.raises(UnknownNameError, match="Did you mean 'role1"):
        run(tiny_model, roles=["role1x"])
    with pytest.raises(SettingError, match="prompts_per_role=9"):
        run(tiny_model, prompts_per_role=9)
    with pytest.raises(IndexError, match="out of range"):
        run(tiny_model, layers=[4])


def test_non_finite_activations_name_the_rollout(tiny_model):
    with tiny_model.hooks([(ResidPost(1), lambda x: x * float("nan"))]):
        with pytest.raises(NonFiniteError, match=r"\((default|role\d+), prompt \d, question \d, sample 0\) .* layer 1"):
            run(tiny_model)


def test_names_and_yield(tiny_model):
    assert display_name("smollm2-135m-instruct") == "Smollm2"
    assert display_name("Qwen/Qwen3-32B") == "Qwen3"
    said = report_yield(run(tiny_model))
    assert said["fewest"] == said["median"] == said["most"] == 4
    assert len(said["thinnest"]) == 5


def test_capture_groups_never_reach_into_a_span():
    ids = tuple(range(50))
    groups = group_by_prefix([ids, (*ids[:40], 99), ids], [20, 30, 48])
    assert [g.prefix for g in groups] == [20]


def test_another_process_that_writes_is_seen(tiny_model, tmp_path):
    with open_parts(tmp_path, extract.PART, {}), pytest.raises(RunLockedError, match="being written"):
        run(tiny_model, out=tmp_path)


def test_compiling_is_passed_on(tiny_model):
    """Where answers cannot be compiled, asking for it is refused instead of forgotten."""
    spoken = Sampling(max_new_tokens=3, compile=True)
    with tiny_model.steered(Cap({1: torch.ones(tiny_model.d_model)}, floor=0.0, layers=[1], positions="response")):
        with pytest.raises(SettingError, match="compile=True is for the slot loop"):
            run(tiny_model, "response", sampling=spoken)
