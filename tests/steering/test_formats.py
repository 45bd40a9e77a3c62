"""Files in and out: the published formula by hand, GGUF tensors, and a round trip of everything."""

import math
import warnings

import pytest
import torch

from assistant_axis.errors import (
    GeometryError,
    IntegrityError,
    LayerError,
    SettingError,
    UnknownNameError,
    UnsafeFileError,
)
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.models.hooked import hf_blocks
from assistant_axis.steering.formats import (
    load_capping_config,
    load_control_vector,
    load_intervention,
    save_axis_pt,
    save_capping_config,
    save_control_vector,
    save_intervention,
)
from assistant_axis.steering.interventions import Ablate, Add, Cap, Chain

from .conftest import D_MODEL

CHAT = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "hi, who are you"}]
NAME = "layers_1:3-p0.25"


@pytest.fixture
def released(tmp_path):
    """A config as released: v = role − default, unnormalised, upper caps."""
    torch.manual_seed(3)
    vectors = {f"layer_{k}/contrast": {"layer": k, "vector": 3 * torch.randn(D_MODEL)} for k in (1, 2)}
    interventions = [{"vector": f"layer_{k}/contrast", "cap": c} for k, c in ((1, 0.5), (2, -1.5))]
    path = tmp_path / "capping_config.pt"
    torch.save({"vectors": vectors, "experiments": [{"id": NAME, "interventions": interventions}]}, path)
    return path


def by_hand(model, config, ids):
    """`h − v̂·max(⟨h, v̂⟩ − cap, 0)` in plain forward hooks on the HF blocks."""
    handles = []
    for said in config["experiments"][0]["interventions"]:
        entry = config["vectors"][said["vector"]]
        v = entry["vector"] / entry["vector"].norm()

        def hook(_m, _a, out, v=v, cap=said["cap"]):
            h = out[0] if isinstance(out, tuple) else out
            h = h - ((h @ v) - cap).clamp(min=0)[..., None] * v
            return (h, *out[1:]) if isinstance(out, tuple) else h

        handles.append(hf_blocks(model)[entry["layer"]].register_forward_hook(hook))
    try:
        return model.forward(ids, logits=None).logits
    finally:
        for h in handles:
            h.remove()


def test_released_config_is_the_published_formula(either, released, tmp_path):
    ids = either.encode_batch(CHAT)[0]
    plain = either.forward(ids, logits=None).logits
    expected = by_hand(either, torch.load(released, weights_only=True), ids)
    assert float((plain - expected).abs().max()) > 0.1, "the test's caps do nothing"
    cap = load_capping_config(released).cap(NAME)
    assert cap.thresholds(1) == (-0.5, math.inf)
    with either.steered(cap):
        ours = either.forward(ids, logits=None).logits
    assert float((ours - expected).abs().max()) < 1e-4
    again = save_capping_config(tmp_path / "again.pt", {NAME: cap})
    assert float((by_hand(either, torch.load(again, weights_only=True), ids) - expected).abs().max()) < 1e-4


def test_floor_and_ceiling_survive_the_released_format(tiny, axis, tmp_path):
    cap = Cap(axis, floor=-0.5, ceiling=0.5, layers=[1, 2])
    path = save_capping_config(tmp_path / "both.pt", {"x": cap})
    ids = tiny.encode_batch(CHAT)[0]
    expected = by_hand(tiny, torch.load(path, weights_only=True), ids)
    for intervention in (cap, load_capping_config(path).cap("x")):
        with tiny.steered(intervention):
            assert float((tiny.forward(ids, logits=None).logits - expected).abs().max()) < 1e-4


def test_bad_configs(tmp_path, released, axis):
    config = load_capping_config(released)
    with pytest.raises(UnknownNameError, match="Did you mean"):
        config.cap("layers_1:3-p0.5")
    torch.save({"vectors": {}}, tmp_path / "a.pt")
    with pytest.raises(IntegrityError, match="experiments"):
        load_capping_config(tmp_path / "a.pt")
    broken = torch.load(released, weights_only=True)
    broken["vectors"]["layer_1/contrast"]["vector"][0] = math.nan
    torch.save(broken, tmp_path / "b.pt")
    with pytest.raises(GeometryError, match="layer 1 is not finite"):
        load_capping_config(tmp_path / "b.pt").cap(NAME)
    del broken["vectors"]["layer_1/contrast"]
    torch.save(broken, tmp_path / "c.pt")
    with pytest.raises(IntegrityError, match="does not hold"):
        load_capping_config(tmp_path / "c.pt")
    torch.save({"vectors": print, "experiments": []}, tmp_path / "d.pt")
    with pytest.raises(UnsafeFileError):
        load_capping_config(tmp_path / "d.pt")
    with pytest.raises(SettingError, match="explicit layers"):
        save_capping_config(tmp_path / "e.pt", {"x": Cap(axis, floor=0.0)})
    with pytest.raises(SettingError, match="every token"):
        save_capping_config(tmp_path / "e.pt", {"x": Cap(axis, floor=0.0, layers=1, positions="last")})


@pytest.mark.parametrize("stored_as", ["default-minus-roles", "roles-minus-default"])
def test_axis_pt_round_trip(axis, tmp_path, stored_as):
    path = save_axis_pt(axis, tmp_path / "axis.pt", stored_as=stored_as)
    again = AssistantAxis.from_pt(path, stored_as=stored_as)
    assert torch.allclose(again.vectors, axis.vectors)
    with pytest.raises(SettingError, match="residual norms"):
        Add(again, 0.2)
    with pytest.raises(SettingError, match="role_mean"):
        Ablate(again, to="role_mean")


def test_gguf_as_the_gguf_package_reads_it(tiny, axis, tmp_path):
    from gguf import GGUFReader

    add = Add(axis, -0.25, layers=[1, 3])
    path = save_control_vector(tmp_path / "v.gguf", add, tiny)
    reader = GGUFReader(path)
    tensors = {t.name: torch.tensor(t.data.copy()) for t in reader.tensors}
    assert set(tensors) == {"direction.1", "direction.3"}
    for layer in (1, 3):
        assert torch.equal(tensors[f"direction.{layer}"], add.size(layer) * add.direction.unit[layer])
    text = {k: f.contents() for k, f in reader.fields.items() if k.startswith(("general", "controlvector"))}
    assert text["general.architecture"] == "controlvector"
    assert text["controlvector.model_hint"] == "llama"
    assert text["controlvector.layer_count"] == 2
    ids = tiny.encode_batch(CHAT)[0]
    results = []
    for intervention in (add, load_control_vector(path)):
        with tiny.steered(intervention):
            results.append(tiny.forward(ids, logits=None).logits)
    assert torch.allclose(*results, atol=1e-5)


def test_gguf_as_repeng_reads_it(tiny, axis, tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # named in an annotation; gone from NumPy 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import, not ours
        extract = pytest.importorskip("repeng.extract")
    add = Add(axis, -0.25, layers=[1, 3])
    path = save_control_vector(tmp_path / "v.gguf", add, tiny)
    theirs = extract.ControlVector.import_gguf(path)
    assert theirs.model_type == "llama"
    assert set(theirs.directions) == {1, 3}
    for layer, vector in theirs.directions.items():
        assert torch.equal(torch.tensor(vector.copy()), add.size(layer) * add.direction.unit[layer])
    theirs.export_gguf(tmp_path / "theirs.gguf")
    again = load_control_vector(tmp_path / "theirs.gguf")
    assert again.layers == (1, 3)
    for layer in again.layers:
        ours = again.size(layer) * again.direction.unit[again.direction.index(layer)]
        assert torch.allclose(ours, add.size(layer) * add.direction.unit[layer], atol=1e-6)


def test_bad_control_vectors(tiny, axis, tmp_path):
    with pytest.raises(LayerError, match="block 0"):
        save_control_vector(tmp_path / "v.gguf", Add(axis, 1.0, layers=[0, 1]))
    with pytest.raises(SettingError, match="every token"):
        save_control_vector(tmp_path / "v.gguf", Add(axis, 1.0, layers=1, positions="last"))
    with pytest.raises(SettingError, match="nothing to write"):
        save_control_vector(tmp_path / "v.gguf", Add(axis, 0.0, layers=1))
    (tmp_path / "x.gguf").write_bytes(b"not a file of that kind, but long enough to be read")
    with pytest.raises(IntegrityError, match="GGUF"):
        load_control_vector(tmp_path / "x.gguf")
    with pytest.raises(FileNotFoundError):
        load_control_vector(tmp_path / "none.gguf")


def test_save_and_load_any(tiny, axis, tmp_path):
    chain = Chain(
        Add(axis, -0.25, positions="response"),
        Cap.calibrated(axis, 75, layers=[1, 2]),
        Chain(Ablate(axis, to="role_mean", layers=0), Cap(axis, ceiling=3.0)),
    )
    path = save_intervention(tmp_path / "x", chain)
    again = load_intervention(path, tiny)
    assert again.describe(tiny) == Chain(*chain.parts[:2], *chain.parts[2].parts).describe(tiny)
    results = []
    for x in (chain, again):
        with tiny.steered(x):
            results.append(tiny.run_with_cache(CHAT, [], logits=None)[0].logits)
    assert torch.allclose(*results, atol=1e-4)  # read back, tensors may lie at another alignment
    single = load_intervention(save_intervention(tmp_path / "y", Add(axis, 1.0, unit="axis")))
    assert isinstance(single, Add)
    assert single.direction.conditions == axis.conditions
