"""The embedded chat model against plain transformers, on real conversations, and a small persona space of it."""

import json
import re

import pytest
import tiny
import torch

from assistant_axis.activations.capture import capture_means
from assistant_axis.activations.spans import read_turns
from assistant_axis.models import embedded
from assistant_axis.pipeline.extract import extract_persona_vectors

pytestmark = pytest.mark.real

TRANSCRIPTS = {  # file -> turns kept
    "case_studies/llama-3.3-70b/jailbreak_unsteered.json": 10,
    "case_studies/llama-3.3-70b/delusion_capped.json": 4,
    "case_studies/qwen-3-32b/jailbreak_capped.json": 4,
    "case_studies/qwen-3-32b/selfharm_unsteered.json.json": 2,
    "persona_drift/coding.json": 2,
}


@pytest.fixture(scope="module")
def plain_hf(real_model):
    """A separately loaded copy that no hook of ours has seen."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(embedded.ensure("smollm2-135m-instruct"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def transcripts(reference):
    folder = reference / "official" / "transcripts"
    out = []
    for name, turns in TRANSCRIPTS.items():
        said = json.loads((folder / name).read_text())["conversation"][:turns]
        out.append(
            [
                {
                    "role": m["role"],
                    "content": re.sub(r"<INTERNAL_STATE>.*?</INTERNAL_STATE>", "", m["content"], flags=re.S),
                }
                for m in said
            ]
        )
    return out


def _answers(tokenizer, ids):
    """Content positions of the assistant turns, found in the ids by the special tokens of ChatML alone."""
    opens = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    spans = []
    for k in range(len(ids) - len(opens)):
        if list(ids[k : k + len(opens)]) == opens:
            start = k + len(opens)
            spans.append((start, ids.index(end, start)))
    return spans


@pytest.mark.timeout(300)
def test_activations_equal_plain_hf_on_real_conversations(real_model, plain_hf, transcripts):
    readings, expected = [], []
    for messages in transcripts:
        ids = plain_hf_ids(real_model.tokenizer, messages)
        chat = real_model.chat.encode(messages)
        assert list(chat.ids) == ids
        slow = tiny.slow_residuals(plain_hf, ids)
        spans = _answers(real_model.tokenizer, ids)
        assert [t.content for t in chat.turns_of("assistant")] == spans
        readings += read_turns(chat, "assistant")
        expected += [slow[:, a:b].mean(1) for a, b in spans]
    assert len(readings) >= 11
    expected = torch.stack(expected)
    got = capture_means(real_model, readings, range(real_model.n_layers))
    apart = ((got - expected).abs().amax(-1) / expected.norm(dim=-1)).amax(0)
    assert (apart < 1e-3).all(), apart
    last = real_model.activations(transcripts[0])
    torch.testing.assert_close(last, got[4], rtol=1e-3, atol=1e-3)


def plain_hf_ids(tokenizer, messages):
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_verify_and_a_greedy_answer(real_model, plain_hf):
    assert real_model.verify().ok
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = real_model.generate(messages, max_new_tokens=24)
    assert "Paris" in answer.text
    ids = torch.tensor([answer.prompt_ids])
    out = plain_hf.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    assert tuple(out[0, ids.shape[1] :].tolist()[: len(answer.ids)]) == answer.ids


@pytest.mark.timeout(300)
def test_a_small_persona_space(real_model):
    near = [
        "summarizer",
        "researcher",
        "lawyer",
        "doctor",
        "analyst",
        "consultant",
        "reviewer",
        "planner",
        "scientist",
        "editor",
        "instructor",
        "secretary",
    ]
    far = [
        "leviathan",
        "eldritch",
        "wraith",
        "void",
        "demon",
        "vampire",
        "prophet",
        "bard",
        "poet",
        "ghost",
        "tree",
        "hermit",
    ]
    vectors = extract_persona_vectors(
        real_model, "header", roles=[*near, *far], prompts_per_role=2, questions_per_prompt=2, progress=False
    )
    axis = vectors.axis()
    for layer in (18, 21, 24):
        space = vectors.space(layer)
        near_scores = torch.tensor([space.score_of(r) for r in near])
        far_scores = torch.tensor([space.score_of(r) for r in far])
        assert near_scores.median() > 0 > far_scores.median()
        wins = (near_scores[:, None] > far_scores[None]).float().mean()  # the area under the ROC curve
        assert wins > 0.9, (layer, wins)
        assert space.default_score() > 0
        assert space.axis_cosine() > 0.5
        projected = axis.project(vectors.vectors, centered=True)[:, layer]
        assert projected[: len(near)].mean() > 0 > projected[len(near) :].mean()
        assert axis.project(vectors.default[layer], layer) > axis.project(vectors.vectors[:, layer], layer).median()
    assert float(axis.integrity().min()) > 0.9999
