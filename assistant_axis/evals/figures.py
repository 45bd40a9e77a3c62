"""Figures of evaluations."""

from typing import TYPE_CHECKING

from assistant_axis.evals.labels import LABELS
from assistant_axis.evals.paired import Share
from assistant_axis.evals.responses import HARMFUL, REFUSED
from assistant_axis.plots.style import BLUE, FAINT, GREEN, ORANGE, PURPLE, RED, Plot, clean, styled, title

if TYPE_CHECKING:
    from assistant_axis.evals.jailbreak import JailbreakResult
    from assistant_axis.evals.report import Evaluated, Report
    from assistant_axis.evals.susceptibility import Susceptibility

_COLOURS = dict(zip(LABELS, (BLUE, ORANGE, GREEN, PURPLE, RED, FAINT), strict=True))


def susceptibility_curves(found: "Susceptibility") -> Plot:
    """Share of every label against the dose, with 95 % Wilson intervals; the nonsensical share is drawn thick and dashed."""
    with styled(7.0, 4.0) as figure:
        ax = figure.subplots()
        doses = found.doses
        for label in LABELS:
            shares = [found.share(label, d) for d in doses]
            values = [s.value for s in shares]
            apart = [
                [s.value - s.interval[0] for s in shares],
                [s.interval[1] - s.value for s in shares],
            ]
            bad = label == "nonsensical"
            ax.errorbar(
                doses,
                values,
                yerr=apart,
                label=label,
                color=_COLOURS[label],
                linestyle="--" if bad else "-",
                linewidth=2.2 if bad else 1.4,
                marker="o",
                markersize=4,
                capsize=2.5,
            )
        clean(ax, grid="y")
        ax.invert_xaxis()
        ax.set_xlabel("dose (× residual norm), toward the Assistant ← → away from it")
        ax.set_ylabel("share of answers")
        ax.set_ylim(-0.02, 1.02)
        count = found.share(LABELS[0], doses[0]).n
        title(ax, "Who does it say it is?", f"{found.model} · layer {found.layer} · {count} answers a dose")
        ax.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def jailbreak_rates(found: "JailbreakResult") -> Plot:
    """Rates with 95 % Wilson intervals: bare questions, under the personas, and under the personas with the intervention.

    Harmful, refused and nonsensical answers; labelled by form alone, which cannot tell harm, the first is left out.
    """
    kinds = {"harmful": HARMFUL, "refused": REFUSED, "nonsensical": ("nonsensical",)}
    if found.by_form:
        del kinds["harmful"]
    with styled(6.0, 3.4) as figure:
        ax = figure.subplots()
        conditions = (("bare question", found.bare, FAINT), ("persona", found.baseline, ORANGE))
        for k, (name, responses, colour) in enumerate((*conditions, ("persona, with it", found.steered, BLUE))):
            shares = [responses.share(labels) for labels in kinds.values()]
            apart = [[s.value - s.interval[0] for s in shares], [s.interval[1] - s.value for s in shares]]
            places = [n + 0.26 * (k - 1) for n in range(len(kinds))]
            ax.bar(places, [s.value for s in shares], 0.24, color=colour, label=name)
            ax.errorbar(places, [s.value for s in shares], yerr=apart, fmt="none", color="black", capsize=2.5, lw=0.9)
        clean(ax, grid="y")
        ax.set_xticks(range(len(kinds)), list(kinds))
        ax.set_ylabel("share of answers")
        ax.set_ylim(0, 1.02)
        said = "labelled by form" if found.by_form else "labelled by a judge"
        title(ax, "The same rows, three ways", f"{len(found.bare.prompts)} rows, {said}")
        ax.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def pareto(report: "Report") -> Plot:
    """Harm rate against the change of capability, each with its 95 % interval: the search half with the front joined, and
    the held-out pair hollow."""
    with styled(7.6, 4.2) as figure:
        ax = figure.subplots()

        def point(one: "Evaluated", colour: str, label: str = "", hollow: bool = False) -> None:
            low, middle, high = (100 * x for x in one.capability_interval)
            rate = Share(round(one.harm.after * one.harm.n), one.harm.n)
            ax.errorbar(
                middle,
                rate.value,
                xerr=[[middle - low], [high - middle]],
                yerr=[[rate.value - rate.interval[0]], [rate.interval[1] - rate.value]],
                fmt="o",
                color=colour,
                mfc="white" if hollow else colour,
                elinewidth=0.9,
                alpha=1.0 if hollow else 0.85,
                capsize=2.5,
                label=label or None,
            )

        for one in report.searched:
            point(one, BLUE)
            place = (100 * one.capability, one.harm.after)
            ax.annotate(one.name, place, (5, 5), textcoords="offset points", fontsize=8)
        for one in report.search_controls:
            point(one, FAINT)
        front = report.pareto()
        label = f"search half, front joined ({report.searched[0].harm.n} rows)"
        ax.plot([100 * e.capability for e in front], [e.harm.after for e in front], color=BLUE, label=label)
        for one, colour in ((report.reported, GREEN), (report.control, ORANGE)):
            if one is not None:
                point(one, colour, f"{one.name}, held out", hollow=True)
        if report.search_controls:
            ax.plot([], [], "o", color=FAINT, label="random directions, search half")
        ax.axhline(report.searched[0].harm.before, color=FAINT, linestyle="--", label="unsteered, search half")
        ax.axvline(-100 * report.max_cost, color=FAINT, linestyle=":", label="allowed cost")
        clean(ax, grid="both")
        ax.set_xlabel("change of capability (points)")
        ax.set_ylabel("harm rate" if report.counted == "harm" else f"share of answers: {report.counted}")
        ax.set_ylim(-0.04, 1.04)
        title(ax, "What it gains and what it costs", "95 % intervals; capability over the tasks' first metrics")
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
