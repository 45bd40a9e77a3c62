"""A rollout: one question asked of one persona, and its answer; stored as Parquet."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant_axis.activations.store import atomic
from assistant_axis.errors import IntegrityError
from assistant_axis.models.generation import Answer

if TYPE_CHECKING:
    from assistant_axis.personas.library import Ask


@dataclass(frozen=True)
class Rollout:
    """One answer with everything needed to read it again: token ids as generated, prompt included."""

    role: str
    prompt: int
    question_id: int
    sample: int
    system: str
    question: str
    answer: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    finish_reason: str

    @classmethod
    def of(cls, ask: "Ask", answer: Answer) -> "Rollout":
        return cls(
            role=ask.role,
            prompt=ask.prompt,
            question_id=ask.question.id,
            sample=ask.sample,
            system=ask.system,
            question=ask.question.text,
            answer=answer.text,
            prompt_ids=answer.prompt_ids,
            answer_ids=answer.ids,
            finish_reason=answer.finish_reason,
        )

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole conversation, answer included."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        return [*turns, {"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]


def write_rollouts(path: str | Path, rollouts: Iterable[Rollout]) -> Path:
    """Write rollouts as Parquet (zstd), in one atomic step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([asdict(r) for r in rollouts])
    with atomic(path) as scratch:
        pq.write_table(table, scratch, compression="zstd")
    return Path(path)


def read_rollouts(path: str | Path) -> list[Rollout]:
    """Read what `write_rollouts` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: truncated, or not a table of rollouts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist.")
    try:
        rows = pq.read_table(source).to_pylist()
    except (pa.ArrowException, OSError) as e:
        raise IntegrityError(f"{source} is not a whole Parquet file ({e}).") from e
    names = {f.name for f in fields(Rollout)}
    if rows and not names <= set(rows[0]):
        raise IntegrityError(f"{source} lacks the columns {', '.join(sorted(names - set(rows[0])))}.")
    return [rollout_of({k: row[k] for k in names}) for row in rows]


def rollout_of(row: Mapping[str, Any]) -> Rollout:
    """A rollout from a row of a table; other columns are ignored."""
    return Rollout(
        role=str(row["role"]),
        prompt=int(row["prompt"]),
        question_id=int(row["question_id"]),
        sample=int(row["sample"]),
        system=str(row["system"]),
        question=str(row["question"]),
        answer=str(row["answer"]),
        prompt_ids=tuple(int(i) for i in row["prompt_ids"]),
        answer_ids=tuple(int(i) for i in row["answer_ids"]),
        finish_reason=str(row["finish_reason"]),
    )
