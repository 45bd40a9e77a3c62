"""Rows for persona jailbreaks: our own format, local copies of the public sets, and products of roles and questions.

No harmful prompt comes with this package: twenty mild ones of petty rule-breaking show the wiring.
"""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from assistant_axis.errors import DatasetError
from assistant_axis.personas.library import PersonaLibrary, load_personas

MILD = Path(__file__).parent / "data" / "mild_prompts.jsonl"
"""Twenty mild prompts of our own."""


@dataclass(frozen=True)
class JailbreakPrompt:
    """One row.

    Attributes:
        id: unique in its set.
        category: of harm, or of safe question.
        system: the persona's system prompt; empty for none.
        question: what is asked.
    """

    id: str
    category: str
    system: str
    question: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), self.bare[0]]

    @property
    def bare(self) -> list[dict[str, str]]:
        """The question without the persona."""
        return [{"role": "user", "content": self.question}]


def read_prompts(path: str | Path) -> list[JailbreakPrompt]:
    """Rows from JSON lines or CSV with the columns `id`, `category`, `system` (may be missing or empty), `question`.

    Raises:
        DatasetError: naming file and line: a missing column, an empty question, a repeated id, no row.
        FileNotFoundError: no such file.
    """
    return _checked(Path(path), [(n, r, {}) for n, r in _rows(Path(path))])


def load_strongreject(path: str | Path) -> list[JailbreakPrompt]:
    """A local copy of StrongREJECT (CSV: `category`, `source`, `forbidden_prompt`)."""
    return _public(path, {"category": "category", "question": "forbidden_prompt"}, "strongreject")


def load_harmbench(path: str | Path) -> list[JailbreakPrompt]:
    """A local copy of HarmBench's behaviours (CSV: `Behavior`, `SemanticCategory`, `ContextString`, `BehaviorID`); the
    context, where there is one, stands before the question."""
    names = {"id": "BehaviorID", "category": "SemanticCategory", "question": "Behavior"}
    return _public(path, names, "harmbench", context="ContextString")


def load_jailbreakbench(path: str | Path) -> list[JailbreakPrompt]:
    """A local copy of JailbreakBench's behaviours (CSV: `Goal`, `Category`)."""
    return _public(path, {"category": "Category", "question": "Goal"}, "jailbreakbench")


def load_xstest(path: str | Path, *, safe: bool = True) -> list[JailbreakPrompt]:
    """A local copy of XSTest (CSV: `id`, `prompt`, `type`, `label`): the safe prompts, for over-refusal, or the unsafe."""
    path = Path(path)
    names = {"id": "id", "category": "type", "question": "prompt"}
    kept = [(n, r, names) for n, r in _rows(path) if _cell(path, n, r, "label") == ("safe" if safe else "unsafe")]
    return _checked(path, kept)


def role_products(
    roles: Iterable[str],
    questions: Sequence[JailbreakPrompt],
    *,
    prompt: int = 0,
    library: PersonaLibrary | None = None,
) -> list[JailbreakPrompt]:
    """Every question under every role's system prompt.

    Raises:
        UnknownNameError: a role that the library does not hold.
    """
    library = library or load_personas()
    return [
        replace(q, id=f"{name}/{q.id}", system=library.role(name).prompts[prompt]) for name in roles for q in questions
    ]


def _public(
    path: str | Path, names: dict[str, str], prefix: str, *, context: str | None = None
) -> list[JailbreakPrompt]:
    path = Path(path)
    rows = []
    for number, row in _rows(path):
        if "id" not in names:
            row = row | {"id": f"{prefix}-{number}"}
        if context is not None and row.get(context):
            row = row | {names["question"]: f"{row[context]}\n\n{row[names['question']]}"}
        rows.append((number, row, names))
    return _checked(path, rows)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of JSON lines or CSV."""
    found: list[tuple[int, dict[str, str]]] = []
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                found.append((reader.line_num, {k: v or "" for k, v in row.items() if k is not None}))
        return found
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except ValueError as e:
            raise DatasetError(f"{path}, line {number}: not JSON ({e}). Give one object a line, or a .csv file.") from e
        if not isinstance(said, dict):
            raise DatasetError(f"{path}, line {number}: expected an object, got {type(said).__name__}.")
        found.append((number, {str(k): "" if v is None else str(v) for k, v in said.items()}))
    return found


def _cell(path: Path, number: int, row: dict[str, str], column: str) -> str:
    if column not in row:
        raise DatasetError(f"{path}, line {number}: no column {column!r}; there are {', '.join(row) or 'none'}.")
    return row[column].strip()


def _checked(path: Path, rows: Sequence[tuple[int, dict[str, str], dict[str, str]]]) -> list[JailbreakPrompt]:
    found: list[JailbreakPrompt] = []
    seen: dict[str, int] = {}
    for number, row, names in rows:
        cells = {k: _cell(path, number, row, names.get(k, k)) for k in ("id", "category", "question")}
        if not cells["id"] or not cells["question"]:
            raise DatasetError(f"{path}, line {number}: the id or the question is empty.")
        if cells["id"] in seen:
            raise DatasetError(f"{path}, line {number}: the id {cells['id']!r} was used in line {seen[cells['id']]}.")
        seen[cells["id"]] = number
        found.append(JailbreakPrompt(**cells, system=row.get(names.get("system", "system"), "").strip()))
    if not found:
        raise DatasetError(f"{path} holds no row that can be used.")
    return found


FORMATS: dict[str, Callable[[str | Path], list[JailbreakPrompt]]] = {
    "rows": read_prompts,
    "strongreject": load_strongreject,
    "harmbench": load_harmbench,
    "jailbreakbench": load_jailbreakbench,
    "xstest": load_xstest,
}
"""What the commands call the formats."""
