"""`simulate`: conversations between a target model and a simulated user, with a projection for every answer.

All conversations' turn `t` is answered in large batches, and the projections are read while the answers are generated.
Every finished batch is a file, so that an interrupted run goes on where it stopped.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant_axis._version import __version__
from assistant_axis.activations.store import atomic
from assistant_axis.drift.monitor import DriftMonitor
from assistant_axis.drift.users import MAX_TURNS, Scenario, Scripted, User, played_scenarios, scripted_scenarios
from assistant_axis.errors import ArtefactMismatchError, IntegrityError, SettingError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.progress import track

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel, Intervention

FILE = "conversations.parquet"


@dataclass(frozen=True)
class SimulatedTurn:
    """One exchange: a user message and the answer to it.

    Attributes:
        conversation: the scenario's id.
        domain: its domain.
        persona: its user persona.
        turn: number of the exchange, from 0.
        user: the message.
        answer: what the target said.
        answer_ids: the tokens of the answer, as generated.
        finish_reason: `"stop"` or `"length"`.
        raw: mean projection over the answer's content tokens; NaN for an empty answer.
        centered: the same minus the role mean's projection.
        stderr: standard error over tokens; NaN below two tokens.
        percentile: where `raw` stands among the calibration (0 … 100); NaN without one over answers.
        system: system prompt of the conversation, where it is not that of the run.
    """

    conversation: str
    domain: str
    persona: str
    turn: int
    user: str
    answer: str
    answer_ids: tuple[int, ...]
    finish_reason: str
    raw: float
    centered: float
    stderr: float
    percentile: float
    system: str = ""


_OPTIONAL = frozenset({"system"})
"""Columns that a file may lack."""


@dataclass(frozen=True)
class Simulation:
    """The exchanges of many conversations, ordered by conversation and turn, with the conditions they were held under."""

    turns: tuple[SimulatedTurn, ...]
    conditions: Mapping[str, Any]

    @property
    def layer(self) -> int:
        return int(self.conditions["layer"])

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t.domain for t in self.turns))

    def conversations(self) -> dict[str, list[dict[str, str]]]:
        """Messages of every conversation, by its id."""
        system = str(self.conditions.get("system", ""))
        out: dict[str, list[dict[str, str]]] = {}
        for t in self.turns:
            own = t.system or system
            messages = out.setdefault(t.conversation, [{"role": "system", "content": own}] if own else [])
            messages += [{"role": "user", "content": t.user}, {"role": "assistant", "content": t.answer}]
        return out

    def save(self, path: str | Path) -> Path:
        """Write Parquet (zstd) with the conditions in its metadata, in one atomic step."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([asdict(t) for t in self.turns])
        table = table.replace_schema_metadata({"assistant-axis": json.dumps(dict(self.conditions))})
        with atomic(path) as scratch:
            pq.write_table(table, scratch, compression="zstd")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Simulation":
        """Read what `save` wrote (a folder stands for the file in it).

        Raises:
            FileNotFoundError: there is no such file.
            IntegrityError: truncated, or not a simulation.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        source = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if not source.is_file():
            raise FileNotFoundError(f"{source} does not exist.")
        try:
            table = pq.read_table(source)
        except (pa.ArrowException, OSError) as e:
            raise IntegrityError(f"{source} is not a whole Parquet file ({e}).") from e
        said = (table.schema.metadata or {}).get(b"assistant-axis")
        names = {f.name for f in fields(SimulatedTurn)}
        if said is None or not names - _OPTIONAL <= set(table.column_names):
            raise IntegrityError(f"{source} is a Parquet file, but not one of simulated conversations.")
        rows = table.select(sorted(names & set(table.column_names))).to_pylist()
        turns = tuple(SimulatedTurn(**row | {"answer_ids": tuple(row["answer_ids"])}) for row in rows)
        return cls(turns, json.loads(said))


def simulate(
    model: "HookedChatModel",
    axis: AssistantAxis,
    scenarios: Sequence[Scenario] | None = None,
    user: User | None = None,
    *,
    turns: int = 6,
    layer: int | float | None = None,
    system: str = "",
    interventions: "Sequence[Intervention]" = (),
    max_new_tokens: int = 48,
    temperature: float | int = 0.7,
    top_p: float | int = 0.9,
    batch_size: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Simulation:
    """Hold conversations with a simulated user and read every answer along the axis (Lu et al. 2026, section 4).

    >>> held = simulate(model, axis, out="runs/drift")        # doctest: +SKIP

    Args:
        model: the target.
        axis: an axis of it.
        scenarios: who talks about what; default: the 100 bundled conversations for `Scripted`, 25 persona-topic pairs a
            domain for another user.
        user: `Scripted()` (default), `ModelUser(model)`, `APIUser("name")` or your own.
        turns: exchanges a conversation, up to 15; a script that is shorter ends earlier.
        layer: where to read; default: the layer this model is watched at.
        system: system prompt of the target; none by default, as in the paper.
        interventions: in force for the target only; they are written down with the run.
        max_new_tokens: upper bound of an answer.
        temperature: of the target's sampling.
        top_p: nucleus mass.
        batch_size: conversations a batch.
        seed: of everything sampled here.
        out: a folder; finished batches are kept there, and the result as `conversations.parquet`.
        progress: show a bar.

    Returns:
        Every exchange. A conversation that outgrows the model's context, or whose answer is empty, ends there.

    Raises:
        SettingError: turns or sizes out of range.
        ArtefactMismatchError: an axis of another model; or `out` holds a run with other settings.
    """
    if not 1 <= turns <= MAX_TURNS:
        raise SettingError(f"turns={turns} is out of range: 1 to {MAX_TURNS}.")
    if batch_size < 1:
        raise SettingError(f"batch_size={batch_size} must be at least 1.")
    user = user or Scripted()
    if scenarios is None:
        scenarios = scripted_scenarios() if isinstance(user, Scripted) else played_scenarios(per_domain=25, seed=seed)
    if len({s.id for s in scenarios}) != len(scenarios) or not scenarios:
        raise SettingError("The scenarios need ids that differ, and there must be at least one.")
    monitor = DriftMonitor(model, axis, layer)
    conditions = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "template_hash": model.chat.hash,
        "axis_fingerprint": axis.conditions.fingerprint,
        "axis_span": axis.conditions.span,
        "axis_method": axis.method,
        "axis_hash": hashlib.sha256(axis.at(monitor.layer).contiguous().numpy().tobytes()).hexdigest()[:16],
        "layer": monitor.layer,
        "center": monitor.center,
        "user": user.describe(),
        "scenarios": _hash(scenarios),
        "turns": turns,
        "system": system,
        "interventions": [getattr(i, "describe", lambda _m, i=i: repr(i))(model) for i in interventions],
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "batch_size": batch_size,
        "seed": seed,
        "package": __version__,
    }
    run = _Run(model, monitor, list(scenarios), user, conditions, list(interventions))
    return run.all(None if out is None else Path(out), progress)


@dataclass
class _Run:
    model: "HookedChatModel"
    monitor: DriftMonitor
    scenarios: list[Scenario]
    user: User
    conditions: dict[str, Any]
    interventions: "list[Intervention]"

    def all(self, out: Path | None, progress: bool) -> Simulation:
        if out is not None and (out / FILE).is_file():
            done = Simulation.load(out)
            _same(done.conditions, self.conditions, out)
            return done
        folder = None if out is None else self._prepare(out)
        held: list[SimulatedTurn] = []
        said: dict[str, list[dict[str, str]]] = {}
        for s in self.scenarios:
            system = s.system or self.conditions["system"]
            said[s.id] = [{"role": "system", "content": system}] if system else []
        going = list(self.scenarios)
        size = self.conditions["batch_size"]
        with track(len(self.scenarios) * self.conditions["turns"], "Holding conversations", show=progress) as advance:
            for turn in range(self.conditions["turns"]):
                going.sort(key=lambda s: (sum(len(m["content"]) for m in said[s.id]), s.id))
                after: list[Scenario] = []
                for number, start in enumerate(range(0, len(going), size)):
                    batch = going[start : start + size]
                    file = None if folder is None else folder / f"turn-{turn:02d}.batch-{number:04d}.parquet"
                    rows = self._batch(batch, said, turn, number, file)
                    held += rows
                    for r in rows:
                        said[r.conversation] += [
                            {"role": "user", "content": r.user},
                            {"role": "assistant", "content": r.answer},
                        ]
                    spoken = {r.conversation for r in rows if r.answer.strip()}
                    after += [s for s in batch if s.id in spoken]
                    advance(len(batch))
                going = after
        place = {s.id: k for k, s in enumerate(self.scenarios)}
        held.sort(key=lambda r: (place[r.conversation], r.turn))
        result = Simulation(tuple(held), self.conditions)
        if out is not None and folder is not None:
            result.save(out / FILE)
            shutil.rmtree(folder)
        return result

    def _batch(
        self,
        batch: Sequence[Scenario],
        said: dict[str, list[dict[str, str]]],
        turn: int,
        number: int,
        file: Path | None,
    ) -> list[SimulatedTurn]:
        if file is not None and file.is_file():
            try:
                return list(Simulation.load(file).turns)
            except IntegrityError:
                file.unlink()
        c = self.conditions
        seed = c["seed"] + 100_003 * turn + 1_009 * number
        messages = self.user.speak(batch, [said[s.id] for s in batch], turn=turn, seed=seed + 1)
        asked = [
            (s, m, [*said[s.id], {"role": "user", "content": m}])
            for s, m in zip(batch, messages, strict=True)
            if m is not None and m.strip()
        ]
        limit = self.model.max_length
        if limit is not None:
            room = limit - c["max_new_tokens"]
            asked = [a for a in asked if len(self.model.chat.encode_prompt(a[2]).ids) <= room]
        rows: list[SimulatedTurn] = []
        if asked:
            with self.model.steered(*self.interventions):
                answers = self.monitor.generate(
                    [a[2] for a in asked],
                    max_new_tokens=c["max_new_tokens"],
                    temperature=c["temperature"],
                    top_p=c["top_p"],
                    batch_size=len(asked),
                    seed=seed,
                )
            read = self.monitor.turns[-len(asked) :]
            for (s, message, _), answer, turn_read in zip(asked, answers, read, strict=True):
                raw, n = turn_read.mean, len(turn_read.ids)
                spread = float(turn_read.tokens.std()) / math.sqrt(n) if n > 1 else math.nan
                rank = self.monitor.percentile(raw) if n else math.nan
                rows.append(
                    SimulatedTurn(
                        conversation=s.id,
                        domain=s.domain,
                        persona=s.persona,
                        turn=turn,
                        user=message,
                        answer=answer.text,
                        answer_ids=answer.ids,
                        finish_reason=answer.finish_reason,
                        raw=raw,
                        centered=raw - self.monitor.center,
                        stderr=spread,
                        percentile=rank,
                        system=s.system,
                    )
                )
            self.monitor.turns.clear()
        if file is not None and rows:
            Simulation(tuple(rows), c).save(file)
        return rows

    def _prepare(self, out: Path) -> Path:
        folder = out / "parts"
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / "conditions.json"
        if marker.is_file():
            _same(json.loads(marker.read_text()), self.conditions, out)
        else:
            with atomic(marker) as scratch:
                scratch.write_text(json.dumps(self.conditions))
        return folder


def _hash(scenarios: Sequence[Scenario]) -> str:
    said = [{k: v for k, v in asdict(s).items() if v or k != "system"} for s in scenarios]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _same(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    now = json.loads(json.dumps(now))
    differ = [f"{k}: {before.get(k)!r} there, {v!r} now" for k, v in now.items() if before.get(k) != v]
    if differ:
        raise ArtefactMismatchError(
            f"{out} holds simulated conversations with other settings ({'; '.join(differ)}). Use another folder."
        )
