import re

import pytest
import tiny
import torch

from assistant_axis.errors import ConversationError, SettingError
from assistant_axis.models import generation
from assistant_axis.models.generation import stop_ids
from assistant_axis.models.hook_points import ResidPost

ASKED = [
    [{"role": "user", "content": "Who are you?"}],
    [
        {"role": "system", "content": "You are a pirate on the sea."},
        {"role": "user", "content": "Tell me a story about the moon."},
    ],
    [{"role": "user", "content": "Why?"}],
    [
        {"role": "user", "content": "What is the answer?"},
        {"role": "assistant", "content": "I am an assistant."},
        {"role": "user", "content": "Is it ever right to break a promise?"},
    ],
]


def _greedy(hf, ids, steps, stops):
    """Reference: greedy decoding by whole forward passes, one sequence, no cache."""
    ids, new = list(ids), []
    for _ in range(steps):
        with torch.no_grad():
            new.append(int(hf(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
        if new[-1] in stops:
            return new[:-1]
    return new


def test_batched_greedy_equals_one_by_one_and_plain_decoding(any_pair):
    model, hf = any_pair
    answers = model.generate(ASKED, max_new_tokens=12, batch_size=4)
    stops = set(stop_ids(model))
    for asked, answer in zip(ASKED, answers, strict=True):
        single = model.generate(asked, max_new_tokens=12)
        assert single == answer
        assert answer.prompt_ids == model.chat.encode_prompt(asked).ids
        expected = _greedy(hf, answer.prompt_ids, 12, stops)
        if not model.chat.plain:
            assert list(answer.ids) == expected


def test_greedy_equals_hf_generate(tiny_pair):
    model, hf = tiny_pair
    answer = model.generate(ASKED[1], max_new_tokens=16)
    ids = torch.tensor([answer.prompt_ids])
    out = hf.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, eos_token_id=4
    )
    new = out[0, ids.shape[1] :].tolist()
    assert list(answer.ids) == (new[: new.index(4)] if 4 in new else new)


def test_every_stop_token_is_known():
    model, _ = tiny.make_pair("llama", tokenizer=tiny.make_tokenizer(tiny.LLAMA3, eos="<eos>"))
    tokenizer = model.tokenizer
    model.lens.module.generation_config.eos_token_id = [7, 8]
    assert set(stop_ids(model)) == {7, 8, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")}


def _force(model, at_step, token):
    """A hook on the last block that makes `token` the likeliest at a step of the generation."""
    direction = model.lens.module.get_output_embeddings().weight[token].detach().clone()
    step = -1

    def hook(x):
        nonlocal step
        step += 1
        if step == at_step:
            x = x.clone()
            x[0, -1] = direction * 1e4
        return x

    return model.hooks([(ResidPost(model.n_layers - 1), hook)])


def _untied():
    model, _ = tiny.make_pair("qwen3", tokenizer=tiny.make_tokenizer(tiny.CHATML))
    return model


def test_finish_reasons_and_content_without_the_end_of_turn():
    model = _untied()
    free = model.generate(ASKED[0], max_new_tokens=8)
    assert free.finish_reason == "length"
    assert len(free.ids) == 8
    with _force(model, 3, 4):
        stopped = model.generate(ASKED[0], max_new_tokens=8)
    assert stopped.finish_reason == "stop"
    assert stopped.ids == free.ids[:3]
    assert str(stopped) == stopped.text == model.tokenizer.decode(free.ids[:3], skip_special_tokens=True)


def test_an_answer_that_stops_at_once_is_empty_and_its_neighbours_go_on():
    model = _untied()
    both = [ASKED[2], ASKED[0]]  # the shorter comes first in the batch
    with _force(model, 0, 4):
        answers = model.generate(both, max_new_tokens=6)
    assert answers[0].ids == ()
    assert answers[0].text == ""
    assert answers[0].finish_reason == "stop"
    assert answers[1] == model.generate(ASKED[0], max_new_tokens=6)


def test_stop_strings_of_the_plain_template(tiny_base_pair, monkeypatch):
    model, _ = tiny_base_pair
    tokenizer = model.tokenizer
    written = tokenizer("The answer.\n\nUser:\nWhy", add_special_tokens=False)["input_ids"]
    pad = tokenizer.pad_token_id

    def generate(ids, mask, **options):
        assert options["stop_strings"] == ["\n\nUser:", "\nUser:\n"]
        return torch.cat([ids, torch.tensor([written + [pad] * 3])], dim=1)

    monkeypatch.setattr(model.lens, "generate", generate)
    answer = model.generate(ASKED[0], max_new_tokens=40)
    assert answer.text == "The answer."
    assert answer.finish_reason == "stop"
    assert tokenizer.decode(answer.ids) == "The answer."


def test_the_plain_template_stops_the_loop_itself(tiny_base_pair, monkeypatch):
    model, _ = tiny_base_pair
    for seed in range(20):  # a random model says little: look for an answer with a token of letters, early
        options = {"max_new_tokens": 16, "temperature": 1.0, "seed": seed}
        said = [model.tokenizer.decode([t]) for t in model.generate(ASKED[0], **options).ids[:8]]
        stop = next((t for t in said if re.fullmatch("[A-Za-z]{2,}", t)), "")
        if stop:
            break
    assert stop
    monkeypatch.setattr(type(model.chat), "stop_strings", (stop,))
    passes = 0

    def count(_x):
        nonlocal passes
        passes += 1

    with model.hooks([(ResidPost(0), count)]):
        answer = model.generate(ASKED[0], **options)
    assert passes < 16
    assert answer.finish_reason == "stop"
    assert stop not in answer.text
    assert model.tokenizer.decode(answer.ids, skip_special_tokens=True) == answer.text


def test_seeds(tiny_model):
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.95}
    before = torch.random.get_rng_state()
    one = tiny_model.generate(ASKED, seed=3, **options)
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's randomness is left alone
    torch.manual_seed(99)
    assert tiny_model.generate(ASKED, seed=3, **options) == one
    assert tiny_model.generate(ASKED, seed=4, **options) != one


def test_top_k_one_is_greedy(tiny_model):
    sampled = tiny_model.generate(ASKED[0], max_new_tokens=8, temperature=1.0, top_k=1, seed=5)
    assert sampled.ids == tiny_model.generate(ASKED[0], max_new_tokens=8).ids


def test_answers_keep_their_order_over_batches(tiny_model):
    answers = tiny_model.generate(ASKED, max_new_tokens=3, batch_size=2)
    assert [a.prompt_ids for a in answers] == [tiny_model.chat.encode_prompt(c).ids for c in ASKED]


def test_the_models_own_sampling_settings_do_not_leak_into_greedy_answers():
    model, _ = tiny.make_pair("llama")
    expected = model.generate(ASKED[0], max_new_tokens=8)
    config = model.lens.module.generation_config
    config.do_sample, config.temperature, config.top_k, config.repetition_penalty = True, 0.6, 20, 5.0
    assert model.generate(ASKED[0], max_new_tokens=8) == expected


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"batch_size": 0},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_parameters_out_of_range(tiny_model, bad):
    with pytest.raises(SettingError, match=next(iter(bad))):
        tiny_model.generate(ASKED[0], **bad)


def test_conversations_that_cannot_be_answered(tiny_model):
    with pytest.raises(ConversationError, match="ends with an assistant turn"):
        tiny_model.generate([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    with pytest.raises(ConversationError):
        tiny_model.generate([])
    with pytest.raises(ConversationError, match="context of 1024"):
        tiny_model.generate([{"role": "user", "content": "東" * 1200}])


def test_prompt_tokens_are_those_of_the_span_reader(tiny_model):
    assert generation.decode(tiny_model, tiny_model.chat.encode_prompt(ASKED[0]).ids).startswith("user\nWho are you?")


def by_full_sort(scores, temperature, top_p, top_k):
    """The distribution as the library's own warpers leave it."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    out = TemperatureLogitsWarper(float(temperature))(None, scores)
    out = TopKLogitsWarper(top_k)(None, out) if top_k else out
    out = TopPLogitsWarper(top_p)(None, out) if top_p < 1 else out
    return out.softmax(-1)


@pytest.mark.parametrize(
    ("spread", "temperature", "top_p", "top_k"),
    [
        (3.0, 0.7, 0.9, 0),
        (0.1, 1.0, 0.95, 0),
        (3.0, 1.3, 1.0, 7),
        (2.0, 0.8, 0.6, 40),
        (1.0, 1.0, 1.0, 0),
    ],
)
def test_the_sampler_draws_from_the_distribution_of_a_full_sort(monkeypatch, spread, temperature, top_p, top_k):
    from assistant_axis.models import sampling

    torch.manual_seed(0)
    scores = spread * torch.randn(4, 3000)
    seen = []
    pick = sampling._invert
    monkeypatch.setattr(sampling, "_invert", lambda mass, at: seen.append(mass) or pick(mass, at))
    sampler = sampling.Sampler(temperature, top_p, top_k)
    expected = by_full_sort(scores, temperature, top_p, top_k)
    for at in (0.0, 0.3, 0.9, 1 - 2**-24):
        token = sampler.draw(scores, torch.full((len(scores),), at))
        assert bool((expected.gather(-1, token) > 0).all())
    ours = seen[0] / seen[0].sum(-1, keepdim=True)
    order = ours.sort(-1, descending=True).values
    assert torch.allclose(order, expected.sort(-1, descending=True).values[:, : order.shape[1]], atol=1e-6)
    assert int((ours > 0).sum()) == int((expected > 0).sum())
    only = sampling.Picked(sampler, [1, 2, 3, 4], 1)(torch.zeros(4, 1), scores)
    assert (only == 0).sum(-1).tolist() == [1] * 4
