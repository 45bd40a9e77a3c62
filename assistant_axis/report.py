"""One self-contained HTML page about a run: pictures inside, nothing fetched, printable, light and dark."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assistant_axis._version import __version__
from assistant_axis.activations.store import atomic
from assistant_axis.geometry.vectors import PersonaVectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from assistant_axis.drift.trajectory import Trajectory
    from assistant_axis.geometry.published import PublishedComparison


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows in words, for those who cannot see it."""

    figure: "Figure"
    alt: str


@dataclass(frozen=True)
class Table:
    """Rows under a header; `folded` hides them behind their title until asked for."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Answers:
    """One prompt answered under several conditions, side by side: (condition, text) pairs."""

    title: str
    prompt: str
    answers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and what stands under it."""

    title: str
    text: str
    parts: tuple[Picture | Table | Answers, ...] = ()


def write_report(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write sections as one HTML file, in one atomic step.

    Everything is escaped; figures are inlined as PNG; the page makes no request of any kind.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("assistant_axis", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = _png
    environment.tests["picture"] = lambda part: isinstance(part, Picture)
    environment.tests["table"] = lambda part: isinstance(part, Table)
    page = environment.get_template("report.html.j2").render(
        title=title, lead=lead, sections=sections, version=__version__
    )
    with atomic(path) as scratch:
        scratch.write_text(page, encoding="utf-8")
    return Path(path)


def persona_report(
    path: str | Path,
    vectors: PersonaVectors,
    *,
    published: "PublishedComparison | None" = None,
    answers: Sequence[Answers] = (),
    trace: "Trajectory | None" = None,
) -> Path:
    """The standard report of a run: roles along the axis, the space, agreement, answers, drift, conditions.

    Args:
        path: the HTML file.
        vectors: the run.
        published: a comparison with a published ranking.
        answers: answers under interventions, side by side.
        trace: a conversation along the axis.
    """
    c = vectors.conditions
    sections = [_roles(vectors), _space(vectors)]
    if published is not None:
        sections.append(_agreement(published))
    if answers:
        text = (
            "The same prompts, answered greedily under each condition. A random direction of equal norm shows what any push "
            "of this size does; the axis should do more than that."
        )
        sections.append(Section("What steering and capping do", text, tuple(answers)))
    if trace is not None:
        sections.append(_drift(trace))
    sections.append(_conditions(vectors))
    lead = (
        f"Where {c.model} stands among {len(vectors.roles)} characters: its residual stream was averaged over "
        f"{int(vectors.counts.sum()) + vectors.default_count} prompts, asked as each character and as itself. The Assistant Axis "
        "is the model's default persona minus the mean of the characters; positive is Assistant-like everywhere."
    )
    return write_report(path, f"Persona space of {c.model}", lead, sections)


def _roles(vectors: PersonaVectors) -> Section:
    from assistant_axis.plots import persona

    layer = vectors.monitoring_layer
    axis, space = vectors.axis(), vectors.space(layer)
    k = axis.layer_index(layer)
    projections = axis.project(vectors.vectors[:, k], layer, centered=True)
    raw = axis.project(vectors.vectors[:, k], layer)
    cosine = space.scores(1)
    order = projections.argsort(descending=True).tolist()
    rows = tuple(
        (
            str(place + 1),
            vectors.roles[r],
            f"{float(projections[r]):+.2f}",
            f"{float(raw[r]):+.2f}",
            f"{float(cosine[r]):+.3f}",
            str(int(vectors.counts[r])),
        )
        for place, r in enumerate(order)
    )
    header = ("#", "role", "centred projection", "raw projection", "cosine with PC1", "rollouts")
    default = float(axis.project(vectors.default[k], layer, centered=True))
    beyond = int((projections > default).sum())
    text = (
        f"Layer {layer}. The default persona projects to {default:+.2f} (centred, activation units); "
        f"{beyond} of {len(vectors.roles)} roles lie further toward the Assistant's end."
    )
    ends = Table(header, rows[:10] + rows[-10:], "The ten roles at each end")
    return Section(
        "Roles along the Assistant Axis",
        text,
        (
            Picture(persona.role_ranking(space), "Histogram of the roles along PC1 with the default marked"),
            ends,
            Table(header, rows, f"All {len(rows)} roles", folded=True),
        ),
    )


def _space(vectors: PersonaVectors) -> Section:
    from assistant_axis.plots import persona

    space = vectors.space()
    rows = []
    for layer in vectors.layers:
        s = vectors.space(layer)
        dims = " / ".join(str(s.dimensions(x)) for x in (0.7, 0.8, 0.9))
        mark = " (monitoring)" if layer == vectors.monitoring_layer else ""
        rows.append((f"{layer}{mark}", f"{s.axis_cosine():.2f}", dims, f"{s.default_position():.2f}"))
    header = ("layer", "|cos(axis, PC1)|", "components for 70 / 80 / 90 %", "default on PC1")
    text = (
        f"At layer {space.layer}, {space.dimensions(0.7)} components explain 70 % of the variance of the role vectors, and the "
        f"first has |cos| {space.axis_cosine():.2f} with the Assistant Axis. On PC1 the default lies at {space.default_position():.2f} "
        "of the roles' range (0 is the Assistant's end, 1 the other)."
    )
    return Section(
        "The persona space",
        text,
        (
            Picture(persona.role_map(space), "Roles on the first two principal components"),
            Picture(persona.scree(space), "Cumulative variance of the components"),
            Picture(persona.axis_cosines(vectors), "Cosine of axis and first component by layer"),
            Table(header, tuple(rows), "Layer by layer", folded=True),
        ),
    )


def _agreement(comparison: "PublishedComparison") -> Section:
    from assistant_axis.plots import persona

    text = (
        f"The published ranking of {comparison.published} and this run order {len(comparison.roles)} roles with Spearman "
        f"{comparison.pc1.spearman:.3f} (PC1, cosine scores) and {comparison.axis.spearman:.3f} (axis projections). Fitted and "
        "compared on two disjoint halves of the roles alone: "
        + " and ".join(f"{pc1.spearman:.3f}" for pc1, _ in comparison.halves)
        + "."
    )
    picture = Picture(persona.against_published(comparison), "Role scores here against the published ones")
    return Section("Agreement with a published model", text, (picture,))


def _drift(trace: "Trajectory") -> Section:
    from assistant_axis.plots.drift import drift_trace

    rows = tuple(
        (
            str(r["turn"] + 1),
            str(r["role"]),
            f"{r['raw']:+.2f}",
            f"{r['centered']:+.2f}",
            f"{r['percentile']:.0f}",
            t.content,
        )
        for r, t in zip((r for r in trace.rows() if r["layer"] == trace.layers[0]), trace.turns, strict=True)
    )
    header = ("turn", "role", "raw", "centred", "percentile", "what was said")
    text = "A short conversation with the model: each turn's place on the axis, and among the calibration rollouts."
    return Section(
        "Drift",
        " ".join([text, *trace.warnings]),
        (Picture(drift_trace(trace), "Projection of each assistant turn"), Table(header, rows, "Turn by turn")),
    )


def _conditions(vectors: PersonaVectors) -> Section:
    said = {**vectors.conditions.as_dict(), "rollouts of the default": vectors.default_count}
    said["rollouts a role"] = f"{int(vectors.counts.min())} to {int(vectors.counts.max())}"
    said["lowest integrity cosine of the axis"] = f"{float(vectors.axis().integrity().min()):.4f}"
    rows = tuple((key.replace("_", " "), str(value)) for key, value in said.items())
    text = (
        "Under these conditions the numbers above were measured; they are written in the header of every artefact too."
    )
    return Section("Conditions", text, (Table(("condition", "value"), rows),))


def _png(picture: Picture) -> str:
    """A figure as a data URI."""
    buffer = io.BytesIO()
    picture.figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
