"""Tasks of lm-evaluation-harness: by name, from a file, or by name with a local copy of their data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from assistant_axis.errors import (
    AssistantAxisError,
    DatasetError,
    FetchError,
    MissingExtraError,
    SettingError,
    UnknownNameError,
)

TASKS = Path(__file__).parent / "data" / "tasks"
"""Tasks of our own in the harness' format; they need no network."""

Spec: TypeAlias = "str | dict[str, Any]"
"""What the harness takes for a task: its name, or its whole configuration."""

_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_YAML = (".yaml", ".yml")
_NEEDED_BY_IFEVAL = ("langdetect", "immutabledict", "nltk")


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
        return [t for t in tasks if t not in known and not _is_file(t)]

    manager = TaskManager(include_path=folders, include_defaults=False)
    if unknown(manager):  # reading the harness' own list takes ten seconds
        manager = TaskManager(include_path=folders)
    for name in unknown(manager):
        raise UnknownNameError(
            "task",
            name,
            manager.all_tasks,
            "Names are those of lm-evaluation-harness (`lm-eval ls tasks`); a task of your own is a path to its .yaml.",
        )
    return manager


def read_task(task: str) -> Spec:
    """A task's name; or the content of a task file, with its data files found beside it.

    Raises:
        DatasetError: a task file that cannot be read, or whose data do not exist.
    """
    path = Path(task)
    if not _is_file(task):
        return task
    said = _read_yaml(path)
    if "task" not in said:
        raise DatasetError(f"{path} is no task of lm-evaluation-harness: it needs a line `task: name`.")
    files = (said.get("dataset_kwargs") or {}).get("data_files")
    if files is not None:
        said["dataset_kwargs"] = said["dataset_kwargs"] | {"data_files": _beside(path.parent, files)}
    return said


def with_local_data(task: str, data: str | Path, manager: Any) -> None:
    """Let a task that the harness knows read a local copy of its data, in this manager.

    Args:
        task: name of a task, or of a group over one data set.
        data: a folder with a copy of the hub's repository; or one file (.jsonl, .json, .csv, .parquet) with the split that is
            tested, in the same columns. A file has no examples to show: give `num_fewshot=0` where a task shows some.
        manager: knows the task.

    Raises:
        DatasetError: no such folder or file.
        SettingError: a task file, a tag, or a group over several data sets with one file.
    """
    data = Path(data)
    entry = manager.task_index.get(task)
    if entry is None:
        raise SettingError(f"Local data go with a name that lm-evaluation-harness knows; {task} is none.")
    if not data.exists():
        raise DatasetError(f"The local data of {task} do not exist: {data}")
    parts = list(leaves(task, manager))
    if not parts:
        raise SettingError(f"{task} is a tag of several tasks; give local data for one of them.")
    read = _READERS.get(data.suffix.lower())
    if data.is_dir():
        said: dict[str, Any] = {"dataset_path": str(data.resolve()), "dataset_kwargs": None}
    elif read is None:
        raise DatasetError(f"{data} is no file of data that is known: {', '.join(_READERS)}, or a folder.")
    elif len({(p.get("dataset_path"), p.get("dataset_name")) for p in parts}) > 1:
        raise SettingError(f"{task} is a group over several data sets; give a folder with a copy of their repository.")
    else:
        kind = "test_split" if parts[0].get("test_split") else "validation_split"
        split = parts[0].get(kind) or "test"
        said = dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split"))
        said |= {kind: split, "dataset_path": read, "dataset_name": None}
        said |= {"dataset_kwargs": {"data_files": {split: str(data.resolve())}}}
    config = dict(entry.cfg) if entry.yaml_path is None else _read_yaml(entry.yaml_path)
    manager.task_index[task] = replace(entry, yaml_path=None, cfg=config | said)


def shown_examples(task: str, manager: Any) -> int:
    """How many examples a task shows before each item, where nobody says otherwise."""
    return max((int(p.get("num_fewshot") or 0) for p in leaves(task, manager)), default=0)


def leaves(task: str, manager: Any) -> Iterator[Mapping[str, Any]]:
    """Configurations of a task, or of all tasks of a group; none of what is neither."""
    entry = manager.task_index.get(task)
    if entry is None:
        return
    from lm_eval.tasks._yaml_loader import load_yaml

    said: Any = (entry.cfg or {}) if entry.yaml_path is None else load_yaml(entry.yaml_path, resolve_func=False)
    members = said.get("task")
    if isinstance(members, list):
        for member in members:
            name = member if isinstance(member, str) else member.get("task") or member.get("group")
            if isinstance(name, str):
                yield from leaves(name, manager)
    elif "task" in said:
        yield said


def task_error(tasks: Sequence[str], manager: Any, error: Exception) -> AssistantAxisError:
    """What went wrong while the harness made its tasks, by name: data that are not there, or a package."""
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, ImportError):
        if error.name in _NEEDED_BY_IFEVAL:
            return MissingExtraError(str(error.name), "eval", f"A task of {', '.join(tasks)}")
        return DatasetError(f"A task of {', '.join(tasks)} needs a Python package that is not installed: {said}")
    if isinstance(error, LookupError):  # nltk's
        return FetchError(
            f"A task of {', '.join(tasks)} needs data of nltk that are not on this machine and could not be downloaded: run "
            "python -c \"import nltk; nltk.download('punkt_tab')\" where there is a network."
        )
    if isinstance(error, FileNotFoundError) and "hub" not in str(error).lower() and error.filename:
        return DatasetError(f"A task of {', '.join(tasks)} names the file {error.filename}, which does not exist.")
    sources = {t: {str(p.get("dataset_path")) for p in leaves(t, manager)} for t in tasks}
    sources |= {str(s["task"]): {str(s.get("dataset_path"))} for s in map(_spec, tasks) if isinstance(s, dict)}
    missing = {t: s for t, found in sources.items() for s in found if s in str(error)}
    named = ", ".join(f"{t} ({s})" for t, s in missing.items()) or ", ".join(tasks)
    first = next((t for t in missing if t in tasks), None)
    local = f"give a copy of them (--local {first}=FILE_OR_FOLDER)" if first else "give a copy of them"
    return FetchError(
        f"The data of {named} are not in the local cache and could not be downloaded ({said}). Download them where there is a "
        f"network, or {local}, or a task file with local data: dataset_path: json, and data_files in dataset_kwargs "
        "(--tasks my_task.yaml)."
    )


def _spec(task: str) -> Spec:
    try:
        return read_task(task)
    except AssistantAxisError:
        return task


def _is_file(task: str) -> bool:
    return task.endswith(_YAML) and Path(task).is_file()


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        said: Any = load_yaml(path)
    except ModuleNotFoundError as e:
        raise task_error([path.stem], None, e) from e
    except (yaml.YAMLError, ValueError, ImportError, FileNotFoundError) as e:
        raise DatasetError(f"{path} cannot be read as a task of lm-evaluation-harness: {e}") from e
    if not isinstance(said, dict):
        raise DatasetError(f"{path} is no task of lm-evaluation-harness: it needs a line `task: name`.")
    return dict(said)


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
