"""One self-contained HTML page from a run: pictures inside, no script, no request; light, dark, print, phone."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from assistant_axis._version import __version__
from assistant_axis.activations.store import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from assistant_axis.drift.trajectory import Trajectory
    from assistant_axis.geometry.axis import AssistantAxis
    from assistant_axis.geometry.published import PublishedComparison, PublishedRanking
    from assistant_axis.geometry.space import PersonaSpace
    from assistant_axis.geometry.vectors import PersonaVectors

SHARES = (0.7, 0.8, 0.9)
ENDS = 10


@dataclass(frozen=True)
class Note:
    """A short remark in a box."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header.

    Attributes:
        header: names of the columns; may be empty.
        rows: the cells; floats are written with two decimals.
        caption: under what conditions the numbers were measured.
        collapsed: the line that opens the table, if it should be closed at first.
        strong: indices of rows that stand out.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""
    collapsed: str = ""
    strong: tuple[int, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure (set as SVG in the page's own colours) or the bytes of a PNG.

    Attributes:
        source: the figure, or PNG bytes.
        caption: what is seen, and under what conditions.
        alt: what a screen reader says; default: the caption.
    """

    source: "Figure | bytes"
    caption: str
    alt: str = ""


@dataclass(frozen=True)
class Answers:
    """Answers to one prompt, side by side.

    Attributes:
        title: of the comparison.
        prompt: what was asked.
        answers: pairs (condition, text), the unsteered one first.
        caption: under what conditions they were generated.
    """

    title: str
    prompt: str
    answers: Sequence[tuple[str, str]]
    caption: str = ""


Block: TypeAlias = Note | Table | Picture | Answers


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph and what follows it."""

    title: str
    blocks: Sequence[Block] = ()
    text: str = ""


def write_report(
    path: str | Path,
    sections: Iterable[Section],
    *,
    title: str = "Assistant Axis",
    lead: Sequence[str] = (),
    facts: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write one HTML page that opens offline, in one atomic step; every text is escaped.

    Args:
        path: of the page.
        sections: in order.
        title: of the page.
        lead: paragraphs under the title.
        facts: pairs (what, value) that are seen at a glance, below the lead.

    Returns:
        The path written.
    """
    from jinja2 import Environment, StrictUndefined

    source = resources.files("assistant_axis").joinpath("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(source)
    ready = [
        {"title": s.title, "text": s.text, "blocks": [_ready(b, f"p{i}-{k}") for k, b in enumerate(s.blocks)]}
        for i, s in enumerate(sections)
    ]
    page = template.render(title=title, lead=list(lead), facts=list(facts), sections=ready)
    target = Path(path)
    with atomic(target) as scratch:
        # A lone surrogate in a generated answer must not cost the report.
        scratch.write_text(page, encoding="utf-8", errors="replace")
    return target


def persona_report(
    path: str | Path,
    vectors: "PersonaVectors",
    *,
    axis: "AssistantAxis | None" = None,
    layer: int | float | None = None,
    published: "PublishedComparison | PublishedRanking | Mapping[str, float] | None" = None,
    answers: Sequence[Answers | tuple[str, str, Sequence[tuple[str, str]]]] | None = None,
    trace: "Trajectory | Mapping[str, Trajectory] | None" = None,
    floor: float | None = None,
    more: Sequence[Section] = (),
    title: str | None = None,
) -> Path:
    """The standard report of a run.

    Args:
        path: of the page.
        vectors: the run's persona vectors.
        axis: the Assistant Axis; default: the vectors' own.
        layer: index or depth that tables and maps are of; default: the monitoring layer.
        published: a comparison made already, a published ranking, or role → figure (positive: Assistant-like).
        answers: comparisons of answers (unsteered, steered, capped, random direction).
        trace: one conversation along the axis, or several by name.
        floor: a cap's floor (raw) to draw in the trace.
        more: sections before the conditions.
        title: of the page.

    Returns:
        The path written.

    Raises:
        LayerError: the layer is not held.
        GeometryError: too few roles for a persona space, or too few shared with `published`.
    """
    axis = vectors.axis() if axis is None else axis
    layer = vectors.layers[vectors.layer_index(vectors.monitoring_layer if layer is None else layer)]
    space = vectors.space(layer)
    spaces = {x: space if x == layer else vectors.space(x) for x in vectors.layers}
    said = vectors.conditions
    lead = (
        f"This page shows which directions {said.model} uses to tell {len(vectors.roles)} personas apart, and the Assistant "
        "Axis among them: the direction from the mean of all roles to the model's default self.",
        "Positive numbers are Assistant-like everywhere; every figure says under what conditions it was measured.",
    )
    sections = [
        _roles(vectors, axis, space),
        _dimensions(space, spaces, layer),
        _published(vectors, axis, spaces, layer, published),
    ]
    if answers:
        blocks = [a if isinstance(a, Answers) else Answers(*a) for a in answers]
        text = "The same prompt under different conditions. A random direction of equal norm is the control: what it does too is not the axis's doing."
        sections.append(Section("Steered and capped answers", blocks, text))
    if trace is not None:
        sections.append(_trace(trace, floor))
    sections += [*more, _conditions(vectors, axis)]
    facts = [
        ("roles", str(len(vectors.roles))),
        ("layer", f"{layer} of {said.n_layers}"),
        ("components for 70 % of variance", str(space.dimensions(0.7))),
        ("|cos(axis, PC1)|", f"{space.axis_cosine():.2f}"),
        ("default on PC1 (0: Assistant's end)", f"{space.default_position():.2f}"),
    ]
    kept = [s for s in sections if s]
    return write_report(path, kept, title=title or f"Personas of {said.model}", lead=lead, facts=facts)


# -- sections ----------------------------------------------------------------------------------------------------------


def _roles(vectors: "PersonaVectors", axis: "AssistantAxis", space: "PersonaSpace") -> Section:
    from assistant_axis.plots.persona import role_map, role_ranking
    from assistant_axis.plots.style import readable

    k, layer = vectors.layer_index(space.layer), space.layer
    along = axis.project(vectors.vectors[:, k], layer, centered=True)
    scores = space.scores()
    rows = [
        (place, readable(vectors.roles[i]), float(along[i]), float(scores[i]), int(vectors.counts[i]))
        for place, i in enumerate(along.argsort(descending=True).tolist(), start=1)
    ]
    default = (
        "",
        "default",
        float(axis.project(vectors.default[k], layer, centered=True)),
        space.default_score(1, "cosine"),
        vectors.default_count,
    )
    header = ("#", "role", "projection on the axis", "cosine with PC1", "rollouts")
    under = _line(vectors, layer, "projection centred by the role mean, in activation units")
    few = len(rows) <= 2 * ENDS
    ends = rows if few else [*rows[:ENDS], ("…", "…", "…", "…", "…"), *rows[-ENDS:]]
    every = Table(header, (default, *rows), under, collapsed=f"All {len(rows)} roles", strong=(0,))
    where = space.default_position()
    return Section(
        "The roles along the Assistant Axis",
        [
            Table(header, (default, *ends), under, strong=(0,)),
            *([] if few else [every]),
            Picture(role_ranking(vectors, axis, layer=layer), under),
            Picture(
                role_map(space), _line(vectors, layer, "principal components of the role vectors, centred projections")
            ),
        ],
        f"Ordered by their projection on the axis at layer {layer}. On PC1 the default stands at {where:.2f}, "
        "where 0 is the Assistant's end of the roles and 1 the other.",
    )


def _dimensions(space: "PersonaSpace", spaces: Mapping[int, "PersonaSpace"], layer: int) -> Section:
    from assistant_axis.plots.persona import axis_cosines, scree
    from assistant_axis.plots.style import describe

    cosines = {x: s.axis_cosine() for x, s in spaces.items()}
    rows = tuple(
        (x, *(s.dimensions(share) for share in SHARES), float(s.variance[0]) * 100, cosines[x])
        for x, s in spaces.items()
    )
    count = f"n = {len(space.roles)} roles"
    header = ("layer", "dimensions for 70 %", "80 %", "90 %", "variance of PC1 (%)", "|cos(axis, PC1)|")
    cosine = axis_cosines(list(cosines.values()), list(cosines), marked=layer)
    return Section(
        "How many dimensions, and is the axis the first of them?",
        [
            Picture(scree(space), describe(space.conditions, f"layer {layer}", count, "centred PCA, not scaled")),
            Picture(cosine, describe(space.conditions, count, f"layer {layer} marked")),
            Table(
                header,
                rows,
                describe(space.conditions, count),
                collapsed="Every layer in numbers",
                strong=tuple(i for i, x in enumerate(spaces) if x == layer),
            ),
        ],
        f"{space.dimensions(0.7)} components explain 70 % of the variance of the role vectors at layer {layer}; "
        f"|cos(axis, PC1)| is {cosines[layer]:.2f} there.",
    )


def _published(
    vectors: "PersonaVectors",
    axis: "AssistantAxis",
    spaces: Mapping[int, "PersonaSpace"],
    layer: int,
    published: Any,
) -> Section | None:
    if published is None:
        return None
    import numpy as np

    from assistant_axis.geometry.controls import correlate
    from assistant_axis.plots.persona import against_published
    from assistant_axis.plots.style import describe

    name, figures, halves = _figures(published)
    shared = [r for r in vectors.roles if r in figures]
    there = np.array([figures[r] for r in shared])
    at = [vectors.roles.index(r) for r in shared]
    scores = {x: s.scores()[at].numpy().astype(np.float64) for x, s in spaces.items()}
    space = spaces[layer]
    picture = against_published(
        dict(zip(shared, scores[layer].tolist(), strict=True)),
        figures,
        f"published projection, raw ({name})",
        score_label="cosine with PC1, centred (this run)",
        conditions=vectors.conditions,
        layer=layer,
    )
    along = (
        axis.project(vectors.vectors[at, vectors.layer_index(layer)], layer, centered=True).numpy().astype(np.float64)
    )
    rows: list[tuple[Any, ...]] = []
    for what, values in (("PC1 (cosine)", scores[layer]), ("axis (centred projection)", along)):
        found = correlate(values, there)
        rows.append((what, "all shared", found.n, found.spearman, str(found.spearman_interval), found.pearson))
    if halves is None:  # PC1 and axis of all roles, read on every other role by name
        order = np.argsort(np.array(shared), kind="stable")
        halves = []
        for part in (order[::2], order[1::2]):
            if len(part) >= 3:
                halves.append((correlate(scores[layer][part], there[part]), correlate(along[part], there[part])))
        how = "halves: every other shared role by name, directions from all roles"
    else:
        how = "halves: PC1 and axis fitted again from each half alone"
    for k, (pc1, own) in enumerate(halves, start=1):
        rows.append(("PC1 (cosine)", f"half {k}", pc1.n, pc1.spearman, str(pc1.spearman_interval), pc1.pearson))
        rows.append(
            ("axis (centred projection)", f"half {k}", own.n, own.spearman, str(own.spearman_interval), own.pearson)
        )
    header = ("this run's", "roles", "n", "Spearman", "95 % interval", "Pearson")
    by_layer = tuple((x, _spearman(v, there)) for x, v in scores.items())
    under = describe(vectors.conditions, f"layer {layer}", f"n = {len(shared)} shared roles", how)
    return Section(
        f"Against the published ranking of {name}",
        [
            Picture(picture, under),
            Table(header, tuple(rows), under),
            Table(
                ("layer", "Spearman of PC1 scores"),
                by_layer,
                describe(
                    vectors.conditions, f"n = {len(shared)} shared roles", "cosine scores; not used to choose the layer"
                ),
                collapsed="Every layer",
                strong=tuple(i for i, x in enumerate(spaces) if x == layer),
            ),
        ],
        f"Spearman's rank correlation of this run's PC1 scores at layer {space.layer} with the published projections of "
        f"{name}: {rows[0][3]:.3f}.",
    )


def _figures(published: Any) -> tuple[str, dict[str, float], Any]:
    """Name, role → figure, and correlations of two halves if they were made already."""
    if isinstance(published, Mapping):
        return "a published model", {str(k): float(v) for k, v in published.items()}, None
    if hasattr(published, "halves"):
        return (
            published.published,
            dict(zip(published.roles, published.figures.tolist(), strict=True)),
            published.halves,
        )
    return published.name, dict(published.ranking()), None


def _spearman(x: Any, y: Any) -> float:
    import numpy as np
    from scipy.stats import spearmanr

    return float("nan") if np.ptp(x) == 0 or np.ptp(y) == 0 else float(np.asarray(spearmanr(x, y))[0])


def _trace(trace: Any, floor: float | None) -> Section:
    from assistant_axis.plots.drift import drift_trace

    traces = dict(trace) if isinstance(trace, Mapping) else {"": trace}
    blocks: list[Block] = []
    first = next(iter(traces.values()))
    layer = first.layers[0]
    under = f"{first.model} · layer {layer} · {first.span} span · {first.reading} interventions · raw projection, activation units"
    blocks.append(Picture(drift_trace(trace, layer=layer, floor=floor), under))
    for name, one in traces.items():
        said = one.of("assistant")
        values = one.means(layer).tolist()
        places = one.percentiles(layer).tolist()
        rows = tuple(
            (k, v, p, t.content or "(about to be said)")
            for k, (t, v, p) in enumerate(zip(said, values, places, strict=True), 1)
        )
        header = ("turn", "raw projection", "percentile of all roles' rollouts", "what is said")
        blocks.append(Table(header, rows, f"{name} · {under}" if name else under))
        blocks += [Note(w) for w in one.warnings]
    return Section(
        "The drift of a conversation", blocks, "Where the model stands on the axis, assistant turn by assistant turn."
    )


def _conditions(vectors: "PersonaVectors", axis: "AssistantAxis") -> Section:
    rows = [(k.replace("_", " "), str(v)) for k, v in vectors.conditions.as_dict().items() if str(v)]
    rows += [
        ("roles", str(len(vectors.roles))),
        ("rollouts", f"{int(vectors.counts.sum())} of roles, {vectors.default_count} of the default"),
        ("layers held", str(len(vectors.layers))),
        ("axis", axis.method),
        ("report written by", f"assistant-axis {__version__}"),
    ]
    return Section(
        "Conditions",
        [Table(("", ""), tuple(rows))],
        "What these numbers depend on; the same lines travel in every artefact.",
    )


def _line(vectors: "PersonaVectors", layer: int, what: str) -> str:
    from assistant_axis.plots.style import describe

    return describe(
        vectors.conditions, f"layer {layer}", f"n = {len(vectors.roles)} roles", vectors.conditions.design, what
    )


# -- blocks for the template -------------------------------------------------------------------------------------------


def _ready(block: Block, prefix: str) -> dict[str, Any]:
    if isinstance(block, Note):
        return {"kind": "note", "text": block.text}
    if isinstance(block, Answers):
        pairs = [(label, text.strip()) for label, text in block.answers]
        return {
            "kind": "answers",
            "title": block.title,
            "prompt": block.prompt,
            "answers": pairs,
            "caption": block.caption,
        }
    if isinstance(block, Picture):
        return {"kind": "picture", "markup": _markup(block, prefix), "caption": block.caption}
    width = max((len(r) for r in block.rows), default=len(block.header))
    numeric = [any(isinstance(r[k], (int, float)) for r in block.rows if k < len(r)) for k in range(width)]
    rows = [{"cells": [_cell(c) for c in row], "strong": i in block.strong} for i, row in enumerate(block.rows)]
    header = block.header if any(block.header) else ()
    return {
        "kind": "table",
        "header": header,
        "rows": rows,
        "numeric": numeric,
        "caption": block.caption,
        "collapsed": block.collapsed,
    }


def _markup(picture: Picture, prefix: str) -> Any:
    from markupsafe import Markup

    from assistant_axis.plots.style import inline_svg

    said = picture.alt or picture.caption
    if isinstance(picture.source, bytes):
        data = base64.b64encode(picture.source).decode("ascii")
        return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(said, data)
    return Markup(inline_svg(picture.source, prefix, said))  # text in it was escaped by matplotlib


def _cell(value: Any) -> str:
    if isinstance(value, float):
        said = f"{value:.2f}"
        return "–" if value != value else "0.00" if said == "-0.00" else said.replace("-", "−")
    return str(value)
