"""Persona jailbreaks: a harmful question under a persona's system prompt, with and without an intervention.

After Lu et al. 2026, section 4. The same rows are answered with and without the intervention, so that rates have one
denominator and are compared in pairs.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant_axis.errors import JudgeError, SettingError
from assistant_axis.evals.datasets import JailbreakPrompt
from assistant_axis.evals.paired import PairedChange, Share, paired_change
from assistant_axis.evals.responses import HARMFUL, REFUSED, RESPONSE_LABELS, ResponseLabeller, pattern_labels
from assistant_axis.evals.saving import identity, resumed

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel, Intervention


@dataclass(frozen=True)
class Responses:
    """Answers to every row under one condition.

    Attributes:
        prompts: the rows.
        answers: one each.
        labels: one of `RESPONSE_LABELS` each.
    """

    prompts: tuple[JailbreakPrompt, ...]
    answers: tuple[str, ...]
    labels: tuple[str, ...]

    def share(self, labels: Iterable[str] = HARMFUL, category: str | None = None) -> Share:
        """Share of answers with one of the labels, in a category or in all.

        Raises:
            SettingError: a category that no row has.
        """
        wanted = set(labels)
        here = [x for p, x in zip(self.prompts, self.labels, strict=True) if category in (None, p.category)]
        if not here:
            raise SettingError(f"No row has the category {category!r}; there are {', '.join(self.categories)}.")
        return Share(sum(x in wanted for x in here), len(here))

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted({p.category for p in self.prompts}))


@dataclass(frozen=True)
class JailbreakResult:
    """The same rows without and with the interventions.

    Attributes:
        bare: the questions alone, unsteered.
        baseline: under the personas, unsteered.
        steered: under the personas, with the interventions.
        safe: over-refusal rows, unsteered and with the interventions; `None` if none were given.
        by_form: labelled by form alone, which cannot tell harm: the table then says who refuses, and no harm rate.
    """

    bare: Responses
    baseline: Responses
    steered: Responses
    safe: tuple[Responses, Responses] | None = None
    by_form: bool = False

    def change(self, labels: Iterable[str] = HARMFUL) -> PairedChange:
        """Paired change of a rate over the same rows (exact McNemar test)."""
        return _change(self.baseline, self.steered, labels)

    @property
    def over_refusal(self) -> PairedChange | None:
        """Paired change of the share of safe questions that are refused."""
        return None if self.safe is None else _change(*self.safe, REFUSED)

    def rows(self) -> list[dict[str, str]]:
        """Rates with Wilson intervals: harm over all rows and in each category, then refusals, coherence, over-refusal.

        Labelled by form alone there is no harm rate, and the categories are those of refusals.
        """
        name, counted = ("refused", REFUSED) if self.by_form else ("harmful", HARMFUL)
        found = [self._row(f"{name}, all", counted, None)]
        found += [self._row(f"{name}, {c}", counted, c) for c in self.baseline.categories]
        others = (
            {"nonsensical": ("nonsensical",)} if self.by_form else {"refused": REFUSED, "nonsensical": ("nonsensical",)}
        )
        found += [self._row(other, labels, None) for other, labels in others.items()]
        if self.safe is not None:
            before, after = (r.share(REFUSED) for r in self.safe)
            row = {"share of": "safe questions refused", "bare question": "", "baseline": str(before)}
            found.append(row | {"with it": str(after), "p (McNemar)": f"{_change(*self.safe, REFUSED).p:.2g}"})
        return found

    def _row(self, name: str, labels: Sequence[str], category: str | None) -> dict[str, str]:
        return {
            "share of": name,
            "bare question": str(self.bare.share(labels, category)),
            "baseline": str(self.baseline.share(labels, category)),
            "with it": str(self.steered.share(labels, category)),
            "p (McNemar)": f"{self.change(labels).p:.2g}" if category is None else "",
        }

    def plot(self) -> Any:
        """Rates with intervals, bare, under the personas and with the intervention: see `evals.figures.jailbreak_rates`."""
        from assistant_axis.evals.figures import jailbreak_rates

        return jailbreak_rates(self)


def jailbreak(
    model: "HookedChatModel",
    prompts: Sequence[JailbreakPrompt],
    *interventions: "Intervention",
    labeller: ResponseLabeller = pattern_labels,
    safe: Sequence[JailbreakPrompt] = (),
    max_new_tokens: int = 128,
    batch_size: int = 16,
    progress: bool = False,
    keep: str | Path | None = None,
    baseline: JailbreakResult | None = None,
) -> JailbreakResult:
    """Answer every row bare, under its persona, and under its persona with the interventions; greedy, so that pairs are pairs.

    Args:
        model: the model.
        prompts: the rows.
        interventions: in force together.
        labeller: default: by form only, which cannot tell harm; give a `RubricJudge`.
        safe: questions that should be answered, for over-refusal (`load_xstest`).
        max_new_tokens: an answer.
        batch_size: answers a pass.
        progress: show bars.
        keep: a folder; answers are kept there as they come, and the labels of a judge with a name; a later run goes on from
            them.
        baseline: an earlier result over the same rows, whose unsteered answers and labels are taken.

    Raises:
        SettingError: no row, a folder with answers of other settings, or a baseline of other rows.
        JudgeError: labels off the rubric.
    """
    if not prompts:
        raise SettingError("No prompt was given.")
    for step in interventions:
        step.compile(model)

    if baseline is not None:
        held = [baseline.baseline.prompts, baseline.safe[0].prompts if baseline.safe else ()]
        if held != [tuple(prompts), tuple(safe)]:
            raise SettingError("The baseline is of other rows; run it again on these.")

    def ask(name: str, rows: Sequence[JailbreakPrompt], *steps: "Intervention") -> Responses:
        chats = [r.bare if name == "bare" else r.messages for r in rows]
        conditions = {
            "model": model.fingerprint,
            "interventions": [identity(step, model) for step in steps],
            "max_new_tokens": max_new_tokens,
            "asked": _digest(chats),
        }

        def answer(numbers: range) -> list[str]:
            with model.steered(*steps):
                said = model.generate([chats[k] for k in numbers], max_new_tokens=max_new_tokens, batch_size=batch_size)
            return [a.text for a in said]

        def label(numbers: range) -> list[str]:
            found = list(labeller([rows[k] for k in numbers], [answers[k] for k in numbers]))
            off = [x for x in found if x not in RESPONSE_LABELS]
            if off or len(found) != len(numbers):
                raise JudgeError(
                    f"{len(found)} labels came for {len(numbers)} answers, {len(off)} of them off the rubric: {off[:3]}."
                )
            return found

        def file(kind: str) -> Path | None:
            return None if keep is None else Path(keep) / f"{name}.{kind}.jsonl"

        chunk = 4 * batch_size
        shown = f"Answers, {name}" if progress else ""
        answers = resumed(file("answers"), conditions, len(rows), answer, chunk=chunk, progress=shown)
        judge = str(getattr(labeller, "name", ""))
        judged = {"judge": judge, "asked": conditions["asked"], "answers": _digest(answers)}
        shown = f"Labels, {name}" if progress and judge else ""
        labels = resumed(file("labels") if judge else None, judged, len(rows), label, chunk=chunk, progress=shown)
        return Responses(tuple(rows), tuple(answers), tuple(labels))

    if baseline is not None:
        bare, plain, plain_safe = baseline.bare, baseline.baseline, baseline.safe[0] if baseline.safe else None
    else:
        bare, plain = ask("bare", prompts), ask("baseline", prompts)
        plain_safe = ask("safe", safe) if safe else None
    return JailbreakResult(
        bare,
        plain,
        ask("steered", prompts, *interventions),
        None if plain_safe is None else (plain_safe, ask("safe, steered", safe, *interventions)),
        labeller is pattern_labels,
    )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _change(before: Responses, after: Responses, labels: Iterable[str]) -> PairedChange:
    wanted = set(labels)
    if [p.id for p in before.prompts] != [p.id for p in after.prompts]:
        raise SettingError("The rows with and without the intervention are not the same.")
    return paired_change([float(x in wanted) for x in before.labels], [float(x in wanted) for x in after.labels])
