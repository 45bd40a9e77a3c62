"""The loop over slots against the plain ones: the model's own generation, and a second pass for what is read."""

import pytest
import tiny
import torch

from assistant_axis.activations.capture import capture_means
from assistant_axis.activations.spans import read_answer
from assistant_axis.errors import SettingError
from assistant_axis.models import decode, generation
from assistant_axis.models.decode import can_decode
from assistant_axis.models.hook_points import ResidPost
from assistant_axis.models.scoring import log_likelihoods
from assistant_axis.steering.interventions import Add, Cap

PIRATE = "You are a pirate who has sailed the seven seas for forty years and fears nothing but the calm."
GHOST = "You are a ghost in an old house by the sea, and you speak of what the wind has told you."
QUESTIONS = ["Who are you?", "Why?", "Tell me a story about the moon.", "Is it ever right to break a promise? Say why."]
ASKED = [[{"role": "system", "content": s}, {"role": "user", "content": q}] for s in (PIRATE, GHOST) for q in QUESTIONS]
ASKED += [[{"role": "user", "content": q}] for q in QUESTIONS]


def _plainly(model, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(generation, "can_decode", lambda *_: False)
        return model.generate(ASKED, **options)


@pytest.mark.parametrize("slots", [1, 3, 5, 16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_the_models_own_loop(tiny_model, monkeypatch, slots, temperature):
    assert can_decode(tiny_model, 512)
    options = {"max_new_tokens": 14, "temperature": temperature, "top_p": 0.95, "seed": 4}
    assert tiny_model.generate(ASKED, batch_size=slots, **options) == _plainly(tiny_model, monkeypatch, **options)


def test_slots_are_taken_again_and_prefixes_computed_once(tiny_model, monkeypatch):
    passes = []
    with tiny_model.hooks([(ResidPost(0), lambda x: passes.append(tuple(x.shape[:2])))]):
        answers = tiny_model.generate(ASKED, max_new_tokens=10, temperature=1.2, batch_size=4, seed=1)
    assert max(rows for rows, width in passes if width == 1) <= 4
    new = sum(len(a.ids) + (a.finish_reason == "stop") for a in answers)
    rows = sum(rows for rows, width in passes if width == 1)
    assert rows < 1.35 * new  # hardly a row is computed after its end
    computed = sum(rows * width for rows, width in passes)
    monkeypatch.setattr(decode, "group_by_prefix", lambda p: [decode.Group((k,), 0) for k in range(len(p))])
    passes.clear()
    with tiny_model.hooks([(ResidPost(0), lambda x: passes.append(tuple(x.shape[:2])))]):
        again = tiny_model.generate(ASKED, max_new_tokens=10, temperature=1.2, batch_size=4, seed=1)
    assert again == answers
    assert computed < 0.8 * sum(rows * width for rows, width in passes)


@pytest.mark.parametrize("own", [True, False])
def test_what_is_read_in_the_same_pass_equals_a_second_one(tiny_model, monkeypatch, own):
    options = {"max_new_tokens": 9, "temperature": 1.0, "seed": 2, "layers": [0, -1], "logprobs": True}
    answers = (
        tiny_model.generate(ASKED, batch_size=3, **options) if own else _plainly(tiny_model, monkeypatch, **options)
    )
    assert {a.finish_reason for a in answers} <= {"stop", "length"}
    said = [a for a in answers if a.ids]
    readings = [read_answer(a.prompt_ids, a.ids) for a in said]
    expected = capture_means(tiny_model, readings, [0, tiny_model.n_layers - 1], share_prefixes=False)
    torch.testing.assert_close(torch.stack([a.means for a in said]), expected, rtol=1e-5, atol=1e-5)
    likely = log_likelihoods(tiny_model, [(a.prompt_ids, a.ids) for a in said])
    assert [a.logprob for a in said] == pytest.approx(likely, abs=1e-4)
    assert all(a.norms.shape == (2,) and bool((a.norms > 0).all()) for a in said)


def test_an_empty_answer_has_nothing_to_read(tiny_model):
    stop = generation.stop_ids(tiny_model)[0]
    embedding = tiny_model.lens.module.get_output_embeddings().weight[stop].detach().clone()

    def end(x):
        x = x.clone()
        x[:, -1] = embedding * 1e4
        return x

    with tiny_model.hooks([(ResidPost(tiny_model.n_layers - 1), end)]):
        answers = tiny_model.generate(ASKED, max_new_tokens=4, layers=[0], logprobs=True, batch_size=3)
    assert {(a.ids, a.means, a.logprob, a.finish_reason) for a in answers} == {((), None, None, "stop")}


@pytest.mark.parametrize("kind", [Add, Cap])
def test_interventions_act_at_every_step(tiny_model, monkeypatch, kind):
    generator = torch.Generator().manual_seed(0)
    push = {1: torch.randn(tiny_model.d_model, generator=generator)}
    step = Add(push, 5.0, unit="raw", layers=1) if kind is Add else Cap(push, floor=3.0, layers=[1])
    with tiny_model.steered(step):
        steered = tiny_model.generate(ASKED, max_new_tokens=8, batch_size=5)
        plainly = _plainly(tiny_model, monkeypatch, max_new_tokens=8)
    assert steered == plainly
    assert steered != tiny_model.generate(ASKED, max_new_tokens=8)


def test_every_conversation_has_a_stream_of_its_own(tiny_model):
    options = {"max_new_tokens": 8, "temperature": 1.0}
    whole = tiny_model.generate(ASKED, seed=7, **options)
    part = tiny_model.generate(ASKED[5:7], seed=generation.streams(7, len(ASKED))[5:7], **options)
    assert part == whole[5:7]
    with pytest.raises(SettingError, match="2 seeds came for 3 prompts"):
        tiny_model.generate(ASKED[:3], seed=[1, 2], **options)


def test_models_that_it_does_not_serve():
    model, _ = tiny.make_pair("llama", tokenizer=tiny.make_tokenizer(tiny.CHATML))
    assert can_decode(model, 64)
    with model.positions.watching():
        assert not can_decode(model, 64)
    with model.positions.tracked(model.lens.module):
        assert not can_decode(model, 64)
    model.lens.module.config._attn_implementation = "eager"
    assert not can_decode(model, 64)


@pytest.mark.real
def test_the_real_model_says_and_means_the_same(real_model, monkeypatch):
    plain = _plainly(real_model, monkeypatch, max_new_tokens=24)
    answers = real_model.generate(ASKED, max_new_tokens=24, batch_size=5, layers=[10, 20], logprobs=True)
    assert [a.ids for a in answers] == [a.ids for a in plain]
    readings = [read_answer(a.prompt_ids, a.ids) for a in answers]
    expected = capture_means(real_model, readings, [10, 20], share_prefixes=False)
    found = torch.stack([a.means for a in answers])
    assert float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max()) < 1e-4
