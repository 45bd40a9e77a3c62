"""Evaluations of an intervention: what it gains and what it costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant_axis.cli.options import DEFAULT_MODEL, ModelOption, load_axis, load_vectors, print_table

if TYPE_CHECKING:
    from assistant_axis.evals.datasets import JailbreakPrompt
    from assistant_axis.models.hooked import HookedChatModel

app = typer.Typer(no_args_is_help=True, help="Evaluations: what an intervention gains and what it costs.")

CapOption = Annotated[
    list[Path] | None, typer.Option("--cap", "-c", help="A saved intervention (.safetensors); several act together.")
]
DataOption = Annotated[
    Path | None, typer.Option("--data", "-d", help="JSONL or CSV: id, category, system, question; default: mild ones.")
]
SafeOption = Annotated[Path | None, typer.Option(help="Questions that should be answered, in the same format.")]
JudgeOption = Annotated[
    str | None, typer.Option("--judge-model", help="A local model that labels by the rubric; default: no judge.")
]
EndpointOption = Annotated[
    str | None, typer.Option("--judge-api", help="A model behind OPENAI_BASE_URL that labels by the rubric.")
]
FormatOption = Annotated[
    str, typer.Option("--format", help="Of --data: rows, strongreject, harmbench, jailbreakbench or xstest.")
]
SafeFormatOption = Annotated[str, typer.Option(help="Of --safe: rows or xstest.")]
RolesOption = Annotated[
    str | None, typer.Option("--roles", help="Ask every question under these roles' prompts; with commas.")
]
LocalOption = Annotated[
    list[str] | None, typer.Option("--local", help="TASK=PATH: its data here, a folder of the hub's or a file.")
]
FewshotOption = Annotated[int | None, typer.Option(help="Examples before each item; default: as the task says.")]


@app.command("capability")
def eval_capability(
    tasks: Annotated[
        str, typer.Option("--tasks", "-t", help="As lm-evaluation-harness names them, or task files; with commas.")
    ],
    cap: CapOption = None,
    model: ModelOption = DEFAULT_MODEL,
    limit: Annotated[int | None, typer.Option(help="The first so many items of each task.")] = None,
    batch_size: Annotated[str, typer.Option(help="Requests a batch, or auto.")] = "auto",
    chat_template: Annotated[bool, typer.Option(help="Ask through the model's chat template.")] = True,
    fewshot: FewshotOption = None,
    include_path: Annotated[list[Path] | None, typer.Option(help="Folders with further task files.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt for every item.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that the harness draws.")] = 0,
    local: LocalOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the harness' result files; resumable.")
    ] = None,
) -> None:
    """Tasks of lm-evaluation-harness without and with interventions, compared item by item."""
    from assistant_axis.evals.capability import capability
    from assistant_axis.models.loading import load_model

    loaded = load_model(model)
    found = capability(
        loaded,
        [t.strip() for t in tasks.split(",") if t.strip()],
        *_interventions(cap, loaded),
        limit=limit,
        batch_size=batch_size,
        chat_template=chat_template,
        num_fewshot=fewshot,
        include_path=[str(p) for p in include_path or []],
        system=system,
        seed=seed,
        local=_local(local),
        out=out,
        keep=None if out is None else out / "answers",
    )
    print_table(f"Capability of {loaded.name}", found.rows())
    if out is not None:
        print(f"Results of the harness in {out}")


@app.command("susceptibility")
def eval_susceptibility(
    axis: Annotated[str, typer.Option("--axis", "-a", help="Persona vectors, or the name of a model whose ship.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for table, figure and answers; resumable.")],
    model: ModelOption = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="contrast or pc1.")] = "pc1",
    roles: Annotated[int, typer.Option(help="So many roles, the nearest to the Assistant.")] = 50,
    prompts: Annotated[int, typer.Option(help="System prompts a role.")] = 4,
    pairs: Annotated[int | None, typer.Option(help="Only so many pairs of prompt and question a role.")] = None,
    dose: Annotated[list[float] | None, typer.Option(help="Fraction of the residual norm; several times.")] = None,
    layer: Annotated[int | None, typer.Option(help="Default: the monitoring layer.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="An answer.")] = 48,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Answers a pass.")] = 32,
    judge_model: JudgeOption = None,
    judge_api: EndpointOption = None,
) -> None:
    """Who the model says it is, under roles near the Assistant and over doses along the axis.

    Labelled without a judge; with one, its agreement with the built-in labels is said and its labels are reported.
    """
    from assistant_axis.errors import SettingError
    from assistant_axis.evals.labels import IdentityJudge
    from assistant_axis.evals.saving import save_results
    from assistant_axis.evals.susceptibility import DOSES, nearest_roles, susceptibility
    from assistant_axis.models.loading import load_model

    if method not in ("contrast", "pc1"):
        raise SettingError(f'--method {method} is not known; use "contrast" or "pc1".')
    judge = _judge(IdentityJudge, judge_model, judge_api)
    vectors = load_vectors(Path(axis))
    loaded = load_model(model)
    vectors.check(loaded)
    found = susceptibility(
        loaded,
        load_axis(Path(axis), method),
        nearest_roles(vectors, roles, layer=layer),
        doses=dose or DOSES,
        prompts=prompts,
        limit=pairs,
        layer=layer,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        progress=True,
        keep=out / "answers",
    )
    head: dict[str, Any] = {"labels": judge_model or judge_api or "built in"}
    if judge is not None:
        built_in, found = found, found.relabelled(judge, keep=out / "labels.jsonl", progress=True)
        head["agreement"] = str(found.agreement(built_in))
        print(f"The judge and the built-in labels agree: {head['agreement']}")
    found.save(out / "answers.jsonl")
    print_table(f"Susceptibility of {found.model}, layer {found.layer}", found.rows())
    head |= {"model": found.model, "direction": found.direction, "layer": found.layer, "seed": seed}
    _say(save_results(out, "susceptibility", found.rows(), head, found.plot()))


@app.command("jailbreaks")
def eval_jailbreaks(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for table and answers.")],
    data: DataOption = None,
    cap: CapOption = None,
    model: ModelOption = DEFAULT_MODEL,
    safe: SafeOption = None,
    form: FormatOption = "rows",
    safe_format: SafeFormatOption = "rows",
    roles: RolesOption = None,
    judge_model: JudgeOption = None,
    judge_api: EndpointOption = None,
    limit: Annotated[int | None, typer.Option(help="The first so many rows.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="An answer.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Answers a pass.")] = 16,
) -> None:
    """Persona jailbreaks with and without interventions, over the same rows; resumable."""
    from assistant_axis.errors import SettingError
    from assistant_axis.evals.jailbreak import jailbreak
    from assistant_axis.evals.responses import RubricJudge, pattern_labels
    from assistant_axis.evals.saving import save_results
    from assistant_axis.models.loading import load_model

    if limit is not None and limit < 1:
        raise SettingError(f"--limit {limit}: at least one row is needed.")
    rows = _rows(data, form, roles)[:limit]
    harmless = _rows(safe, safe_format) if safe else []
    judge = _judge(RubricJudge, judge_model, judge_api)
    loaded = load_model(model)
    found = jailbreak(
        loaded,
        rows,
        *_interventions(cap, loaded),
        labeller=judge or pattern_labels,
        safe=harmless,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=True,
        keep=out / "answers",
    )
    print_table(f"Persona jailbreaks of {loaded.name}", found.rows())
    parts = {"bare": found.bare, "baseline": found.baseline, "steered": found.steered}
    if found.safe is not None:
        parts |= {"safe": found.safe[0], "safe, steered": found.safe[1]}
    answers = {
        name: [
            {"id": p.id, "category": p.category, "answer": a, "label": x}
            for p, a, x in zip(r.prompts, r.answers, r.labels, strict=True)
        ]
        for name, r in parts.items()
    }
    head = {"model": loaded.name, "interventions": [str(c) for c in cap or []]}
    head["judge"] = judge_model or judge_api or "by form"
    _say(save_results(out, "jailbreaks", found.rows(), head | {"answers": answers}, found.plot()))


@app.command("report")
def eval_report(
    cap: Annotated[list[Path], typer.Option("--cap", "-c", help="A saved intervention; each is one row.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for table, Pareto plot and answers.")],
    model: ModelOption = DEFAULT_MODEL,
    data: DataOption = None,
    safe: SafeOption = None,
    form: FormatOption = "rows",
    safe_format: SafeFormatOption = "rows",
    roles: RolesOption = None,
    judge_model: JudgeOption = None,
    judge_api: EndpointOption = None,
    tasks: Annotated[str, typer.Option("--tasks", "-t", help="As in eval capability.")] = "everyday_choice",
    limit: Annotated[int | None, typer.Option(help="The first so many items of each task.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Labels that count; default: the two harmful ones.")] = None,
    max_cost: Annotated[float, typer.Option(help="Allowed fall of capability, a fraction.")] = 0.02,
    max_new_tokens: Annotated[int, typer.Option(help="An answer.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the random direction.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Answers a pass.")] = 16,
    controls: Annotated[str, typer.Option(help="Random directions beside: chosen, or all.")] = "chosen",
    fewshot: FewshotOption = None,
    local: LocalOption = None,
) -> None:
    """Every intervention in one table: chosen on one half, reported on the other beside a random direction; resumable."""
    from assistant_axis.errors import SettingError, UnknownNameError
    from assistant_axis.evals.report import Suites, evaluate
    from assistant_axis.evals.responses import FORM_LABELS, HARMFUL, RESPONSE_LABELS, RubricJudge, pattern_labels
    from assistant_axis.evals.saving import save_results
    from assistant_axis.models.loading import load_model

    for name in label or []:
        if name not in RESPONSE_LABELS:
            raise UnknownNameError("label", name, RESPONSE_LABELS)
    if len({c.stem for c in cap}) < len(cap):
        raise SettingError("Two interventions have one file name; rename one, the table names them by it.")
    judge = _judge(RubricJudge, judge_model, judge_api)
    if judge is None and not set(label or HARMFUL) <= set(FORM_LABELS):
        raise SettingError(
            "Without a judge answers are labelled by form, which cannot tell harm. Give --judge-model or --judge-api, or "
            f"count what form can tell, with --label: {', '.join(FORM_LABELS)}."
        )
    rows = _rows(data, form, roles)
    harmless = _rows(safe, safe_format) if safe else []
    loaded = load_model(model)
    steps = dict(zip([c.stem for c in cap], _interventions(cap, loaded), strict=True))
    suites = Suites(
        rows,
        judge or pattern_labels,
        harmless,
        [t.strip() for t in tasks.split(",") if t.strip()],
        limit,
        max_new_tokens,
        label or HARMFUL,
        fewshot,
        _local(local),
    )
    found = evaluate(
        loaded,
        steps,
        suites,
        max_cost=max_cost,
        seed=seed,
        batch_size=batch_size,
        controls=controls,
        keep=out / "answers",
        progress=True,
    )
    print_table(f"Interventions on {loaded.name}", found.rows())
    head = {
        "model": loaded.name,
        "labels": list(suites.labels),
        "judge": judge_model or judge_api or "by form",
        "chosen": found.chosen,
        "max_cost": max_cost,
        "searched": [asdict(e) for e in (*found.searched, *found.search_controls)],
        "held out": [asdict(e) for e in (found.reported, found.control) if e is not None],
    }
    _say(save_results(out, "report", found.rows(), head, found.plot()))


def _local(said: list[str] | None) -> dict[str, Path]:
    """`TASK=PATH` of the command line.

    Raises:
        SettingError: anything else.
    """
    from assistant_axis.errors import SettingError

    found = {}
    for one in said or []:
        task, equals, path = one.partition("=")
        if not (task and equals and path):
            raise SettingError(f"--local {one}: write TASK=PATH, as in gsm8k=gsm8k_test.jsonl.")
        found[task.strip()] = Path(path).expanduser()
    return found


def _judge(kind: Any, model: str | None, api: str | None) -> Any:
    """A `LabelJudge` of this kind that is a local model or behind an endpoint; `None` if neither was named.

    Raises:
        SettingError: both.
        JudgeError, MissingExtraError: the endpoint lacks its key or its package.
    """
    from assistant_axis.errors import SettingError

    if model and api:
        raise SettingError("--judge-model and --judge-api were both given; one judge labels.")
    if api:
        from assistant_axis.judges.endpoint import Endpoint

        return kind.of_endpoint(Endpoint(api, max_tokens=40))
    if model:
        from assistant_axis.models.loading import load_model

        return kind.of_model(load_model(model))
    return None


def _rows(path: Path | None, form: str, roles: str | None = None) -> list[JailbreakPrompt]:
    """Rows of a file in one of the formats, or our mild ones; under the prompts of roles, if any are named."""
    from assistant_axis.errors import UnknownNameError
    from assistant_axis.evals.datasets import FORMATS, MILD, role_products

    if form not in FORMATS:
        raise UnknownNameError("format", form, list(FORMATS))
    found = FORMATS[form](path or MILD)
    return role_products([r.strip() for r in roles.split(",")], found) if roles else found


def _say(files: list[Path]) -> None:
    print("Written: " + ", ".join(str(f) for f in files))


def _interventions(saved: list[Path] | None, model: HookedChatModel) -> list[Any]:
    """Saved interventions, explained before anything runs."""
    from assistant_axis.steering.formats import load_intervention

    steps = [load_intervention(path, model) for path in saved or []]
    for step in steps:
        step.explain(model)
    return steps
