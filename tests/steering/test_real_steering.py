"""Steering and capping on the embedded chat model."""

import math

import pytest
import torch

from assistant_axis.personas.library import load_personas
from assistant_axis.personas.rollouts import Rollout
from assistant_axis.pipeline.extract import extract_persona_vectors
from assistant_axis.steering.adherence import THEATRICAL, adherence, answer_cases, neutral_perplexity, persona_cases
from assistant_axis.steering.calibrate import calibrate
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.formats import load_capping_config, save_capping_config
from assistant_axis.steering.interventions import Add, Cap

from .test_formats import by_hand

pytestmark = pytest.mark.real

WINDOW = range(16, 24)
TALK = [
    {"role": "system", "content": "You are a ghost who haunts an old lighthouse."},
    {"role": "user", "content": "Who are you?"},
]


@pytest.fixture(scope="module")
def axis(real_model):
    """PC1 of a small persona space of this model."""
    library = load_personas()
    names = list(dict.fromkeys([*THEATRICAL[:8], *library.role_names[::12]]))
    vectors = extract_persona_vectors(
        real_model, roles=names, questions_per_prompt=2, prompts_per_role=1, progress=False
    )
    return vectors.axis("pc1")


@pytest.fixture(scope="module")
def direction(real_model, axis):
    """The axis calibrated on answers of roles that the cases do not use."""
    library = load_personas()
    names = [*[n for n in library.role_names[::14] if n not in THEATRICAL], *["default"] * 4]
    asked = [
        [{"role": "system", "content": library.role(n).prompts[0]}, {"role": "user", "content": q.text}]
        for n, q in zip(names, library.questions, strict=False)
    ]
    answers = real_model.generate(asked, max_new_tokens=24, temperature=0.7, top_p=0.9, batch_size=24)
    rollouts = [
        Rollout(n, 0, 0, 0, "", "", a.text, a.prompt_ids, a.ids, a.finish_reason)
        for n, a in zip(names, answers, strict=True)
    ]
    return calibrate(axis, real_model, rollouts, layers=WINDOW).calibrated()


def test_nothing_is_nothing_bit_for_bit(real_model, axis):
    ids = real_model.encode_batch(TALK)[0]
    plain = real_model.forward(ids, logits=None).logits
    for nothing in (Add(axis, 0.0), Cap(axis, floor=-math.inf), Cap(axis, floor=0.0, layers=[])):
        with real_model.steered(nothing):
            assert torch.equal(real_model.forward(ids, logits=None).logits, plain)


def test_a_released_config_is_the_published_formula(real_model, direction, tmp_path):
    cap = Cap.calibrated(direction, 70, layers=WINDOW)
    path = save_capping_config(tmp_path / "config.pt", {"layers_16:24-p0.30": cap})
    ids = real_model.encode_batch(TALK)[0]
    expected = by_hand(real_model, torch.load(path, weights_only=True), ids)
    plain = real_model.forward(ids, logits=None).logits
    with real_model.steered(load_capping_config(path).cap("layers_16:24-p0.30")):
        ours = real_model.forward(ids, logits=None).logits
    assert float((plain - expected).abs().max()) > 0.1
    assert float((ours - expected).abs().max()) < 1e-4


def test_steered_alone_and_in_a_padded_batch(real_model, direction):
    talks = [TALK, [{"role": "user", "content": "Name three colours, please, and one thing of each colour."}]]
    for step in (Cap.calibrated(direction, 70, layers=WINDOW), Add(direction, 0.1, layers=19)):
        with real_model.steered(step):
            together = real_model.generate(talks, max_new_tokens=16)
            assert [real_model.generate(t, max_new_tokens=16).ids for t in talks] == [a.ids for a in together]


def test_a_cap_takes_the_role_away_and_a_random_one_does_not(real_model, direction):
    cases = persona_cases(questions=1, seed=3)
    cap = Cap.calibrated(direction, 70, layers=WINDOW)
    plain = adherence(real_model, cases, answer_cases(real_model, cases, max_new_tokens=24))
    capped = adherence(real_model, cases, answer_cases(real_model, cases, cap, max_new_tokens=24))
    assert plain.mean > 0.1
    assert capped.mean < plain.mean / 2
    cost = neutral_perplexity(real_model, cap, count=6) / neutral_perplexity(real_model, count=6)
    assert cost < 1.1
    # The random direction takes the same step, so it moves as much of the residual stream.
    doses = [Add(d, 0.15, layers=19) for d in (direction, Direction.of(direction).random(0))]
    along, off = (
        adherence(real_model, cases, answer_cases(real_model, cases, d, max_new_tokens=24)).mean for d in doses
    )
    assert plain.mean - along > 2 * abs(plain.mean - off)
