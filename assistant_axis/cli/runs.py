"""`assistant-axis run`: a run from a configuration, and how far one is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup


class _OrStart(TyperGroup):
    """`run CONFIG …` is short for `run start CONFIG …`."""

    def parse_args(self, ctx, args):  # the signature is the library's
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["start", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_OrStart,
    no_args_is_help=True,
    help="Runs that survive: [bold]run CONFIG --out RUN[/bold] plans, generates, judges, reads and reports; start it again to go on.",
)


@app.command()
def start(
    config: Annotated[str, typer.Argument(help="A YAML file, or a preset: instant, laptop, paper.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The run's folder: local, or s3://, gs://, …")],
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; may be given several times.")] = None,
    redo: Annotated[list[str] | None, typer.Option(help="Throw this stage's files away first.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Another model than the configuration's.")] = None,
    engine: Annotated[str | None, typer.Option(help="local or ray.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before an API judge spends money.")] = False,
) -> None:
    """Carry out a run or what is left of it: plan, generate, judge, activations, vectors, axis, report.

    Exit codes: 0 done, 1 a mistake in what was asked, 3 shards failed after a retry, 130 interrupted.
    """
    from assistant_axis.errors import WorkerError
    from assistant_axis.runs.config import load_config
    from assistant_axis.runs.run import run

    changes: dict = {k: v for k, v in {"model": model}.items() if v is not None}
    settings = load_config(config, **changes)
    if engine is not None:
        settings = load_config(
            {**settings.model_dump(mode="json"), "engine": {**settings.engine.model_dump(), "kind": engine}}
        )
    if settings.judged and settings.judge.kind == "api" and not yes and (stage is None or "judge" in stage):
        from assistant_axis.runs.run import Run

        before = [s for s in ("plan", "generate") if stage is None or s in stage]
        done: Run = run(settings, out, stages=before, redo=redo or (), say=_say)
        done.estimate(_say)
        typer.confirm("Go on?", abort=True)
        redo = None
    try:
        run(settings, out, stages=stage, redo=redo or (), say=_say)
    except WorkerError as e:
        print(f"Error: {e}", file=sys.stderr)
        raise typer.Exit(3) from e
    print(f"See {out}, and: assistant-axis run status {out}")


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    check: Annotated[bool, typer.Option("--check", help="Read every file and compare its checksum.")] = False,
) -> None:
    """How far each stage of a run is, what failed, and how many rollouts of each role count."""
    from rich.console import Console
    from rich.table import Table

    from assistant_axis.cli.judges import show_yield
    from assistant_axis.errors import IntegrityError
    from assistant_axis.runs.run import Run

    found = Run.open(str(run))
    c = found.config
    rows = found.status(check=check)
    table = Table(
        "stage", "state", "files", "note", title=f"{run}: {c.model}, {c.span}, {len(found.plan.asks):,} rollouts"
    )
    for s in rows:
        table.add_row(s.name, s.state, f"{s.done:,} of {s.total:,}" if s.total else "", s.note)
    console = Console()
    console.print(table)
    if c.judged and all(s.state == "done" for s in rows if s.name == "judge"):
        try:
            show_yield(found.yields())
        except IntegrityError as e:
            console.print(f"No yield: {e}")
    if any("failed" in s.note or s.state == "damaged" for s in rows):
        raise typer.Exit(3)


def _say(line: str) -> None:
    print(line, flush=True)
