import pytest
import tiny
import torch

from assistant_axis.errors import ArtefactMismatchError, SettingError
from assistant_axis.pipeline import read_with as reading
from assistant_axis.pipeline.extract import Sampling, extract_persona_vectors
from assistant_axis.pipeline.read_with import read_with


@pytest.fixture(scope="module")
def spoken(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("spoken")
    extract_persona_vectors(
        tiny_model,
        "response",
        roles=["pirate", "ghost", "doctor"],
        prompts_per_role=1,
        questions_per_prompt=4,
        sampling=Sampling(max_new_tokens=5),
        out=out,
        progress=False,
    )
    return out


def equal(a, b):
    names = ("vectors", "default", "default_conditions", "counts", "resid_norms")
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in names) and torch.equal(
        a.samples.activations, b.samples.activations
    )


def test_an_interrupted_reading_goes_on_and_gives_the_same_bits(tiny_model, spoken, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROWS_A_PART", 7)  # a role's answers lie in two parts
    expected = read_with(tiny_model, spoken, keep_samples=8, progress=False)
    read, done = reading._Job.read, []

    def cut(self, rows):
        done.append(rows.start)
        if len(done) == 3:
            raise KeyboardInterrupt
        return read(self, rows)

    monkeypatch.setattr(reading._Job, "read", cut)
    with pytest.raises(KeyboardInterrupt):
        read_with(tiny_model, spoken, keep_samples=8, out=tmp_path, progress=False)
    assert {p.name for p in (tmp_path / "parts").glob("0*")} == {"00000.safetensors", "00001.safetensors"}
    assert not (tmp_path / "vectors.safetensors").exists()
    other, _ = tiny.make_pair("llama", seed=9)
    with pytest.raises(ArtefactMismatchError, match="fingerprint"):
        read_with(other, spoken, keep_samples=8, out=tmp_path, progress=False)
    with pytest.raises(ArtefactMismatchError, match="layers"):
        read_with(tiny_model, spoken, layers=[0], keep_samples=8, out=tmp_path, progress=False)

    damaged = tmp_path / "parts" / "00000.safetensors"
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    got = read_with(tiny_model, spoken, keep_samples=8, out=tmp_path, progress=False)
    assert done[3:] == [0, 14, 21, 28]  # the damaged part and those that were not there
    assert equal(got, expected)
    assert not (tmp_path / "parts").exists()
    assert equal(type(got).load(tmp_path / "vectors.safetensors"), expected)


def test_size_of_parts_does_not_matter(tiny_model, spoken, monkeypatch):
    whole = read_with(tiny_model, spoken, progress=False)
    monkeypatch.setattr(reading, "ROWS_A_PART", 5)
    small = read_with(tiny_model, spoken, progress=False)
    torch.testing.assert_close(small.vectors, whole.vectors, rtol=1e-5, atol=1e-5)
    assert small.samples is not None
    assert whole.samples is not None
    assert small.samples.question is not None
    assert whole.samples.question is not None
    assert torch.equal(small.samples.question, whole.samples.question)
    assert torch.equal(small.samples.role, whole.samples.role)


def test_the_folder_of_the_run_that_spoke_is_refused(tiny_model, spoken):
    with pytest.raises(SettingError, match="choose another"):
        read_with(tiny_model, spoken, out=spoken, progress=False)
