"""What is in a run's folder, what each file was made from, and what may be kept."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from assistant_axis._version import __version__
from assistant_axis.errors import IntegrityError, RunError
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.judges.base import Judgement, Key, Yield, yield_table
from assistant_axis.runs.config import differences, load_config
from assistant_axis.runs.worker import Worker, activation_file, rollout_file

MANIFEST = "manifest.json"
SHARDED = ("generate", "judge", "activations")


class State:
    """A run's folder, read; the stages are functions over it.

    Args:
        worker: knows the configuration, the folder and the plan.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker, self.folder, self.plan, self.config = worker, worker.folder, worker.plan, worker.config

    def vectors(self) -> PersonaVectors:
        """The persona vectors.

        Raises:
            FileNotFoundError: the stage `vectors` is not done.
        """
        with self.folder.open_local("vectors.safetensors") as path:
            return PersonaVectors.load(path)

    def scores(self) -> dict[Key, Judgement]:
        """Every judgement of the configuration's judge."""
        return {k: s for n in range(self.plan.shards) for k, s in self.worker.scores(n).items()}

    def yields(self) -> list[Yield]:
        """Rollouts by score, a row a role, the thinnest first."""
        return yield_table(self.scores())

    # -- the manifest --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
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

    # -- files of the stages -----------------------------------------------------------------------------------------

    def needed(self, stage: str) -> bool:
        if stage == "generate":
            return self.config.generates
        return self.config.judged if stage == "judge" else True

    def file(self, stage: str, shard: int) -> str:
        if stage == "judge":
            return self.worker.score_file(shard)
        return rollout_file(shard) if stage == "generate" else activation_file(shard)

    def whole(self, stage: str, shard: int) -> bool:
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

    def require_before(self, stage: str) -> None:
        for before in SHARDED[: SHARDED.index(stage) if stage in SHARDED else None]:
            if self.needed(before):
                missing = [n for n in range(self.plan.shards) if not self.folder.exists(self.file(before, n))]
                if missing:
                    raise RunError(
                        f"{stage} needs the stage {before}, of which the shards {numbers_of(missing)} are missing. Run it first: "
                        f"--stage {before}"
                    )

    def outputs(self, stage: str) -> list[str]:
        said = {
            "plan": ["plan.parquet"],
            "vectors": ["sums.safetensors", "vectors.safetensors"],
            "axis": ["axis.safetensors", "axis_pc1.safetensors"],
            "report": ["rollouts.parquet"] if self.config.generates else ["report.html"],
        }
        return said[stage]

    def source(self) -> str:
        """What vectors, axis and report are made from: settings, and the hash of every shard that they read."""
        total = hashlib.sha256(self.worker.keys.vectors.encode())
        stages = [s for s in ("judge", "activations") if self.needed(s)]
        for stage in stages:
            for n in range(self.plan.shards):
                try:
                    with self.folder.open_local(self.file(stage, n)) as path:
                        total.update(hashlib.sha256(path.read_bytes()).digest())
                except FileNotFoundError:
                    total.update(b"missing")
        return total.hexdigest()[:16]

    def fresh(self, stage: str) -> bool:
        if stage == "plan":
            return True
        try:
            said = self.folder.get_json(MANIFEST).get("stages", {}).get(stage)
        except (FileNotFoundError, IntegrityError):
            return False
        if said is None or said["source"] != self.source():
            return False
        return all(self.folder.exists(f) and self._hash(f) == h for f, h in said["files"].items())

    def note(self, stage: str) -> None:
        said = self.folder.get_json(MANIFEST)
        files = {f: self._hash(f) for f in self.outputs(stage) if self.folder.exists(f)}
        said.setdefault("stages", {})[stage] = {"source": self.source(), "files": files}
        self.folder.put_json(MANIFEST, said)

    def _hash(self, name: str) -> str:
        with self.folder.open_local(name) as path, path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    def forget(self, stage: str) -> None:
        if stage in SHARDED:
            for n in range(self.plan.shards):
                self.folder.remove(self.file(stage, n))
            if stage == "judge":
                self.folder.remove(f"{self.worker.slug}/thresholds.json")
        else:
            for name in self.outputs(stage):
                self.folder.remove(name)

    def failed(self, stage: str) -> str:
        try:
            said = self.folder.get_json(f"failed/{stage}.json")["shards"]
        except (FileNotFoundError, IntegrityError):
            return ""
        return f"failed twice: {numbers_of(sorted(int(k) for k in said))}"

    def layers(self) -> tuple[int, ...]:
        return tuple(self.folder.get_json("conditions.json")["layers"])

    def judge_label(self) -> str:
        c = self.config
        if not c.judged:
            return "none"
        who = c.judge.kind if c.judge.kind == "likelihood" else f"{c.judge.kind}:{c.judge.model}"
        return f"{who}, score ≥ {c.min_score}, ≥ {c.min_rollouts} rollouts"


def numbers_of(numbers: Sequence[int], most: int = 8) -> str:
    """The first of some numbers in words, and how many more there are."""
    said = ", ".join(str(n) for n in numbers[:most])
    return said + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
