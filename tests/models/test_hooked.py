import pytest
import tiny
import torch

from assistant_axis.errors import ConversationError, LayerError, ModelError, SettingError
from assistant_axis.models.hook_points import AttnOut, HookPoint, MlpOut, ResidPost, ResidPre
from assistant_axis.models.hooked import Verification, hf_blocks
from assistant_axis.models.lens import attached

TALK = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am an assistant."}]
LONGER = [*TALK, {"role": "user", "content": "Tell me a story about the moon."}]


def test_run_with_cache_equals_hf(any_pair):
    model, hf = any_pair
    out, cache = model.run_with_cache([TALK, LONGER], logits=None)
    assert list(cache) == [ResidPost(i) for i in range(4)]
    assert cache.chats is not None
    for row, chat in enumerate(cache.chats):
        slow = tiny.slow_residuals(hf, chat.ids)
        for layer in range(4):
            got = cache[ResidPost(layer)][row, : len(chat.ids)]
            assert (got - slow[layer]).norm() < 1e-4 * slow[layer].norm()
        with torch.no_grad():
            logits = hf(input_ids=torch.tensor([chat.ids])).logits[0]
        torch.testing.assert_close(out.logits[row, : len(chat.ids)], logits, rtol=1e-3, atol=1e-3)
    assert cache.mask.sum(1).tolist() == [len(c.ids) for c in cache.chats]


def test_verify(any_pair):
    model, _ = any_pair
    found = model.verify()
    assert found.ok
    assert len(found.max_abs) == 4
    assert "ok" in str(found)


def test_verify_notices_a_difference(tiny_model, monkeypatch):
    blocks = hf_blocks(tiny_model)
    swapped = [blocks[1], blocks[0], *blocks[2:]]
    monkeypatch.setattr("assistant_axis.models.hooked.hf_blocks", lambda _m: swapped)
    found = tiny_model.verify()
    assert not found.ok
    assert "NOT EQUAL" in str(found)
    assert not Verification("m", (0.0,), (2e-3,)).ok


def test_multimodal_layers_are_those_of_the_text_model():
    model, hf = tiny.make_pair("gemma3-multimodal")
    assert (model.n_layers, model.d_model) == (4, 32)
    assert model.max_length == 1024
    vision = {id(m) for name, m in model.lens.module.named_modules() if "vision" in name}
    assert vision
    assert not any(id(b) in vision for b in hf_blocks(model))
    del hf


def test_the_full_hook_set_adds_up():
    model, hf = tiny.make_pair("llama", hooks="all")
    assert model.lens.hook_set == "all"
    assert len(model.hook_points()) == 16
    points = [ResidPre(2), AttnOut(2), MlpOut(2), ResidPost(2)]
    _, cache = model.run_with_cache(TALK, points)
    pre, attn, mlp, post = (cache[p] for p in points)
    torch.testing.assert_close(pre + attn + mlp, post, rtol=1e-4, atol=1e-4)
    slow = tiny.slow_residuals(hf, cache.chats[0].ids)
    torch.testing.assert_close(post[0], slow[2], rtol=1e-3, atol=1e-3)
    assert model.verify().ok
    assert cache.stack().shape == (4, *post.shape)


def test_hook_sets_share_a_fingerprint_and_other_weights_have_another():
    residual, _ = tiny.make_pair("llama")
    full, _ = tiny.make_pair("llama", hooks="all")
    other, _ = tiny.make_pair("llama", seed=1)
    assert residual.fingerprint == full.fingerprint != other.fingerprint


def test_the_residual_set_refuses_sublayers_by_name(tiny_model):
    assert set(tiny_model.hook_points()) == {k(i) for i in range(4) for k in (ResidPre, ResidPost)}
    with pytest.raises(ModelError, match='hooks="all"'):
        tiny_model.run_with_cache(TALK, [AttnOut(1)])
    with pytest.raises(LayerError, match="layers 0 to 3"):
        tiny_model.run_with_cache(TALK, [ResidPost(4)])
    with pytest.raises(ModelError, match="does not exist"):
        tiny_model.run_with_cache(TALK, [HookPoint(1)])


def test_hook_points_are_values():
    assert ResidPost(3) == ResidPost(3) != ResidPre(3)
    assert str(ResidPost(3)) == "blocks.3.hook_resid_post"
    assert len({ResidPost(1), ResidPost(1), ResidPre(1)}) == 2


def _hooks_on(model):
    return {n: len(p.fwd_hooks) for n, p in model.lens.bridge.hook_dict.items() if p.fwd_hooks}


def test_attached_removes_exactly_its_own_hooks(tiny_model):
    point = tiny_model.lens.hook_point(ResidPost(1))
    point.add_hook(lambda tensor, hook: None)  # a user's own
    try:
        before = _hooks_on(tiny_model)
        with tiny_model.hooks([(ResidPost(1), lambda x: None), (ResidPost(2), lambda x: None)]):
            assert sum(_hooks_on(tiny_model).values()) > sum(before.values())
        assert _hooks_on(tiny_model) == before
        with pytest.raises(RuntimeError, match="boom"), tiny_model.hooks([(ResidPost(1), lambda x: None)]):
            raise RuntimeError("boom")
        assert _hooks_on(tiny_model) == before
        with pytest.raises(LayerError):
            with attached(tiny_model.lens, [(ResidPost(1), lambda x: None), (ResidPost(9), lambda x: None)]):
                pass
        assert _hooks_on(tiny_model) == before
    finally:
        point.remove_hooks()


def test_an_exception_inside_a_hook_leaves_none(tiny_model):
    def boom(_x):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        with tiny_model.hooks([(ResidPost(1), boom)]):
            tiny_model.run_with_cache(TALK)
    assert not _hooks_on(tiny_model)


def test_hooks_run_in_the_order_given_and_before_others_in_front(tiny_model):
    said = []

    def say(word):
        return ResidPost(1), lambda x: said.append(word)

    with tiny_model.hooks([say("c"), say("d")]), tiny_model.hooks([say("a"), say("b")], before_others=True):
        tiny_model.run_with_cache(TALK, [])
    assert said == ["a", "b", "c", "d"]


def test_readings_before_and_after_a_hook(tiny_model):
    with tiny_model.hooks([(ResidPost(1), lambda x: x * 2)]):
        _, pre = tiny_model.run_with_cache(TALK, [ResidPost(1)], reading="pre")
        _, post = tiny_model.run_with_cache(TALK, [ResidPost(1)])
    torch.testing.assert_close(pre[ResidPost(1)] * 2, post[ResidPost(1)])
    with pytest.raises(SettingError, match="between"):
        tiny_model.run_with_cache(TALK, reading="between")


def test_what_was_cached_is_a_copy(tiny_model):
    def in_place(x):
        x.add_(1.0)

    _, plain = tiny_model.run_with_cache(TALK, [ResidPost(1)])
    with tiny_model.hooks([(ResidPost(1), in_place)]):
        _, cache = tiny_model.run_with_cache(TALK, [ResidPost(1)], reading="pre")
    torch.testing.assert_close(cache[ResidPost(1)], plain[ResidPost(1)])


def test_cache_of_token_ids_and_by_name(tiny_model):
    ids, mask, _ = tiny_model.encode_batch([TALK, LONGER])
    _, a = tiny_model.run_with_cache(ids, mask=mask)
    _, b = tiny_model.run_with_cache([TALK, LONGER])
    torch.testing.assert_close(a["blocks.2.hook_resid_post"], b[ResidPost(2)])
    assert a.chats is None
    with pytest.raises(LayerError, match="was not cached"):
        a[ResidPre(1)]


def test_layers(tiny_model):
    assert tiny_model.layer(-1) == 3
    assert tiny_model.layer(0.5) == 2
    assert tiny_model.layer(0.999) == 3
    assert tiny_model.layer(2.0) == 2
    assert tiny_model.layers() == (0, 1, 2, 3)
    assert tiny_model.layers([2, -1, 0.01]) == (2, 3, 0)
    assert tiny_model.layers(0.5) == (2,)
    for bad in (4, -5, 1.5, 100):
        with pytest.raises(LayerError, match=str(bad)):
            tiny_model.layer(bad)
    with pytest.raises(LayerError, match="twice"):
        tiny_model.layers([3, -1])


def test_activations_have_the_shape_of_what_was_asked(tiny_model):
    one, many = tiny_model.activations(TALK), tiny_model.activations([TALK, TALK])
    assert one.shape == (4, 32)
    assert many.shape == (2, 4, 32)
    torch.testing.assert_close(many[0], one, rtol=1e-4, atol=1e-5)
    assert tiny_model.activations(TALK, layers=[1, 2]).shape == (2, 32)


@pytest.mark.parametrize("span", ["response", "header", "header_mean", "prompt"])
def test_spans_that_a_conversation_lacks(tiny_model, span):
    question = TALK[:1]
    if span == "response":
        with pytest.raises(ConversationError, match=r"needs an? assistant turn"):
            tiny_model.activations(question, span)
    else:
        assert tiny_model.activations(question, span).shape == (4, 32)


def test_bad_input_is_named(tiny_model):
    with pytest.raises(ConversationError, match="list of conversations"):
        tiny_model.activations([])
    with pytest.raises(ConversationError, match="context of 1024"):
        tiny_model.activations([{"role": "user", "content": "東" * 1200}, {"role": "assistant", "content": "a"}])
    with pytest.raises(LayerError):
        tiny_model.activations(TALK, layers=7)


def test_repr_says_what_it_is(tiny_model):
    assert repr(tiny_model) == (
        "HookedChatModel('tiny-llama', n_layers=4, d_model=32, dtype=float32, device='cpu', hooks='residual')"
    )
