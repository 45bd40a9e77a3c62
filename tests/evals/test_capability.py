"""lm-evaluation-harness over our model: the harness' own figures, interventions, pairs, bad input."""

import json
import math

import pytest
import tiny
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from assistant_axis.cli.main import app
from assistant_axis.errors import (
    ArtefactMismatchError,
    DatasetError,
    FetchError,
    SettingError,
    UnknownNameError,
)
from assistant_axis.evals.capability import capability, paired_metrics
from assistant_axis.evals.harness import HookedLM
from assistant_axis.steering.interventions import Add, Cap

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning:datasets.*")

TEXTS = [("Who are you?", " I am an assistant"), ("The pirate", " sails the sea"), ("", "The moon and the sun")]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, a, k) for k, a in enumerate(arguments)]


@pytest.fixture(scope="module")
def both(tiny_model, tiny_hf):
    """Our wrapper and the harness' own, over the same weights."""
    return HookedLM(tiny_model, batch_size=2), HFLM(tiny_hf, tokenizer=tiny.make_tokenizer(), batch_size=2)


def test_scores_are_those_of_the_harness(both):
    ours, theirs = both
    found = ours.loglikelihood(requests("loglikelihood", TEXTS), disable_tqdm=True)
    expected = theirs.loglikelihood(requests("loglikelihood", TEXTS), disable_tqdm=True)
    assert [g for _, g in found] == [g for _, g in expected]
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-5)
    whole = [(a + b,) for a, b in TEXTS]
    rolling = [lm.loglikelihood_rolling(requests("loglikelihood_rolling", whole), disable_tqdm=True) for lm in both]
    assert rolling[0] == pytest.approx(rolling[1], abs=1e-5)
    assert all(x < -1 for x in rolling[0])


def test_requests_that_share_a_context_and_long_ones(tiny_model, tiny_hf):
    context = " the moon" * 30
    asked = [(context, t) for t in (" sun", " the sun and the sea", " sails")] + [
        ("Who", " are you?"),
        (context, " sun"),
    ]
    ours = HookedLM(tiny_model, batch_size=3, max_length=24)
    theirs = HFLM(tiny_hf, tokenizer=tiny.make_tokenizer(), batch_size=3, max_length=24)
    found, expected = (lm.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True) for lm in (ours, theirs))
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-5)
    assert [g for _, g in found] == [g for _, g in expected]


def test_generation_is_that_of_the_harness(both):
    asked = [(a or "moon", {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}) for a, _ in TEXTS]
    ours, theirs = (lm.generate_until(requests("generate_until", asked), disable_tqdm=True) for lm in both)
    assert ours == theirs
    assert any(ours)


def test_an_intervention_acts_and_a_zero_dose_does_not(both, tiny_model, tiny_direction):
    plain = both[0].loglikelihood(requests("loglikelihood", TEXTS), disable_tqdm=True)
    zero, moved = (
        HookedLM(tiny_model, Add(tiny_direction, d, layers=2), batch_size=2).loglikelihood(
            requests("loglikelihood", TEXTS), disable_tqdm=True
        )
        for d in (0.0, 3.0)
    )
    assert zero == plain
    assert all(abs(a - b) > 1e-3 for (a, _), (b, _) in zip(plain, moved, strict=True))
    with tiny_model.steered(Add(tiny_direction, 3.0, layers=2)):
        by_hand = both[0].loglikelihood(requests("loglikelihood", TEXTS), disable_tqdm=True)
    assert [x for x, _ in moved] == pytest.approx([x for x, _ in by_hand], abs=1e-5)


def test_positions_hold_in_scoring(tiny_model, tiny_direction, both):
    """A continuation is the response, its context the prompt: by hand, one sequence at a time."""
    asked = requests("loglikelihood", TEXTS[:2])
    scores = {}
    for where in ("prompt", "response", "all"):
        lm = HookedLM(tiny_model, Add(tiny_direction, 3.0, layers=2, positions=where), batch_size=2)
        scores[where] = [x for x, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    tokenizer = tiny_model.tokenizer
    for k, (context, said) in enumerate(TEXTS[:2]):
        before, after = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (context, said))
        ids = torch.tensor([[*before, *after]])
        response = torch.zeros_like(ids, dtype=torch.bool)
        response[0, len(before) :] = True
        for where, found in scores.items():
            step = Add(tiny_direction, 3.0, layers=2, positions=where)
            with tiny_model.steered(step), tiny_model.positions.known(response):
                logs = tiny_model.forward(ids, logits=None).logits[0, len(before) - 1 : -1].log_softmax(-1)
            assert found[k] == pytest.approx(float(logs.gather(-1, torch.tensor(after)[:, None]).sum()), abs=1e-4)
    assert scores["prompt"] != pytest.approx(scores["all"], abs=1e-3)


def test_positions_hold_in_generation(tiny_model, tiny_direction):
    step = Add(tiny_direction, 5.0, layers=2, positions="response")
    lm = HookedLM(tiny_model, step, batch_size=1)
    text = lm.apply_chat_template([{"role": "user", "content": "Who are you?"}])
    options = {"until": [], "max_gen_toks": 6, "do_sample": False}
    found = lm.generate_until(requests("generate_until", [(text, options)]), disable_tqdm=True)
    with tiny_model.steered(step):
        expected = tiny_model.generate([{"role": "user", "content": "Who are you?"}], max_new_tokens=6).text
    assert found == [expected]


def test_chats_are_rendered_by_our_template(tiny_model):
    lm = HookedLM(tiny_model)
    turns = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Who are you?"}]
    assert lm.apply_chat_template(turns) == tiny_model.chat.render(turns, add_generation_prompt=True)
    opened = lm.apply_chat_template([*turns, {"role": "assistant", "content": "I am"}], add_generation_prompt=False)
    assert opened.endswith("assistant\nI am")
    joined, _ = tiny.make_pair("gemma3")
    assert "You are a pirate.\n\nWho are you?" in HookedLM(joined).apply_chat_template(turns)
    assert lm.chat_template(True) == tiny_model.chat.template
    assert lm.chat_template(False) is None


def test_capability_pairs_items_and_saves_what_the_harness_saves(tiny_model, tiny_direction, choice_task, tmp_path):
    out = tmp_path / "out"
    found = capability(tiny_model, [str(choice_task)], Add(tiny_direction, 4.0, layers=1), out=out, batch_size=4)
    (change,) = (c for c in found.changes if c.metric == "acc")
    assert found.results is not None
    assert change.change.n == 9
    assert change.change.before == pytest.approx(found.baseline["results"]["moon"]["acc,none"])
    assert change.change.after == pytest.approx(found.results["results"]["moon"]["acc,none"])
    assert change.change.change == pytest.approx(change.change.after - change.change.before)
    for name in ("baseline", "steered"):
        folder = out / name / "tiny"
        folder = folder if folder.is_dir() else next((out / name).iterdir())
        saved = json.loads(next(folder.glob("results_*.json")).read_text())
        assert saved["configs"]["moon"]["output_type"] == "multiple_choice"
        assert saved["config"]["model_fingerprint"] == tiny_model.fingerprint
        assert len(next(folder.glob("samples_moon_*.jsonl")).read_text().splitlines()) == 9
    assert found.rows()[0]["items"] == "9"
    again = capability(tiny_model, [str(choice_task)], Add(tiny_direction, 0.0), baseline=found.baseline, batch_size=4)
    assert {c.change.change for c in again.changes} == {0.0}
    assert all(c.change.gained == c.change.lost == 0 for c in again.changes)


def test_tasks_that_generate(tiny_model, tiny_direction, story_task):
    found = capability(tiny_model, [str(story_task)], Add(tiny_direction, 6.0, layers=1), limit=3)
    assert found.results is not None
    said = [
        [r["filtered_resps"][0] for r in results["samples"]["stories"]] for results in (found.baseline, found.results)
    ]
    assert len(said[0]) == 3
    assert said[0] != said[1]
    plain = tiny_model.generate([{"role": "user", "content": "Tell me story 0."}], max_new_tokens=6).text
    assert said[0][0].strip() == plain.split("\n\n")[0].strip()


def test_our_own_task_needs_no_network(tiny_model):
    found = capability(tiny_model, ["everyday_choice"], limit=8, chat_template=False)
    assert found.rows()[0]["task"] == "everyday_choice"
    assert 0 <= found.baseline["results"]["everyday_choice"]["acc,none"] <= 1
    assert found.changes == ()


def test_the_set_is_well_formed():
    from assistant_axis.evals.tasks import TASKS

    items = [json.loads(line) for line in (TASKS / "everyday_choice.jsonl").read_text().splitlines()]
    assert len({i["id"] for i in items}) == len({i["question"] for i in items}) == len(items) == 40
    assert all(len(set(i["choices"])) == 4 and 0 <= i["answer"] < 4 for i in items)
    shares = [sum(i["answer"] == k for i in items) for k in range(4)]
    assert min(shares) >= 4


def test_other_items_are_no_baseline(tiny_model, choice_task):
    all_of_them = capability(tiny_model, [str(choice_task)]).baseline
    some = capability(tiny_model, [str(choice_task)], limit=3).baseline
    with pytest.raises(SettingError, match="9 items"):
        paired_metrics(all_of_them, some)


def test_bad_input_is_named(tiny_model, tiny_direction, tmp_path, choice_task):
    with pytest.raises(SettingError, match="No task"):
        capability(tiny_model, [])
    with pytest.raises(SettingError, match="limit=0"):
        capability(tiny_model, [str(choice_task)], limit=0)
    with pytest.raises(SettingError, match="batch_size"):
        HookedLM(tiny_model, batch_size="many")
    other, _ = tiny.make_pair("gemma3")
    with pytest.raises(ArtefactMismatchError, match="width 7"):
        capability(other, [str(choice_task)], Cap({0: torch.ones(7)}, 0.0))
    (tmp_path / "items.json").unlink()
    with pytest.raises(DatasetError, match=r"items\.json"):
        capability(tiny_model, [str(choice_task)])
    broken = tmp_path / "broken.yaml"
    broken.write_text("- a list\n")
    with pytest.raises(DatasetError, match="Expected YAML dict"):
        capability(tiny_model, [str(broken)])
    hub = tmp_path / "hub.yaml"
    hub.write_text(
        choice_task.read_text()
        .replace("dataset_path: json", "dataset_path: nobody/none-such")
        .split("dataset_kwargs")[0]
    )
    with pytest.raises(FetchError, match="dataset_path: json"):
        capability(tiny_model, [str(hub)])


def test_an_unknown_task_shows_the_nearest(tiny_model):
    with pytest.raises(UnknownNameError, match="hellaswag"):
        capability(tiny_model, ["hellaswagg"])


def test_command(tiny_model, tiny_direction, choice_task, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from assistant_axis.models import loading
    from assistant_axis.steering.formats import save_intervention

    monkeypatch.setattr(loading, "load_model", lambda *_a, **_k: tiny_model)
    cap = save_intervention(tmp_path / "cap.safetensors", Cap(tiny_direction, floor=0.2, layers=[1, 2]))
    asked = ["eval", "capability", "--tasks", str(choice_task), "--cap", str(cap), "--limit", "5"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "moon" in done.output
    assert "keep ⟨h, v̂⟩ ≥ 0.2" in done.output


@pytest.mark.real
def test_hellaswag_as_the_harness_scores_it(real_model, reference, tmp_path):
    from lm_eval import simple_evaluate
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from assistant_axis.evals.tasks import read_task
    from assistant_axis.models.embedded import ensure

    lines = (reference / "capability" / "hellaswag_val_1000.txt").read_text().splitlines()
    items = [{"query": lines[k], "gold": int(lines[k + 1]), "choices": lines[k + 2 : k + 6]} for k in range(0, 60, 6)]
    (tmp_path / "items.json").write_text("\n".join(json.dumps(i) for i in items))
    task = tmp_path / "hellaswag_local.yaml"
    task.write_text(
        "task: hellaswag_local\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: items.json\n"
        "output_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{query}}"\ndoc_to_target: "{{gold}}"\ndoc_to_choice: choices\nmetric_list:\n  - metric: acc\n'
    )
    ours = capability(real_model, [str(task)], batch_size=8, chat_template=False).baseline
    folder = ensure("smollm2-135m-instruct")
    hf = HFLM(
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        batch_size=8,
    )
    theirs = simple_evaluate(hf, tasks=[read_task(str(task))], bootstrap_iters=10)
    assert theirs is not None
    scores = [
        [float(s[0]) for row in r["samples"]["hellaswag_local"] for s in row["filtered_resps"]] for r in (ours, theirs)
    ]
    assert len(scores[0]) == 40
    assert max(abs(a - b) for a, b in zip(*scores, strict=True)) < 1e-4
    assert not math.isnan(scores[0][0])
    assert ours["results"]["hellaswag_local"]["acc,none"] == theirs["results"]["hellaswag_local"]["acc,none"]
