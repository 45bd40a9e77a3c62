"""What an intervention promises: exact arithmetic, nothing where nothing was asked, and refusals by name."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant_axis.activations.spans import locate
from assistant_axis.errors import ArtefactMismatchError, GeometryError, LayerError, ModelError, SettingError
from assistant_axis.models.hook_points import ResidPost
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.interventions import Ablate, Add, Cap, Chain
from assistant_axis.steering.rules import Clamp

from .conftest import D_MODEL, N_LAYERS, make_axis, make_model

CHAT = [
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "who?"},
    {"role": "assistant", "content": "a model"},
]
SHORT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c d"}]
QUESTIONS = [[{"role": "user", "content": q}] for q in ("a", "what is it that you want?", "tell me", "who are you now")]


def logits(model, *interventions, conversations=(CHAT, SHORT)):
    with model.steered(*interventions):
        out, _ = model.run_with_cache(list(conversations), [], logits=None)
    return out.logits


# -- the arithmetic of a cap -------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(2, 70))


@settings(max_examples=150, deadline=None)
@given(shapes, st.integers(0, 10_000), st.floats(-5, 5), st.floats(0, 5), st.sampled_from(["f32", "bf16", "f16"]))
def test_clamp_keeps_bounds_and_other_components(shape, seed, low, width, kind):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[kind]
    generator = torch.Generator().manual_seed(seed)
    unit = torch.randn(shape[-1], generator=generator)
    unit = unit / unit.norm()
    x = (3 * torch.randn(shape, generator=generator)).to(dtype)
    kept = x.clone()
    out = Clamp(unit, low, low + width)(x)
    assert out.dtype == dtype
    assert torch.equal(x, kept), "the input was edited in place"
    eps = torch.finfo(dtype).eps
    # Rounding of each coordinate, plus that of the float32 dot products.
    slack = 2 * eps * float(x.float().norm(dim=-1).max() + abs(low) + width) + 1e-6
    before, after = x.double() @ unit.double(), out.double() @ unit.double()
    assert float(after.min()) >= low - slack
    assert float(after.max()) <= low + width + slack
    rest_before = x.double() - before[..., None] * unit.double()
    rest_after = out.double() - after[..., None] * unit.double()
    assert float((rest_before - rest_after).abs().max()) <= slack
    inside = (before > low + slack) & (before < low + width - slack)
    assert torch.equal(out[inside], x[inside]), "a token inside the bounds was changed"


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("abc ", min_size=1, max_size=12), st.text("xyz", min_size=1, max_size=9)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["all", "response", "prompt", "last"]),
    st.floats(-2, 4),
    st.integers(0, N_LAYERS - 1),
)
def test_cap_in_the_model_under_padding(tiny, axis, turns, positions, floor, layer):
    chats = [[{"role": "user", "content": f"q{a}"}, {"role": "assistant", "content": b}] for a, b in turns]
    point = ResidPost(layer)
    _, plain = tiny.run_with_cache(chats, [point])
    with tiny.steered(Cap(axis, floor=floor, layers=layer, positions=positions)):
        _, capped = tiny.run_with_cache(chats, [point])
        _, before = tiny.run_with_cache(chats, [point], reading="pre")
    assert torch.equal(plain[point], before[point])
    chosen = torch.zeros_like(plain.mask)
    for k, chat in enumerate(plain.chats):
        start, stop = chat.turns[-1].content
        length = len(chat.ids)
        if positions == "all":
            chosen[k, :] = True
        elif positions == "response":
            chosen[k, start:stop] = True
        elif positions == "prompt":
            chosen[k, :start] = True
            chosen[k, stop:length] = True
        else:
            chosen[k, length - 1] = True
    along = axis.project(capped[point], layer)
    assert float(along[chosen].min()) >= floor - 1e-4
    assert torch.equal(capped[point][~chosen], plain[point][~chosen])
    unit = axis.at(layer)
    change = capped[point] - plain[point]
    across = change - (change @ unit)[..., None] * unit
    assert float(across.abs().max()) < 1e-6 * max(1.0, float(plain[point].norm(dim=-1).max()))


@pytest.mark.parametrize("to", ["zero", "role_mean", "default", 1.5])
def test_ablate_sets_the_projection(either, axis, to):
    with either.steered(Ablate(axis, layers=2, to=to)):
        _, cache = either.run_with_cache(CHAT, [ResidPost(2)])
    reference = {"zero": torch.zeros(D_MODEL), "role_mean": axis.role_mean[2], "default": axis.default[2]}
    wanted = 1.5 if to == 1.5 else float(reference[to] @ axis.at(2))
    assert torch.allclose(axis.project(cache[ResidPost(2)], 2), torch.tensor(wanted), atol=1e-4)


@pytest.mark.parametrize(("unit", "scale"), [("resid_norm", 4.0), ("axis", None), ("raw", 1.0)])
def test_add_doses(either, axis, unit, scale):
    expected = 0.5 * (float(axis.norms[2]) if scale is None else scale)
    _, plain = either.run_with_cache(CHAT, [ResidPost(2)])
    with either.steered(Add(axis, 0.5, unit=unit)):  # monitoring layer: 2 of 4
        _, moved = either.run_with_cache(CHAT, [ResidPost(2)])
    change = moved[ResidPost(2)] - plain[ResidPost(2)]
    assert torch.allclose(change, (expected * axis.at(2)).expand_as(change), atol=1e-4)
    assert torch.equal(Direction.of(axis).resid_norms, axis.resid_norms)


def test_positive_is_assistant_like(tiny, axis):
    """The sign convention, end to end: a positive dose moves the reading up, a floor never moves it down."""
    plain = axis.project(tiny.activations(CHAT), centered=True)[2]
    with tiny.steered(Add(axis, 0.25)):
        assert axis.project(tiny.activations(CHAT), centered=True)[2] > plain
    with tiny.steered(Cap(axis, floor=float(axis.percentile(90.0, 2)), layers=2)):
        assert axis.project(tiny.activations(CHAT))[2] >= axis.project(tiny.activations(CHAT), centered=False)[2] - 1e-5


# -- nothing asked, nothing changed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda a: Add(a, 0.0),
        lambda a: Add(a, 1.0, layers=()),
        lambda a: Cap(a),
        lambda a: Cap(a, floor=-math.inf, ceiling=math.inf),
        lambda a: Cap(a, floor=[-math.inf] * N_LAYERS, layers=range(N_LAYERS)),
        lambda a: Cap(a, floor=1.0, layers=[]),
        lambda a: Ablate(a, layers=()),
        lambda a: Chain(Add(a, 0.0, positions="last"), Cap(a, layers=1)),
    ],
)
def test_nothing_compiles_to_nothing(either, axis, make):
    nothing = make(axis)
    assert nothing.compile(either) == []
    assert torch.equal(logits(either), logits(either, nothing))
    assert either.generate(QUESTIONS[1], max_new_tokens=6) == _generate(either, nothing, QUESTIONS[1])
    assert "bit for bit" in nothing.describe(either)


def _generate(model, intervention, questions, **kwargs):
    with model.steered(intervention):
        return model.generate(questions, max_new_tokens=6, **kwargs)


# -- generation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["all", "response", "prompt", "last"])
@pytest.mark.parametrize("kind", ["add", "cap", "ablate"])
def test_batched_equals_single(either, axis, kind, positions):
    made = {
        "add": Add(axis, 1.5, layers=[1, 2], positions=positions),
        "cap": Cap(axis, floor=2.0, ceiling=4.0, layers=[1, 3], positions=positions),
        "ablate": Ablate(axis, positions=positions),
    }[kind]
    with either.steered(made):
        together = either.generate(QUESTIONS, max_new_tokens=8)
        alone = [either.generate(q, max_new_tokens=8) for q in QUESTIONS]
    assert [a.ids for a in together] == [a.ids for a in alone]
    if positions in ("all", "response"):
        assert [a.ids for a in together] != [a.ids for a in either.generate(QUESTIONS, max_new_tokens=8)]


@pytest.mark.parametrize("positions", ["response", "prompt", "last"])
def test_cache_and_full_forward_agree(either, axis, positions):
    """Greedy tokens under an intervention are those of forward passes over the whole text, without a cache."""
    made = Add(axis, 2.0, layers=1, positions="response" if positions == "last" else positions)
    with either.steered(made):
        answer = either.generate(QUESTIONS[2], max_new_tokens=5)
        ids = torch.tensor([answer.prompt_ids + answer.ids])
        response = torch.zeros_like(ids, dtype=torch.bool)
        response[:, len(answer.prompt_ids) :] = True
        with either.positions.known(response):
            out = either.forward(ids, torch.ones_like(response), logits=None)
    said = out.logits[0, len(answer.prompt_ids) - 1 : -1].argmax(-1).tolist()
    assert tuple(said) == answer.ids


def test_both_hook_sets_agree(tiny, tiny_full, axis):
    chain = Chain(Add(axis, 0.3, layers=1), Cap(axis, floor=1.0, layers=[1, 2], positions="response"))
    assert torch.allclose(logits(tiny, chain), logits(tiny_full, chain), atol=1e-4)


# -- order, nesting, exits ---------------------------------------------------------------------------------------------


def test_order_is_the_order_given(tiny, axis):
    push, cap = Add(axis, -10.0, layers=2), Cap(axis, floor=1.0, layers=2)
    readings = {}
    for name, parts in {"push, cap": (push, cap), "cap, push": (cap, push)}.items():
        with tiny.steered(*parts):
            _, cache = tiny.run_with_cache(CHAT, [ResidPost(2)])
        with tiny.steered(Chain(*parts)):
            _, chained = tiny.run_with_cache(CHAT, [ResidPost(2)])
        assert torch.equal(cache[ResidPost(2)], chained[ResidPost(2)])
        readings[name] = axis.project(cache[ResidPost(2)], 2)
    assert float(readings["push, cap"].min()) >= 1.0 - 1e-4
    assert float(readings["cap, push"].min()) < 1.0


def test_two_directions(tiny, axis):
    other = make_axis(tiny, seed=9)
    with tiny.steered(Add(axis, 0.5, layers=1), Add(other, 0.5, layers=1)):
        _, both = tiny.run_with_cache(CHAT, [ResidPost(1)])
    _, plain = tiny.run_with_cache(CHAT, [ResidPost(1)])
    expected = 0.5 * axis.resid_norms[1] * (axis.at(1) + other.at(1))
    change = both[ResidPost(1)] - plain[ResidPost(1)]
    assert torch.allclose(change, expected.expand_as(change), atol=1e-4)


def test_nested_and_exceptional_exits_remove_their_own(either, axis):
    seen = []
    plain = logits(either)
    with either.hooks([(ResidPost(1), lambda x: seen.append(1))]):
        with either.steered(Add(axis, 1.0, layers=1)):
            outer = logits(either)
            with pytest.raises(RuntimeError, match="on purpose"):  # noqa: PT012
                with either.steered(Add(axis, 1.0, layers=2), Add(axis, 1.0, layers=3, positions="last")):
                    assert not torch.equal(logits(either), outer)
                    raise RuntimeError("on purpose")
            assert torch.equal(logits(either), outer)
        assert torch.equal(logits(either), plain)
        assert seen
    assert not either.positions.active
    count = len(seen)
    assert torch.equal(logits(either), plain)
    assert len(seen) == count


def test_a_failing_compile_leaves_nothing(tiny, axis):
    plain = logits(tiny)
    with pytest.raises(LayerError):
        with tiny.steered(Add(axis, 1.0), Add(axis, 1.0, layers=N_LAYERS)):
            pass
    assert torch.equal(logits(tiny), plain)


# -- dtypes and moves --------------------------------------------------------------------------------------------------


def test_bfloat16_model(axis):
    model = make_model(dtype=torch.bfloat16)
    cap = Cap(axis, floor=2.0, layers=2, force=True)
    with model.steered(cap):
        _, cache = model.run_with_cache(CHAT, [ResidPost(2)])
        assert model.generate(QUESTIONS[0], max_new_tokens=4).prompt_ids
    along = axis.project(cache[ResidPost(2)], 2)
    largest = float(cache[ResidPost(2)].norm(dim=-1).max())
    assert float(along.min()) >= 2.0 - 0.01 * largest


def test_a_model_moved_while_steered(axis):
    model = make_model()
    with model.steered(Add(axis, 0.5), Cap(axis, floor=1.0, layers=3)):
        first = logits(model)
        model.lens.module.to(torch.float64)
        second = logits(model)
    assert second.dtype == torch.float64
    assert torch.allclose(first.double(), second, atol=1e-3)


def test_gradients_pass(tiny, axis):
    add, cap = Add(axis, 0.5).compile(tiny)[0][1], Cap(axis, floor=9.0, layers=1).compile(tiny)[0][1]
    with torch.inference_mode():
        add(torch.zeros(1, 1, D_MODEL)), cap(torch.zeros(1, 1, D_MODEL))
    x = torch.randn(1, 3, D_MODEL, requires_grad=True)
    cap(add(x)).square().sum().backward()
    assert x.grad is not None


# -- capture under intervention ----------------------------------------------------------------------------------------


def test_means_read_before_and_after(tiny, axis):
    floor = 3.0
    with tiny.steered(Cap(axis, floor=floor, layers=1)):
        post = axis.project(tiny.activations(CHAT, layers=range(N_LAYERS)))
        pre = axis.project(tiny.activations(CHAT, layers=range(N_LAYERS), reading="pre"))
    plain = axis.project(tiny.activations(CHAT, layers=range(N_LAYERS)))
    assert float(post[1]) >= floor - 1e-4
    assert torch.allclose(pre[1], plain[1], atol=1e-5)
    assert locate(tiny, CHAT, "response").at


# -- thresholds --------------------------------------------------------------------------------------------------------


def test_thresholds_in_every_form(tiny, axis):
    by_axis = Cap(axis, floor=axis.percentile(75.0), layers=[1, 2])
    by_layer = Cap(axis, floor=[1.5, 1.5], layers=[1, 2])
    by_name = Cap(axis, floor={1: 1.5, 2: 1.5}, layers=[1, 2])
    one = Cap(axis, floor=1.5, layers=[1, 2])
    calibrated = Cap.calibrated(axis, percentile=75, layers=[1, 2])
    assert {c.thresholds(1) for c in (by_axis, by_layer, by_name, one, calibrated)} == {(1.5, math.inf)}
    both = Cap.calibrated(axis, percentile=25, ceiling_percentile=75, layers=1)
    assert both.thresholds(1) == (-1.5, 1.5)
    assert Cap.calibrated(axis, 33.3, layers=1).thresholds(1)[0] == pytest.approx(-3 + 6 * 0.333, abs=1e-5)


def test_default_layers(tiny, axis):
    assert Add(axis, 1.0).resolved(tiny) == (2,)
    assert Add(axis, 1.0, layers=0.3).resolved(tiny) == (1,)
    assert Add(axis, 1.0, layers=[-1, 0]).resolved(tiny) == (0, 3)
    assert Cap(axis, floor=0.0).resolved(tiny) == (2,)
    assert Ablate(axis).resolved(tiny) == (0, 1, 2, 3)


def test_minus_and_random(tiny, axis):
    direction = Direction.of(axis)
    flipped = -direction
    assert torch.allclose(flipped.unit, -direction.unit)
    assert flipped.percentile(25, 1) == pytest.approx(-direction.percentile(75, 1))
    control = direction.random(3)
    assert torch.equal(control.unit, direction.random(3).unit)
    assert torch.allclose(control.unit.norm(dim=-1), torch.ones(N_LAYERS))
    assert Add(control, 0.5).size(2) == Add(axis, 0.5).size(2)
    with pytest.raises(SettingError, match="calibrat"):
        Cap.calibrated(control, 75)


def test_explain(tiny, axis, capsys):
    Chain(Add(axis, -0.25), Cap.calibrated(axis, 75, layers=[1, 2], positions="response")).explain(tiny)
    said = capsys.readouterr().out
    for part in ("layer 2", "-0.25 × residual norm", "away from the Assistant", "1–2", "≥ 1.5", "percentile 75"):
        assert part in said, said
    Ablate(axis, to="role_mean", layers=0).explain(tiny)
    assert "role mean" in capsys.readouterr().out


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_values(tiny, axis):
    for make, error, said in [
        (lambda: Cap(axis, floor=2.0, ceiling=1.0), SettingError, "above"),
        (lambda: Cap(axis, floor=[1, 2, 3, 9], ceiling=5.0), SettingError, "layer 3"),
        (lambda: Cap(axis, floor=[1.0, 2.0, 3.0]), SettingError, "3 values"),
        (lambda: Cap(axis, floor=[3.0, 2, 1, 0], layers=[3, 2, 1, 0]), SettingError, "layer: number"),
        (lambda: Cap(axis, floor=float("nan")), SettingError, "NaN"),
        (lambda: Add(axis, float("inf")), SettingError, "finite"),
        (lambda: Add(axis, 1.0, unit="mile"), SettingError, "mile"),
        (lambda: Add(axis, 1.0, positions="some"), SettingError, "some"),
        (lambda: Add({2: torch.randn(D_MODEL)}, 1.0), SettingError, "no residual norms"),
        (lambda: Ablate({2: torch.randn(D_MODEL)}, to="role_mean"), SettingError, "role_mean"),
        (lambda: Add({1: torch.zeros(D_MODEL)}, 1.0, unit="raw"), GeometryError, "zero"),
        (lambda: Add({1: torch.full((D_MODEL,), math.nan)}, 1.0, unit="raw"), GeometryError, "not finite"),
        (lambda: Add({1: torch.randn(3), 2: torch.randn(4)}, 1.0, unit="raw"), GeometryError, "width"),
        (lambda: Direction.from_vectors([1, 2], torch.randn(3, 4)), GeometryError, "3 vectors"),
        (lambda: Direction.of({}), SettingError, "Expected"),
        (lambda: Cap.calibrated(axis, 175), SettingError, "between 0 and 100"),
    ]:
        with pytest.raises(error, match=said):
            make()


def test_bad_fits(tiny, axis):
    raw = {k: torch.randn(D_MODEL) for k in (1, 9)}
    for intervention, error, said in [
        (Add({1: torch.randn(D_MODEL + 1)}, 1.0, unit="raw", layers=1), ArtefactMismatchError, "width"),
        (Add(axis, 1.0, layers=17), LayerError, "17"),
        (Add(raw, 1.0, unit="raw", layers=9), LayerError, "9"),
        (Add(raw, 1.0, unit="raw", layers=2), LayerError, "no vector for layer 2"),
        (Cap(axis, floor={1: 0.0}, layers=[1, 2]), SettingError, "no floor for layer 2"),
    ]:
        with pytest.raises(error, match=said):
            intervention.compile(tiny)


def test_another_model_is_refused_unless_forced(axis):
    other = make_model(seed=5)
    with pytest.raises(ArtefactMismatchError, match="tiny-0"):
        Add(axis, 1.0).compile(other)
    assert Add(axis, 1.0, force=True).compile(other)
    deeper = make_model(seed=5, n_layers=5)
    with pytest.raises(ArtefactMismatchError, match="n_layers"):
        Add(axis, 1.0, force=True).compile(deeper)


def test_quantised_models_must_be_named(tiny, axis, monkeypatch):
    monkeypatch.setattr(tiny.lens.module, "hf_quantizer", SimpleNamespace(), raising=False)
    with pytest.raises(ModelError, match="quantised=True"):
        Add(axis, 1.0).compile(tiny)
    assert Add(axis, 1.0, quantised=True).compile(tiny)


def test_positions_need_the_steered_block(tiny, axis):
    hooks = Add(axis, 1.0, positions="response").compile(tiny)
    with tiny.hooks(hooks), pytest.raises(ModelError, match="steered"):
        tiny.run_with_cache(CHAT)
    with tiny.steered(Add(axis, 1.0, positions="response")), pytest.raises(ModelError, match="bare token ids"):
        tiny.forward(torch.tensor([[1, 2, 3]]))
