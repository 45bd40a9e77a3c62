"""A run on the embedded model that is killed at random moments and goes on."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from assistant_axis.judges.base import key_of
from assistant_axis.runs.run import run

pytestmark = pytest.mark.real

CONFIG = {
    "model": "smollm2-135m-instruct",
    "roles": ["pirate", "ghost"],
    "prompts_per_role": 1,
    "questions_per_prompt": 2,
    "shard": 2,
    "sampling": {"max_new_tokens": 4},
    "min_score": 1,
    "layers": [0.5, 20],
}
STAGES = ["plan", "generate", "judge", "activations", "vectors", "axis"]
START = (
    "import sys, json, torch; torch.set_num_threads(1); from assistant_axis.runs.run import run; "
    "run(json.loads(sys.argv[1]), sys.argv[2], stages=json.loads(sys.argv[3]), progress=False)"
)


def start(out):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", START, json.dumps(CONFIG), str(out), json.dumps(STAGES)]
    )


def shards(out):
    return sum(len(list(out.glob(f"{s}/**/[0-9]*.*"))) for s in ("rollouts", "scores", "activations"))


@pytest.mark.timeout(400)
def test_kills_change_nothing(real_model, tmp_path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    one = run(CONFIG, calm, stages=STAGES, model=real_model, progress=False)
    draw = random.Random(0)
    killed = 0
    for wanted in (3, 12):
        process = start(rough)
        while process.poll() is None and shards(rough) < wanted:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 2
    other = run(CONFIG, rough, stages=STAGES, model=real_model, progress=False)
    for name in ("vectors", "default", "default_conditions", "counts", "resid_norms"):
        assert torch.equal(getattr(one.vectors(), name), getattr(other.vectors(), name)), name
    said = [[r for n in range(x.plan.shards) for r in x.worker.rollouts(n)] for x in (one, other)]
    assert said[0] == said[1]
    assert len({key_of(r) for r in said[1]}) == len(said[1]) == len(one.plan.asks)
