"""Evaluations of an intervention: what it gains and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant_axis.cli.options import DEFAULT_MODEL, ModelOption, print_table

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

app = typer.Typer(no_args_is_help=True, help="Evaluations: what an intervention gains and what it costs.")

CapOption = Annotated[
    list[Path] | None, typer.Option("--cap", "-c", help="A saved intervention (.safetensors); several act together.")
]


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
    fewshot: Annotated[int | None, typer.Option(help="Examples before each item; default: as the task says.")] = None,
    include_path: Annotated[list[Path] | None, typer.Option(help="Folders with further task files.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt for every item.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that the harness draws.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the harness' result files.")] = None,
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
        out=out,
    )
    print_table(f"Capability of {loaded.name}", found.rows())
    if out is not None:
        print(f"Results of the harness in {out}")


def _interventions(saved: list[Path] | None, model: HookedChatModel) -> list[Any]:
    """Saved interventions, explained before anything runs."""
    from assistant_axis.steering.formats import load_intervention

    steps = [load_intervention(path, model) for path in saved or []]
    for step in steps:
        step.explain(model)
    return steps
