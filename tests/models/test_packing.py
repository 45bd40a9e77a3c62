"""The packed layout gives the same products, and leaves the model as it was."""

from types import SimpleNamespace

import pytest
import torch

from assistant_axis.models import packing
from assistant_axis.models.packing import packed_linears

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def _linears(model):
    return [m for m in model.lens.module.modules() if type(m) is torch.nn.Linear]


@needs_onednn
def test_every_product_is_the_same(tiny_model):
    generator = torch.Generator().manual_seed(0)
    linears = _linears(tiny_model)
    few, many = (
        [torch.randn(n, 1, m.in_features, generator=generator) for m in linears] for n in (3, packing._MOST_ROWS + 1)
    )
    with torch.inference_mode():
        plain = [(m(a), m(b)) for m, a, b in zip(linears, few, many, strict=True)]
        with packed_linears(tiny_model, 16, 100) as count:
            assert count == len(linears) > 2 * tiny_model.n_layers
            for m, a, b, (x, y) in zip(linears, few, many, plain, strict=True):
                torch.testing.assert_close(m(a), x, rtol=1e-5, atol=1e-6)
                assert torch.equal(m(b), y)
            with packed_linears(tiny_model, 16, 100) as again:
                assert again == 0
            assert all("forward" in m.__dict__ for m in linears)
        assert not any("forward" in m.__dict__ for m in linears)
        assert all(torch.equal(m(a), x) for m, a, (x, _) in zip(linears, few, plain, strict=True))


@needs_onednn
def test_what_is_packed(tiny_model, monkeypatch):
    def count(**options):
        with packed_linears(tiny_model, 16, 100, **options) as done:
            return done

    assert count(head_only=True) == 1
    for rows, steps in ((16, packing._FEWEST_STEPS - 1), (packing._FEWEST_ROWS - 1, 100)):
        with packed_linears(tiny_model, rows, steps) as done:
            assert done == 0
    free = sum(m.weight.nbytes for m in _linears(tiny_model)) / packing._SHARE
    monkeypatch.setattr(packing.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert count() == len(_linears(tiny_model))
    monkeypatch.setattr(packing.psutil, "virtual_memory", lambda: SimpleNamespace(available=free - 1))
    assert count() == 1
    monkeypatch.setattr(packing.psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    assert count() == 0


@needs_onednn
def test_an_error_leaves_no_packed_layer(tiny_model):
    with pytest.raises(ZeroDivisionError), packed_linears(tiny_model, 16, 100):
        raise ZeroDivisionError
    assert not any("forward" in m.__dict__ for m in _linears(tiny_model))
