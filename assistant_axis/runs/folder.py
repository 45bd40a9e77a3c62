"""A run's folder, local or behind an fsspec path: atomic writes, checked reads, one writer at a time."""

import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from assistant_axis.errors import DiskFullError, IntegrityError, RunError, RunLockedError, SettingError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_META = b"assistant_axis"


class Folder:
    """Named files under a root: a local path, or any address that fsspec opens (`s3://…`, `gs://…`).

    Args:
        root: the folder; made when something is first written.

    Raises:
        SettingError: the scheme of the path is unknown, or its package is not installed.
    """

    def __init__(self, root: str | Path) -> None:
        import fsspec

        self.url = str(root)
        try:
            self.fs, path = fsspec.url_to_fs(self.url)
        except (ValueError, ImportError) as e:
            scheme = self.url.split("://", 1)[0]
            raise SettingError(
                f"{self.url}: paths of the kind {scheme!r} cannot be opened ({e}). Use a local folder, or s3:// or gs:// with "
                "the packages s3fs or gcsfs installed."
            ) from e
        self.local: Path | None = Path(path) if "file" in _protocols(self.fs) else None
        self.path = str(path).rstrip("/")

    def __str__(self) -> str:
        return self.url

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def where(self, name: str) -> str:
        """How a file is called in messages."""
        return str(self.local / name) if self.local is not None else f"{self.url.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        return self.local.joinpath(name).exists() if self.local is not None else bool(self.fs.exists(self._at(name)))

    def names(self, under: str) -> list[str]:
        """Names of the whole files in a sub-folder, sorted."""
        try:
            found = [str(p).rstrip("/").rsplit("/", 1)[-1] for p in self.fs.ls(self._at(under), detail=False)]
        except FileNotFoundError:
            return []
        return sorted(n for n in found if not n.startswith("."))

    def prepare(self) -> None:
        """Make the folder and see that it can be written.

        Raises:
            RunError: it cannot.
        """
        try:
            self.put_bytes(".writable", b"")
            self.remove(".writable")
        except DiskFullError:
            raise
        except (OSError, RunError) as e:
            raise RunError(
                f"{self.url} cannot be written ({e}). Choose another folder, or mend its permissions."
            ) from e

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """Write a file in one atomic step: `write` gets a path that keeps the suffix, and the file appears when it is whole.

        Raises:
            DiskFullError: no space is left.
        """
        try:
            if self.local is not None:
                target = self.local / name
                target.parent.mkdir(parents=True, exist_ok=True)
                handle, scratch = tempfile.mkstemp(prefix=".part-", suffix=Path(name).suffix, dir=target.parent)
                os.close(handle)
                try:
                    write(Path(scratch))
                    _sync(Path(scratch))
                    Path(scratch).chmod(0o644)
                    Path(scratch).replace(target)
                    _sync(target.parent)
                finally:
                    Path(scratch).unlink(missing_ok=True)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    scratch_path = Path(folder) / Path(name).name
                    write(scratch_path)
                    self.fs.makedirs(self._at(name).rsplit("/", 1)[0], exist_ok=True)
                    self.fs.put_file(str(scratch_path), self._at(name))  # an object appears when it is whole
        except OSError as e:
            if e.errno in _NO_SPACE:
                raise DiskFullError(
                    f"No space is left for {self.where(name)}. Everything that was finished is kept: free some space and start "
                    "the same run again."
                ) from e
            raise

    def put_bytes(self, name: str, data: bytes) -> None:
        """Write bytes in one atomic step."""
        self.put(name, lambda path: path.write_bytes(data))

    @contextmanager
    def open_local(self, name: str) -> Iterator[Path]:
        """A local path to read a file from.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if self.local is not None:
            if not (self.local / name).is_file():
                raise FileNotFoundError(f"{self.where(name)} does not exist.")
            yield self.local / name
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / Path(name).name
            self.fs.get_file(self._at(name), str(copy))
            yield copy

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(self._at(name))

    def sweep(self) -> None:
        """Remove what a killed process left half-written. Only for the holder of the lock."""
        if self.local is not None:
            for path in self.local.rglob(".part-*"):
                path.unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        """Space left on a local disk."""
        if self.local is None:
            return None
        there = next(p for p in (self.local, *self.local.absolute().parents) if p.exists())
        return shutil.disk_usage(there).free

    # -- JSON and tables with a checksum -------------------------------------------------------------------------------

    def put_json(self, name: str, said: Mapping[str, Any]) -> None:
        """Write JSON with a checksum of its own."""
        body = json.dumps(said, sort_keys=True)
        sealed = {"sha256": hashlib.sha256(body.encode()).hexdigest(), **said}
        self.put_bytes(name, (json.dumps(sealed, indent=2) + "\n").encode())

    def get_json(self, name: str) -> dict[str, Any]:
        """Read what `put_json` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            IntegrityError: it was changed or damaged.
        """
        with self.open_local(name) as path:
            try:
                said = json.loads(path.read_text(encoding="utf-8"))
                digest = said.pop("sha256")
            except (ValueError, KeyError, AttributeError) as e:
                raise IntegrityError(f"{self.where(name)} is damaged ({type(e).__name__}).") from e
        if hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest() != digest:
            raise IntegrityError(f"{self.where(name)} does not have the checksum it was written with.")
        return said

    def put_table(self, name: str, table: Any, key: str) -> None:
        """Write an Arrow table as Parquet with its key and a checksum over its rows in the footer."""
        import pyarrow.parquet as pq

        said = json.dumps({"key": key, "sha256": _rows_digest(table.to_pylist())})
        sealed = table.replace_schema_metadata({_META: said.encode()})
        self.put(name, lambda path: pq.write_table(sealed, path, compression="zstd", write_page_checksum=True))

    def get_table(self, name: str, key: str | None) -> list[dict[str, Any]]:
        """The rows that `put_table` wrote under this key.

        Raises:
            FileNotFoundError: there is no such file.
            IntegrityError: truncated, damaged, or made under another key.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.open_local(name) as path:
            try:
                table = pq.read_table(path, page_checksum_verification=True)
            except (pa.ArrowException, OSError) as e:
                raise IntegrityError(f"{self.where(name)} is not a whole Parquet file ({e}).") from e
        try:
            said = json.loads((table.schema.metadata or {})[_META])
            rows = table.to_pylist()
        except (KeyError, ValueError, UnicodeDecodeError, pa.ArrowException) as e:
            raise IntegrityError(f"{self.where(name)} has no readable checksum ({type(e).__name__}).") from e
        if said.get("sha256") != _rows_digest(rows):
            raise IntegrityError(f"{self.where(name)} does not have the checksum it was written with.")
        if key is not None and said.get("key") != key:
            raise IntegrityError(f"{self.where(name)} was made under other settings.")
        return rows

    # -- one writer ----------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing. A local lock goes with its process, however that ends; a remote one is a file.

        Raises:
            RunLockedError: another process holds it.
        """
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        if self.local is not None:
            from filelock import FileLock, Timeout

            self.local.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.local / ".lock", timeout=0)
            try:
                lock.acquire()
            except Timeout as e:
                note = self.local / ".owner"
                held = note.read_text() if note.is_file() else "another process"
                raise RunLockedError(
                    f"{self.url} is being written by {held}. Wait for it, stop it, or use another folder."
                ) from e
            try:
                (self.local / ".owner").write_text(owner)
                yield
            finally:
                (self.local / ".owner").unlink(missing_ok=True)
                lock.release()
            return
        name = ".lock"
        if self.exists(name):
            held = self.fs.cat_file(self._at(name)).decode()
            raise RunLockedError(
                f"{self.url} is being written by {held}. If that process is gone, remove {self.where(name)} and start again."
            )
        self.put_bytes(name, owner.encode())
        try:
            yield
        finally:
            self.remove(name)


def _protocols(fs: Any) -> Sequence[str]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _rows_digest(rows: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
