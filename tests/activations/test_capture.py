import pytest
import tiny
import torch

from assistant_axis.activations import capture
from assistant_axis.activations.capture import capture_means, stream_means
from assistant_axis.activations.spans import Reading, locate, read_answer
from assistant_axis.errors import NonFiniteError, SettingError
from assistant_axis.models.hook_points import AttnOut, ResidPost, ResidPre


def _readings(n=9, seed=0, shared=0, low=3, high=60):
    """Sequences of mixed lengths; the first `shared` tokens are the same in groups of three."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for k in range(n):
        length = int(torch.randint(low, high, (1,), generator=g))
        head = torch.randint(20, 300, (shared,), generator=torch.Generator().manual_seed(100 + k // 3))
        ids = [*head.tolist(), *torch.randint(20, 300, (length,), generator=g).tolist()]
        start = int(torch.randint(shared, len(ids), (1,), generator=g))
        stop = int(torch.randint(start + 1, len(ids) + 1, (1,), generator=g))
        out.append(Reading(tuple(ids), range(start, stop)))
    return out


def _slow(hf, readings):
    return torch.stack([tiny.slow_residuals(hf, r.ids)[:, r.at.start : r.at.stop].mean(1) for r in readings])


def _close(a, b, tolerance=1e-4):
    apart = (a - b).norm(dim=-1) / b.norm(dim=-1)
    assert apart.max() < tolerance, apart


def test_means_equal_forward_hooks_on_every_architecture(any_pair):
    model, hf = any_pair
    readings = _readings(8, shared=20) + _readings(4, seed=5)
    got = capture_means(model, readings, range(model.n_layers))
    assert got.dtype == torch.float32
    assert got.shape == (12, 4, 32)
    _close(got, _slow(hf, readings))


def test_sharing_prefixes_changes_nothing(any_pair):
    model, _ = any_pair
    readings = _readings(9, shared=24, high=30)
    together = capture_means(model, readings, range(4))
    apart = capture_means(model, readings, range(4), share_prefixes=False)
    _close(together, apart)


def test_shared_prefixes_are_really_computed_once(tiny_model, monkeypatch):
    readings = _readings(9, shared=40, high=10)
    seen = []
    forward = type(tiny_model).forward
    monkeypatch.setattr(
        type(tiny_model), "forward", lambda self, ids, *a, **k: seen.append(ids.numel()) or forward(self, ids, *a, **k)
    )
    capture_means(tiny_model, readings, range(4))
    shared = sum(seen)
    seen.clear()
    capture_means(tiny_model, readings, range(4), share_prefixes=False)
    assert shared < 0.6 * sum(seen)


def test_shared_prefix_longer_than_the_sliding_window_is_right():
    model, hf = tiny.make_pair("gemma3")  # window 24
    readings = _readings(6, shared=40, high=30)
    _close(capture_means(model, readings, range(4)), _slow(hf, readings))


@pytest.mark.parametrize("budget", [1, 64, 200, 10_000])
@pytest.mark.parametrize("share", [True, False])
def test_token_budget_does_not_change_the_result(tiny_model, budget, share):
    readings = _readings(9, shared=18)
    whole = capture_means(tiny_model, readings, range(4))
    _close(capture_means(tiny_model, readings, range(4), token_budget=budget, share_prefixes=share), whole)


@pytest.mark.parametrize("share", [True, False])
def test_batches_keep_to_the_token_budget(tiny_model, monkeypatch, share):
    readings = _readings(12, shared=18, high=40)
    widths = []
    forward = type(tiny_model).forward
    monkeypatch.setattr(
        type(tiny_model),
        "forward",
        lambda self, ids, *a, **k: widths.append(ids.numel()) or forward(self, ids, *a, **k),
    )
    capture_means(tiny_model, readings, range(4), token_budget=150, share_prefixes=share)
    assert max(widths) <= 150


def test_every_sequence_comes_once_with_its_norm(tiny_pair):
    model, hf = tiny_pair
    readings = _readings(10, shared=17)
    rows, norms = [], torch.zeros(10, 4)
    for part in stream_means(model, readings, range(4), token_budget=128):
        rows += part.rows
        norms[list(part.rows)] = part.norms
    assert sorted(rows) == list(range(10))
    slow = torch.stack(
        [tiny.slow_residuals(hf, r.ids)[:, r.at.start : r.at.stop].norm(dim=-1).mean(1) for r in readings]
    )
    torch.testing.assert_close(norms, slow, rtol=1e-4, atol=1e-4)


def test_identical_sequences_and_single_token_sequences(tiny_pair):
    model, hf = tiny_pair
    ids = tuple(range(30, 60))
    readings = [
        Reading(ids, range(29, 30)),
        Reading(ids, range(29, 30)),
        Reading((33,), range(0, 1)),
        Reading(ids, range(0, 30)),
    ]
    _close(capture_means(model, readings, range(4)), _slow(hf, readings))


def test_some_layers_in_the_order_asked_and_the_pass_stops_early(tiny_pair, monkeypatch):
    model, hf = tiny_pair
    readings = _readings(3)
    reached = []
    handles = [
        b.register_forward_hook(lambda *_a, i=i: reached.append(i)) for i, b in enumerate(model.lens.bridge.blocks)
    ]
    try:
        got = capture_means(model, readings, [1, 0])
    finally:
        for h in handles:
            h.remove()
    _close(got, _slow(hf, readings)[:, [1, 0]])
    assert set(reached) <= {0, 1}


def test_resid_pre_is_the_input_of_the_block(tiny_pair):
    model, hf = tiny_pair
    readings = _readings(4, shared=20)
    pre = capture_means(model, readings, [1, 2, 3], kind=ResidPre)
    _close(pre, _slow(hf, readings)[:, [0, 1, 2]])


def test_a_sublayer_of_the_full_hook_set():
    model, hf = tiny.make_pair("llama", hooks="all")
    readings = _readings(4)
    _close(capture_means(model, readings, range(4)), _slow(hf, readings))
    seen = []
    handle = hf.model.layers[2].self_attn.register_forward_hook(lambda _m, _a, out: seen.append(out[0][0]))
    with torch.no_grad():
        hf(input_ids=torch.tensor([readings[0].ids]))
    handle.remove()
    at = readings[0].at
    got = capture_means(model, readings, [2], kind=AttnOut)[0, 0]
    torch.testing.assert_close(got, seen[0][at.start : at.stop].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_pre_and_post_readings_under_an_intervention(tiny_model, share):
    readings = _readings(6, shared=20)
    plain = capture_means(tiny_model, readings, [1, 2], share_prefixes=share)
    push = torch.linspace(-1, 1, 32)
    with tiny_model.hooks([(ResidPost(1), lambda x: x + push)]):
        pre = capture_means(tiny_model, readings, [1, 2], reading="pre", share_prefixes=share)
        post = capture_means(tiny_model, readings, [1, 2], reading="post", share_prefixes=share)
    torch.testing.assert_close(pre[:, 0], plain[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(post[:, 0], plain[:, 0] + push, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pre[:, 1], post[:, 1])
    assert (post[:, 1] - plain[:, 1]).norm() > 0.1


@pytest.mark.parametrize("share", [True, False])
def test_running_out_of_memory_halves_the_batch(tiny_model, monkeypatch, share):
    readings = _readings(8, shared=20)
    expected = capture_means(tiny_model, readings, range(4))
    forward = tiny_model.lens.forward
    failed = []

    def narrow(ids, *args, **kwargs):
        if ids.numel() > 200:
            failed.append(ids.shape)
            raise torch.OutOfMemoryError("pretend")
        return forward(ids, *args, **kwargs)

    monkeypatch.setattr(tiny_model.lens, "forward", narrow)
    got = capture_means(tiny_model, readings, range(4), share_prefixes=share)
    assert failed
    _close(got, expected)


def test_one_sequence_that_does_not_fit_memory_is_an_error(tiny_model, monkeypatch):
    def never(*_args, **_kwargs):
        raise torch.OutOfMemoryError("pretend")

    monkeypatch.setattr(tiny_model.lens, "forward", never)
    with pytest.raises(torch.OutOfMemoryError):
        capture_means(tiny_model, _readings(4, shared=20), range(4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_activations_name_layer_and_sequence(tiny_model, bad):
    readings = _readings(5)
    readings[3] = Reading(tuple(range(20, 120)), range(50, 100), label="pirate, prompt 1")  # the longest: the last row

    def spoil(x):
        out = x.clone()
        out[-1, 99, 0] = bad
        return out

    with tiny_model.hooks([(ResidPost(2), spoil)]):
        with pytest.raises(NonFiniteError, match=r"sequence 3 \(pirate, prompt 1\) .* at layer 2"):
            capture_means(tiny_model, readings, range(4), share_prefixes=False)


def test_bad_settings(tiny_model):
    with pytest.raises(SettingError, match="between"):
        list(stream_means(tiny_model, _readings(2), [0], reading="between"))
    with pytest.raises(SettingError, match="No layers"):
        list(stream_means(tiny_model, _readings(2), []))


def test_interventions_by_position_switch_sharing_off(tiny_model):
    class Push:
        positions = "response"

        def compile(self, model):
            def hook(x):
                return x + model.positions.select("response", x)[..., None] * 3.0

            return [(ResidPost(0), hook)]

    messages = [
        {"role": "system", "content": "You are a pirate and sail the seven seas all day long."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "I am the pirate."},
    ]
    other = [*messages[:2], {"role": "assistant", "content": "The wind whispers of the moon."}]
    plain = tiny_model.activations([messages, other], layers=0)
    prompt = tiny_model.activations([messages, other], "prompt", layers=0)
    with tiny_model.steered(Push()):
        assert not capture.plain_cache(tiny_model)
        torch.testing.assert_close(
            tiny_model.activations([messages, other], layers=0), plain + 3.0, rtol=1e-5, atol=1e-4
        )
        torch.testing.assert_close(tiny_model.activations([messages, other], "prompt", layers=0), prompt)
    assert capture.plain_cache(tiny_model)


def test_bfloat16_model_gives_float32_means():
    model, hf = tiny.make_pair("llama")
    half, _ = tiny.make_pair("llama")
    half.lens.module.to(torch.bfloat16)
    readings = _readings(4)
    got = capture_means(half, readings, range(4))
    assert got.dtype == torch.float32
    _close(got, _slow(hf, readings), tolerance=0.1)
    del model


def test_spans_of_a_conversation(tiny_pair):
    model, hf = tiny_pair
    messages = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "I am an assistant."},
        {"role": "user", "content": "Tell me a story."},
        {"role": "assistant", "content": "I am an assistant."},
    ]
    tokenizer = model.tokenizer
    before = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nI am an assistant.<|im_end|>\n"
    asked = before + "<|im_start|>user\nTell me a story.<|im_end|>\n"
    prompt = asked + "<|im_start|>assistant\n"

    def n(text):
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    full = tokenizer(prompt + "I am an assistant.<|im_end|>\n", add_special_tokens=False)["input_ids"]
    slow = tiny.slow_residuals(hf, full)
    spans = {
        "response": range(n(prompt), len(full) - 2),
        "header": range(n(prompt) - 1, n(prompt)),
        "header_mean": range(n(asked), n(prompt)),
        "prompt": range(n(before + "<|im_start|>user\n"), n(asked) - 2),
    }
    for span, at in spans.items():
        reading = locate(model, messages, span)
        assert reading.at == at, span
        _close(model.activations(messages, span), slow[:, at.start : at.stop].mean(1))


def test_an_answer_is_read_by_its_own_ids():
    reading = read_answer((5, 6, 7), (8, 9))
    assert reading.ids == (5, 6, 7, 8, 9)
    assert list(reading.at) == [3, 4]
    assert list(reading.responses[0]) == [3, 4]
