import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from assistant_axis.activations.store import Conditions, atomic, load_artefact, load_pickled_tensors, save_artefact
from assistant_axis.errors import ArtefactMismatchError, AssistantAxisError, IntegrityError, UnsafeFileError

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.ones(2, 2, dtype=torch.bfloat16),
    "count": torch.tensor([3, 4]),
    "none": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5),
}
HEADER = {"layers": [0, 1], "said": "Grüße τ"}


def _files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_round_trip(tmp_path):
    path = save_artefact(tmp_path / "deep" / "x", "thing", TENSORS, HEADER)
    assert path == tmp_path / "deep" / "x.safetensors"
    tensors, header = load_artefact(path, "thing")
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    for k, t in TENSORS.items():
        assert tensors[k].dtype == t.dtype
        assert torch.equal(tensors[k], t)
    assert _files(path.parent) == ["x.safetensors"]
    assert save_artefact(path, "thing", TENSORS, HEADER) == path


def _write_half(path, stop):
    with atomic(path) as scratch:
        scratch.write_text("half")
        raise stop


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_atomic_leaves_nothing_and_keeps_what_was_there(tmp_path, stop):
    path = tmp_path / "x.txt"
    with pytest.raises(stop):
        _write_half(path, stop)
    assert _files(tmp_path) == []
    with atomic(path) as scratch:
        scratch.write_text("whole")
        assert not path.exists()
    with pytest.raises(stop):
        _write_half(path, stop)
    assert path.read_text() == "whole"
    assert _files(tmp_path) == ["x.txt"]


def test_an_interrupted_save_keeps_the_old_artefact(tmp_path, monkeypatch):
    path = save_artefact(tmp_path / "x", "thing", TENSORS, HEADER)

    def half(_tensors, name, **_):
        Path(name).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save_artefact(path, "thing", {"a": torch.zeros(1)}, {})
    assert load_artefact(path, "thing")[1] == HEADER
    assert _files(tmp_path) == ["x.safetensors"]


def test_every_truncation_is_refused(tmp_path):
    whole = save_artefact(tmp_path / "x", "thing", TENSORS, HEADER).read_bytes()
    cut = tmp_path / "cut.safetensors"
    for n in range(0, len(whole), 7):
        cut.write_bytes(whole[:n])
        with pytest.raises(IntegrityError, match=r"cut\.safetensors"):
            load_artefact(cut, "thing")


def test_a_flipped_bit_anywhere_is_refused_or_harmless(tmp_path):
    whole = save_artefact(tmp_path / "x", "thing", TENSORS, HEADER).read_bytes()
    flipped = tmp_path / "flipped.safetensors"
    refused = 0
    for at in range(len(whole)):
        flipped.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 7)]) + whole[at + 1 :])
        try:
            tensors, header = load_artefact(flipped, "thing")
        except AssistantAxisError:
            refused += 1
            continue
        assert header == HEADER
        assert all(torch.equal(tensors[k], t) for k, t in TENSORS.items())
    assert refused > 0.95 * len(whole)


def test_foreign_files_and_other_kinds(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, str(foreign))
    with pytest.raises(IntegrityError, match="without this package's header"):
        load_artefact(foreign, "thing")
    path = save_artefact(tmp_path / "x", "thing", TENSORS, HEADER)
    with pytest.raises(ArtefactMismatchError, match="holds thing, but other was expected"):
        load_artefact(path, "other")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_artefact(tmp_path / "nowhere.safetensors", "thing")
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    with pytest.raises(IntegrityError):
        load_artefact(text, "thing")


def test_edited_metadata_is_refused(tmp_path):
    path = save_artefact(tmp_path / "x", "thing", {"a": torch.zeros(4)}, {"sign": "plus"})
    path.write_bytes(path.read_bytes().replace(b"plus", b"minu"))
    with pytest.raises(IntegrityError, match="checksum"):
        load_artefact(path, "thing")


def test_a_newer_format_is_named(tmp_path):
    path = save_artefact(tmp_path / "x", "thing", {"a": torch.zeros(4)}, {})
    path.write_bytes(path.read_bytes().replace(b'"format_version":"1"', b'"format_version":"2"'))
    with pytest.raises(IntegrityError, match="update the package"):
        load_artefact(path, "thing")


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=6),
        st.lists(st.floats(width=32, allow_nan=False), max_size=6),
        min_size=1,
        max_size=4,
    ),
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=9), st.none()), max_size=4),
)
def test_whatever_is_saved_comes_back(tmp_path_factory, numbers, header):
    path = tmp_path_factory.mktemp("store") / "x.safetensors"
    tensors = {k: torch.tensor(v, dtype=torch.float32) for k, v in numbers.items()}
    again, said = load_artefact(save_artefact(path, "kind", tensors, header), "kind")
    assert said == header
    assert all(torch.equal(again[k], v) for k, v in tensors.items())


# -- pickles -----------------------------------------------------------------------------------------------------------


class _Evil:
    def __reduce__(self):
        return (print, ("this code must never run",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"axis": torch.zeros(2, 2), "more": _Evil()}, path)
    with pytest.raises(UnsafeFileError, match=r"evil\.pt.*could run code"):
        load_pickled_tensors(path)
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises((UnsafeFileError, IntegrityError)):
        load_pickled_tensors(plain)
    assert capsys.readouterr().out == ""


def test_pickles_of_tensors_load_and_damaged_ones_are_named(tmp_path):
    path = tmp_path / "ok.pt"
    torch.save({"axis": torch.ones(2, 3)}, path)
    assert torch.equal(load_pickled_tensors(path)["axis"], torch.ones(2, 3))
    whole = path.read_bytes()
    for damage in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(damage)
        with pytest.raises((IntegrityError, UnsafeFileError), match=r"ok\.pt"):
            load_pickled_tensors(path)
    with pytest.raises(FileNotFoundError):
        load_pickled_tensors(tmp_path / "nowhere.pt")


# -- conditions --------------------------------------------------------------------------------------------------------


def _conditions(model):
    return Conditions.of(model, span="header", personas="bundled", personas_hash="p", design="d", seed=3)


def test_conditions_of_a_model(tiny_model):
    c = _conditions(tiny_model)
    assert (c.model, c.n_layers, c.d_model, c.dtype, c.sign) == ("tiny-llama", 4, 32, "float32", "assistant-positive")
    assert Conditions.from_dict(c.as_dict()) == c
    assert Conditions.from_dict(c.as_dict() | {"added later": 1}) == c
    c.check(tiny_model, "axis")


@pytest.mark.parametrize(
    ("field", "value", "said", "forced"),
    [
        ("d_model", 64, "d_model 64.*d_model 32", False),
        ("n_layers", 9, "n_layers 9.*n_layers 4", False),
        ("fingerprint", "other", "weights other", True),
        ("template_hash", "other", "chat template other", True),
    ],
)
def test_another_model_is_refused_by_name(tiny_model, field, value, said, forced):
    c = dataclasses.replace(_conditions(tiny_model), **{field: value})
    with pytest.raises(ArtefactMismatchError, match=said):
        c.check(tiny_model, "axis")
    if forced:
        c.check(tiny_model, "axis", force=True)
    else:
        with pytest.raises(ArtefactMismatchError):
            c.check(tiny_model, "axis", force=True)


def test_measurements_that_share_a_frame(tiny_model):
    c = _conditions(tiny_model)
    assert c.check_same_frame(c) == []
    other = dataclasses.replace(c, span="response", seed=9, template_hash="t")
    assert c.check_same_frame(other) == ["span", "template_hash"]
