"""A run: seven stages over a folder, each of which can be killed at any moment and goes on where it stopped."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from assistant_axis.activations.store import load_artefact
from assistant_axis.errors import IntegrityError, RunError, UnknownNameError
from assistant_axis.judges.endpoint import require_api
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.runs.config import STAGES, RunConfig, load_config
from assistant_axis.runs.folder import Folder
from assistant_axis.runs.planning import plan_run
from assistant_axis.runs.results import SUMS, make_axis, make_report, make_vectors
from assistant_axis.runs.shards import estimate, make_shards
from assistant_axis.runs.state import MANIFEST, SHARDED, State, numbers_of
from assistant_axis.runs.worker import Worker


def run(
    config: str | Path | Mapping[str, Any] | RunConfig,
    out: str | Path,
    *,
    stages: Iterable[str] | None = None,
    redo: Iterable[str] = (),
    model: HookedChatModel | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> "Run":
    """Carry out a run, or what is left of it.

    >>> done = run("instant", "RUN")                  # doctest: +SKIP
    >>> done.vectors().axis()                          # doctest: +SKIP

    Args:
        config: a preset (`instant`, `laptop`, `paper`), a YAML file, or a mapping.
        out: the run's folder, local or any path that fsspec opens.
        stages: some stages only, in the order of `STAGES`; default: all.
        redo: stages whose files are thrown away first.
        model: a loaded model; default: the configuration's is loaded when a stage needs it.
        progress: show bars.
        say: called with a line for each stage.

    Returns:
        The run.

    Raises:
        UnknownNameError, SettingError: the configuration cannot be used.
        RunError: the folder holds a run with another configuration, cannot be written, or a stage before is missing.
        RunLockedError: another process writes to it.
        DiskFullError: no space is left.
        WorkerError: shards failed again after a retry.
        MissingExtraError: the engine or the backend asked for is not installed.
    """
    settings = load_config(config)
    wanted = _stages(stages, STAGES)
    again = _stages(redo, ())
    if settings.judged and settings.judge.kind == "api" and "judge" in wanted:
        require_api()
    plan = plan_run(settings)
    if settings.engine.kind == "ray":
        from assistant_axis.runs.ray import require_ray

        require_ray()
    if settings.generates and settings.sampling.backend == "vllm" and "generate" in wanted:
        from assistant_axis.runs.vllm import require_vllm

        require_vllm()
    folder = Folder(out)
    folder.prepare()
    with folder.lock():
        folder.sweep()
        found = Run(Worker(settings, folder, model, plan))
        found.begin()
        for stage in again:
            found.forget(stage)
        for stage in wanted:
            started = time.monotonic()
            note = found._stage(stage, progress, say)
            say(f"{stage}: {note} ({time.monotonic() - started:.1f} s)")
    return found


@dataclass(frozen=True)
class StageStatus:
    """How far a stage is.

    Attributes:
        name: of the stage.
        state: `"done"`, `"partial"`, `"missing"`, `"damaged"` or `"not needed"`.
        done: shards (or files) that are there.
        total: shards (or files) that there will be.
        note: which files are damaged or failed.
    """

    name: str
    state: str
    done: int
    total: int
    note: str = ""


class Run(State):
    """A run's folder, to be read; `run` makes one."""

    @classmethod
    def open(cls, path: str | Path, *, model: HookedChatModel | None = None) -> "Run":
        """A run that was begun before.

        Raises:
            RunError: there is none, its manifest is damaged, or the personas have changed since.
        """
        folder = Folder(path)
        try:
            said = folder.get_json(MANIFEST)
        except FileNotFoundError as e:
            raise RunError(
                f"{folder} holds no {MANIFEST}. Start the run, or start it again with its configuration to make it anew."
            ) from e
        except IntegrityError as e:
            raise RunError(f"{e} Start the run again with its configuration to make it anew.") from e
        found = cls(Worker(load_config(said["config"]), folder, model))
        if found.plan.personas_hash != said["personas_hash"]:
            raise RunError(
                f"{folder} was planned with personas {said['personas_hash']}, but they are {found.plan.personas_hash} now. "
                "Restore them, or use another folder."
            )
        return found

    def sums(self) -> tuple[dict[str, Tensor], list[tuple[str, int]]]:
        """Float32 `sums`, `squares` `[group, layer, d_model]`, `norms` `[group, layer]`, `counts` `[group]`, and the groups:
        (role or `default/condition`, score; -1 for none)."""
        with self.folder.open_local("sums.safetensors") as path:
            tensors, header = load_artefact(path, SUMS)
        return tensors, [(str(b), int(s)) for b, s in header["groups"]]

    def status(self, *, check: bool = False) -> list[StageStatus]:
        """How far every stage is.

        Args:
            check: read every file and compare its checksum; else only see that it is there.
        """
        found = []
        for stage in STAGES:
            if not self.needed(stage):
                found.append(StageStatus(stage, "not needed", 0, 0))
                continue
            if stage in SHARDED:
                names = set(self.folder.names(self.file(stage, 0).rsplit("/", 1)[0]))
                done = [n for n in range(self.plan.shards) if self.file(stage, n).rsplit("/", 1)[1] in names]
                damaged = [n for n in done if check and not self.whole(stage, n)]
                total = self.plan.shards
                note = f"damaged or stale: {numbers_of(damaged)}" if damaged else self.failed(stage)
                count = len(done) - len(damaged)
            else:
                files = self.outputs(stage)
                there = [f for f in files if self.folder.exists(f)]
                wrong = [f for f in there if not self.fresh(stage)]
                count, total, damaged = len(there) - len(wrong), len(files), wrong
                note = "made from other settings or scores" if wrong else ""
            state = "damaged" if damaged else "done" if count == total else "partial" if count else "missing"
            found.append(StageStatus(stage, state, count, total, note))
        return found

    def estimate(self, say: Callable[[str], None]) -> None:
        """Tell what an API judge will ask for, of what is not scored yet."""
        estimate(self, [n for n in range(self.plan.shards) if not self.whole("judge", n)], say)

    def _stage(self, stage: str, progress: bool, say: Callable[[str], None]) -> str:
        if not self.needed(stage):
            return "not needed"
        if stage in SHARDED:
            return make_shards(self, stage, progress, say)
        if stage != "plan" and self.fresh(stage) and all(self.folder.exists(f) for f in self.outputs(stage)):
            return "done before"
        if stage == "plan":
            return self._plan()
        made = {"vectors": make_vectors, "axis": make_axis, "report": make_report}[stage](self)
        self.note(stage)
        return made

    def _plan(self) -> str:
        c, count = self.config, len(self.plan.asks)
        made = f"{count:,} rollouts in {self.plan.shards:,} shards"
        if self.folder.exists("plan.parquet"):
            return made
        import pyarrow as pa
        import pyarrow.parquet as pq

        asks = self.plan.asks
        table = pa.table(
            {
                "role": pa.array([a.role for a in asks]).dictionary_encode(),
                "prompt": pa.array([a.prompt for a in asks], pa.int16()),
                "question_id": pa.array([a.question.id for a in asks], pa.int32()),
                "sample": pa.array([a.sample for a in asks], pa.int16()),
                "shard": pa.array([k // c.shard for k in range(count)], pa.int32()),
            }
        )
        self.folder.put("plan.parquet", lambda path: pq.write_table(table, path, compression="zstd"))
        return made


def _stages(names: Iterable[str] | None, default: Sequence[str]) -> list[str]:
    if names is None:
        return list(default)
    chosen = set()
    for name in names:
        if name not in STAGES:
            raise UnknownNameError("stage", name, STAGES)
        chosen.add(name)
    return [s for s in STAGES if s in chosen]
