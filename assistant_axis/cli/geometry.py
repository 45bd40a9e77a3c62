"""Commands on measured persona spaces: compare runs, judge the axis' stability, say what it means in traits."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant_axis.cli.options import file_in, load_vectors, parse_layers

if TYPE_CHECKING:
    from assistant_axis.geometry.controls import Correlation
    from assistant_axis.geometry.vectors import PersonaVectors

Run = Annotated[Path, typer.Argument(help="A vectors.safetensors, or the folder of a run.")]


def compare(
    runs: Annotated[list[str], typer.Argument(help="Two or more runs, or one run and a published name (qwen3-32b).")],
    layers: Annotated[
        str, typer.Option(help="monitoring, best, or two layers: 27,16 (one layer with a published name).")
    ] = "monitoring",
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
    named = [r for r in runs if r.lower() in published_names()]
    if named:
        if len(runs) != 2 or len(named) != 1:
            raise SettingError(
                f"A published ranking is compared with one run at a time: assistant-axis compare RUN {named[0]}."
            )
        own = next(r for r in runs if r != named[0])
        _against_published(load_vectors(Path(own)), named[0], layers, figure, seed)
        return
    loaded = [load_vectors(Path(r)) for r in runs]
    if len(loaded) > 2:
        _several(
            dict(zip(_short(runs), loaded, strict=True)),
            layers,
            figure,
            pcs=pcs,
            min_count=min_count,
            force=force,
            seed=seed,
        )
        return
    from assistant_axis.geometry.compare import compare as compare_runs
    from assistant_axis.plots.geometry_extra import comparison_scatter, component_matrix, layer_heatmap
    from assistant_axis.plots.style import save_figure

    c = compare_runs(loaded[0], loaded[1], _layers(layers), pcs=pcs, min_count=min_count, force=force, seed=seed)
    table = _table(
        f"{c.models[0]} (layer {c.layers[0]}) and {c.models[1]} (layer {c.layers[1]}; {c.chosen}): "
        f"{len(c.roles)} shared roles",
        ("role scores", "Pearson [95 %]", "Spearman [95 %]", "p"),
    )
    rows = [(f"PC{k}", x) for k, x in enumerate(c.pcs, start=1)]
    if c.held_out is not None:
        rows.insert(1, ("PC1, held-out roles", c.held_out))
    for name, x in rows:
        table.add_row(name, *_cells(x))
    if c.noise is not None:
        n = c.noise
        table.add_section()
        table.add_row("PC1, half the rollouts", f"{n.shared:.3f}")
        table.add_row("PC1, disjoint halves", f"{n.disjoint:.3f} {n.disjoint_interval}")
        for which, r in zip(("first", "second"), n.reliability, strict=True):
            table.add_row(f"reliability, {which}", f"{r:.3f}")
        table.add_row("PC1, corrected", f"{n.corrected:.3f} {n.corrected_interval}")
    table.add_section()
    for name, s in (("RSA", c.rsa), ("linear CKA", c.cka)):
        table.add_row(name, f"{s.value:.3f} {s.interval}", "", f"{s.p:.2g}")
    matched = _table("Matched components (largest total |r|)", (c.models[0], c.models[1], "Pearson"))
    for i, j, r in c.matched:
        matched.add_row(f"PC{i}", f"PC{j}", f"{r:+.3f}")
    _print(table)
    if c.noise is not None:
        _print(
            "Models that read the same answers share their noise, which flatters PC1. Disjoint halves share none, but each "
            "is noisier: corrected is disjoint / sqrt(reliability of the first · of the second), a half against the other."
        )
    _print(matched)
    if c.same_width is not None:
        _print(f"same width, cosines of: {c.same_width}")
    places = ((m, c.default_positions[k, 0]) for k, m in enumerate(c.models))
    _print("default on PC1 (0: the Assistant's end): " + ", ".join(f"{m} {p:.2f}" for m, p in places))
    said = (
        f"{m} {low}" + (f" to {high}, median {middle}" if high > low else "")
        for m, (low, middle, high) in zip(c.models, c.rollouts, strict=True)
    )
    _print("rollouts a role: " + ", ".join(said))
    _print("furthest roles: " + ", ".join(f"{r} ({g:+.1f})" for r, g in c.outliers()))
    _print(*(f"note: {n}" for n in c.notes))
    heat, pairs = (figure.with_name(f"{figure.stem}-{part}{figure.suffix}") for part in ("layers", "components"))
    plots = (comparison_scatter(c), layer_heatmap(c), component_matrix(c))
    _wrote(*(save_figure(p, n) for p, n in zip(plots, (figure, heat, pairs), strict=True)))


def read(
    run: Annotated[Path, typer.Argument(help="The folder of a response run: its answers are read.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Who reads: an embedded name, a hub id, or a folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: the reader's name in the run's folder.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers: 18, or 20,22,24, or 20:28 (20 to 27); default all.")
    ] = None,
    min_count: Annotated[int, typer.Option(min=1, help="Leave out roles with fewer readable answers.")] = 1,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device_map: Annotated[str | None, typer.Option(help="As in transformers, for models larger than one GPU.")] = None,
) -> None:
    """Persona vectors of one model from another's answers: a base model, or any model, reads what a run said.

    An interrupted reading goes on where it stopped.
    """
    from assistant_axis.models.loading import load_model
    from assistant_axis.pipeline.read_with import read_with

    file_in(run, "rollouts.parquet")
    reader = load_model(model, dtype=dtype, device_map=device_map)
    path = out or run / f"{reader.name.rsplit('/', 1)[-1]}.safetensors"
    parts = path.with_name(f"{path.name}.parts")
    vectors = read_with(reader, run, layers=parse_layers(layers), min_count=min_count, out=parts)
    vectors.save(path)
    shutil.rmtree(parts)
    _print(str(vectors), f"Written to {path}. Next: assistant-axis compare {run} {path}")


def precompute(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; an interrupted run goes on from here.")],
) -> None:
    """Make the vectors that ship with the package again: both embedded models, hours on two cores."""
    from assistant_axis.pipeline.precompute import precompute as make

    _wrote(*make(out).values())


def stability(
    run: Run,
    figure: Annotated[Path, typer.Option("--figure", "-f", help="Where the figure goes (png, svg, pdf).")] = Path(
        "stability.png"
    ),
    splits: Annotated[int, typer.Option(min=1, help="Random splits of the rollouts.")] = 20,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 100,
    second: Annotated[
        Path | None, typer.Option("--second", help="The same model measured again: another seed or design.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of splits, resamples and controls.")] = 0,
) -> None:
    """How stable the axis is at every layer, which layer to read and why, and how much data is enough."""
    import numpy as np

    from assistant_axis.geometry.controls import controls
    from assistant_axis.geometry.layers import recommend_layer
    from assistant_axis.geometry.stability import seeds_agree, stability_curve
    from assistant_axis.geometry.stability import stability as measure
    from assistant_axis.plots.geometry_extra import layer_choice, stability_curves, stability_layers
    from assistant_axis.plots.style import save_figure

    vectors = load_vectors(run)
    found = measure(vectors, splits=splits, resamples=resamples, seed=seed)
    choice = recommend_layer(vectors, splits=splits, seed=seed)
    table = _table(
        f"{vectors.conditions.model}, {vectors.conditions.span} span: {found.rollouts} rollouts",
        ("layer", "split-half", "2.5 %", "all", "bootstrap", "|cos PC1|", "default at", "score"),
    )
    for k, r in enumerate(choice.table):
        own = (
            f"{found.split_half[k]:.3f}",
            f"{found.split_half_low[k]:.3f}",
            f"{found.full[k]:.3f}",
            f"{found.bootstrap[k]:.3f}",
        )
        style = "bold" if r.layer == choice.layer else None
        table.add_row(
            str(r.layer), *own, f"{r.axis_pc1:.3f}", f"{r.default_position:.2f}", f"{r.score:.3f}", style=style
        )
    _print(
        table,
        "split-half: cosine of the axes of two halves of the rollouts, and its 2.5 % over splits; all: what that promises "
        "for all rollouts together; default at: its place in the roles' range on PC1, 0 is the Assistant's end.",
    )
    _print(f"Recommended layer: {choice.layer} ({choice.reasons.why}).", *(f"note: {n}" for n in choice.notes))
    beside = controls(vectors, choice.layer, seed=seed)
    table = _table(
        f"The axis at layer {choice.layer} beside {beside.pc1.shape[1]} directions that mean nothing, of each kind",
        ("direction", "|cos| with PC1", "p", "default from the mean role (SD)", "p"),
    )
    table.add_row("Assistant Axis", f"{beside.axis_pc1:.3f}", "", f"{beside.axis_gap:.2f}", "")
    for k, kind in enumerate(beside.kinds):
        p, q = beside.p(kind)
        typical = (
            f"{float(np.median(beside.pc1[k])):.3f}",
            f"{p:.2g}",
            f"{float(np.median(beside.gap[k])):.2f}",
            f"{q:.2g}",
        )
        table.add_row(kind.replace("_", " "), *typical)
    _print(table)
    if second is not None:
        again = load_vectors(second)
        held = [x for x in vectors.layers if x in again.layers]
        cosines = dict(zip(held, seeds_agree(vectors, again).tolist(), strict=True))
        here = f"{cosines[choice.layer]:.3f} at layer {choice.layer}, " if choice.layer in cosines else ""
        _print(
            f"Cosine with the axis of {second}: {here}{min(cosines.values()):.3f} to {max(cosines.values()):.3f} over layers."
        )
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
    table = _table(title, ("Assistant-like", "cosine", "halves", "role-play", "cosine", "halves"))
    many = min(12, len(ranking) // 2)
    for (a, x), (b, y) in zip(ranking[:many], ranking[::-1][:many], strict=True):
        table.add_row(a, f"{x:+.2f}", f"{trust[a]:.2f}", b, f"{y:+.2f}", f"{trust[b]:.2f}")
    along = abs(float(space.components[0] @ axis.at(at)))
    _print(table, "halves: cosine of the trait's vectors from two halves of its rollouts")
    _print(f"{space.dimensions()} components explain 70 % of the traits; |cos(axis, trait PC1)| = {along:.2f}.")
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


def _against_published(vectors: "PersonaVectors", name: str, layers: str, figure: Path, seed: int) -> None:
    from assistant_axis.errors import SettingError
    from assistant_axis.geometry.published import compare_published
    from assistant_axis.plots.persona import against_published
    from assistant_axis.plots.style import save_figure

    if layers == "best":
        raise SettingError("A layer chosen by a published ranking flatters itself; name one, or leave it out.")
    try:
        layer = None if layers == "monitoring" else float(layers) if "." in layers else int(layers)
    except ValueError as e:
        raise SettingError(f"--layers {layers!r}: against a published ranking write one layer, such as 20.") from e
    c = compare_published(vectors, name, layer, seed=seed)
    table = _table(
        f"{c.model}, layer {c.layer}, against {c.published}: {len(c.roles)} shared roles",
        ("", "Pearson [95 %]", "Spearman [95 %]", "p"),
    )
    rows = [("PC1, cosine scores", c.pc1), ("axis, centred", c.axis)]
    for k, (pc1, axis) in enumerate(c.halves, start=1):
        rows += [(f"PC1, half {k}", pc1), (f"axis, half {k}", axis)]
    for k, (label, x) in enumerate(rows):
        table.add_row(label, *_cells(x), end_section=k == 1)
    _print(
        table,
        "halves: PC1 and axis fitted from that half of the roles alone, and compared on it",
        "furthest roles (share of ranks): " + ", ".join(f"{r} ({g:+.2f})" for r, g in c.outliers()),
    )
    if c.missing:
        _print(f"note: the run lacks {len(c.missing)} of the published roles: {', '.join(c.missing[:5])}")
    plot = against_published(
        dict(zip(c.roles, c.scores.tolist(), strict=True)),
        dict(zip(c.roles, c.figures.tolist(), strict=True)),
        f"{c.published}: raw projection on its axis",
        score_label="cosine with PC1",
        conditions=vectors.conditions,
        layer=c.layer,
    )
    _wrote(save_figure(plot, figure))


def _several(loaded: "dict[str, PersonaVectors]", layers: str, figure: Path, **options: Any) -> None:
    from assistant_axis.geometry.compare import compare_all
    from assistant_axis.plots.geometry_extra import correlation_matrix
    from assistant_axis.plots.style import save_figure

    matrix = compare_all(loaded, layers, **options)
    tables = (
        ("PC1 role scores, Pearson r", matrix.pc1),
        ("the same, Spearman r", matrix.spearman),
        ("linear CKA", matrix.cka),
    )
    for title, values in tables:
        table = _table(title, ("", *matrix.names))
        for name, row in zip(matrix.names, values, strict=True):
            table.add_row(name, *(f"{v:.3f}" for v in row))
        _print(table)
    for (a, b), c in matrix.pairs.items():
        noise = (
            "" if c.noise is None else f", disjoint halves {c.noise.disjoint:.3f}, corrected {c.noise.corrected:.3f}"
        )
        _print(
            f"{a} (layer {c.layers[0]}) and {b} (layer {c.layers[1]}): {c.pcs[0].pearson:.3f} {c.pcs[0].pearson_interval}{noise}"
        )
    _print(*dict.fromkeys(f"note: {n}" for c in matrix.pairs.values() for n in c.notes))
    _wrote(save_figure(correlation_matrix(matrix), figure))


def _short(runs: list[str]) -> list[str]:
    """A name for each run: its folder's, or its file's where that says more; the whole path where two are alike."""
    paths = [Path(r).resolve() for r in runs]
    names = [p.parent.name if p.name == "vectors.safetensors" else p.stem for p in paths]
    return names if len(set(names)) == len(names) else [f"{k}: {r}" for k, r in enumerate(runs, start=1)]


def _cells(x: "Correlation") -> tuple[str, str, str]:
    """Both coefficients with their intervals, and p."""
    return f"{x.pearson:.3f} {x.pearson_interval}", f"{x.spearman:.3f} {x.spearman_interval}", f"{x.p:.2g}"


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
