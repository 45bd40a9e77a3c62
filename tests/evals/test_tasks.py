"""Tasks by name over local data, kept requests, and what is said when data or packages are missing."""

import json
from pathlib import Path

import pytest

from assistant_axis.errors import DatasetError, FetchError, MissingExtraError, SettingError
from assistant_axis.evals.capability import OF_A_HUNDRED, TaskChange, capability
from assistant_axis.evals.harness import HookedLM
from assistant_axis.evals.paired import paired_change
from assistant_axis.evals.tasks import task_error, task_manager
from assistant_axis.steering.interventions import Add

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning:datasets.*")

CAPITALS = """\
dataset_path: nobody/capitals
output_type: multiple_choice
test_split: test
fewshot_split: train
num_fewshot: 2
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: choices
metric_list:
  - metric: acc
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task over a data set of the hub that shows two examples, a group of it, a tag, and a local copy of its data."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "capitals.yaml").write_text("task: capitals\ntag: places\n" + CAPITALS)
    (tasks / "towns.yaml").write_text("task: towns\ntag: places\n" + CAPITALS)
    (tasks / "facts.yaml").write_text("group: facts\ntask:\n  - capitals\n  - towns\n")
    (tmp_path / "copy").mkdir()
    for split, count in (("train", 4), ("test", 5)):
        rows = [{"question": f"The moon {k}", "choices": [" sun", " sea"], "answer": k % 2} for k in range(count)]
        (tmp_path / "copy" / f"{split}.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return tmp_path


def test_a_file_takes_the_place_of_the_hub(tiny_model, folder):
    file = folder / "copy" / "test.jsonl"
    given = {"include_path": folder / "tasks", "num_fewshot": 0}
    found = capability(tiny_model, ["capitals"], local={"capitals": file}, **given).baseline
    assert len(found["samples"]["capitals"]) == 5
    assert "The moon 0" in found["samples"]["capitals"][0]["arguments"][0][0]
    both = capability(tiny_model, ["facts"], local={"facts": file}, **given).baseline
    assert {name: len(rows) for name, rows in both["samples"].items()} == {"capitals": 5, "towns": 5}
    assert both["results"]["capitals"]["acc,none"] == found["results"]["capitals"]["acc,none"]


def test_a_folder_has_the_examples_too(tiny_model, folder):
    found = capability(
        tiny_model, ["capitals"], local={"capitals": folder / "copy"}, include_path=folder / "tasks", limit=2
    )
    (first, *_) = found.baseline["samples"]["capitals"]
    assert first["arguments"][0][0].count("The moon") == 3  # two examples and the item


def test_local_data_that_do_not_fit(tiny_model, folder):
    def run(task: str, path: Path, **more):
        capability(tiny_model, ["capitals", task], local={task: path}, include_path=folder / "tasks", **more)

    with pytest.raises(SettingError, match=r"capitals shows 2 examples .*\(--fewshot 0\)"):
        run("capitals", folder / "copy" / "test.jsonl")
    with pytest.raises(DatasetError, match=r"none\.jsonl"):
        run("capitals", folder / "none.jsonl")
    (folder / "data.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"data\.txt is no file of data"):
        run("capitals", folder / "data.txt", num_fewshot=0)
    (folder / "lines.jsonl").write_text('{"query": "The moon", "choices": [" sun"], "answer": 0}')
    with pytest.raises(DatasetError, match="capitals do not have what the task reads: 'question' is undefined"):
        run("capitals", folder / "lines.jsonl", num_fewshot=0)
    with pytest.raises(SettingError, match="places"):
        run("places", folder / "copy")
    with pytest.raises(SettingError, match="not among the tasks"):
        capability(tiny_model, ["capitals"], local={"towns": folder / "copy"}, include_path=folder / "tasks")
    with pytest.raises(SettingError, match="limit and items"):
        capability(tiny_model, ["capitals"], limit=2, items={"capitals": [0]})


def test_without_a_network_the_data_set_is_named(tiny_model, folder):
    with pytest.raises(FetchError) as said:
        capability(tiny_model, ["everyday_choice", "capitals"], include_path=folder / "tasks")
    assert "The data of capitals (nobody/capitals) are not in the local cache" in str(said.value)
    assert "--local capitals=FILE_OR_FOLDER" in str(said.value)
    assert "dataset_path: json" in str(said.value)


def test_missing_packages_are_named(tiny_model, tmp_path):
    (tmp_path / "odd.py").write_text("import none_such_package\n\n\ndef score(doc, results):\n    return {}\n")
    task = tmp_path / "odd.yaml"
    task.write_text("task: odd\ndataset_path: json\nprocess_results: !function odd.score\n")
    with pytest.raises(DatasetError, match=r"odd needs a Python package that is not installed: .*none_such_package"):
        capability(tiny_model, [str(task)])
    manager = task_manager(["everyday_choice"])
    missing = task_error(["ifeval"], manager, ModuleNotFoundError("No module named 'langdetect'", name="langdetect"))
    assert isinstance(missing, MissingExtraError)
    assert "assistant-axis[eval]" in str(missing)
    assert "punkt_tab" in str(task_error(["ifeval"], manager, LookupError("Resource punkt_tab not found; nltk")))


def test_answered_requests_are_kept(tiny_model, tiny_direction, choice_task, story_task, tmp_path, monkeypatch):
    tasks, step = [str(choice_task), str(story_task)], Add(tiny_direction, 4.0, layers=1)
    first = capability(tiny_model, tasks, step, keep=tmp_path / "kept", batch_size=4)
    assert sorted(f.name.split("-")[0] for f in (tmp_path / "kept").iterdir()) == ["baseline", "steered"]
    asked = []
    score = HookedLM._score
    monkeypatch.setattr(HookedLM, "_score", lambda self, *a: asked.append("score") or score(self, *a))
    monkeypatch.setattr(HookedLM, "_model_generate", None)
    again = capability(tiny_model, tasks, step, keep=tmp_path / "kept", batch_size=4)
    assert again.changes == first.changes
    assert not asked
    capability(tiny_model, tasks[:1], Add(tiny_direction, 5.0, layers=1), keep=tmp_path / "kept", batch_size=4)
    assert asked  # another dose is another run


def test_only_some_items(tiny_model, choice_task):
    found = capability(tiny_model, [str(choice_task)], items={"moon": [1, 4, 7]}).baseline
    assert [r["doc_id"] for r in found["samples"]["moon"]] == [1, 4, 7]
    assert "Name number 4" in found["samples"]["moon"][1]["arguments"][0][0]


def test_gains_are_fractions_and_positive_for_better():
    change = paired_change([10.0, 30.0, 20.0], [14.0, 32.0, 26.0])
    value, low, high = TaskChange("eq_bench", "eqbench", change).gain
    assert value == pytest.approx(0.04)
    assert (low, high) == pytest.approx(tuple(x / 100 for x in change.interval))
    assert "eqbench" in OF_A_HUNDRED
    worse = TaskChange("t", "error", paired_change([0, 0, 1, 0], [1, 0, 1, 1]), higher_is_better=False).gain
    assert worse[0] == -0.5
    assert worse[1] <= worse[0] <= worse[2]
