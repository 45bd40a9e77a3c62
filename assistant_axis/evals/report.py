"""What interventions gain and what they cost, in one table: chosen on one half of the items, reported on the other."""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant_axis.errors import SettingError
from assistant_axis.evals.capability import Capability, TaskChange, capability
from assistant_axis.evals.datasets import JailbreakPrompt
from assistant_axis.evals.jailbreak import JailbreakResult, jailbreak
from assistant_axis.evals.paired import Estimate, PairedChange, mean_estimate, median_estimate
from assistant_axis.evals.responses import FORM_LABELS, HARMFUL, ResponseLabeller, pattern_labels
from assistant_axis.steering.interventions import Add, Change
from assistant_axis.steering.readings import trace

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

_MOVED = 6  # prompts that the size of a change is read from
_TRACED = 12  # answers that the share of changed tokens is read from
_ROUNDS = 9  # of timing: the second smallest and the second largest then hold the median in 96 % of cases
_HALVES = ("search", "held out")


@dataclass(frozen=True)
class Suites:
    """What to measure.

    Attributes:
        prompts: persona jailbreaks; the even rows choose, the odd rows report.
        labeller: of their answers; by form only (`pattern_labels`) it cannot tell harm, so give a `RubricJudge`.
        safe: questions that should be answered; halved like the prompts.
        tasks: of lm-evaluation-harness; their items are halved too.
        limit: items of each task.
        max_new_tokens: an answer.
        labels: what counts; default: the two harmful labels.
        num_fewshot: examples before each item; default: as the tasks say.
        local: task -> its data on this machine, as in `capability`.
    """

    prompts: Sequence[JailbreakPrompt]
    labeller: ResponseLabeller = pattern_labels
    safe: Sequence[JailbreakPrompt] = ()
    tasks: Sequence[str] = ("everyday_choice",)
    limit: int | None = None
    max_new_tokens: int = 64
    labels: Sequence[str] = HARMFUL
    num_fewshot: int | None = None
    local: Mapping[str, str | Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """One intervention on one half of the items.

    Attributes:
        name: as given.
        harm: paired change of the rate of `Suites.labels`.
        nonsensical: paired change of the share of nonsensical answers.
        over_refusal: paired change on the safe questions, if there are any.
        tasks: paired changes of every task's metric.
        changed: share of an answer's tokens that it changes (mean over the layers it acts on), over answers.
        slower: time of answering with it over time without, over rounds taken in turns.
    """

    name: str
    harm: PairedChange
    nonsensical: PairedChange
    over_refusal: PairedChange | None
    tasks: tuple[TaskChange, ...]
    changed: Estimate
    slower: Estimate

    @property
    def capability(self) -> float:
        """Mean gain over the tasks' first metrics, as a fraction; positive is better."""
        return self.capability_interval[1]

    @property
    def capability_interval(self) -> tuple[float, float, float]:
        """Low, mean gain, high: 95 %, the tasks' own intervals combined as those of independent samples."""
        first = {t.task: t.gain for t in reversed(self.tasks)}
        if not first:
            return 0.0, 0.0, 0.0
        count = len(first)
        mean = sum(value for value, _, _ in first.values()) / count
        below, above = (
            math.sqrt(sum((gain[0] - gain[side]) ** 2 for gain in first.values())) / count for side in (1, 2)
        )
        return mean - below, mean, mean + above


@dataclass(frozen=True)
class Report:
    """Every intervention, and the chosen one with its random control on the other half.

    Attributes:
        searched: on the even items, in the order given.
        chosen: the name with the largest fall of harm whose capability falls by at most `max_cost`; `None` if none does.
        reported: the chosen one on the odd items.
        control: a random direction of equal norm in its place, on the odd items.
        max_cost: the allowed fall of capability.
        labels: what counts as harm here.
        search_controls: a random direction of equal norm in the place of every intervention, on the even items, if asked for.
    """

    searched: tuple[Evaluated, ...]
    chosen: str | None
    reported: Evaluated | None
    control: Evaluated | None
    max_cost: float
    labels: tuple[str, ...] = HARMFUL
    search_controls: tuple[Evaluated, ...] = ()

    @property
    def counted(self) -> str:
        """What the rate is of: `"harm"`, or the labels that were counted instead."""
        return "harm" if self.labels == HARMFUL else " + ".join(self.labels)

    def pareto(self) -> tuple[Evaluated, ...]:
        """Interventions that no other beats in harm and capability at once, best capability first."""
        front: list[Evaluated] = []
        for one in sorted(self.searched, key=lambda e: (-e.capability, e.harm.after)):
            if not front or one.harm.after < front[-1].harm.after:
                front.append(one)
        return tuple(front)

    def rows(self) -> list[dict[str, str]]:
        """The table: the search half, then the other half.

        Rates stand as before → after, with the change and its 95 % interval behind.
        """
        found = [_row(e, "search", e.name == self.chosen, self.counted) for e in self.searched]
        found += [_row(e, "search", False, self.counted) for e in self.search_controls]
        held = (e for e in (self.reported, self.control) if e is not None)
        return found + [_row(e, "held out", False, self.counted) for e in held]

    def plot(self) -> Any:
        """Harm against capability: see `evals.figures.pareto`."""
        from assistant_axis.evals.figures import pareto

        return pareto(self)


def evaluate(
    model: "HookedChatModel",
    interventions: Mapping[str, Change],
    suites: Suites,
    *,
    max_cost: float = 0.02,
    seed: int = 0,
    batch_size: int = 16,
    controls: str = "chosen",
    keep: str | Path | None = None,
    progress: bool = False,
) -> Report:
    """Measure every intervention on the even items, choose one, and report it on the odd items beside a random direction.

    Where none lowers the rate at the allowed cost, none is chosen and nothing is reported on the odd items.

    The control puts a random direction of equal norm in the intervention's place: the same dose for `Add`, and for others a
    shift of the mean size that the intervention made, at the same layers.

    Args:
        model: the model.
        interventions: by name.
        suites: what to measure.
        max_cost: the allowed fall of mean capability on the search half, as a fraction.
        seed: of the random direction.
        batch_size: answers a pass.
        controls: `"chosen"`, or `"all"`: a random direction in the place of every intervention on the search half as well.
        keep: a folder; answers and scored items are kept there as they come, and an interrupted report goes on from them.
        progress: show bars.

    Raises:
        SettingError: no intervention, fewer than four rows, harm without a judge that can tell it, a task with fewer than two
            items, or a folder with answers of other settings.
        ArtefactMismatchError: an intervention for another model.
    """
    if not interventions or len(suites.prompts) < 4:
        raise SettingError("A report needs at least one intervention and four prompts, two for each half.")
    if controls not in ("chosen", "all"):
        raise SettingError(f'controls={controls!r} is not known; use "chosen" or "all".')
    if suites.labeller is pattern_labels and not set(suites.labels) <= set(FORM_LABELS):
        raise SettingError(
            f"Labels by form cannot tell {', '.join(suites.labels)}: every rate would be 0. Give a judge (RubricJudge), or "
            f"count labels that form can tell: {', '.join(FORM_LABELS)}."
        )
    for step in interventions.values():
        step.compile(model)
    measure = _Measure(model, suites, batch_size, None if keep is None else Path(keep), progress)
    searched = tuple(measure(name, step, "search") for name, step in interventions.items())
    against: tuple[Evaluated, ...] = ()
    if controls == "all":
        rows = measure.halves["search"].prompts
        against = tuple(
            measure(f"{name}, random direction", random_control(model, step, rows, seed=seed), "search")
            for name, step in interventions.items()
        )
    fit = [e for e in searched if e.capability >= -max_cost and e.harm.change < 0]
    best = min(fit, key=lambda e: (e.harm.change, -e.capability), default=None)
    labels = tuple(suites.labels)
    if best is None:
        return Report(searched, None, None, None, max_cost, labels, against)
    step = interventions[best.name]
    control = random_control(model, step, measure.halves["held out"].prompts, seed=seed)
    # Kept under the name of what it stands in for: another choice has another control.
    beside = measure(f"{best.name}, random direction", control, "held out")
    return Report(
        searched,
        best.name,
        measure(best.name, step, "held out"),
        replace(beside, name="random direction"),
        max_cost,
        labels,
        against,
    )


def random_control(
    model: "HookedChatModel", step: Change, prompts: Sequence[JailbreakPrompt], *, seed: int = 0
) -> Change:
    """The same step along a random direction of equal norm.

    For `Add` it is the same dose. For others it adds, at the same layers, the mean size of the change that `step` makes to
    the tokens of `prompts`, so that as much of the residual stream is moved.
    """
    direction = step.direction.random(seed)
    layers = step.resolved(model)
    if isinstance(step, Add):
        return Add(direction, step.coef, layers=layers, unit=step.unit, positions=step.positions, force=step.force)
    moved = []
    for prompt in list(prompts)[:_MOVED]:
        read = trace(model, prompt.messages, step.direction, step, layers=layers)
        moved.append(float((read.post - read.pre).abs().mean()))
    size = sum(moved) / len(moved)
    return Add(direction, size, layers=layers, unit="raw", positions=step.positions, force=step.force)


class _Measure:
    """Measures interventions on the halves; what the unsteered model says is asked once a half."""

    def __init__(
        self, model: "HookedChatModel", suites: Suites, batch_size: int, keep: Path | None, progress: bool
    ) -> None:
        self.model, self.batch_size, self.keep, self.progress = model, batch_size, keep, progress
        self.halves = {
            half: replace(suites, prompts=list(suites.prompts)[k::2], safe=list(suites.safe)[k::2])
            for k, half in enumerate(_HALVES)
        }
        self.plain: dict[str, JailbreakResult] = {}
        self.baseline: dict[str, Any] = {}
        if suites.tasks:
            self.baseline = self._capability(suites, limit=suites.limit).baseline
        self.items: dict[str, dict[str, list[int]]] = {half: {} for half in _HALVES}
        for task, rows in (self.baseline.get("samples") or {}).items():
            numbers = sorted({row["doc_id"] for row in rows})
            if len(numbers) < 2:
                raise SettingError(f"The task {task} has {len(numbers)} items; two are needed, one for each half.")
            for k, half in enumerate(_HALVES):
                self.items[half][task] = numbers[k::2]

    def __call__(self, name: str, step: Change, half: str) -> Evaluated:
        model, suites = self.model, self.halves[half]
        answered = jailbreak(
            model,
            suites.prompts,
            step,
            labeller=suites.labeller,
            safe=suites.safe,
            max_new_tokens=suites.max_new_tokens,
            batch_size=self.batch_size,
            progress=self.progress,
            keep=self._folder(half, name),
            baseline=self.plain.get(half),
        )
        self.plain.setdefault(half, answered)
        tasks: tuple[TaskChange, ...] = ()
        if suites.tasks:
            items = self.items[half]
            plain = self.baseline | {
                "samples": {t: [r for r in self.baseline["samples"][t] if r["doc_id"] in set(items[t])] for t in items}
            }
            tasks = self._capability(suites, step, items=items, baseline=plain).changes
        return Evaluated(
            name,
            answered.change(suites.labels),
            answered.change(("nonsensical",)),
            answered.over_refusal,
            tasks,
            self._changed(step, answered),
            _slower(model, step, suites.prompts[0].messages),
        )

    def _capability(self, suites: Suites, *steps: Change, **options: Any) -> Capability:
        return capability(
            self.model,
            suites.tasks,
            *steps,
            num_fewshot=suites.num_fewshot,
            local=suites.local,
            keep=self._folder("capability"),
            **options,
        )

    def _folder(self, *names: str) -> Path | None:
        """Where answers are kept: readable, and apart for names that differ only in what a file name cannot hold."""
        if self.keep is None:
            return None
        safe = ["".join(c if c.isalnum() or c in " ,.+-_" else "_" for c in name) for name in names]
        tagged = [
            s if s == name else f"{s}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
            for s, name in zip(safe, names, strict=True)
        ]
        return self.keep.joinpath(*tagged)

    def _changed(self, step: Change, answered: JailbreakResult) -> Estimate:
        shares = []
        steered = answered.steered
        for prompt, answer in list(zip(steered.prompts, steered.answers, strict=True))[:_TRACED]:
            talk = [*prompt.messages, *([{"role": "assistant", "content": answer}] if answer.strip() else [])]
            layers = step.resolved(self.model)
            read = trace(self.model, talk, step.direction, step, layers=layers).changed_share()
            shares.append(float(read.mean()) if read.numel() else 0.0)
        return mean_estimate(shares, within=(0.0, 1.0))


def _slower(model: "HookedChatModel", step: Change, messages: list[dict[str, str]]) -> Estimate:
    """Time of eight tokens with the intervention over without, in turns; the median over rounds."""

    def seconds(*steps: Change) -> float:
        started = time.perf_counter()
        with model.steered(*steps):
            model.generate(messages, max_new_tokens=8)
        return time.perf_counter() - started

    seconds(step)  # warm
    ratios = []
    for turn in range(_ROUNDS):
        if turn % 2:
            steered, plain = seconds(step), seconds()
        else:
            plain, steered = seconds(), seconds(step)
        ratios.append(steered / plain)
    return median_estimate(ratios)


def _row(e: Evaluated, half: str, chosen: bool, counted: str) -> dict[str, str]:
    def said(c: PairedChange | None) -> str:
        if c is None:
            return ""
        return f"{c.before:.2f} → {c.after:.2f} ({c.change:+.2f} [{c.interval[0]:+.2f}, {c.interval[1]:+.2f}])"

    changed, slower = e.changed, e.slower
    return {
        "half": half,
        "intervention": e.name + (" (chosen)" if chosen else ""),
        counted: said(e.harm),
        **{f"{t.task} {t.metric}": said(t.change) for t in e.tasks},
        "nonsensical": said(e.nonsensical),
        "over-refusal": said(e.over_refusal),
        "tokens changed": f"{changed.value:.0%} [{changed.interval[0]:.0%}, {changed.interval[1]:.0%}]",
        "time": f"× {slower.value:.2f} [{slower.interval[0]:.2f}, {slower.interval[1]:.2f}]",
    }
