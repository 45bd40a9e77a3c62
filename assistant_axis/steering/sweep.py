"""Where and how hard to cap: windows × percentiles, effect against cost, a Pareto front and a held-out check."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant_axis.errors import ArtefactMismatchError, SettingError
from assistant_axis.progress import track
from assistant_axis.steering.adherence import Case, adherence, answer_cases, neutral_perplexity, persona_cases
from assistant_axis.steering.direction import Direction, DirectionLike
from assistant_axis.steering.interventions import Cap
from assistant_axis.steering.placement import say_layers
from assistant_axis.steering.readings import trace

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

_TRACED = 6  # answers that the fraction of changed tokens is read from


@dataclass(frozen=True)
class Outcome:
    """What one setting did, on one set of cases.

    Attributes:
        window: first and last-plus-one layer, as a Python range; `None` for the unsteered model.
        percentile: of the floor, over Assistant-positive calibration projections; `None` for the unsteered model.
        adherence: mean over answers, nats per token, by the unsteered model.
        interval: 95 % bootstrap over answers.
        incoherent: share of answers.
        perplexity: of neutral text.
        changed: fraction of tokens changed at each layer of the window, prompt and answer.
        answers: how many there were.
    """

    window: tuple[int, int] | None
    percentile: float | None
    adherence: float
    interval: tuple[float, float]
    incoherent: float
    perplexity: float
    changed: dict[str, float]
    answers: int

    @property
    def name(self) -> str:
        """As in `layers 20–27, floor at 25 %`."""
        if self.window is None or self.percentile is None:
            return "unsteered"
        return f"layers {say_layers(range(*self.window))}, floor at {self.percentile:g} %"

    @property
    def mean_changed(self) -> float:
        return sum(self.changed.values()) / len(self.changed) if self.changed else 0.0


@dataclass(frozen=True)
class Sweep:
    """All settings on the search half, and the recommended one on the held-out half.

    Attributes:
        baseline: unsteered, search half.
        outcomes: one a setting, search half.
        recommended: the setting chosen on the search half; `None` if none kept the cost.
        held_out: (unsteered, recommended) on the held-out half.
        controls: control directions under the recommended setting, on the held-out half: (name, what it did).
        max_cost: the largest allowed rise of perplexity, as a fraction.
    """

    baseline: Outcome
    outcomes: tuple[Outcome, ...]
    recommended: Outcome | None
    held_out: tuple[Outcome, Outcome] | None
    controls: tuple[tuple[str, Outcome], ...]
    max_cost: float

    def cost(self, outcome: Outcome) -> float:
        """Rise of neutral perplexity over the unsteered model, as a fraction."""
        return outcome.perplexity / self.baseline.perplexity - 1

    def pareto(self) -> tuple[Outcome, ...]:
        """Settings that no other beats in adherence and cost at once, cheapest first."""
        front: list[Outcome] = []
        for outcome in sorted(self.outcomes, key=lambda o: (o.perplexity, o.adherence)):
            if not front or outcome.adherence < front[-1].adherence:
                front.append(outcome)
        return tuple(front)

    def plot(self, ax: Any = None) -> Any:
        """Adherence against perplexity, the front joined; returns the matplotlib axes."""
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(layout="constrained").subplots()
        ax.scatter([100 * self.cost(o) for o in self.outcomes], [o.adherence for o in self.outcomes], label="settings")
        front = self.pareto()
        ax.plot([100 * self.cost(o) for o in front], [o.adherence for o in front], label="Pareto front")
        ax.axhline(self.baseline.adherence, linestyle="--", color="grey", label="unsteered")
        ax.axvline(100 * self.max_cost, linestyle=":", color="grey", label="allowed cost")
        ax.set_xlabel("rise of perplexity on neutral text (%)")
        ax.set_ylabel("adherence to the role (nats per token)")
        ax.legend()
        return ax

    def check_rows(self) -> list[dict[str, str]]:
        """The recommended setting and the controls on the held-out half; empty if nothing is recommended."""
        if self.held_out is None or self.recommended is None:
            return []
        plain, capped = self.held_out
        drop = plain.adherence - capped.adherence
        found = []
        for name, o in (("unsteered", plain), (self.recommended.name, capped), *self.controls):
            fall = plain.adherence - o.adherence
            found.append(
                {
                    "direction": name,
                    "adherence": f"{o.adherence:+.3f} [{o.interval[0]:+.2f}, {o.interval[1]:+.2f}]",
                    "falls by": "" if o is plain else f"{fall:.3f} ({fall / plain.adherence:.0%})",
                    "of the cap's fall": "" if o is plain else f"{fall / drop:.0%}",
                    "perplexity": f"{o.perplexity:.2f} ({o.perplexity / plain.perplexity - 1:+.1%})",
                    "incoherent": f"{o.incoherent:.0%}",
                    "tokens changed": "" if o is plain else f"{o.mean_changed:.0%}",
                }
            )
        return found

    def rows(self) -> list[dict[str, str]]:
        """The table, front and recommendation marked."""
        front = self.pareto()
        found = []
        for o in (self.baseline, *self.outcomes):
            marks = ("●" if o in front else "") + (" recommended" if o == self.recommended else "")
            found.append(
                {
                    "setting": o.name,
                    "adherence": f"{o.adherence:+.3f} [{o.interval[0]:+.2f}, {o.interval[1]:+.2f}]",
                    "perplexity": f"{o.perplexity:.2f} ({100 * self.cost(o):+.1f} %)",
                    "incoherent": f"{o.incoherent:.0%}",
                    "tokens changed": f"{o.mean_changed:.0%}",
                    "front": marks.strip(),
                }
            )
        return found


def measure(
    model: "HookedChatModel",
    cap: Cap | None,
    cases: Sequence[Case],
    *,
    window: tuple[int, int] | None = None,
    percentile: float | None = None,
    max_new_tokens: int = 48,
    neutral: int | None = None,
    batch_size: int = 16,
) -> Outcome:
    """Effect and cost of one cap (or of none)."""
    steps = () if cap is None else (cap,)
    answers = answer_cases(model, cases, *steps, max_new_tokens=max_new_tokens, batch_size=batch_size)
    found = adherence(model, cases, answers)
    changed: dict[str, float] = {}
    if cap is not None:
        layers = cap.resolved(model)
        spoken = [(c, a) for c, a in zip(cases, answers, strict=True) if a.text.strip()][:_TRACED]
        shares = [
            trace(
                model, [*c.in_role, {"role": "assistant", "content": a.text}], cap.direction, cap, layers=layers
            ).changed_share()
            for c, a in spoken
        ]
        changed = {str(x): float(sum(s[k] for s in shares) / len(shares)) for k, x in enumerate(layers) if shares}
    return Outcome(
        window,
        percentile,
        found.mean,
        found.interval() if not math.isnan(found.mean) else (math.nan, math.nan),
        found.incoherent_share,
        neutral_perplexity(model, *steps, count=neutral),
        changed,
        len(answers),
    )


def sweep(
    model: "HookedChatModel",
    axis: DirectionLike,
    windows: Sequence[range | tuple[int, int]],
    percentiles: Sequence[float | int],
    *,
    cases: Sequence[Case] | None = None,
    controls: Sequence[Direction] = (),
    max_cost: float = 0.03,
    max_incoherent: float = 0.15,
    max_new_tokens: int = 48,
    neutral: int | None = None,
    batch_size: int = 16,
    out: str | Path | None = None,
    progress: bool = False,
) -> Sweep:
    """Measure caps for every window and percentile, and recommend one.

    Settings are compared on the even cases. Recommended is the lowest adherence among those whose neutral perplexity rises by
    less than `max_cost` and whose incoherent share rises by at most `max_incoherent`; it is then measured on the odd cases,
    which had no part in the choice, beside the same setting along each control direction.

    Args:
        model: the model.
        axis: a direction that keeps a calibration.
        windows: Python ranges of layers.
        percentiles: of the floors, Assistant-positive.
        cases: default: theatrical personas of the bundled library.
        controls: directions that should do nothing, each with a calibration of its own: see `control_directions`.
        max_cost: allowed rise of perplexity, as a fraction.
        max_incoherent: allowed rise of the incoherent share of answers, as a fraction. A share of few answers is coarse:
            of 18, two are 0.11, which Fisher's exact test does not tell from none (p = 0.49).
        max_new_tokens: an answer.
        neutral: how many neutral texts; default all.
        batch_size: answers a pass.
        out: a JSONL file that finished settings are appended to and read back from.
        progress: show a bar.

    Raises:
        SettingError: no window, no percentile, fewer than two cases.
        ArtefactMismatchError: `out` holds settings of another run.
    """
    direction = Direction.of(axis)
    asked = list(cases) if cases is not None else persona_cases()
    if not windows or not percentiles or len(asked) < 2:
        raise SettingError("A sweep needs at least one window, one percentile and two cases.")
    search, held = asked[::2], asked[1::2]
    said = [model.fingerprint, direction.name, [asdict(c) for c in asked], max_new_tokens, neutral]
    digest = hashlib.sha256(json.dumps(said).encode())
    digest.update(direction.unit.numpy().tobytes())
    if direction.quantiles is not None:
        digest.update(direction.quantiles.contiguous().numpy().tobytes())
    log = _Log(Path(out) if out is not None else None, digest.hexdigest()[:16])
    spans = [(w.start, w.stop) if isinstance(w, range) else (int(w[0]), int(w[1])) for w in windows]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "neutral": neutral, "batch_size": batch_size}

    def run(
        half: str, window: tuple[int, int] | None, percentile: float | None, control: Direction | None = None
    ) -> Outcome:
        key = f"{half} {window} {percentile}" + (f" {control.name}" if control is not None else "")
        if key not in log.done:
            cap = None
            if window is not None and percentile is not None:
                cap = Cap.calibrated(control or direction, percentile, layers=range(*window))
            chosen = search if half == "search" else held
            log.add(key, measure(model, cap, chosen, window=window, percentile=percentile, **options))
        return log.done[key]

    with track(len(spans) * len(percentiles) + 3 + len(controls), "Sweeping", show=progress) as advance:
        baseline = run("search", None, None)
        advance(1)
        outcomes = []
        for window in spans:
            for q in percentiles:
                outcomes.append(run("search", window, float(q)))
                advance(1)
        fit = [
            o
            for o in outcomes
            if o.perplexity / baseline.perplexity - 1 < max_cost
            and o.incoherent <= baseline.incoherent + max_incoherent
        ]
        best = min(fit, key=lambda o: o.adherence, default=None)
        checked, beside = None, []
        if best is not None:
            checked = (run("held out", None, None), run("held out", best.window, best.percentile))
            advance(2)
            for control in controls:
                beside.append((control.name, run("held out", best.window, best.percentile, control)))
                advance(1)
    return Sweep(baseline, tuple(outcomes), best, checked, tuple(beside), max_cost)


class _Log:
    """Finished settings in a JSONL file; its first line says which run it belongs to."""

    def __init__(self, path: Path | None, run: str) -> None:
        self.path = path
        self.done: dict[str, Outcome] = {}
        if path is None:
            return
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"run": run}) + "\n", encoding="utf-8")
            return
        first, *rest = path.read_text(encoding="utf-8").splitlines()
        if json.loads(first).get("run") != run:
            raise ArtefactMismatchError(
                f"{path} holds settings of another sweep (another model, direction, calibration, or other cases). "
                "Give another file, or remove it."
            )
        for line in rest:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line that an interruption cut; it is measured again
                continue
            o = entry["outcome"]
            window = None if o["window"] is None else tuple(o["window"])
            self.done[entry["key"]] = Outcome(**o | {"window": window, "interval": tuple(o["interval"])})

    def add(self, key: str, outcome: Outcome) -> None:
        self.done[key] = outcome
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as f:
                f.write("\n" * (not self._ends_well()) + json.dumps({"key": key, "outcome": asdict(outcome)}) + "\n")

    def _ends_well(self) -> bool:
        assert self.path is not None
        with self.path.open("rb") as f:
            f.seek(-1, 2)
            return f.read(1) == b"\n"
