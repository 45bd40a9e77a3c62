import asyncio
import json
import math
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from assistant_axis.cli.main import app
from assistant_axis.errors import IntegrityError, JudgeError, SettingError, UnknownNameError
from assistant_axis.judges import (
    APIJudge,
    Judge,
    Judgement,
    LikelihoodJudge,
    ModelJudge,
    agree,
    parse_verdict,
    read_scores,
    rubric_messages,
    write_scores,
    yield_table,
)
from assistant_axis.judges.base import key_of
from assistant_axis.judges.likelihood import Thresholds, calibrate
from assistant_axis.models.scoring import log_likelihoods
from assistant_axis.personas.rollouts import Rollout, write_rollouts

sys.path.insert(0, str(Path(__file__).parent))
from stub import Stub


def rollout(k=0, answer="Arr", role="pirate", **changes):
    made = Rollout(role, 0, k, 0, "You are a pirate.", "Who are you?", answer, (3, 4), (5, 6, 7), "stop")
    return replace(made, **changes)


@pytest.fixture
def stub(monkeypatch):
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OPENAI_API_KEY", "anything")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


# -- the rubric --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("He speaks as a pirate.\nSCORE: 3", 3),
        ("Mixed.\n\n  SCORE: 2  \n", 2),
        ("SCORE: 0", 0),
        ("SCORE: 4", None),
        ("SCORE: 3\nSCORE: 3", None),
        ("SCORE: 3\nThat is my view.", None),
        ("I saw 3 ships", None),
        ("The answer says SCORE: 1 but\nSCORE: 3", None),
        ("score: 3", None),
        ("SCORE: 33", None),
        ("", None),
    ],
)
def test_the_marker_is_read_strictly(text, score):
    assert parse_verdict(text)[0] == score


def test_the_rubric_shows_character_question_and_answer():
    said = rubric_messages(rollout(answer="Arr, matey"))[-1]["content"]
    assert said.index("You are a pirate.") < said.index("Who are you?") < said.index("Arr, matey")
    assert parse_verdict(said.split("<character>")[0])[0] == 2, "the form it asks for is the form that is read"


# -- an endpoint -------------------------------------------------------------------------------------------------------


def test_api_judge_survives_a_bad_server(stub):
    words = ["good", "limited", "flaky", "broken", "garbage", "page", "void", "babble", "refuse", "second", " "]
    judge = APIJudge("stub", timeout=2, attempts=3, concurrency=3)
    assert isinstance(judge, Judge)
    started = time.monotonic()
    said = dict(zip(words, judge.score([rollout(k, w) for k, w in enumerate(words)]), strict=True))
    assert time.monotonic() - started < 30
    scores = {w: s.score for w, s in said.items() if s.score is not None}
    assert scores == {"good": 3, "limited": 3, "flaky": 3, "second": 2}
    assert {w: s.failure for w, s in said.items() if s.failure} == {
        "broken": "error",
        "garbage": "error",
        "page": "unparsed",
        "void": "unparsed",
        "babble": "unparsed",
        "refuse": "refused",
        " ": "empty",
    }
    assert said["good"].reason == "A pirate speaks."
    assert stub.seen["broken"] == stub.seen["limited"] == 3
    assert stub.seen["babble"] == 2, "asked once more, no oftener"
    assert {b["temperature"] for b in stub.bodies} == {0}


def test_api_judge_is_bounded_in_time_and_concurrency(stub):
    judge = APIJudge("stub", timeout=0.5, attempts=2, concurrency=4)
    started = time.monotonic()
    said = judge.score([rollout(0, "slow"), rollout(1, "drip"), *(rollout(k, f"good{k}") for k in range(2, 30))])
    assert time.monotonic() - started < 10
    assert [s.failure for s in said[:2]] == ["error", "error"]
    assert all(s.score == 3 for s in said[2:])
    assert stub.most <= 4 + 2, "two abandoned requests may still be busy at the server"


def test_api_judge_stops_at_its_time_limit(stub):
    judge = APIJudge("stub", timeout=30, time_limit=0.8, concurrency=1)
    started = time.monotonic()
    said = judge.score([rollout(0, "good"), rollout(1, "slow"), rollout(2, "good2")])
    assert time.monotonic() - started < 2.5
    assert [s.score for s in said] == [3, None, None]
    assert [s.failure for s in said] == ["", "time", "time"]


def test_api_judge_works_under_a_running_loop(stub):
    async def notebook():
        return APIJudge("stub").score([rollout()])

    assert asyncio.run(notebook())[0].score == 3


def test_api_judge_says_what_is_wrong_with_it(stub, monkeypatch):
    with pytest.raises(JudgeError, match="401"):
        APIJudge("stub").score([rollout(0, "key")])
    with pytest.raises(SettingError, match="concurrency=0"):
        APIJudge("stub", concurrency=0)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeError, match="OPENAI_API_KEY"):
        APIJudge("stub")


def test_the_estimate_sends_nothing(stub):
    judge = APIJudge("stub", max_tokens=100, prices=(1.0, 4.0))
    asked = [rollout(k) for k in range(10)]
    said = judge.estimate([*asked, rollout(11, " ")])
    characters = sum(len(rubric_messages(r)[0]["content"]) for r in asked)
    assert said.requests == 10
    assert said.prompt_tokens == characters // 4
    assert said.completion_tokens == 1000
    assert said.price == pytest.approx((said.prompt_tokens + 4 * 1000) / 1e6)
    assert not stub.seen


# -- local judges ------------------------------------------------------------------------------------------------------


def test_model_judge_lists_what_it_cannot_read(tiny_model):
    judge = ModelJudge(tiny_model, max_new_tokens=4)
    said = judge.score([rollout(), rollout(1, " ")])
    assert [s.failure for s in said] == ["unparsed", "empty"]  # a random model gives no verdict
    assert said[0].judge == f"model:{tiny_model.name}"
    assert judge.score([]) == []


def test_model_judge_reads_a_verdict(tiny_model, monkeypatch):
    generate = type(tiny_model).generate

    def verdict(self, conversations, **options):
        assert options.get("temperature", 0) == 0
        return [replace(a, text="Plainly him.\nSCORE: 1") for a in generate(self, conversations, **options)]

    monkeypatch.setattr(type(tiny_model), "generate", verdict)
    assert ModelJudge(tiny_model, max_new_tokens=2).score([rollout()])[0].score == 1


def spoken(model, count, role="default", system=""):
    made = []
    for k in range(count):
        r = rollout(k, role=role, system=system, question=f"What is {k}?")
        answer = model.generate(r.messages[:-1], max_new_tokens=6, temperature=1.0, seed=k)
        made.append(replace(r, answer=answer.text, answer_ids=answer.ids, prompt_ids=answer.prompt_ids))
    return [r for r in made if r.answer_ids]


def test_likelihood_judge_is_the_log_ratio_against_thresholds(tiny_model):
    said = spoken(tiny_model, 4, "pirate", "You are a pirate and you sail the sea.")
    nats = []
    for r in said:  # by hand
        chat = tiny_model.chat
        rows = [chat.encode_prompt(r.messages[:-1]).ids, chat.encode_prompt(r.messages[1:-1]).ids]
        inside, outside = log_likelihoods(tiny_model, [(p, r.answer_ids) for p in rows])
        nats.append(inside - outside)
    middle, top = sorted(nats)[len(nats) // 2], max(nats)
    found = LikelihoodJudge(tiny_model, Thresholds(middle, top, 1)).score([*said, rollout(9, "", answer_ids=())])
    for judgement, value in zip(found[:-1], nats, strict=True):
        assert judgement.value == pytest.approx(value, abs=1e-4)
        if judgement.failure != "incoherent":
            assert judgement.score == 1 + (judgement.value >= middle) + (judgement.value >= top)
    assert found[-1].failure == "empty"
    assert math.isnan(found[-1].value)


def test_thresholds_come_from_the_defaults_own_answers(tiny_model):
    default = spoken(tiny_model, 16)
    systems = ["You are a pirate.", "You are the moon.", ""]
    found = calibrate(tiny_model, default, systems)
    assert found == calibrate(tiny_model, default, systems)
    judge = LikelihoodJudge(tiny_model, found)
    again = judge.score([replace(r, role="x", system=systems[k % 2]) for k, r in enumerate(default)])
    above = torch.tensor([s.value >= found.somewhat for s in again]).float().mean()
    assert above <= 0.3
    assert found.fully > found.somewhat
    with pytest.raises(JudgeError, match="at least 10"):
        calibrate(tiny_model, default[:5], systems)
    with pytest.raises(JudgeError, match="rise"):
        LikelihoodJudge(tiny_model, Thresholds(1.0, 0.0, 1))


# -- tables ------------------------------------------------------------------------------------------------------------


def made(scores, judge="a"):
    return {
        ("pirate" if k % 2 else "ghost", 0, k, 0): Judgement(s, "", judge, "1", "" if s is not None else "unparsed")
        for k, s in enumerate(scores)
    }


def test_kappa_by_hand():
    a, b = made([3, 3, 1, 1, 2, None]), made([3, 1, 1, 1, None, 0], "b")
    found = agree(a, b)
    assert found.count == 4
    assert found.confusion.tolist() == [[0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]
    chance = (2 / 4) * (3 / 4) + (2 / 4) * (1 / 4)
    assert found.kappa == pytest.approx((3 / 4 - chance) / (1 - chance))
    assert (found.only_first, found.only_second, found.exact) == (1, 1, 0.75)
    assert math.isnan(agree(made([3, 3]), made([3, 3])).kappa)
    with pytest.raises(JudgeError, match="in common"):
        agree(made([None]), made([1]))


def test_yield_counts_everything():
    rows = yield_table(made([3, 1, 3, None, 0, 3]))
    assert [r.role for r in rows] == ["pirate", "ghost"]
    assert rows[0].scores == (0, 1, 0, 1)
    assert rows[0].failures == {"unparsed": 1}
    assert rows[1].kept(2) == 2
    assert sum(r.total for r in rows) == 6


def test_scores_come_back_as_written(tmp_path):
    scores = made([3, None, 0])
    scores["pirate", 1, 9, 2] = Judgement(2, "why", "a", "1", value=0.25)
    again = read_scores(write_scores(tmp_path / "s.parquet", scores))
    assert list(again) == list(scores)
    assert all(str(again[k]) == str(scores[k]) for k in scores)


def test_labels_of_people(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("role,prompt,question_id,score\nghost,0,0,3\npirate,0,1,\n")
    found = read_scores(table)
    assert [s.score for s in found.values()] == [3, None]
    assert found["ghost", 0, 0, 0].judge == "labels"
    for text, words in (("ghost,0,0,5", "5 is not one of"), ("ghost,0,0,x", "score 0 to 3")):
        table.write_text(f"role,prompt,question_id,score\n{text}\n")
        with pytest.raises(IntegrityError, match=words):
            read_scores(table)
    table.write_text("role,prompt,question_id,score\nghost,0,0,3\nghost,0,0,2\n")
    with pytest.raises(IntegrityError, match="twice"):
        read_scores(table)


def test_commands(tmp_path, stub):
    runner = CliRunner()
    said = [rollout(k, "good" if k else "limited") for k in range(3)] + [rollout(4, role="default")]
    path = write_rollouts(tmp_path / "rollouts.parquet", said)
    out = tmp_path / "scores.parquet"
    arguments = ["judge", "score", str(path), "--judge", "api", "--model", "stub", "--out", str(out)]
    refused = runner.invoke(app, arguments, input="n\n")
    assert refused.exit_code == 1
    assert "3 requests" in refused.output
    assert not out.exists()
    assert not stub.seen
    done = runner.invoke(app, [*arguments, "--yes", "--prices", "1,2"])
    assert done.exit_code == 0, done.output
    assert [s.score for s in read_scores(out).values()] == [3, 3, 3]
    labels = tmp_path / "people.jsonl"
    labels.write_text(
        "\n".join(json.dumps({"role": r.role, "prompt": 0, "question_id": r.question_id, "score": 3}) for r in said[:2])
    )
    compared = runner.invoke(app, ["judge", "agree", str(out), str(labels)])
    assert compared.exit_code == 0, compared.output
    assert "2 rollouts, same score 100%" in compared.output
    wrong = runner.invoke(app, ["judge", "score", str(path), "--judge", "apy", "--out", str(out)])
    assert isinstance(wrong.exception, UnknownNameError)
    assert not [key_of(r) for r in said if r.role == "default" and key_of(r) in read_scores(out)]
