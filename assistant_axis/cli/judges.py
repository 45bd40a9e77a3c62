"""`assistant-axis judge`: score rollouts, and compare judges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assistant_axis.cli.options import DEFAULT_MODEL, file_in

if TYPE_CHECKING:
    from assistant_axis.judges.base import Judge, Yield
    from assistant_axis.personas.rollouts import Rollout

app = typer.Typer(
    no_args_is_help=True, help="Who decides whether an answer is in role: score rollouts, compare judges."
)


@app.command()
def score(
    rollouts: Annotated[Path, typer.Argument(help="rollouts.parquet, or a run's folder that holds it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the scores are written, as Parquet.")],
    judge: Annotated[str, typer.Option(help="likelihood, model or api.")] = "likelihood",
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model that answered (likelihood), or the one that judges.")
    ] = DEFAULT_MODEL,
    concurrency: Annotated[int, typer.Option(help="Requests at a time (api).")] = 8,
    prices: Annotated[
        str | None, typer.Option(help="Price of a million tokens in and out, as 0.5,1.5 (api), for the estimate.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before money is spent (api).")] = False,
) -> None:
    """Score every answer of every role from 0 (refuses) to 3 (in role); failures are listed, never dropped."""
    from assistant_axis.judges.base import key_of, write_scores, yield_table
    from assistant_axis.personas.library import DEFAULT
    from assistant_axis.personas.rollouts import read_rollouts

    check_kind(judge, concurrency=concurrency)
    said = read_rollouts(file_in(rollouts, "rollouts.parquet"))
    asked = [r for r in said if r.role != DEFAULT]
    found = build(judge, model, said, concurrency, prices)
    if judge == "api":
        from assistant_axis.judges.api import APIJudge

        assert isinstance(found, APIJudge)
        print(found.estimate(asked))
        if not yes:
            typer.confirm("Go on?", abort=True)
    scores = {key_of(r): s for r, s in zip(asked, found.score(asked), strict=True)}
    write_scores(out, scores)
    show_yield(yield_table(scores))
    print(f"Written to {out}.")


@app.command()
def agree(
    first: Annotated[Path, typer.Argument(help="Scores of one judge: Parquet, CSV or JSONL.")],
    second: Annotated[Path, typer.Argument(help="Scores of another, or people's labels.")],
) -> None:
    """How far two judges agree: confusion matrix and Cohen's kappa over the rollouts that both scored."""
    from rich.console import Console
    from rich.table import Table

    from assistant_axis.judges import agreement, read_scores

    found = agreement.agree(read_scores(first), read_scores(second))
    table = Table(found.names[0] + " ↓", *(str(k) for k in range(4)), title=f"columns: {found.names[1]}")
    for k, row in enumerate(found.confusion.tolist()):
        table.add_row(str(k), *(str(n) for n in row))
    console = Console()
    console.print(table)
    console.print(str(found))
    if found.only_first or found.only_second:
        console.print(f"Scored by one of them only: {found.only_first} and {found.only_second}.")


def check_kind(judge: str, **limits: float) -> None:
    """Refuse what cannot work before any model is loaded.

    Raises:
        SettingError: an unknown judge.
        JudgeError, MissingExtraError: the API judge lacks its key or its package.
    """
    from assistant_axis.errors import UnknownNameError
    from assistant_axis.judges.endpoint import require_api

    if judge not in ("likelihood", "model", "api"):
        raise UnknownNameError("judge", judge, ["likelihood", "model", "api"])
    if judge == "api":
        require_api(**limits)


def build(judge: str, model: str, said: Sequence[Rollout], concurrency: int, prices: str | None) -> Judge:
    """The judge of a command line."""
    from assistant_axis.errors import SettingError
    from assistant_axis.judges import APIJudge, LikelihoodJudge, ModelJudge
    from assistant_axis.models.loading import load_model
    from assistant_axis.personas.library import DEFAULT

    if judge == "api":
        try:
            pair = None if prices is None else tuple(float(x) for x in prices.split(","))
        except ValueError:
            pair = ()
        if pair is not None and len(pair) != 2:
            raise SettingError(f"--prices {prices}: write two numbers, as in 0.5,1.5.")
        return APIJudge(model, concurrency=concurrency, prices=pair)
    loaded = load_model(model)
    if judge == "model":
        return ModelJudge(loaded)
    default = [r for r in said if r.role == DEFAULT]
    return LikelihoodJudge.calibrated(loaded, default, (r.system for r in said if r.role != DEFAULT))


def show_yield(rows: Sequence[Yield], most: int = 20) -> None:
    """The thinnest roles, and the sums over all."""
    from rich.console import Console
    from rich.table import Table

    table = Table("role", "0", "1", "2", "3", "no score", title=f"Rollouts by score, {len(rows)} roles")
    for row in rows[:most]:
        why = ", ".join(f"{n} {what}" for what, n in row.failures.items())
        table.add_row(row.role, *(str(n) for n in row.scores), why or "0")
    if len(rows) > most:
        table.add_row("…", *["…"] * 5)
    sums = [sum(r.scores[k] for r in rows) for k in range(4)]
    failed = sum(sum(r.failures.values()) for r in rows)
    table.add_row("[bold]all[/bold]", *(str(n) for n in sums), str(failed))
    Console().print(table)
