"""The same shards by Ray: equal to local, whatever happens to a worker."""

import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch

from assistant_axis.runs.run import run

CONFIG = {
    "roles": ["pirate", "ghost", "doctor"],
    "prompts_per_role": 1,
    "questions_per_prompt": 8,
    "shard": 4,
    "sampling": {"max_new_tokens": 24},
    "judge": {"kind": "none"},
}
STAGES = ["plan", "generate", "activations", "vectors"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A random model in a folder, which other processes can load."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.make_hf().save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def workers():
    """Process ids of the actors that work for this process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"MapWorker" not in (entry / "cmdline").read_bytes():
                continue
            above = entry
            while above.name not in ("0", "1", str(os.getpid())):
                parent = (above / "stat").read_text().rsplit(")", 1)[1].split()[1]
                above = Path("/proc") / parent
        except OSError:
            continue
        if above.name == str(os.getpid()):
            found.append(int(entry.name))
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*", "ignore::ResourceWarning")  # Ray's own
@pytest.mark.timeout(300)
def test_ray_equals_local_even_when_a_worker_is_killed(saved, cluster, tmp_path):
    config = {**CONFIG, "model": saved}
    local = run(config, tmp_path / "local", stages=STAGES, progress=False)
    engine = {"kind": "ray", "concurrency": 2, "num_cpus": 1, "threads": 1}
    killed, over = [], threading.Event()

    def strike():
        while not over.is_set():
            if list((tmp_path / "ray" / "rollouts").glob("0*.parquet")) and (there := workers()):
                os.kill(there[0], signal.SIGKILL)
                killed.append(there[0])
                return
            time.sleep(0.002)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        done = run({**config, "engine": engine}, tmp_path / "ray", stages=STAGES, progress=False)
    finally:
        over.set()
        thread.join()
    assert killed, "no worker was there to be killed"
    torch.testing.assert_close(done.vectors().vectors, local.vectors().vectors, rtol=1e-5, atol=1e-5)
    assert torch.equal(done.vectors().counts, local.vectors().counts)
    assert [done.worker.rollouts(n) for n in range(done.plan.shards)] == [
        local.worker.rollouts(n) for n in range(local.plan.shards)
    ]
