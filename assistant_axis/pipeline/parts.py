"""Finished parts of a long reading, kept in a run's kind of folder: atomic, checked, one writer, gone when all is done."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from assistant_axis.activations.store import load_artefact, save_artefact
from assistant_axis.errors import ArtefactMismatchError, IntegrityError
from assistant_axis.personas.rollouts import Rollout, rollout_of
from assistant_axis.runs.folder import Folder

MARKER = "conditions.json"
_TENSORS = ("sums", "counts", "norms", "samples", "sample_roles", "sample_questions")


@dataclass(frozen=True)
class Part:
    """What some roles gave: float32 sums a role, for the default a sum per condition."""

    roles: tuple[str, ...]
    sums: Tensor  # [role, layer, d_model]
    counts: Tensor  # [role]
    norms: Tensor  # [layer], summed over rollouts
    samples: Tensor  # [sample, layer, d_model], half precision
    sample_roles: Tensor  # [sample], index into roles
    sample_questions: Tensor  # [sample]
    rollouts: tuple[Rollout, ...] = ()


class Parts:
    """Parts by number; without a folder nothing is kept.

    Args:
        folder: where they are, or `None`.
        kind: what they are parts of.
        key: of the settings that they are made under.
    """

    def __init__(self, folder: Folder | None, kind: str, key: str) -> None:
        self.folder, self.kind, self.key = folder, kind, key

    def get(self, number: int, roles: Sequence[str]) -> Part | None:
        """A part of these roles that is whole and was made under these settings, or `None`."""
        if self.folder is None:
            return None
        try:
            with self.folder.open_local(_file(number)) as path:
                tensors, header = load_artefact(path, self.kind)
            rows = self.folder.get_table(_table(number), self.key) if header["rollouts"] else []
        except (IntegrityError, ArtefactMismatchError, FileNotFoundError):
            return None
        if header.get("key") != self.key or header["roles"] != list(roles) or header["rollouts"] != len(rows):
            return None
        return Part(tuple(roles), rollouts=tuple(rollout_of(r) for r in rows), **tensors)

    def put(self, number: int, part: Part) -> None:
        """Keep a part.

        Raises:
            DiskFullError: no space is left.
        """
        if self.folder is None:
            return
        if part.rollouts:
            import pyarrow as pa

            self.folder.put_table(_table(number), pa.Table.from_pylist([asdict(r) for r in part.rollouts]), self.key)
        tensors = {n: getattr(part, n) for n in _TENSORS}
        header = {"key": self.key, "roles": list(part.roles), "rollouts": len(part.rollouts)}
        self.folder.put(_file(number), lambda path: save_artefact(path, self.kind, tensors, header))


@contextmanager
def open_parts(out: Path | None, kind: str, said: Mapping[str, Any]) -> Iterator[Parts]:
    """The parts kept in `out/parts`; removed when the block ends well, there for the next start when it does not.

    Args:
        out: the folder of the result; `None`: nothing is kept.
        kind: what they are parts of.
        said: the settings that parts must have been made under.

    Raises:
        ArtefactMismatchError: the folder holds parts of something else; names what differs.
        RunError: the folder cannot be written.
        RunLockedError: another process writes to it.
    """
    key = hashlib.sha256(json.dumps({"kind": kind, **said}, sort_keys=True).encode()).hexdigest()
    if out is None:
        yield Parts(None, kind, key)
        return
    root = out / "parts"
    folder = Folder(root)
    folder.prepare()
    with folder.lock():
        folder.sweep()
        _check(folder, out, key, said)
        yield Parts(folder, kind, key)
    shutil.rmtree(root)


def _check(folder: Folder, out: Path, key: str, said: Mapping[str, Any]) -> None:
    try:
        before = folder.get_json(MARKER)
    except FileNotFoundError:
        folder.put_json(MARKER, {"key": key, "conditions": dict(said)})
        return
    except IntegrityError:
        before = {}
    if before.get("key") != key:
        other = before.get("conditions", {})
        differ = [f"{k}: {other[k]!r} there, {v!r} now" for k, v in said.items() if other.get(k, v) != v]
        raise ArtefactMismatchError(
            f"{out} holds an unfinished extraction with other settings ({'; '.join(differ) or 'unreadable'}). "
            f"Use another folder, or remove {out / 'parts'} to start again."
        )


def _file(number: int) -> str:
    return f"{number:05d}.safetensors"


def _table(number: int) -> str:
    return f"{number:05d}.parquet"
