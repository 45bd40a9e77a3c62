"""What an intervention costs: lm-evaluation-harness with and without it, compared item by item."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant_axis.errors import DatasetError, SettingError
from assistant_axis.evals.paired import PairedChange, paired_change
from assistant_axis.evals.saving import identity
from assistant_axis.evals.tasks import Spec, read_task, shown_examples, task_error, task_manager, with_local_data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from assistant_axis.models.hooked import HookedChatModel, Intervention

OF_A_HUNDRED = ("eqbench", "percent_parseable", "bleu", "chrf", "ter")
"""Metrics that the harness gives out of a hundred; others are fractions."""


@dataclass(frozen=True)
class TaskChange:
    """One metric of one task, without and with the intervention.

    Attributes:
        task: as the harness names it.
        metric: as the harness names it, `"acc"` or `"exact_match,strict-match"`.
        change: over the same items.
        higher_is_better: as the task says.
    """

    task: str
    metric: str
    change: PairedChange
    higher_is_better: bool = True

    @property
    def gain(self) -> tuple[float, float, float]:
        """The change as a fraction, positive for better, and its 95 % interval."""
        scale = 0.01 if self.metric.split(",")[0] in OF_A_HUNDRED else 1.0
        low, high = (scale * x for x in self.change.interval)
        value = scale * self.change.change
        return (value, low, high) if self.higher_is_better else (-value, -high, -low)


@dataclass(frozen=True)
class Capability:
    """What the harness found.

    Attributes:
        baseline: the harness' own results of the unsteered model, with samples.
        results: the same with the interventions in force; `None` if there are none.
        changes: paired, one a task and metric; empty without interventions.
    """

    baseline: dict[str, Any]
    results: dict[str, Any] | None = None
    changes: tuple[TaskChange, ...] = field(default=())

    def rows(self) -> list[dict[str, str]]:
        """A table: one row a task and metric."""
        if self.results is None:
            found = []
            for task, values in self.baseline["results"].items():
                for name, value in values.items():
                    metric = _said(name)
                    if not metric or not isinstance(value, float):
                        continue
                    error = values.get(name.replace(",", "_stderr,", 1))
                    spread = f" ± {error:.3f}" if isinstance(error, float) else ""
                    found.append({"task": task, "metric": metric, "value": f"{value:.3f}{spread}"})
            return found
        return [
            {
                "task": c.task,
                "metric": c.metric,
                "items": str(c.change.n),
                "baseline": f"{c.change.before:.3f}",
                "with it": f"{c.change.after:.3f}",
                "change": f"{c.change.change:+.3f} [{c.change.interval[0]:+.3f}, {c.change.interval[1]:+.3f}]",
                "p": f"{c.change.p:.2g}",
                "items that fell / rose": f"{c.change.lost} / {c.change.gained}",
            }
            for c in self.changes
        ]


def capability(
    model: "HookedChatModel",
    tasks: Sequence[str],
    *interventions: "Intervention",
    limit: int | None = None,
    chat_template: bool = True,
    num_fewshot: int | None = None,
    batch_size: int | str = "auto",
    include_path: str | Path | Sequence[str | Path] | None = None,
    system: str | None = None,
    seed: int = 0,
    baseline: dict[str, Any] | None = None,
    items: Mapping[str, Sequence[int]] | None = None,
    local: Mapping[str, str | Path] | None = None,
    out: str | Path | None = None,
    keep: str | Path | None = None,
) -> Capability:
    """Run tasks of lm-evaluation-harness on the unsteered model and, if there are any, under interventions.

    Args:
        model: the model.
        tasks: names that the harness knows (`"ifeval"`, `"gsm8k"`), a task file (`"my_task.yaml"`), or
            `"everyday_choice"`, our own small multiple-choice set that needs no network.
        interventions: in force together.
        limit: the first so many items of each task.
        chat_template: ask through the model's chat template.
        num_fewshot: examples before each item; default: as the task says.
        batch_size: requests a batch, or `"auto"`.
        include_path: folders with further task files.
        system: a system prompt for every item.
        seed: of everything that the harness draws.
        baseline: results of an earlier run without interventions, on the same items.
        items: only these of each task, by number (`doc_id` in the samples); not together with `limit`.
        local: task -> its data on this machine: a folder with a copy of the hub's repository, or a file with the split that
            is tested.
        out: a folder; results and samples are written there as the harness writes them, in `baseline/` and `steered/`.
        keep: a folder; every answered request is kept there, and an interrupted run goes on from them.

    Raises:
        UnknownNameError: a task that the harness does not know, with the nearest names.
        FetchError: a task whose data must be downloaded, without a network.
        DatasetError: a task file that cannot be read, or local data that do not exist.
        SettingError: no task, a limit below 1, a baseline of other items, or local data that lack the examples to show.
        MissingExtraError: lm-evaluation-harness is not installed.
        ArtefactMismatchError: an intervention for another model.
    """
    if not tasks:
        raise SettingError("No task was named; give tasks as lm-evaluation-harness names them.")
    if limit is not None and limit < 1:
        raise SettingError(f"limit={limit}: at least one item is needed; None takes all.")
    if limit is not None and items is not None:
        raise SettingError("limit and items were both given; each says which items are taken.")
    from assistant_axis.evals.harness import HookedLM  # raises MissingExtraError

    for step in interventions:
        step.compile(model)
    options: dict[str, Any] = {
        "limit": limit,
        "apply_chat_template": chat_template,
        "num_fewshot": num_fewshot,
        "system_instruction": system,
        "batch_size": batch_size,
    }
    if items is not None:
        options["samples"] = {task: list(numbers) for task, numbers in items.items()}
    manager = task_manager([*tasks, *(local or {})], include_path)
    specs = _specs(tasks, local or {}, manager, num_fewshot)

    def run(name: str, *steps: "Intervention") -> dict[str, Any]:
        folder = None if out is None else Path(out) / name
        lm = HookedLM(model, *steps, batch_size=batch_size)
        cache = None if keep is None else _cache(Path(keep), name, lm)
        return _simple_evaluate(lm, tasks, specs, manager, seed, folder, options | {"use_cache": cache})

    plain = baseline if baseline is not None else run("baseline")
    if not interventions:
        return Capability(plain)
    steered = run("steered", *interventions)
    return Capability(plain, steered, paired_metrics(plain, steered))


def _specs(tasks: Sequence[str], local: Mapping[str, str | Path], manager: Any, num_fewshot: int | None) -> list[Spec]:
    for name in local:
        if name not in tasks:
            raise SettingError(f"Local data were given for {name}, which is not among the tasks {', '.join(tasks)}.")
        shown = shown_examples(name, manager) if num_fewshot is None else num_fewshot
        if Path(local[name]).is_file() and shown:
            raise SettingError(
                f"{name} shows {shown} examples before each item, and a single file holds none to show. Give num_fewshot=0 "
                "(--fewshot 0), or a folder with a copy of the whole data set."
            )
        with_local_data(name, local[name], manager)
    return [read_task(t) for t in tasks]


def _cache(folder: Path, name: str, lm: Any) -> str:
    """Where the harness keeps answered requests: another file for another model, intervention or length."""
    steps = [identity(step, lm.hooked) for step in lm.interventions]
    said = json.dumps([lm.hooked.fingerprint, str(lm.hooked.dtype), lm.max_length, steps])
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:12]}")


def paired_metrics(baseline: dict[str, Any], results: dict[str, Any]) -> tuple[TaskChange, ...]:
    """Paired changes of every per-item metric of two results of the harness.

    Metrics that exist only for a whole task (perplexities, correlations) have no pairs and are left out.

    Raises:
        SettingError: the results are of other items, or hold no samples.
    """
    found = []
    for task, rows in (results.get("samples") or {}).items():
        before = {(r["doc_id"], r["filter"]): r for r in (baseline.get("samples") or {}).get(task, [])}
        after = {(r["doc_id"], r["filter"]): r for r in rows}
        if {k: r["doc_hash"] for k, r in before.items()} != {k: r["doc_hash"] for k, r in after.items()}:
            raise SettingError(
                f"The baseline of {task} has {len(before)} items and is not of the same {len(after)}; run it again."
            )
        better = results.get("higher_is_better", {}).get(task, {})
        several = len({f for _, f in after}) > 1
        for which in sorted({f for _, f in after}):
            keys = sorted(k for k in after if k[1] == which)
            for metric in after[keys[0]]["metrics"]:
                pairs = [(before[k].get(metric), after[k].get(metric)) for k in keys]
                if not all(isinstance(x, (bool, int, float)) for pair in pairs for x in pair):
                    continue
                name = f"{metric},{which}" if several else metric
                change = paired_change([float(x) for x, _ in pairs], [float(y) for _, y in pairs])
                found.append(TaskChange(task, name, change, bool(better.get(metric, True))))
    return tuple(found)


def _simple_evaluate(
    lm: Any,
    tasks: Sequence[str],
    specs: Sequence[Spec],
    manager: Any,
    seed: int,
    folder: Path | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    import lm_eval
    from jinja2 import UndefinedError
    from lm_eval.loggers import EvaluationTracker

    simple_evaluate: Any = lm_eval.simple_evaluate  # its decorator hides its signature
    tracker: Any = None if folder is None else EvaluationTracker(output_path=str(folder))
    with _quiet():
        try:
            results = simple_evaluate(
                lm,
                tasks=list(specs),
                task_manager=manager,
                evaluation_tracker=tracker,
                model_args={"pretrained": lm.hooked.name} if tracker is not None else None,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                bootstrap_iters=1000,
                **options,
            )
        except (OSError, ImportError) as e:
            raise task_error(tasks, manager, e) from e
        except LookupError as e:
            if "nltk" not in str(e):
                raise
            raise task_error(tasks, manager, e) from e
        except UndefinedError as e:
            raise DatasetError(f"The data of {', '.join(tasks)} do not have what the task reads: {e}.") from e
    assert results is not None  # only other ranks of a distributed run get nothing
    if tracker is not None:
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        results["samples"] = samples
    return dict(results)


@contextmanager
def _quiet() -> "Iterator[None]":
    """The harness' own notes below warnings are left out, and the data sets' progress bars."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.utils.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def _said(name: str) -> str:
    metric, _, which = name.partition(",")
    if metric in ("alias", "sample_len", "name") or metric.endswith("_stderr"):
        return ""
    return metric if which in ("", "none") else name
