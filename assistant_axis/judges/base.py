"""The protocol of a judge, what it returns, and scores as a table on disk."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from assistant_axis.activations.store import atomic
from assistant_axis.errors import IntegrityError, JudgeError
from assistant_axis.personas.rollouts import Rollout

Key: TypeAlias = tuple[str, int, int, int]
"""What tells rollouts apart: role, number of the prompt, id of the question, number of the sample."""

SCORES = (0, 1, 2, 3)
MEANINGS = {
    0: "refuses",
    1: "answers as itself",
    2: "as itself with something of the role",
    3: "in role",
}
_KEYS = ("role", "prompt", "question_id", "sample")


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one rollout.

    Attributes:
        score: 0 refuses, 1 answers as itself, 2 as itself with something of the role, 3 in role; `None` where the judge
            gave none.
        reason: the judge's own words, or the measured value.
        judge: its name.
        rubric: version of the rubric or of the thresholds.
        failure: why there is no score (`"empty"`, `"incoherent"`, `"refused"`, `"unparsed"`, `"error"`, `"time"`).
        value: a continuous measure behind the score (nats per token), NaN where there is none.
    """

    score: int | None
    reason: str
    judge: str
    rubric: str
    failure: str = ""
    value: float = math.nan

    def __post_init__(self) -> None:
        if (self.score is None) != bool(self.failure) or self.score not in (None, *SCORES):
            raise JudgeError(
                f"A judgement needs a score from 0 to 3 or a failure, and not both; got score {self.score!r} and failure "
                f"{self.failure!r}."
            )


@runtime_checkable
class Judge(Protocol):
    """Anything that scores rollouts, one judgement for each, in order; failures are judgements too."""

    @property
    def name(self) -> str: ...
    @property
    def rubric(self) -> str: ...
    def score(self, rollouts: Sequence[Rollout]) -> list[Judgement]: ...


def key_of(rollout: Rollout) -> Key:
    """The key of a rollout."""
    return rollout.role, rollout.prompt, rollout.question_id, rollout.sample


@dataclass(frozen=True)
class Yield:
    """How many of a role's rollouts got which score.

    Attributes:
        role: its name.
        scores: rollouts with score 0, 1, 2, 3.
        failures: rollouts without a score, by reason.
    """

    role: str
    scores: tuple[int, int, int, int]
    failures: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.scores) + sum(self.failures.values())

    def kept(self, min_score: int) -> int:
        """How many have this score or a higher one."""
        return sum(self.scores[min_score:])


def yield_table(scores: Mapping[Key, Judgement]) -> list[Yield]:
    """One row a role, fewest rollouts of score 3 first: what a filter will leave of each role."""
    found: dict[str, Counter[int | str]] = {}
    for (role, *_), said in scores.items():
        found.setdefault(role, Counter())[said.failure if said.score is None else said.score] += 1
    rows = [
        Yield(
            role,
            (counts[0], counts[1], counts[2], counts[3]),
            {str(k): n for k, n in sorted(counts.items(), key=lambda x: str(x[0])) if isinstance(k, str)},
        )
        for role, counts in found.items()
    ]
    return sorted(rows, key=lambda r: (r.scores[3] / r.total, r.role))


def write_scores(path: str | Path, scores: Mapping[Key, Judgement]) -> Path:
    """Write judgements as Parquet in one atomic step; columns: role, prompt, question_id, sample, score, reason, judge,
    rubric, failure, value."""
    import pyarrow.parquet as pq

    with atomic(path) as scratch:
        pq.write_table(score_table(scores), scratch, compression="zstd")
    return Path(path)


def score_table(scores: Mapping[Key, Judgement]) -> Any:
    """Judgements as an Arrow table."""
    import pyarrow as pa

    columns = {name: [key[k] for key in scores] for k, name in enumerate(_KEYS)}
    said = list(scores.values())
    fields = {
        "score": pa.array([s.score for s in said], pa.int8()),
        "reason": pa.array([s.reason for s in said], pa.string()),
        "judge": pa.array([s.judge for s in said], pa.string()),
        "rubric": pa.array([s.rubric for s in said], pa.string()),
        "failure": pa.array([s.failure for s in said], pa.string()),
        "value": pa.array([s.value for s in said], pa.float64()),
    }
    keys = {
        "role": pa.array(columns["role"], pa.string()),
        **{n: pa.array(columns[n], pa.int32()) for n in _KEYS[1:]},
    }
    return pa.table(keys | fields)


def read_scores(path: str | Path) -> dict[Key, Judgement]:
    """Judgements from Parquet, or from CSV or JSONL of people's labels: role, prompt, question_id, sample (default 0) and
    score; `judge` and `reason` if they are there.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: it is not such a table, a score is not 0 to 3, or a rollout comes twice.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist.")
    found: dict[Key, Judgement] = {}
    for number, row in enumerate(_rows(source), start=1):
        where = f"{source.name}, row {number}"
        try:
            key = (str(row["role"]), int(row["prompt"]), int(row["question_id"]), int(row.get("sample") or 0))
            score = None if row.get("score") in (None, "") else int(row["score"])
        except (KeyError, TypeError, ValueError) as e:
            raise IntegrityError(
                f"{where}: expected role, prompt, question_id, sample and score 0 to 3 ({type(e).__name__}: {e})."
            ) from e
        if score not in (None, *SCORES):
            raise IntegrityError(f"{where}: the score {score} is not one of 0, 1, 2, 3.")
        if key in found:
            raise IntegrityError(f"{where}: the rollout {key} is given twice.")
        value = row.get("value")
        found[key] = Judgement(
            score,
            str(row.get("reason") or ""),
            str(row.get("judge") or source.stem),
            str(row.get("rubric") or ""),
            "" if score is not None else str(row.get("failure") or "unlabelled"),
            math.nan if value in (None, "") else float(value),
        )
    return found


def _rows(source: Path) -> Iterable[dict]:
    import csv
    import json

    try:
        if source.suffix == ".csv":
            return list(csv.DictReader(source.read_text(encoding="utf-8-sig").splitlines()))
        if source.suffix in (".jsonl", ".json"):
            return [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
        import pyarrow.parquet as pq

        return pq.read_table(source).to_pylist()
    except (OSError, ValueError) as e:  # Arrow's errors are ValueErrors
        raise IntegrityError(f"{source} is not a readable table of scores ({e}).") from e
