"""The folders of the official pipeline: answers as JSONL, activations as `.pt`, scores as JSON, a file a role."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant_axis.activations.store import Conditions, load_pickled_tensors
from assistant_axis.errors import IntegrityError, RunError
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.judges.base import Judgement, Key
from assistant_axis.personas.library import DEFAULT
from assistant_axis.personas.rollouts import Rollout
from assistant_axis.pipeline.extract import Part, combine

_NAME = re.compile(r"^(?:[a-z]+_)?p(\d+)_q(\d+)$")


def import_vectors(
    folder: str | Path, *, model: str, n_layers: int | None = None, min_score: int = 3, min_rollouts: int = 50
) -> PersonaVectors:
    """Persona vectors from `activations/*.pt` and `scores/*.json`, one role at a time in memory.

    Files whose name contains `default` are the default persona, and all their rollouts count, as in the official code.
    Per-token norms are not in these files, so doses in units of the residual norm need vectors extracted here.

    Args:
        folder: holds `activations` and, unless `min_score` is 0, `scores`.
        model: whose activations they are.
        n_layers: layers of the model, if the files hold fewer.
        min_score: the least score that counts (official: 3).
        min_rollouts: roles with fewer are left out (official: 50).

    Raises:
        RunError: files are missing, or no role has enough rollouts.
        IntegrityError: a file is not of this form.
        UnsafeFileError: a `.pt` file holds more than tensors.
    """
    root = Path(folder)
    files = sorted((root / "activations").glob("*.pt"))
    if not files:
        raise RunError(
            f"{root / 'activations'} holds no .pt file; expected one a role, as the official pipeline writes."
        )
    parts, shape, kinds = [], None, set()
    for path in files:
        each = _activations(path)
        role = DEFAULT if DEFAULT in path.stem else path.stem
        if role != DEFAULT and min_score > 0:
            scores = _scores(root / "scores" / f"{path.stem}.json")
            each = {k: x for k, x in each.items() if scores.get(k, -1) >= min_score}
            if len(each) < min_rollouts:
                continue
        if not each:
            continue
        if shape is None:
            shape = next(iter(each.values())).shape
        if any(x.shape != shape for x in each.values()):
            raise IntegrityError(
                f"{path} holds tensors of another shape than {tuple(shape)}, which the files before it hold."
            )
        groups: dict[str, list[Tensor]] = {}
        for (prompt, _), x in each.items():
            kinds.add(str(x.dtype).removeprefix("torch."))
            name = f"{DEFAULT}/{path.stem}/{prompt}" if role == DEFAULT else role
            groups.setdefault(name, []).append(x.float())
        parts.append(_part(groups))
    if shape is None or all(n.startswith(f"{DEFAULT}/") for p in parts for n in p.roles):
        raise RunError(
            f"No role in {root} has {min_rollouts} rollouts with score {min_score} or more. Lower one of them."
        )
    depth, width = shape
    conditions = Conditions.imported(
        model,
        n_layers=n_layers or depth,
        d_model=width,
        dtype=", ".join(sorted(kinds)),
        design=f"imported from {root.name}",
        judge=f"imported, score ≥ {min_score}, ≥ {min_rollouts} rollouts" if min_score else "none",
    )
    return combine(parts, tuple(range(depth)), conditions)


def import_rollouts(folder: str | Path) -> Iterator[tuple[Rollout, Judgement | None]]:
    """Answers of `responses/*.jsonl` with their scores, one role at a time; token ids are not in these files.

    Raises:
        RunError: there is no such file.
        IntegrityError: naming file and line.
    """
    root = Path(folder)
    files = sorted((root / "responses").glob("*.jsonl"))
    if not files:
        raise RunError(f"{root / 'responses'} holds no .jsonl file; expected one a role.")
    for path in files:
        role = DEFAULT if DEFAULT in path.stem else path.stem
        table = root / "scores" / f"{path.stem}.json"
        scores = _scores(table) if table.is_file() else {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                rollout = _rollout(role, json.loads(line))
            except (ValueError, KeyError, TypeError, IndexError) as e:
                raise IntegrityError(
                    f"{path.name}:{number}: not a line of the official pipeline ({type(e).__name__}: {e})."
                ) from e
            score = scores.get((rollout.prompt, rollout.question_id))
            yield rollout, None if score is None else Judgement(score, "", "imported", "official")


def _rollout(role: str, said: dict[str, Any]) -> Rollout:
    turns = said["conversation"]
    answer = next(m["content"] for m in reversed(turns) if m["role"] == "assistant")
    system = said.get("system_prompt") or next((m["content"] for m in turns if m["role"] == "system"), "")
    key: Key = (role, int(said["prompt_index"]), int(said["question_index"]), 0)
    question = str(said.get("question") or next(m["content"] for m in turns if m["role"] == "user"))
    return Rollout(*key, str(system), question, str(answer), (), (), "unknown")


def _activations(path: Path) -> dict[tuple[int, int], Tensor]:
    loaded = load_pickled_tensors(path)
    if not isinstance(loaded, dict):
        raise IntegrityError(
            f"{path} holds {type(loaded).__name__}; expected a dictionary of tensors [layer, d_model]."
        )
    found = {}
    for name, x in loaded.items():
        if not isinstance(x, Tensor) or x.ndim != 2:
            raise IntegrityError(f"{path}: {name!r} is no tensor [layer, d_model].")
        found[_place(str(name), path)] = x
    return found


def _scores(path: Path) -> dict[tuple[int, int], int]:
    if not path.is_file():
        raise RunError(f"{path} is missing; expected the scores of its role. min_score=0 imports without scores.")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        found = {_place(str(k), path): int(v) for k, v in said.items() if v is not None}
    except (ValueError, AttributeError, TypeError) as e:
        raise IntegrityError(f"{path} is no table of scores ({e}).") from e
    if not set(found.values()) <= {0, 1, 2, 3}:
        raise IntegrityError(f"{path} holds scores other than 0 to 3.")
    return found


def _place(name: str, path: Path) -> tuple[int, int]:
    match = _NAME.match(name)
    if match is None:
        raise IntegrityError(f"{path}: the name {name!r} is not of the form pos_p0_q0.")
    return int(match.group(1)), int(match.group(2))


def _part(groups: dict[str, list[Tensor]]) -> Part:
    stacked = [torch.stack(x) for x in groups.values()]
    shape = stacked[0].shape[1:]
    return Part(
        tuple(groups),
        torch.stack([x.sum(0) for x in stacked]),
        torch.tensor([len(x) for x in stacked]),
        torch.full((shape[0],), float("nan")),
        torch.zeros(0, *shape, dtype=torch.float16),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(0, dtype=torch.long),
    )
