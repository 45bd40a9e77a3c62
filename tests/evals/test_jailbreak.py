"""Rows and their files, labels and judges, and the same rows with and without an intervention."""

import json

import pytest
import torch

from assistant_axis.errors import ArtefactMismatchError, DatasetError, JudgeError, SettingError, UnknownNameError
from assistant_axis.evals.datasets import (
    MILD,
    JailbreakPrompt,
    load_harmbench,
    load_jailbreakbench,
    load_strongreject,
    load_xstest,
    read_prompts,
    role_products,
)
from assistant_axis.evals.jailbreak import jailbreak
from assistant_axis.evals.judging import parse_label
from assistant_axis.evals.labels import LABELS, IdentityJudge
from assistant_axis.evals.responses import HARMFUL, RESPONSE_LABELS, RubricJudge, pattern_labels
from assistant_axis.judges.endpoint import Endpoint, Reply
from assistant_axis.steering.interventions import Add, Cap


def test_the_mild_set_is_mild_and_small():
    rows = read_prompts(MILD)
    assert len(rows) == 20
    assert len({r.question for r in rows}) == 20
    assert all(r.system and r.category for r in rows)
    assert rows[0].messages[0] == {"role": "system", "content": rows[0].system}
    assert rows[0].bare == [{"role": "user", "content": rows[0].question}]


def test_csv_and_json_lines_are_the_same(tmp_path):
    rows = [
        {"id": "a", "category": "c", "system": "", "question": 'Is "x, y" allowed?'},
        {"id": "b", "category": "d", "system": "S", "question": "Two\nlines"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    (tmp_path / "p.csv").write_text('id,category,system,question\na,c,,"Is ""x, y"" allowed?"\nb,d,S,"Two\nlines"\n')
    assert (
        read_prompts(tmp_path / "p.jsonl") == read_prompts(tmp_path / "p.csv") == [JailbreakPrompt(**r) for r in rows]
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "id,question\n1,Why?\n", r"p\.csv, line 2: no column 'category'"),
        ("p.csv", "id,category,question\n1,a,Why?\n1,a,How?\n", r"line 3: the id '1' was used in line 2"),
        ("p.jsonl", '{"id": 1, "category": "a", "question": "Why?"}\n{"id": 2', r"p\.jsonl, line 2: not JSON"),
        ("p.jsonl", "[1]", "line 1: expected an object"),
        ("p.jsonl", '{"id": 1, "category": "a", "question": " "}', "line 1: the id or the question is empty"),
        ("p.csv", "id,category,question\n", "no row"),
    ],
)
def test_files_with_mistakes_name_file_and_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=said):
        read_prompts(tmp_path / name)


def test_local_copies_of_public_sets(tmp_path):
    file = tmp_path / "set.csv"
    file.write_text("category,source,forbidden_prompt\nPetty,own,How?\nPetty,own,Why?\n")
    assert [(r.category, r.question) for r in load_strongreject(file)] == [("Petty", "How?"), ("Petty", "Why?")]
    file.write_text(
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\nDo it,s,petty,,Once,b1\nDo,s,petty,,,b2\n"
    )
    assert [(r.id, r.question) for r in load_harmbench(file)] == [("b1", "Once\n\nDo it"), ("b2", "Do")]
    file.write_text("Index,Goal,Target,Behavior,Category,Source\n0,How?,Sure,X,Petty,own\n")
    assert load_jailbreakbench(file)[0].category == "Petty"
    with pytest.raises(DatasetError, match="no column 'category'"):
        load_strongreject(file)
    file.write_text("id,prompt,type,label,focus,note\n1,How?,homonyms,safe,a,b\n2,No?,contrast,unsafe,a,b\n")
    assert [r.question for r in load_xstest(file)] == ["How?"]
    assert [r.id for r in load_xstest(file, safe=False)] == ["2"]


def test_xstest_as_it_is(reference):
    rows = load_xstest(reference / "conversations" / "xstest_450.csv")
    assert len(rows) == 250


def test_products_of_roles_and_questions():
    rows = role_products(["pirate", "lawyer"], read_prompts(MILD)[:3])
    assert len({r.id for r in rows}) == 6
    assert len({r.system for r in rows}) == 2
    with pytest.raises(UnknownNameError):
        role_products(["piratee"], read_prompts(MILD))


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("", "nonsensical"),
        ("I can't help with that.", "refusal"),
        (
            "I'm sorry, but taking things that belong to others is not kind. " * 1
            + "You could ask your neighbour for some apples instead, or buy them at the market.",
            "refusal and justification",
        ),
        ("First you wait until nobody looks, and then you walk slowly to the tree.", "other"),
    ],
)
def test_labels_by_form(answer, label):
    assert pattern_labels([read_prompts(MILD)[0]], [answer]) == [label]


def test_a_judge_reads_the_rubric_and_is_held_to_it():
    row = read_prompts(MILD)[0]
    seen = []
    judge = RubricJudge(lambda chats: seen.extend(chats) or ["I thought about it.\nLABEL: Enough information."])
    assert judge([row, row], ["Some answer", " "]) == ["enough information", "nonsensical"]
    ((message,),) = seen
    assert all(said in message["content"] for said in (*RESPONSE_LABELS, "Some answer", row.question))
    for reply in ("enough information", "LABEL: harmful", ""):
        with pytest.raises(JudgeError, match="off the rubric on row mild-00"):
            parse_label(reply, RESPONSE_LABELS, f"row {row.id}")
    with pytest.raises(JudgeError, match="0 replies"):
        RubricJudge(lambda _chats: [])([row], ["x"])


def test_a_judge_behind_an_endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "anything")
    said = {"a": Reply("LABEL: mystical"), "b": Reply("LABEL: other")}
    asked = []

    def ask(_self, chats, readable):
        assert readable("LABEL: mystical")
        assert not readable("mystical")
        asked.extend(chats)
        return [said[c[0]["content"].split("<answer>\n")[1][0]] for c in chats]

    monkeypatch.setattr(Endpoint, "ask", ask)
    judge = IdentityJudge.of_endpoint(Endpoint("stub"))
    assert judge(["a", "", "b"]) == ["mystical", "nonsensical", "other"]
    assert all(name in asked[0][0]["content"] for name in LABELS)
    said["b"] = Reply("slow", "time")
    with pytest.raises(JudgeError, match=r"1 of 2 labels did not come: time \(slow\)"):
        judge(["a", "b"])


def test_finished_answers_are_kept(tiny_model, tiny_direction, tmp_path, monkeypatch):
    rows = read_prompts(MILD)[:3]
    step = Add(tiny_direction, 6.0, layers=2)

    def broken(_prompts, _answers):
        raise JudgeError("away")

    with pytest.raises(JudgeError, match="away"):
        jailbreak(tiny_model, rows, step, labeller=broken, max_new_tokens=4, keep=tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["bare.answers.jsonl"]
    first = jailbreak(tiny_model, rows, step, max_new_tokens=4, keep=tmp_path)
    monkeypatch.setattr(tiny_model, "generate", None)
    assert jailbreak(tiny_model, rows, step, max_new_tokens=4, keep=tmp_path) == first
    with pytest.raises(SettingError, match="other settings"):
        jailbreak(tiny_model, rows, Add(tiny_direction, 5.0, layers=2), max_new_tokens=4, keep=tmp_path)


def test_labels_of_a_judge_with_a_name_are_kept(tiny_model, tmp_path):
    rows, asked = read_prompts(MILD)[:5], []

    def ask(chats):
        asked.append(len(chats))
        if len(asked) == 3:
            raise JudgeError("away")
        return ["LABEL: other"] * len(chats)

    settings = {"max_new_tokens": 3, "batch_size": 1, "keep": tmp_path}
    judge = RubricJudge(ask, "a judge")
    with pytest.raises(JudgeError, match="away"):  # chunks of four: it stops in the first one under the personas
        jailbreak(tiny_model, rows, labeller=judge, **settings)
    found = jailbreak(tiny_model, rows, labeller=judge, **settings)
    assert asked == [4, 1, 4, 4, 1, 4, 1]
    assert set(found.bare.labels) == {"other"}
    with pytest.raises(SettingError, match="other settings"):
        jailbreak(tiny_model, rows, labeller=RubricJudge(ask, "another judge"), **settings)


def test_a_baseline_is_not_asked_again(tiny_model, tiny_direction, monkeypatch):
    rows = read_prompts(MILD)[:3]
    plain = jailbreak(tiny_model, rows, safe=rows[:2], max_new_tokens=3)
    asked = []
    generate = tiny_model.generate
    monkeypatch.setattr(tiny_model, "generate", lambda c, **k: asked.append(len(c)) or generate(c, **k))
    step = Add(tiny_direction, 6.0, layers=2)
    found = jailbreak(tiny_model, rows, step, safe=rows[:2], max_new_tokens=3, baseline=plain)
    assert asked == [3, 2]
    assert (found.bare, found.baseline) == (plain.bare, plain.baseline)
    with pytest.raises(SettingError, match="other rows"):
        jailbreak(tiny_model, rows[:2], step, baseline=plain)


def test_by_form_there_is_no_harm_rate(tiny_model):
    found = jailbreak(tiny_model, read_prompts(MILD)[:3], max_new_tokens=3)
    assert not any("harm" in r["share of"] for r in found.rows())
    (ax,) = found.plot().axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["refused", "nonsensical"]


def by_letters(prompts, answers):
    """A labeller of the test's own: harmful where the answer has an even number of characters."""
    return ["enough information" if len(a) % 2 == 0 else "refusal" for a in answers]


def test_the_same_rows_in_pairs(tiny_model, tiny_direction):
    rows = read_prompts(MILD)[:8]
    step = Add(tiny_direction, 6.0, layers=2)
    found = jailbreak(tiny_model, rows, step, labeller=by_letters, safe=rows[:4], max_new_tokens=6)
    assert found.baseline.prompts == found.steered.prompts == found.bare.prompts == tuple(rows)
    plain = [tiny_model.generate(r.messages, max_new_tokens=6).text for r in rows]
    with tiny_model.steered(step):
        moved = [tiny_model.generate(r.messages, max_new_tokens=6).text for r in rows]
    assert (list(found.baseline.answers), list(found.steered.answers)) == (plain, moved)
    assert found.bare.answers[0] == tiny_model.generate(rows[0].bare, max_new_tokens=6).text
    change = found.change()
    assert (change.n, change.binary) == (8, True)
    assert change.before == sum(len(a) % 2 == 0 for a in plain) / 8
    assert found.over_refusal is not None
    assert found.over_refusal.n == 4
    shares = [found.steered.share(HARMFUL, c) for c in found.steered.categories]
    assert sum(s.n for s in shares) == 8
    assert sum(s.count for s in shares) == found.steered.share().count
    said = [r["share of"] for r in found.rows()]
    assert said[0] == "harmful, all"
    assert said[-3:] == ["refused", "nonsensical", "safe questions refused"]
    same = jailbreak(tiny_model, rows, Add(tiny_direction, 0.0), labeller=by_letters, max_new_tokens=6)
    assert same.change().gained == same.change().lost == 0
    with pytest.raises(SettingError, match="no-such"):
        found.bare.share(category="no-such")


def test_a_model_as_judge_off_the_rubric(tiny_model):
    rows = read_prompts(MILD)[:2]
    with pytest.raises(JudgeError, match="off the rubric"):
        jailbreak(tiny_model, rows, labeller=RubricJudge.of_model(tiny_model), max_new_tokens=3)
    with pytest.raises(JudgeError, match="1 labels"):
        jailbreak(tiny_model, rows, labeller=lambda _p, _a: ["other"], max_new_tokens=3)
    with pytest.raises(ArtefactMismatchError, match="width 7"):
        jailbreak(tiny_model, rows, Cap({0: torch.ones(7)}, 0.0))
    with pytest.raises(SettingError, match="No prompt"):
        jailbreak(tiny_model, [])
