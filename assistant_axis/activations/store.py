"""Artefacts on disk: safetensors with their conditions in the header, written atomically, checked when read."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assistant_axis._version import __version__
from assistant_axis.errors import ArtefactMismatchError, FetchError, IntegrityError, UnsafeFileError

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

FORMAT = 1


@dataclass(frozen=True)
class Conditions:
    """Under what conditions numbers were measured; they travel in the header of every artefact.

    `sign` is always `"assistant-positive"`: larger projections are more Assistant-like.
    """

    model: str
    fingerprint: str
    n_layers: int
    d_model: int
    hook_point: str
    span: str
    template_hash: str
    system_rule: str
    dtype: str
    personas: str
    personas_hash: str
    design: str
    seed: int
    judge: str = "none"
    sign: str = "assistant-positive"
    package: str = __version__

    @classmethod
    def of(
        cls,
        model: "HookedChatModel",
        *,
        span: str,
        personas: str,
        personas_hash: str,
        design: str,
        seed: int,
        **more: str,
    ) -> "Conditions":
        """The conditions of a measurement on `model`."""
        return cls(
            model=model.name,
            fingerprint=model.fingerprint,
            n_layers=model.n_layers,
            d_model=model.d_model,
            hook_point="resid_post",
            span=span,
            template_hash=model.chat.hash,
            system_rule=model.chat.system_rule,
            dtype=str(model.dtype).removeprefix("torch."),
            personas=personas,
            personas_hash=personas_hash,
            design=design,
            seed=seed,
            **more,
        )

    @classmethod
    def imported(
        cls, model: str, *, n_layers: int, d_model: int, dtype: str, design: str, judge: str = "none"
    ) -> "Conditions":
        """Of a published file, which says nothing of weights, template and personas: they stay empty and are not checked."""
        return cls(
            model=model,
            fingerprint="",
            n_layers=n_layers,
            d_model=d_model,
            hook_point="resid_post",
            span="response",
            template_hash="",
            system_rule="",
            dtype=dtype,
            personas="imported",
            personas_hash="",
            design=design,
            seed=0,
            judge=judge,
        )

    def check(self, model: "HookedChatModel", what: str, *, force: bool = False) -> None:
        """Refuse a model that these numbers do not belong to.

        Args:
            model: the model about to be used with the artefact.
            what: what the artefact is, for the message.
            force: accept another model of the same shape (a base model of the same width, say).

        Raises:
            ArtefactMismatchError: naming the field and both values.
        """
        pairs = [("d_model", self.d_model, model.d_model), ("n_layers", self.n_layers, model.n_layers)]
        if not force:
            pairs += [
                ("weights", self.fingerprint, model.fingerprint),
                ("chat template", self.template_hash, model.chat.hash),
            ]
        for field, kept, here in pairs:
            if kept and kept != here:
                advice = "" if field in ("d_model", "n_layers") else " Pass force=True if you mean it."
                raise ArtefactMismatchError(
                    f"This {what} was made with {self.model} ({field} {kept}), but {model.name} has {field} {here}. "
                    f"Use an artefact of this model, or load {self.model}.{advice}"
                )

    def check_same_frame(self, other: "Conditions") -> list[str]:
        """The fields in which two measurements differ that make their vectors incomparable in one space."""
        return [
            f
            for f in ("model", "fingerprint", "hook_point", "span", "template_hash")
            if getattr(self, f) != getattr(other, f)
        ]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> "Conditions":
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in said.items() if k in known})


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well, and vanishes when it does not."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        with scratch.open("rb") as f:
            os.fsync(f.fileno())
        scratch.chmod(0o644)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def save_artefact(path: str | Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and a JSON header as safetensors, in one atomic step, with a checksum over all of it."""
    from safetensors.torch import save_file

    target = Path(path)
    if target.suffix != ".safetensors":
        target = target.with_name(target.name + ".safetensors")
    ready = {k: v.detach().contiguous().cpu() for k, v in tensors.items()}
    said = json.dumps(dict(header), sort_keys=True)
    metadata = {
        "format": "assistant-axis",
        "format_version": str(FORMAT),
        "kind": kind,
        "header": said,
        "sha256": _digest(kind, said, ready),
    }
    with atomic(target) as scratch:
        save_file(ready, str(scratch), metadata=metadata)
    return target


def load_artefact(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an artefact of one kind and check its checksum.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: truncated, tampered with, or not one of ours.
        ArtefactMismatchError: an artefact of another kind.
    """
    from safetensors import SafetensorError, safe_open

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist.")
    try:
        with safe_open(str(source), framework="pt") as f:
            metadata = dict(f.metadata() or {})
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise IntegrityError(f"{source} is not a whole safetensors file ({e}). Make it again, or copy it again.") from e
    if metadata.get("format") != "assistant-axis":
        raise IntegrityError(
            f"{source} is a safetensors file without this package's header, so its sign and conditions are unknown."
        )
    if metadata.get("format_version") != str(FORMAT):
        raise IntegrityError(
            f"{source} has the format version {metadata.get('format_version')!r}, but this package reads {FORMAT}: it was written "
            "by another version of assistant-axis; update the package."
        )
    if metadata.get("sha256") != _digest(metadata.get("kind", ""), metadata.get("header", ""), tensors):
        raise IntegrityError(f"{source} does not have the checksum it was written with; it was changed or damaged.")
    if metadata["kind"] != kind:
        raise ArtefactMismatchError(f"{source} holds {metadata['kind']}, but {kind} was expected.")
    return tensors, json.loads(metadata["header"])


def fetch_published(repo: str, name: str, *, revision: str | None = None) -> Path:
    """A file of a published run, from the hub or its cache.

    Raises:
        FetchError: it is not there, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise FetchError(
            f"{name} of {repo} could not be fetched ({type(e).__name__}). Check the name owner/name and the network; a file that "
            "you have can be read with AssistantAxis.load."
        ) from e


def load_pickled_tensors(path: str | Path) -> Any:
    """A `.pt` file of the published format, read with `weights_only=True`: tensors, dicts, lists, numbers and strings.

    Raises:
        UnsafeFileError: the pickle holds anything else.
        IntegrityError: it is no readable `.pt` file.
    """
    import pickle

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist.")
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        if "Unsupported" in str(e) or "Weights only load failed" in str(e):
            raise UnsafeFileError(
                f"{source} is a pickle that holds more than tensors, and loading it could run code. "
                "Ask its author for tensors only, or convert it in an environment you can throw away."
            ) from e
        raise IntegrityError(f"{source} is not a readable .pt file ({e}).") from e
    except Exception as e:  # bytes that are no pickle fail in as many ways as there are opcodes
        raise IntegrityError(f"{source} is not a readable .pt file ({e}).") from e


def _digest(kind: str, header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{kind}\n{header}\n".encode())
    for key in sorted(tensors):
        t = tensors[key]
        digest.update(f"{key}:{t.dtype}:{tuple(t.shape)}\n".encode())
        digest.update(t.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
