"""The compiled decode step against the plain one."""

import shutil

import pytest
import tiny
import torch

from assistant_axis.errors import ModelError, SettingError
from assistant_axis.models.compiled import CompiledStep
from assistant_axis.models.hook_points import ResidPre
from assistant_axis.steering.interventions import Add, Cap

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")

ASKED = [
    [{"role": "system", "content": "You are a pirate who fears nothing but the calm."}, {"role": "user", "content": q}]
    for q in ("Who are you?", "Why?", "Tell me a story about the moon.", "What is the answer? Say why.", "And the sun?")
]


def _steps(model):
    generator = torch.Generator().manual_seed(0)
    push = {1: torch.randn(model.d_model, generator=generator), 2: torch.randn(model.d_model, generator=generator)}
    return Cap(push, floor=3.0, layers=[1]), Add(push, 2.0, unit="raw", layers=[2])


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
def test_compiled_answers_and_means_are_the_plain_ones(architecture):
    model, _ = tiny.make_pair(architecture)
    options = {"max_new_tokens": 9, "batch_size": 3, "layers": [0, -1], "logprobs": True, "temperature": 1.0, "seed": 5}
    seen = []
    with (
        model.steered(*_steps(model)),
        model.hooks([(ResidPre(0), lambda x: seen.append(x.shape[1]))]),
    ):
        plain = model.generate(ASKED, **options)
        steps = len(seen)
        compiled = model.generate(ASKED, compile=True, **options)
    assert compiled == plain
    assert len(seen) > 2 * steps  # every hook ran at every compiled step, and once more in the comparison
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one.means, other.means, rtol=1e-5, atol=1e-5)
        assert other.logprob == pytest.approx(one.logprob, abs=1e-4)
    assert plain != model.generate(ASKED, **options)


def test_what_cannot_be_compiled_is_said(tiny_model, monkeypatch):
    push = {1: torch.ones(tiny_model.d_model)}
    with tiny_model.steered(Cap(push, floor=0.0, layers=[1], positions="response")):
        with pytest.raises(SettingError, match="slot loop"):
            tiny_model.generate(ASKED, max_new_tokens=2, compile=True)
    full, _ = tiny.make_pair("llama", hooks="all")
    with pytest.raises(SettingError, match="slot loop"):
        full.generate(ASKED, max_new_tokens=2, compile=True)

    def other(self, *_):
        return torch.randn(self.places.shape[0], 512)

    monkeypatch.setattr(CompiledStep, "_run", other)
    with pytest.raises(ModelError, match="differs from the plain one"):
        tiny_model.generate(ASKED, max_new_tokens=2, compile=True)


@pytest.mark.real
def test_the_real_model_says_the_same_compiled(real_model):
    from assistant_axis import load_precomputed_axis

    options = {"max_new_tokens": 12, "batch_size": 3, "layers": [10, 20]}
    cap = Cap.calibrated(load_precomputed_axis("smollm2-135m-instruct"), percentile=75)
    with real_model.steered(cap):
        plain = real_model.generate(ASKED, **options)
        compiled = real_model.generate(ASKED, compile=True, **options)
    assert [a.ids for a in compiled] == [a.ids for a in plain]
    for one, other in zip(plain, compiled, strict=True):
        assert float((one.means - other.means).norm() / one.means.norm()) < 1e-4
