"""What an intervention costs: lm-evaluation-harness with and without it, compared item by item."""

import logging
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant_axis.errors import DatasetError, FetchError, MissingExtraError, SettingError, UnknownNameError
from assistant_axis.evals.paired import PairedChange, paired_change

if TYPE_CHECKING:
    from collections.abc import Iterator

    from assistant_axis.models.hooked import HookedChatModel, Intervention

TASKS = Path(__file__).parent / "data" / "tasks"
"""Tasks of our own in the harness' format; they need no network."""


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
    out: str | Path | None = None,
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
        out: a folder; results and samples are written there as the harness writes them, in `baseline/` and `steered/`.

    Raises:
        UnknownNameError: a task that the harness does not know, with the nearest names.
        FetchError: a task whose data must be downloaded, without a network.
        DatasetError: a task file that cannot be read.
        SettingError: no task, a limit below 1, or a baseline of other items.
        MissingExtraError: lm-evaluation-harness is not installed.
        ArtefactMismatchError: an intervention for another model.
    """
    if not tasks:
        raise SettingError("No task was named; give tasks as lm-evaluation-harness names them.")
    if limit is not None and limit < 1:
        raise SettingError(f"limit={limit}: at least one item is needed; None takes all.")
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
    manager = task_manager(tasks, include_path)

    def run(name: str, *steps: "Intervention") -> dict[str, Any]:
        folder = None if out is None else Path(out) / name
        return _simple_evaluate(HookedLM(model, *steps, batch_size=batch_size), tasks, manager, seed, folder, options)

    plain = baseline if baseline is not None else run("baseline")
    if not interventions:
        return Capability(plain)
    steered = run("steered", *interventions)
    return Capability(plain, steered, paired_metrics(plain, steered))


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


def task_manager(tasks: Sequence[str], include_path: str | Path | Sequence[str | Path] | None = None) -> Any:
    """The harness' task manager, which knows our tasks and, only where they are needed, the harness' own thousands.

    Raises:
        UnknownNameError: a task that nobody knows.
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as e:
        raise MissingExtraError("lm_eval", "eval", "Capability through lm-evaluation-harness") from e

    given = [include_path] if isinstance(include_path, (str, Path)) else list(include_path or [])
    folders: list[str | Path] = [str(TASKS), *map(str, given)]

    def unknown(manager: Any) -> list[str]:
        known = set(manager.all_tasks)
        return [t for t in tasks if t not in known and not (t.endswith((".yaml", ".yml")) and Path(t).is_file())]

    manager = TaskManager(include_path=folders, include_defaults=False)
    if unknown(manager):  # reading the harness' own list takes ten seconds
        manager = TaskManager(include_path=folders)
    for name in unknown(manager):
        raise UnknownNameError(
            "task",
            name,
            manager.all_tasks,
            "Names are those of lm-evaluation-harness (`lm_eval ls tasks`); a task of your own is a path to its .yaml.",
        )
    return manager


def _simple_evaluate(
    lm: Any, tasks: Sequence[str], manager: Any, seed: int, folder: Path | None, options: dict[str, Any]
) -> dict[str, Any]:
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    simple_evaluate: Any = lm_eval.simple_evaluate  # its decorator hides its signature
    tracker: Any = None if folder is None else EvaluationTracker(output_path=str(folder))
    with _quiet():
        try:
            results = simple_evaluate(
                lm,
                tasks=[read_task(t) for t in tasks],
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
        except (ConnectionError, OSError) as e:
            raise _unfetched(tasks, e) from e
    assert results is not None  # only other ranks of a distributed run get nothing
    if tracker is not None:
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        results["samples"] = samples
    return dict(results)


def _unfetched(tasks: Sequence[str], error: Exception) -> Exception:
    named = ", ".join(tasks)
    if isinstance(error, FileNotFoundError) and "hub" not in str(error).lower() and error.filename:
        return DatasetError(f"A task of {named} names the file {error.filename}, which does not exist.")
    return FetchError(
        f"The data of {named} are not in the local cache and could not be downloaded "
        f"({str(error).strip().splitlines()[0]}). Download them where there is a network, or give a task file with local "
        "data: dataset_path: json, and data_files in dataset_kwargs (--tasks my_task.yaml)."
    )


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


def read_task(task: str) -> str | dict[str, Any]:
    """A task's name; or the content of a task file, with its data files found beside it."""
    path = Path(task)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return task
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        said: Any = load_yaml(path)
    except (yaml.YAMLError, ValueError, ImportError, FileNotFoundError) as e:
        raise DatasetError(f"{path} cannot be read as a task of lm-evaluation-harness: {e}") from e
    if not isinstance(said, dict) or "task" not in said:
        raise DatasetError(f"{path} is no task of lm-evaluation-harness: it needs a line `task: name`.")
    files = (said.get("dataset_kwargs") or {}).get("data_files")
    if files is not None:
        said["dataset_kwargs"] = said["dataset_kwargs"] | {"data_files": _beside(path.parent, files)}
    return said


def _beside(folder: Path, files: Any) -> Any:
    if isinstance(files, dict):
        return {k: _beside(folder, v) for k, v in files.items()}
    if isinstance(files, list):
        return [_beside(folder, v) for v in files]
    near = folder / str(files)
    if "://" in str(files) or Path(files).is_absolute() or not near.exists():
        if "://" not in str(files) and not Path(files).exists():
            raise DatasetError(f"The task file in {folder} names the data {files}, which does not exist there.")
        return files
    return str(near.resolve())


def _said(name: str) -> str:
    metric, _, which = name.partition(",")
    if metric in ("alias", "sample_len", "name") or metric.endswith("_stderr"):
        return ""
    return metric if which in ("", "none") else name
