"""Our provider with the real Inspect: settings, batches, projections in the log, and an evaluation from end to end."""

import asyncio
import math
import shutil
import subprocess
import sysconfig

import pytest
import torch
from inspect_ai import Task, task
from inspect_ai import eval as evaluate
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import Sample
from inspect_ai.log import read_eval_log
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import includes

from assistant_axis.geometry.precomputed import load_precomputed_axis
from assistant_axis.models.hook_points import ResidPost
from assistant_axis.steering.formats import save_intervention
from assistant_axis.steering.interventions import Add, Cap

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:inspect_ai.*"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

QUESTIONS = ["Who are you?", "Tell me a story about the moon and the sun.", "What is the answer?"]


@pytest.fixture
def cap_file(tiny_direction, tmp_path):
    return str(save_intervention(tmp_path / "cap.safetensors", Cap(tiny_direction, floor=0.4, layers=[1, 2])))


def provider(model, **arguments):
    return get_model("assistant_axis/tiny-llama", loaded=model, memoize=False, **arguments)


def ask(model, config: GenerateConfig, *questions: str):
    async def run():
        return await asyncio.gather(*(model.generate(q, config=config) for q in questions))

    return asyncio.run(run())


def test_answers_are_those_of_the_model_in_batches(tiny_model, cap_file, tiny_direction):
    found = ask(provider(tiny_model, cap=cap_file, batch_size=2), GenerateConfig(max_tokens=8), *QUESTIONS)
    chats = [[{"role": "user", "content": q}] for q in QUESTIONS]
    with tiny_model.steered(Cap(tiny_direction, floor=0.4, layers=[1, 2])):
        expected = [tiny_model.generate(c, max_new_tokens=8) for c in chats]
    assert [o.completion for o in found] == [a.text for a in expected]
    assert [o.completion for o in found] != [tiny_model.generate(c, max_new_tokens=8).text for c in chats]
    for out, answer in zip(found, expected, strict=True):
        assert out.usage is not None
        assert (out.usage.input_tokens, out.usage.output_tokens) == (len(answer.prompt_ids), len(answer.ids))
        assert out.choices[0].stop_reason == ("stop" if answer.finish_reason == "stop" else "max_tokens")


def test_the_projection_is_the_mean_over_the_answer(tiny_model, cap_file, tiny_direction):
    (out,) = ask(provider(tiny_model, cap=cap_file, layer=2), GenerateConfig(max_tokens=8), QUESTIONS[0])
    said = out.metadata["projection"]
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    with tiny_model.steered(Cap(tiny_direction, floor=0.4, layers=[1, 2])):
        answer = tiny_model.generate(chat, max_new_tokens=8)
        ids = torch.tensor([[*answer.prompt_ids, *answer.ids]])
        after = tiny_model.run_with_cache(ids, [ResidPost(2)])[1][ResidPost(2)]
        before = tiny_model.run_with_cache(ids, [ResidPost(2)], reading="pre")[1][ResidPost(2)]
    unit = tiny_direction.unit[2]
    span = slice(len(answer.prompt_ids), None)
    assert said["tokens"] == len(answer.ids)
    assert said["post"] == pytest.approx(float((after[0, span] @ unit).mean()), abs=1e-3)
    assert said["pre"] == pytest.approx(float((before[0, span] @ unit).mean()), abs=1e-3)
    assert said["post"] >= said["pre"]
    assert (said["layer"], said["direction"]) == (2, "direction")


def test_projected_on_an_axis_that_ships(tiny_model):
    with pytest.raises(PrerequisiteError, match="576"):  # of another model
        provider(tiny_model, axis="smollm2-135m-instruct")


def test_log_probabilities(tiny_model):
    config = GenerateConfig(max_tokens=5, logprobs=True, top_logprobs=3)
    (out,) = ask(provider(tiny_model), config, QUESTIONS[0])
    answer = tiny_model.generate([{"role": "user", "content": QUESTIONS[0]}], max_new_tokens=5)
    ids = torch.tensor([[*answer.prompt_ids, *answer.ids]])
    logs = tiny_model.forward(ids, logits=None).logits[0].log_softmax(-1)
    content = out.choices[0].logprobs.content
    assert len(content) == len(answer.ids)
    for k, (token, said) in enumerate(zip(answer.ids, content, strict=True)):
        row = logs[len(answer.prompt_ids) + k - 1]
        assert said.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [t.logprob for t in said.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert said.logprob == pytest.approx(said.top_logprobs[0].logprob, abs=1e-4)  # greedy
    assert out.metadata is None


def test_seed_temperature_and_choices(tiny_model):
    model = provider(tiny_model, batch_size=4)
    seeded = GenerateConfig(max_tokens=8, temperature=1.5, top_p=0.95, seed=5)
    alone, first, second = (
        ask(model, seeded, QUESTIONS[0])[0],
        ask(model, seeded, QUESTIONS[0], QUESTIONS[1])[0],
        ask(model, seeded.model_copy(update={"seed": 6}), QUESTIONS[0])[0],
    )
    assert alone.completion == first.completion != second.completion
    several = ask(model, seeded.model_copy(update={"num_choices": 3}), QUESTIONS[0])[0]
    assert len(several.choices) == 3
    assert len({c.message.text for c in several.choices}) > 1


def test_stop_strings_and_long_chats(tiny_model):
    (whole,) = ask(provider(tiny_model), GenerateConfig(max_tokens=12), QUESTIONS[1])
    stop = whole.completion[3:5]
    (cut,) = ask(provider(tiny_model), GenerateConfig(max_tokens=12, stop_seqs=[stop]), QUESTIONS[1])
    assert cut.completion == whole.completion[: whole.completion.index(stop)]
    assert cut.choices[0].stop_reason == "stop"
    assert cut.usage.output_tokens <= whole.usage.output_tokens
    longest = tiny_model.max_length
    (full,) = ask(provider(tiny_model), GenerateConfig(max_tokens=12), "moon and sun " * longest)
    assert full.choices[0].stop_reason == "model_length"


def test_chats_keep_their_roles(tiny_model):
    model = provider(tiny_model)
    chat = [
        ChatMessageSystem(content="You are a pirate."),
        ChatMessageUser(content="Who are you?"),
        ChatMessageAssistant(content="The pirate."),
        ChatMessageUser(content="What is the answer?"),
    ]
    out = asyncio.run(model.generate(chat, config=GenerateConfig(max_tokens=6)))
    said = [{"role": m.role, "content": m.text} for m in chat]
    assert out.completion == tiny_model.generate(said, max_new_tokens=6).text


def test_what_cannot_be_honoured_is_refused(tiny_model, cap_file, tmp_path):
    with pytest.raises(PrerequisiteError, match="frequency_penalty"):
        ask(provider(tiny_model), GenerateConfig(frequency_penalty=0.5), "Who?")
    picture = ChatMessageUser(content=[ContentImage(image="data:image/png;base64,iVBORw0KGgo=")])
    with pytest.raises(PrerequisiteError, match="text only"):
        asyncio.run(provider(tiny_model).generate([picture]))
    with pytest.raises(PrerequisiteError, match="bogus"):
        provider(tiny_model, bogus=1)
    with pytest.raises(PrerequisiteError, match="Unknown model"):
        get_model("assistant_axis/none-such", memoize=False)
    import tiny

    narrow = save_intervention(tmp_path / "narrow.safetensors", Add({0: torch.ones(5)}, 1.0, unit="raw", layers=[0]))
    with pytest.raises(PrerequisiteError, match="width 5"):
        provider(tiny.make_pair("qwen3")[0], cap=str(narrow))


def test_an_error_in_a_batch_reaches_its_request_and_the_worker_goes_on(tiny_model):
    model = provider(tiny_model)
    with pytest.raises(Exception, match="empty stop string"):
        ask(model, GenerateConfig(max_tokens=4, stop_seqs=[""]), "Who?")
    assert ask(model, GenerateConfig(max_tokens=4), "Who?")[0].usage.output_tokens > 0
    model.api.close()


@task
def counting() -> Task:
    """Fifty small questions, scored by whether the answer holds a word."""
    things = ("apple", "river", "candle", "window", "garden")
    return Task(
        dataset=[
            Sample(input=f"Please repeat this word: {things[k % 5]} ({k})", target=things[k % 5]) for k in range(50)
        ],
        scorer=includes(),
        config=GenerateConfig(max_tokens=5, max_connections=32),
    )


@pytest.mark.real
def test_fifty_samples_under_a_cap(real_model, tmp_path):
    unit = torch.randn(2, real_model.d_model, generator=torch.Generator().manual_seed(0))
    cap = save_intervention(tmp_path / "cap.safetensors", Cap({19: unit[0], 20: unit[1]}, floor=-1.0, layers=[19, 20]))
    model = get_model("assistant_axis/smollm2-135m-instruct", cap=str(cap), loaded=real_model, memoize=False)
    (log,) = evaluate(counting(), model=model, log_dir=str(tmp_path), display="none")
    assert log.status == "success"
    assert log.samples is not None
    assert len(log.samples) == 50
    metadata = [s.output.metadata["projection"] for s in log.samples]
    assert all(m["layer"] == 19 and m["tokens"] > 0 and math.isfinite(m["post"]) for m in metadata)
    assert all(m["post"] >= m["pre"] - 1e-3 for m in metadata)
    assert any(m["post"] > m["pre"] + 1e-2 for m in metadata)
    accuracy = log.results.scores[0].metrics["accuracy"].value
    said = [s.target.lower() in s.output.completion.lower() for s in log.samples]
    assert accuracy == pytest.approx(sum(said) / 50)
    assert any(said)
    assert len(list(tmp_path.glob("*.eval"))) == 1


@pytest.mark.real
def test_from_a_shell(tmp_path):
    """The console script, which finds the provider through its entry point, on three samples under the cap of the docs."""
    cap = Cap.calibrated(load_precomputed_axis("smollm2-135m-instruct", "pc1"), 70, layers=range(16, 24))
    save_intervention(tmp_path / "cap.safetensors", cap)
    (tmp_path / "repeat.py").write_text(
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import Sample\n"
        "from inspect_ai.model import GenerateConfig\n"
        "from inspect_ai.scorer import includes\n\n\n"
        "@task\n"
        "def repeat():\n"
        "    words = ['apple', 'river', 'candle']\n"
        "    samples = [Sample(input=f'Please repeat this word: {w}', target=w) for w in words]\n"
        "    return Task(dataset=samples, scorer=includes(), config=GenerateConfig(max_tokens=8))\n"
    )
    script = shutil.which("inspect", path=sysconfig.get_path("scripts"))
    assert script is not None
    asked = [
        script,
        "eval",
        "repeat.py",
        "--model",
        "assistant_axis/smollm2-135m-instruct",
        "-M",
        "cap=cap.safetensors",
    ]
    options = ["--log-dir", "logs", "--display", "plain", "--no-score-display"]
    done = subprocess.run([*asked, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "logs").glob("*.eval")
    log = read_eval_log(str(file))
    assert (log.status, log.eval.model) == ("success", "assistant_axis/smollm2-135m-instruct")
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value > 0
    assert log.samples is not None
    said = [s.output.metadata["projection"] for s in log.samples if s.output.metadata]
    assert len(said) == 3
    assert all(m["post"] > m["pre"] and m["layer"] in range(16, 24) and m["tokens"] > 0 for m in said)
