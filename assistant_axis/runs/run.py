"""A run: seven stages over a folder, each of which can be killed at any moment and goes on where it stopped."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant_axis._version import __version__
from assistant_axis.activations.store import Conditions, load_artefact, save_artefact
from assistant_axis.errors import (
    AssistantAxisError,
    DiskFullError,
    GeometryError,
    IntegrityError,
    RunError,
    UnknownNameError,
    WorkerError,
)
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.judges.api import require_api
from assistant_axis.judges.base import Judgement, Key, Yield, key_of, yield_table
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.personas.library import DEFAULT
from assistant_axis.pipeline.extract import Part, combine, number_questions
from assistant_axis.progress import track
from assistant_axis.runs.config import STAGES, RunConfig, differences, load_config
from assistant_axis.runs.folder import Folder
from assistant_axis.runs.planning import bucket, plan_run
from assistant_axis.runs.worker import (
    UNSCORED,
    Worker,
    activation_file,
    digest,
    kept_layers,
    regroup,
    rollout_file,
)

SUMS = "sums of a run"
MANIFEST = "manifest.json"
_FIELDS = ("sums", "squares", "counts", "norms")
_SHARDED = ("generate", "judge", "activations")


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
    folder = Folder(out)
    folder.prepare()
    with folder.lock():
        folder.sweep()
        found = Run(Worker(settings, folder, model, plan))
        found._begin()
        for stage in again:
            found._forget(stage)
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


class Run:
    """A run's folder, to be read; `run` makes one."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.folder, self.plan, self.config = worker, worker.folder, worker.plan, worker.config

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

    # -- what is in it -------------------------------------------------------------------------------------------------

    def vectors(self) -> PersonaVectors:
        """The persona vectors.

        Raises:
            FileNotFoundError: the stage `vectors` is not done.
        """
        with self.folder.open_local("vectors.safetensors") as path:
            return PersonaVectors.load(path)

    def sums(self) -> tuple[dict[str, Tensor], list[tuple[str, int]]]:
        """Float32 `sums`, `squares` `[group, layer, d_model]`, `norms` `[group, layer]`, `counts` `[group]`, and the groups:
        (role or `default/condition`, score; -1 for none)."""
        with self.folder.open_local("sums.safetensors") as path:
            tensors, header = load_artefact(path, SUMS)
        return tensors, [(str(b), int(s)) for b, s in header["groups"]]

    def scores(self) -> dict[Key, Judgement]:
        """Every judgement of the configuration's judge."""
        return {k: s for n in range(self.plan.shards) for k, s in self.worker.scores(n).items()}

    def yields(self) -> list[Yield]:
        """Rollouts by score, a row a role, the thinnest first."""
        return yield_table(self.scores())

    def status(self, *, check: bool = False) -> list[StageStatus]:
        """How far every stage is.

        Args:
            check: read every file and compare its checksum; else only see that it is there.
        """
        found = []
        for stage in STAGES:
            if not self._needed(stage):
                found.append(StageStatus(stage, "not needed", 0, 0))
                continue
            if stage in _SHARDED:
                names = set(self.folder.names(self._file(stage, 0).rsplit("/", 1)[0]))
                done = [n for n in range(self.plan.shards) if self._file(stage, n).rsplit("/", 1)[1] in names]
                damaged = [n for n in done if check and not self._whole(stage, n)]
                total = self.plan.shards
                note = f"damaged or stale: {_numbers(damaged)}" if damaged else self._failed(stage)
                count = len(done) - len(damaged)
            else:
                files = self._outputs(stage)
                there = [f for f in files if self.folder.exists(f)]
                wrong = [f for f in there if not self._fresh(stage)]
                count, total, damaged = len(there) - len(wrong), len(files), wrong
                note = "made from other settings or scores" if wrong else ""
            state = "damaged" if damaged else "done" if count == total else "partial" if count else "missing"
            found.append(StageStatus(stage, state, count, total, note))
        return found

    # -- the beginning -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Write the manifest, or check the one that is there."""
        said = {
            "format": 1,
            "config": self.config.model_dump(mode="json"),
            "keys": vars(self.worker.keys),
            "personas_hash": self.plan.personas_hash,
            "rollouts": len(self.plan.asks),
            "shards": self.plan.shards,
            "package": __version__,
        }
        try:
            there = self.folder.get_json(MANIFEST)
        except (FileNotFoundError, IntegrityError):
            self._check_orphans()
        else:
            self._refuse_another(there)
            said["stages"] = there.get("stages", {})
        self.folder.put_json(MANIFEST, said)

    def _refuse_another(self, there: Mapping[str, Any]) -> None:
        """Other judges and thresholds are welcome; what would need other rollouts or another reading is not."""
        before = load_config(there["config"])
        differ = []
        for part in ("generate", "activations"):
            differ += differences(before.parts()[part], self.config.parts()[part])
        if there["personas_hash"] != self.plan.personas_hash:
            differ.append(f"personas_hash: {there['personas_hash']!r} there, {self.plan.personas_hash!r} now")
        if differ:
            raise RunError(
                f"{self.folder} holds a run with another configuration ({'; '.join(differ)}). Use another folder, or the same "
                "settings. Judge, min_score, min_rollouts and engine may change freely."
            )

    def _check_orphans(self) -> None:
        """Shards without a manifest are taken on if they were made under these settings, and refused if not."""
        for name in self.folder.names("rollouts")[:1]:
            try:
                self.folder.get_table(f"rollouts/{name}", None)
            except IntegrityError:
                continue  # damaged; it will be made again
            try:
                self.folder.get_table(f"rollouts/{name}", self.worker.keys.generate)
            except IntegrityError as e:
                raise RunError(
                    f"{self.folder} has lost its {MANIFEST}, and its rollouts were made under other settings than these. Start "
                    "it with the configuration it had, or use another folder."
                ) from e

    # -- stages --------------------------------------------------------------------------------------------------------

    def _needed(self, stage: str) -> bool:
        if stage == "generate":
            return self.config.generates
        return self.config.judged if stage == "judge" else True

    def _stage(self, stage: str, progress: bool, say: Callable[[str], None]) -> str:
        if not self._needed(stage):
            return "not needed"
        if stage in _SHARDED:
            return self._shards(stage, progress, say)
        if stage != "plan" and self._fresh(stage) and all(self.folder.exists(f) for f in self._outputs(stage)):
            return "done before"
        made = {"plan": self._plan, "vectors": self._vectors, "axis": self._axis, "report": self._report}[stage]()
        if stage != "plan":
            self._note(stage)
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

    def _shards(self, stage: str, progress: bool, say: Callable[[str], None]) -> str:
        """Make the shards that are not there whole; a shard that fails is tried once more, and then named."""
        self._require_before(stage)
        numbers = range(self.plan.shards)
        todo = [n for n in numbers if not self._whole(stage, n)]
        if not todo:
            return f"{len(numbers)} shards, done before"
        if stage == "activations" or (stage == "generate" and len(todo) == len(numbers)):
            self._announce(say)
        if stage == "judge" and self.config.judge.kind == "api":
            self._estimate(todo, say)
        done = len(numbers) - len(todo)
        engine = self._ray if self.config.engine.kind == "ray" and not self._api(stage) else self._local
        with track(len(numbers), f"{stage} ({len(self.plan.asks):,} rollouts)", show=progress) as advance:
            advance(done)
            failed = engine(stage, todo, advance)
            if failed:
                say(f"{stage}: trying {len(failed)} shards again, after {next(iter(failed.values()))}")
                failed = engine(stage, sorted(failed), advance)
        name = f"failed/{stage}.json"
        if failed:
            self.folder.put_json(name, {"shards": {str(k): v for k, v in failed.items()}})
            first = next(iter(failed.values()))
            raise WorkerError(
                f"{stage}: {len(failed)} of {len(numbers)} shards failed twice ({_numbers(sorted(failed))}); the first with "
                f"{first}. All others are kept: mend the cause and start the same run again."
            )
        self.folder.remove(name)
        return f"{len(todo)} shards made" + (f", {done} kept" if done else "")

    def _api(self, stage: str) -> bool:
        return stage == "judge" and self.config.judge.kind == "api"

    def _local(self, stage: str, todo: Sequence[int], advance: Callable[[int], None]) -> dict[int, str]:
        failed = {}
        work = getattr(self.worker, stage)
        for n in todo:
            try:
                work(n)
                advance(1)
            except (AssistantAxisError, DiskFullError):
                raise  # it would happen again, and says what to do
            except Exception as e:  # whatever a worker dies of, the other shards are still to be made
                failed[n] = f"{type(e).__name__}: {e}"
        return failed

    def _ray(self, stage: str, todo: Sequence[int], advance: Callable[[int], None]) -> dict[int, str]:
        from assistant_axis.runs.ray import work

        return work(self.config, self.folder.url, stage, todo, advance)

    def _whole(self, stage: str, shard: int) -> bool:
        """Whether the file of a shard is there, undamaged, and made under these settings."""
        try:
            if stage == "generate":
                self.worker.rollouts(shard)
            elif stage == "judge":
                self.worker.scores(shard)
            else:
                self.worker.read_activations(shard)
        except (IntegrityError, FileNotFoundError):
            return False
        return True

    def _file(self, stage: str, shard: int) -> str:
        if stage == "judge":
            return self.worker.score_file(shard)
        return rollout_file(shard) if stage == "generate" else activation_file(shard)

    def _require_before(self, stage: str) -> None:
        for before in _SHARDED[: _SHARDED.index(stage) if stage in _SHARDED else None]:
            if self._needed(before):
                missing = [n for n in range(self.plan.shards) if not self.folder.exists(self._file(before, n))]
                if missing:
                    raise RunError(
                        f"{stage} needs the stage {before}, of which the shards {_numbers(missing)} are missing. Run it first: "
                        f"--stage {before}"
                    )

    def _announce(self, say: Callable[[str], None]) -> None:
        """What the folder will hold, before anything long begins; refuses what the disk has no room for."""
        model = self.worker.model
        layers = self.worker.layers
        count = len(self.plan.asks)
        kept = kept_layers(self.config, count, layers, model.n_layers, model.d_model)
        each = count * len(kept) * model.d_model * 2
        keep = self.config.keep_samples if len(kept) < len(layers) else 0
        samples = min(count, keep) * len(layers) * model.d_model * 2
        groups = len({bucket(a) for a in self.plan.asks}) + 2 * self.plan.shards
        sums = groups * 2 * len(layers) * model.d_model * 4
        total = each + samples + sums
        held = f"of {len(kept)} of {len(layers)} layers" if kept else "of no layer"
        say(
            f"size: single-rollout vectors {held} {_bytes(each)}, samples {_bytes(samples)}, sums about {_bytes(sums)}; "
            f"about {_bytes(total)} beside the text"
        )
        free = self.folder.free_bytes()
        if free is not None and total > free and not self.folder.exists(activation_file(0)):
            raise DiskFullError(
                f"{self.folder} needs about {_bytes(total)}, but {_bytes(free)} are free. Keep fewer layers (keep: none), read "
                "fewer layers, or use another disk."
            )

    def estimate(self, say: Callable[[str], None]) -> None:
        """Tell what an API judge will ask for, of what is not scored yet."""
        self._estimate([n for n in range(self.plan.shards) if not self._whole("judge", n)], say)

    def _estimate(self, todo: Sequence[int], say: Callable[[str], None]) -> None:
        from assistant_axis.judges.api import APIJudge
        from assistant_axis.judges.rubric import rubric_messages

        judge = self.worker.judging
        assert isinstance(judge, APIJudge)
        requests = characters = 0
        for n in todo:
            asked = [r for r in self.worker.rollouts(n) if r.role != DEFAULT and r.answer.strip()]
            requests += len(asked)
            characters += sum(len(rubric_messages(r)[0]["content"]) for r in asked)
        say(f"judge: {judge.estimate_of(requests, characters)}")

    # -- vectors, axis, report -----------------------------------------------------------------------------------------

    def _totals(self) -> tuple[dict[tuple[str, int], dict[str, Tensor]], list[tuple[int, Tensor]], dict[int, int]]:
        """Sums of the whole run by (bucket, score), the sampled rollouts (number in the plan, half precision), and the score
        of each of these. One shard is held at a time."""
        totals: dict[tuple[str, int], dict[str, Tensor]] = {}
        samples: list[tuple[int, Tensor]] = []
        sample_scores: dict[int, int] = {}
        for n in range(self.plan.shards):
            tensors, header = self.worker.read_activations(n)
            rows = self.plan.rows(n)
            scores = self.worker.score_list(n) if self.config.judged else [UNSCORED] * len(rows)
            if header["scores"] == digest(scores):
                found = {
                    (str(b), int(s)): {f: tensors[f][g] for f in _FIELDS} for g, (b, s) in enumerate(header["groups"])
                }
            elif set(header["kept"]) == set(self._layers()):
                owners = {r: (bucket(self.plan.asks[r]), scores[r - rows.start]) for r in rows}
                found = regroup(tensors, header, owners)
            else:
                raise RunError(
                    f"The scores of shard {n} have changed since its activations were read, and single vectors were not kept "
                    "of all layers. Read them again (--stage activations --redo activations), or keep all layers next time."
                )
            for group, sums in found.items():
                if group not in totals:
                    totals[group] = {f: x.clone() for f, x in sums.items()}
                else:
                    for f, x in sums.items():
                        totals[group][f] += x
            sampled = header["sampled"]
            if sampled:
                place = {r: k for k, r in enumerate(header["rows"])}
                whole = tensors["samples"] if "samples" in tensors else tensors["kept"][[place[r] for r in sampled]]
                samples += [(r, x.clone()) for r, x in zip(sampled, whole, strict=True)]
                sample_scores |= {r: scores[r - rows.start] for r in sampled}
        return totals, samples, sample_scores

    def _layers(self) -> tuple[int, ...]:
        return tuple(self.folder.get_json("conditions.json")["layers"])

    def _vectors(self) -> str:
        c = self.config
        self._require_before("vectors")
        totals, samples, scored = self._totals()
        groups = sorted(totals)
        stacked = {f: torch.stack([totals[g][f] for g in groups]) for f in _FIELDS}
        header = {"groups": [list(g) for g in groups], "layers": list(self._layers())}
        self.folder.put("sums.safetensors", lambda path: save_artefact(path, SUMS, stacked, header))

        def counts(name: str, score: int) -> bool:
            return name.startswith(f"{DEFAULT}/") or not c.judged or score >= c.min_score

        kept = [k for k, (b, s) in enumerate(groups) if counts(b, s)]
        if not any(not groups[k][0].startswith(f"{DEFAULT}/") for k in kept):
            highest = max((s for b, s in groups if not b.startswith(f"{DEFAULT}/")), default=UNSCORED)
            raise GeometryError(
                f"No rollout of any role has the score {c.min_score}; the highest is {highest}. Lower min_score, or look at the "
                "yield: assistant-axis run status."
            )
        order = [*dict.fromkeys(bucket(a) for a in self.plan.asks)]
        order = [b for b in order if any(groups[k][0] == b for k in kept)]
        member = torch.tensor([order.index(groups[k][0]) for k in kept])
        n = len(order)
        sums = torch.zeros(n, *stacked["sums"].shape[1:]).index_add_(0, member, stacked["sums"][kept])
        held = torch.zeros(n, dtype=torch.long).index_add_(0, member, stacked["counts"][kept])
        asks = self.plan.asks
        numbers = number_questions(a.question.id for a in asks)
        fit = [(r, x) for r, x in samples if counts(bucket(asks[r]), scored[r])]
        part = Part(
            tuple(order),
            sums,
            held,
            stacked["norms"][kept].sum(0),
            torch.stack([x for _, x in fit]) if fit else torch.zeros(0, *sums.shape[1:], dtype=torch.float16),
            torch.tensor([order.index(bucket(asks[r])) for r, _ in fit], dtype=torch.long),
            torch.tensor([numbers[r] for r, _ in fit], dtype=torch.long),
        )
        conditions = Conditions.from_dict(self.folder.get_json("conditions.json")["conditions"])
        vectors = combine([part], self._layers(), replace(conditions, judge=self._judge_label()))
        before = len(vectors.roles)
        if c.spread:
            vectors = vectors.adjust_questions()
        vectors = vectors.select(min_count=c.min_rollouts)
        self.folder.put("vectors.safetensors", vectors.save)
        asked = len({a.role for a in asks} - {DEFAULT})
        made = f"{len(vectors.roles)} of {asked} roles"
        if before > len(vectors.roles):
            made += f" ({before - len(vectors.roles)} have fewer than {c.min_rollouts} rollouts that count)"
        return made

    def _judge_label(self) -> str:
        c = self.config
        if not c.judged:
            return "none"
        who = c.judge.kind if c.judge.kind == "likelihood" else f"{c.judge.kind}:{c.judge.model}"
        return f"{who}, score ≥ {c.min_score}, ≥ {c.min_rollouts} rollouts"

    def _axis(self) -> str:
        vectors = self._given("vectors.safetensors", "axis")
        axis = vectors.axis()
        self.folder.put("axis.safetensors", axis.save)
        self.folder.put("axis_pc1.safetensors", vectors.axis("pc1").save)
        return f"integrity {float(axis.integrity().min()):.4f}"

    def _given(self, name: str, stage: str) -> PersonaVectors:
        if not self.folder.exists(name):
            raise RunError(f"{stage} needs {self.folder.where(name)}. Run the stage vectors first: --stage vectors")
        return self.vectors()

    def _report(self) -> str:
        from assistant_axis import plots
        from assistant_axis.report import persona_report

        vectors = self._given("vectors.safetensors", "report")
        if self.config.generates:
            self.folder.put("rollouts.parquet", self._write_rollouts)
        if self.config.judged:
            rows = [{"role": y.role, "scores": list(y.scores), "failures": dict(y.failures)} for y in self.yields()]
            self.folder.put_json("yield.json", {"judge": self._judge_label(), "roles": rows})
        if len(vectors.roles) < 3:
            return "too few roles for a page"
        space = vectors.space()
        figures = {
            "scree": plots.scree(space),
            "role_map": plots.role_map(space),
            "role_ranking": plots.role_ranking(space),
            "axis_cosines": plots.axis_cosines(vectors, marked=space.layer),
        }
        for name, figure in figures.items():
            self.folder.put(f"figures/{name}.png", lambda path, figure=figure: plots.save_figure(figure, path))
        self.folder.put("report.html", lambda path: persona_report(path, vectors))
        return self.folder.where("report.html")

    def _write_rollouts(self, path: Path) -> None:
        """All rollouts with their scores in one table, a shard at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        writer = None
        try:
            for n in range(self.plan.shards):
                rows = self.folder.get_table(rollout_file(n), self.worker.keys.generate)
                scores = self.worker.scores(n) if self.config.judged else {}
                for row, rollout in zip(rows, self.worker.rollouts(n), strict=True):
                    said = scores.get(key_of(rollout))
                    row |= {
                        "score": None if said is None else said.score,
                        "judge": None if said is None else said.judge,
                        "rubric": None if said is None else said.rubric,
                        "reason": None if said is None else said.reason,
                        "failure": None if said is None else said.failure,
                    }
                if writer is None:
                    schema = _rollout_schema(pa)
                    writer = pq.ParquetWriter(path, schema, compression="zstd")
                writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))
        finally:
            if writer is not None:
                writer.close()

    # -- what stages were made from ------------------------------------------------------------------------------------

    def _outputs(self, stage: str) -> list[str]:
        said = {
            "plan": ["plan.parquet"],
            "vectors": ["sums.safetensors", "vectors.safetensors"],
            "axis": ["axis.safetensors", "axis_pc1.safetensors"],
            "report": ["rollouts.parquet"] if self.config.generates else ["report.html"],
        }
        return said[stage]

    def _source(self) -> str:
        """What vectors, axis and report are made from: settings, and the hash of every shard that they read."""
        import hashlib

        total = hashlib.sha256(self.worker.keys.vectors.encode())
        stages = [s for s in ("judge", "activations") if self._needed(s)]
        for stage in stages:
            for n in range(self.plan.shards):
                try:
                    with self.folder.open_local(self._file(stage, n)) as path:
                        total.update(hashlib.sha256(path.read_bytes()).digest())
                except FileNotFoundError:
                    total.update(b"missing")
        return total.hexdigest()[:16]

    def _fresh(self, stage: str) -> bool:
        if stage == "plan":
            return True
        try:
            said = self.folder.get_json(MANIFEST).get("stages", {}).get(stage)
        except (FileNotFoundError, IntegrityError):
            return False
        if said is None or said["source"] != self._source():
            return False
        return all(self.folder.exists(f) and self._hash(f) == h for f, h in said["files"].items())

    def _note(self, stage: str) -> None:
        said = self.folder.get_json(MANIFEST)
        files = {f: self._hash(f) for f in self._outputs(stage) if self.folder.exists(f)}
        said.setdefault("stages", {})[stage] = {"source": self._source(), "files": files}
        self.folder.put_json(MANIFEST, said)

    def _hash(self, name: str) -> str:
        import hashlib

        with self.folder.open_local(name) as path, path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    def _forget(self, stage: str) -> None:
        if stage in _SHARDED:
            for n in range(self.plan.shards):
                self.folder.remove(self._file(stage, n))
            if stage == "judge":
                self.folder.remove(f"{self.worker.slug}/thresholds.json")
        else:
            for name in self._outputs(stage):
                self.folder.remove(name)

    def _failed(self, stage: str) -> str:
        try:
            said = self.folder.get_json(f"failed/{stage}.json")["shards"]
        except (FileNotFoundError, IntegrityError):
            return ""
        return f"failed twice: {_numbers(sorted(int(k) for k in said))}"


def _stages(names: Iterable[str] | None, default: Sequence[str]) -> list[str]:
    if names is None:
        return list(default)
    chosen = set()
    for name in names:
        if name not in STAGES:
            raise UnknownNameError("stage", name, STAGES)
        chosen.add(name)
    return [s for s in STAGES if s in chosen]


def _numbers(numbers: Sequence[int], most: int = 8) -> str:
    said = ", ".join(str(n) for n in numbers[:most])
    return said + (f" and {len(numbers) - most} more" if len(numbers) > most else "")


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _rollout_schema(pa: Any) -> Any:
    text, ids, number = pa.string(), pa.list_(pa.int32()), pa.int32()
    columns = {
        "role": text,
        "prompt": number,
        "question_id": number,
        "sample": number,
        "system": text,
        "question": text,
        "answer": text,
        "prompt_ids": ids,
        "answer_ids": ids,
        "finish_reason": text,
        "prompt_tokens": number,
        "answer_tokens": number,
        "seed": pa.int64(),
        "model": text,
        "fingerprint": text,
        "package": text,
        "score": pa.int8(),
        "judge": text,
        "rubric": text,
        "reason": text,
        "failure": text,
    }
    return pa.schema(list(columns.items()))
