import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assistant_axis.errors import IntegrityError
from assistant_axis.models.generation import Answer
from assistant_axis.personas.library import Ask, Question
from assistant_axis.personas.rollouts import Rollout, read_rollouts, write_rollouts


def _rollout(k, system="You are a pirate."):
    ask = Ask("pirate", k, system, Question(k, f"Why {k}?"), k)
    return Rollout.of(ask, Answer(f"Ünïcode {k} 🙂", (1, 2, k), (7, 8), "stop"))


def test_round_trip(tmp_path):
    rollouts = [_rollout(k) for k in range(3)]
    path = write_rollouts(tmp_path / "r.parquet", rollouts)
    assert read_rollouts(path) == rollouts
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


def test_messages_are_a_whole_conversation():
    assert [m["role"] for m in _rollout(0).messages] == ["system", "user", "assistant"]
    assert [m["role"] for m in _rollout(0, system="").messages] == ["user", "assistant"]


def test_empty_answers_survive(tmp_path):
    silent = Rollout.of(Ask("r", 0, "", Question(0, "Why?")), Answer("", (), (7, 8), "stop"))
    assert read_rollouts(write_rollouts(tmp_path / "r.parquet", [silent])) == [silent]


def test_damaged_and_foreign_tables(tmp_path):
    path = write_rollouts(tmp_path / "r.parquet", [_rollout(k) for k in range(3)])
    whole = path.read_bytes()
    for n in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(IntegrityError, match="whole Parquet"):
            read_rollouts(path)
    pq.write_table(pa.table({"role": ["x"]}), path)
    with pytest.raises(IntegrityError, match="lacks the columns"):
        read_rollouts(path)
    with pytest.raises(FileNotFoundError):
        read_rollouts(tmp_path / "nowhere.parquet")
