"""Commands on measured persona spaces: compare runs, judge the axis' stability, say what it means in traits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant_axis.cli.options import load_vectors

if TYPE_CHECKING:
    from assistant_axis.geometry.vectors import PersonaVectors

Run = Annotated[Path, typer.Argument(help="A vectors.safetensors, or the folder of a run.")]


def compare(
    runs: Annotated[list[str], typer.Argument(help="Two or more runs, or one run and a published name (qwen3-32b).")],
    layers: Annotated[str, typer.Option(help="monitoring, best, or two layers: 27,16.")] = "monitoring",
    figure: Annotated[Path, typer.Option("--figure", "-f", help="Where the figure goes (png, svg, pdf).")] = Path(
        "compare.png"
    ),
    pcs: Annotated[int, typer.Option(min=1, help="Components compared.")] = 3,
    min_count: Annotated[int | None, typer.Option(help="Drop roles with fewer rollouts.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare runs of other spans or persona sets.")] = False,
    seed: Annotated[int, typer.Option(help="Of bootstrap and permutations.")] = 0,
) -> None:
    """How alike two models order the roles, with intervals, nulls, and what sampling noise they share."""
    from assistant_axis.errors import SettingError
    from assistant_axis.geometry.published import published_names

    if len(runs) < 2:
        raise SettingError(
            f"Give at least two runs, or a run and one of the published rankings: {', '.join(published_names())}."
        )
    if len(runs) == 2 and runs[1].lower() in published_names():
        _against_published(load_vectors(Path(runs[0])), runs[1], layers, seed)
        return
    loaded = [load_vectors(Path(r)) for r in runs]
    if len(loaded) > 2:
        _several(loaded, layers, figure, pcs=pcs, min_count=min_count, force=force, seed=seed)
        return
    from assistant_axis.geometry.compare import compare as compare_runs
    from assistant_axis.plots.geometry_extra import comparison_scatter, layer_heatmap
    from assistant_axis.plots.style import save_figure

    c = compare_runs(loaded[0], loaded[1], _layers(layers), pcs=pcs, min_count=min_count, force=force, seed=seed)
    table = _table(
        f"{c.models[0]} (layer {c.layers[0]}) and {c.models[1]} (layer {c.layers[1]}; {c.chosen}): "
        f"{len(c.roles)} shared roles",
        ("", "Pearson", "95 %", "Spearman", "95 %", "p"),
    )
    named = [(f"PC{k}", x) for k, x in enumerate(c.pcs, start=1)]
    if c.held_out is not None:
        named.append(("PC1, held-out roles", c.held_out))
    for name, x in named:
        cells = (f"{x.pearson:.3f}", str(x.pearson_interval), f"{x.spearman:.3f}", str(x.spearman_interval))
        table.add_row(name, *cells, f"{x.p:.2g}")
    for name, s in (("RSA", c.rsa), ("CKA", c.cka)):
        table.add_row(name, f"{s.value:.3f}", str(s.interval), "", "", f"{s.p:.2g}")
    _print(table, "matched components: " + ", ".join(f"PC{i} ~ PC{j} ({r:+.2f})" for i, j, r in c.matched))
    if c.noise is not None:
        n = c.noise
        _print(
            f"PC1 from halves of the rollouts: same half {n.shared:.3f}, disjoint halves {n.disjoint:.3f}, reliability "
            f"{n.reliability[0]:.3f} and {n.reliability[1]:.3f}, corrected {n.corrected:.3f}. "
            "Models that read the same transcripts share their sampling noise; disjoint halves do not."
        )
    _print("furthest roles: " + ", ".join(f"{r} ({g:+.1f})" for r, g in c.outliers()))
    _print(*(f"note: {n}" for n in c.notes))
    heat = figure.with_name(f"{figure.stem}-layers{figure.suffix}")
    _wrote(save_figure(comparison_scatter(c), figure), save_figure(layer_heatmap(c), heat))


def stability(
    run: Run,
    figure: Annotated[Path, typer.Option("--figure", "-f", help="Where the figure goes (png, svg, pdf).")] = Path(
        "stability.png"
    ),
    splits: Annotated[int, typer.Option(min=1, help="Random splits of the rollouts.")] = 20,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 100,
    seed: Annotated[int, typer.Option(help="Of splits and resamples.")] = 0,
) -> None:
    """How stable the axis is at every layer, which layer to read and why, and how much data is enough."""
    from assistant_axis.geometry.layers import recommend_layer
    from assistant_axis.geometry.stability import stability as measure
    from assistant_axis.geometry.stability import stability_curve
    from assistant_axis.plots.geometry_extra import layer_choice, stability_curves, stability_layers
    from assistant_axis.plots.style import save_figure

    vectors = load_vectors(run)
    found = measure(vectors, splits=splits, resamples=resamples, seed=seed)
    choice = recommend_layer(vectors, splits=splits, seed=seed)
    table = _table(
        f"{vectors.conditions.model}, {vectors.conditions.span} span: {found.rollouts} rollouts",
        ("layer", "split-half", "95 %", "all rollouts", "bootstrap", "|cos(axis, PC1)|", "default at", "score"),
    )
    for k, r in enumerate(choice.table):
        spread = f"[{found.split_half_low[k]:.3f}, {found.split_half_high[k]:.3f}]"
        own = (f"{found.split_half[k]:.3f}", spread, f"{found.full[k]:.3f}", f"{found.bootstrap[k]:.3f}")
        style = "bold" if r.layer == choice.layer else None
        table.add_row(
            str(r.layer), *own, f"{r.axis_pc1:.3f}", f"{r.default_position:.2f}", f"{r.score:.3f}", style=style
        )
    _print(table, f"Recommended layer: {choice.layer} ({choice.reasons.why}).", *(f"note: {n}" for n in choice.notes))
    curves = [stability_curve(vectors, choice.layer, over=over, seed=seed) for over in ("roles", "rollouts")]
    for curve in curves:
        enough = curve.enough()
        said = f"{enough} are enough" if enough else "not reached with what there is"
        _print(f"Cosine .95 between axes of disjoint {curve.over}: {said} ({curve.sizes[-1]}: {curve.cosine[-1]:.3f}).")
    names = [figure, *(figure.with_name(f"{figure.stem}-{part}{figure.suffix}") for part in ("curves", "choice"))]
    plots = (stability_layers(found, chosen=choice.layer), stability_curves(*curves), layer_choice(choice))
    _wrote(*(save_figure(p, n) for p, n in zip(plots, names, strict=True)))


def traits(
    run: Run,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Default: the run's own model.")] = None,
    vectors: Annotated[Path | None, typer.Option("--traits", help="A traits.safetensors measured before.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; an interrupted run goes on from here.")] = Path(
        "traits"
    ),
    span: Annotated[str, typer.Option(help="header (generates nothing) or response.")] = "header",
    pairs: Annotated[int, typer.Option(min=1, max=5, help="Phrasings a trait.")] = 2,
    questions: Annotated[int, typer.Option(min=1, help="Questions under each phrasing.")] = 2,
    layer: Annotated[float | None, typer.Option(help="Layer index or depth; default: the model's own.")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", "-f", help="Default: traits.png in the folder.")] = None,
    seed: Annotated[int, typer.Option(help="Of question order and sampling.")] = 0,
) -> None:
    """What the axis means: trait vectors, their PCA, and their cosines with the axis of a run."""
    from assistant_axis.geometry.traits import TraitVectors
    from assistant_axis.plots.geometry_extra import trait_histogram
    from assistant_axis.plots.style import save_figure

    persona = load_vectors(run)
    if vectors is not None:
        found = TraitVectors.load(vectors)
    else:
        from assistant_axis.models.loading import load_model
        from assistant_axis.pipeline.traits import extract_trait_vectors

        loaded = load_model(model or persona.conditions.model)
        persona.check(loaded)
        found = extract_trait_vectors(loaded, span, pairs=pairs, questions_per_pair=questions, seed=seed, out=out)
    axis = persona.axis()
    at = persona.monitoring_layer if layer is None else layer
    if isinstance(at, float) and at.is_integer():
        at = int(at)
    ranking = found.ranking(axis, at)
    space = found.space(at, axis)
    trust = dict(zip(found.traits, found.reliability[:, found.layer_index(at)].tolist(), strict=True))
    title = f"{found.conditions.model}, layer {space.layer}: cosine of {len(ranking)} traits with the axis"
    table = _table(title, ("Assistant-like", "cosine", "reliability", "role-play", "cosine", "reliability"))
    many = min(12, len(ranking) // 2)
    for (a, x), (b, y) in zip(ranking[:many], ranking[::-1][:many], strict=True):
        table.add_row(a, f"{x:+.2f}", f"{trust[a]:.2f}", b, f"{y:+.2f}", f"{trust[b]:.2f}")
    along = abs(float(space.components[0] @ axis.at(at)))
    _print(table, f"{space.dimensions()} components explain 70 % of the traits; |cos(axis, trait PC1)| = {along:.2f}.")
    _wrote(save_figure(trait_histogram(found, axis, at), figure or out / "traits.png"))


def _layers(said: str) -> "tuple[int | float, int | float] | str":
    """`"27,16"` as two layers; names stay."""
    from assistant_axis.errors import SettingError

    if said in ("monitoring", "best"):
        return said
    try:
        first, second = (float(x) if "." in x else int(x) for x in said.split(","))
    except ValueError as e:
        raise SettingError(f"--layers {said!r} is not understood; write monitoring, best, or two layers: 27,16.") from e
    return first, second


def _against_published(vectors: "PersonaVectors", name: str, layers: str, seed: int) -> None:
    from assistant_axis.errors import SettingError
    from assistant_axis.geometry.published import compare_published

    if layers == "best":
        raise SettingError("A layer chosen by a published ranking flatters itself; name one, or leave it out.")
    layer = None if layers == "monitoring" else float(layers) if "." in layers else int(layers)
    c = compare_published(vectors, name, layer, seed=seed)
    _print(str(c), "furthest roles (share of ranks): " + ", ".join(f"{r} ({g:+.2f})" for r, g in c.outliers()))


def _several(loaded: "list[PersonaVectors]", layers: str, figure: Path, **options: Any) -> None:
    from assistant_axis.geometry.compare import compare_all
    from assistant_axis.plots.geometry_extra import correlation_matrix
    from assistant_axis.plots.style import save_figure

    matrix = compare_all(loaded, layers, **options)
    table = _table("PC1 role scores, Pearson r", ("", *matrix.names))
    for name, row in zip(matrix.names, matrix.pc1, strict=True):
        table.add_row(name, *(f"{v:.3f}" for v in row))
    _print(table)
    _wrote(save_figure(correlation_matrix(matrix), figure))


def _table(title: str, columns: tuple[str, ...]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right")
    return table


def _print(*things: Any) -> None:
    from rich.console import Console

    for thing in things:
        Console().print(thing, markup=False, highlight=False)


def _wrote(*paths: Path) -> None:
    _print("wrote " + ", ".join(map(str, paths)))
