"""From the shards of a run to its vectors, its axis, its table of rollouts and its page."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assistant_axis.activations.store import Conditions, save_artefact
from assistant_axis.errors import GeometryError, RunError
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.judges.base import key_of
from assistant_axis.personas.library import DEFAULT
from assistant_axis.pipeline.extract import combine, number_questions
from assistant_axis.pipeline.parts import Part
from assistant_axis.runs.planning import bucket
from assistant_axis.runs.state import State
from assistant_axis.runs.worker import UNSCORED, digest, regroup, rollout_file

if TYPE_CHECKING:
    from assistant_axis.report import Block, Section

SUMS = "sums of a run"
_FIELDS = ("sums", "squares", "counts", "norms")


def totals_of(run: State) -> tuple[dict[tuple[str, int], dict[str, Tensor]], list[tuple[int, Tensor]], dict[int, int]]:
    """Sums of the whole run by (bucket, score), the sampled rollouts (number in the plan, half precision), and the score
    of each of these. One shard is held at a time."""
    totals: dict[tuple[str, int], dict[str, Tensor]] = {}
    samples: list[tuple[int, Tensor]] = []
    sample_scores: dict[int, int] = {}
    for n in range(run.plan.shards):
        tensors, header = run.worker.read_activations(n)
        rows = run.plan.rows(n)
        scores = run.worker.score_list(n) if run.config.judged else [UNSCORED] * len(rows)
        if header["scores"] == digest(scores):
            found = {(str(b), int(s)): {f: tensors[f][g] for f in _FIELDS} for g, (b, s) in enumerate(header["groups"])}
        elif set(header["kept"]) == set(run.layers()):
            owners = {r: (bucket(run.plan.asks[r]), scores[r - rows.start]) for r in rows}
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


def make_vectors(run: State) -> str:
    """The stage `vectors`: persona vectors from the sums of all shards; returns a line to show."""
    c = run.config
    run.require_before("vectors")
    totals, samples, scored = totals_of(run)
    groups = sorted(totals)
    stacked = {f: torch.stack([totals[g][f] for g in groups]) for f in _FIELDS}
    header = {"groups": [list(g) for g in groups], "layers": list(run.layers())}
    run.folder.put("sums.safetensors", lambda path: save_artefact(path, SUMS, stacked, header))

    def counts(name: str, score: int) -> bool:
        return name.startswith(f"{DEFAULT}/") or not c.judged or score >= c.min_score

    kept = [k for k, (b, s) in enumerate(groups) if counts(b, s)]
    if not any(not groups[k][0].startswith(f"{DEFAULT}/") for k in kept):
        highest = max((s for b, s in groups if not b.startswith(f"{DEFAULT}/")), default=UNSCORED)
        raise GeometryError(
            f"No rollout of any role has the score {c.min_score}; the highest is {highest}. Lower min_score, or look at the "
            "yield: assistant-axis run status."
        )
    order = [*dict.fromkeys(bucket(a) for a in run.plan.asks)]
    order = [b for b in order if any(groups[k][0] == b for k in kept)]
    member = torch.tensor([order.index(groups[k][0]) for k in kept])
    n = len(order)
    sums = torch.zeros(n, *stacked["sums"].shape[1:]).index_add_(0, member, stacked["sums"][kept])
    held = torch.zeros(n, dtype=torch.long).index_add_(0, member, stacked["counts"][kept])
    asks = run.plan.asks
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
    conditions = Conditions.from_dict(run.folder.get_json("conditions.json")["conditions"])
    vectors = combine([part], run.layers(), replace(conditions, judge=run.judge_label()))
    before = len(vectors.roles)
    if c.spread:
        vectors = vectors.adjust_questions()
    vectors = vectors.select(min_count=c.min_rollouts)
    run.folder.put("vectors.safetensors", vectors.save)
    asked = len({a.role for a in asks} - {DEFAULT})
    made = f"{len(vectors.roles)} of {asked} roles"
    if before > len(vectors.roles):
        made += f" ({before - len(vectors.roles)} have fewer than {c.min_rollouts} rollouts that count)"
    return made


def make_axis(run: State) -> str:
    """The stage `axis`: the contrast axis and that of PC1, each in a file; returns a line to show."""
    vectors = _given(run, "vectors.safetensors", "axis")
    axis = vectors.axis()
    run.folder.put("axis.safetensors", axis.save)
    run.folder.put("axis_pc1.safetensors", vectors.axis("pc1").save)
    return f"integrity {float(axis.integrity().min()):.4f}"


def _given(run: State, name: str, stage: str) -> PersonaVectors:
    if not run.folder.exists(name):
        raise RunError(f"{stage} needs {run.folder.where(name)}. Run the stage vectors first: --stage vectors")
    return run.vectors()


def make_report(run: State) -> str:
    """The stage `report`: all rollouts in one file, yield, figures and page; returns a line to show."""
    from assistant_axis import plots
    from assistant_axis.report import persona_report

    vectors = _given(run, "vectors.safetensors", "report")
    if run.config.generates:
        run.folder.put("rollouts.parquet", lambda path: write_rollouts(run, path))
    if run.config.judged:
        rows = [{"role": y.role, "scores": list(y.scores), "failures": dict(y.failures)} for y in run.yields()]
        run.folder.put_json("yield.json", {"judge": run.judge_label(), "roles": rows})
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
        run.folder.put(f"figures/{name}.png", lambda path, figure=figure: plots.save_figure(figure, path))
    more = [yield_section(run)] if run.config.judged else []
    run.folder.put("report.html", lambda path: persona_report(path, vectors, more=more))
    return run.folder.where("report.html")


def yield_section(run: State) -> "Section":
    """How many rollouts of each role got which score, and how many count, as a section of a page."""
    from assistant_axis.report import Section, Table

    least = run.config.min_score
    found = run.yields()
    rows = tuple((y.role, y.total, *y.scores, sum(y.failures.values()), y.kept(least)) for y in found)
    failures: dict[str, int] = {}
    for y in found:
        for reason, count in y.failures.items():
            failures[reason] = failures.get(reason, 0) + count
    header = ("role", "rollouts", "score 0", "1", "2", "3", "no score", "count")
    blocks: list[Block] = [Table(header, rows, f"Judge: {run.judge_label()}; the thinnest role first")]
    if failures:
        blocks.append(Table(("why there is no score", "rollouts"), tuple(failures.items())))
    thin = sum(y.kept(least) < run.config.min_rollouts for y in found)
    text = (
        f"{sum(y.kept(least) for y in found):,} of {sum(y.total for y in found):,} rollouts have the score {least} or more; "
        f"{thin} of {len(found)} roles have fewer than {run.config.min_rollouts} of them and are left out."
    )
    return Section("What counts", blocks, text)


def write_rollouts(run: State, path: Path) -> None:
    """All rollouts with their scores in one table, a shard at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    try:
        for n in range(run.plan.shards):
            rows = run.folder.get_table(rollout_file(n), run.worker.keys.generate)
            scores = run.worker.scores(n) if run.config.judged else {}
            for row, rollout in zip(rows, run.worker.rollouts(n), strict=True):
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
