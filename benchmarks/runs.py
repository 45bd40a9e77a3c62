"""What a run survives and costs, on the embedded model: kills, memory, planning, two Ray workers against one.

python benchmarks/runs.py kill --kills 10
python benchmarks/runs.py memory
python benchmarks/runs.py plan
python benchmarks/runs.py ray
"""

import argparse
import json
import logging
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROLES = ("pirate", "ghost", "doctor")
SMALL = {
    "model": "smollm2-135m-instruct",
    "roles": list(ROLES),
    "prompts_per_role": 1,
    "questions_per_prompt": 2,
    "shard": 1,
    "sampling": {"max_new_tokens": 6},
    "min_score": 1,
}
_START = (
    "import sys, json, torch; torch.set_num_threads(1); from assistant_axis.runs.run import run; "
    "run(json.loads(sys.argv[1]), sys.argv[2], progress=False); "
    "print('PEAK', open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
)


def start(config: Mapping[str, Any], out: Path) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _START, json.dumps(dict(config)), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def whole(config: Mapping[str, Any], out: Path) -> float:
    """Run to the end; returns the peak of memory in MiB."""
    done = start(config, out)
    said, wrong = done.communicate()
    if done.returncode:
        raise RuntimeError(wrong)
    return int(said.split("PEAK")[1]) / 1024


def differs(a: Path, b: Path) -> list[str]:
    """Which tensors of two runs are not the same bit for bit, and whether rollouts were lost or doubled."""
    import torch

    from assistant_axis.geometry.vectors import PersonaVectors
    from assistant_axis.judges.base import key_of
    from assistant_axis.personas.rollouts import read_rollouts

    x, y = (PersonaVectors.load(p / "vectors.safetensors") for p in (a, b))
    names = ("vectors", "default", "default_conditions", "counts", "resid_norms")
    found = [n for n in names if not torch.equal(getattr(x, n), getattr(y, n))]
    one, other = (read_rollouts(p / "rollouts.parquet") for p in (a, b))
    if one != other or len({key_of(r) for r in other}) != len(other):
        found.append("rollouts")
    return found


def kill(kills: int, seed: int, config: Mapping[str, Any] = SMALL) -> dict[str, Any]:
    """Kill -9 at random moments of what is left of a run, go on, and compare with a run that nobody touched."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        calm, rough = Path(folder) / "calm", Path(folder) / "rough"
        began = time.monotonic()
        whole(config, calm)
        length = time.monotonic() - began
        killed: list[dict[str, int]] = []
        while len(killed) < kills:
            process = start(config, rough)
            # Three files more at most, then some part of a shard's time: kills fall into every stage and every step of it.
            wanted = sum(_files(rough).values()) + draw.randint(0, 3)
            while process.poll() is None and sum(_files(rough).values()) < wanted:
                time.sleep(0.005)
            if not killed:
                time.sleep(draw.uniform(0, 5))  # the first may fall into loading
            time.sleep(draw.uniform(0, 0.6))
            ended = process.poll() is not None
            process.send_signal(signal.SIGKILL)
            _, wrong = process.communicate()
            if ended:
                if process.returncode:
                    raise RuntimeError(wrong)
                break
            killed.append(_files(rough))
        whole(config, rough)
        return {"unbroken_s": round(length, 1), "kills": len(killed), "files": killed, "differs": differs(calm, rough)}


def _files(run: Path) -> dict[str, int]:
    return {s: len(list(run.glob(f"{s}/**/[0-9]*.*"))) for s in ("rollouts", "scores", "activations")}


def memory() -> dict[str, Any]:
    """Peak memory of a run of about 100 rollouts and of one of about 2,000, the same roles."""
    config = {**SMALL, "roles": ["pirate", "ghost"], "shard": 32, "sampling": {"max_new_tokens": 2}}
    config |= {"judge": {"kind": "none"}}
    found = {}
    for questions, default in ((40, 4), (240, 240)):
        sizes = {"questions_per_prompt": questions, "default_questions": default}
        sizes |= {"samples_per_question": 1 if questions == 40 else 2, "prompts_per_role": 1}
        if questions == 240:
            sizes |= {"default_questions": 104, "prompts_per_role": 1}
        with tempfile.TemporaryDirectory() as folder:
            count = (
                2 * questions * sizes["samples_per_question"]
                + 5 * sizes["default_questions"] * sizes["samples_per_question"]
            )
            found[count] = whole({**config, **sizes}, Path(folder) / "run")
    few, many = found.values()
    return {"peak_mib": found, "ratio": many / few}


def plan() -> dict[str, Any]:
    """Planning the paper's run in a fresh process."""
    code = (
        "import time; t = time.perf_counter()\n"
        "from assistant_axis.runs.config import load_config\n"
        "from assistant_axis.runs.planning import plan_run\n"
        "n = len(plan_run(load_config('paper')).asks)\n"
        "print(n, time.perf_counter() - t, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return {"rollouts": int(said[0]), "seconds": float(said[1]), "peak_mib": int(said[2]) / 1024}


def ray(questions: int = 24) -> dict[str, Any]:
    """Throughput of generate and activations with two actors of one thread against one, and the vectors of both.

    `seconds` are those of whole stages, start of the actors and loading included. `rate` is shards a second between the first
    shard of a stage and its last, when all actors work: that is what two workers are compared by.
    """
    import os

    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import torch

    from assistant_axis.runs.run import Run, run

    config = {
        **SMALL,
        "questions_per_prompt": questions,
        "shard": 8,
        "judge": {"kind": "none"},
        "sampling": {"max_new_tokens": 24},
    }
    seconds: dict[str, float] = {}
    rate: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        import ray as library

        library.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        for workers in (1, 2):
            engine = {"kind": "ray", "concurrency": workers, "num_cpus": 1, "threads": 1}
            lines: list[str] = []
            run(
                {**config, "engine": engine},
                Path(folder) / f"ray{workers}",
                stages=["plan", "generate", "activations", "vectors", "axis"],
                progress=False,
                say=lines.append,
            )
            for line in lines:
                if line.startswith(("generate", "activations")):
                    seconds[f"{line.split(':')[0]}_{workers}"] = float(line.rsplit("(", 1)[1].split(" s")[0])
            for stage, glob in (("generate", "rollouts/*.parquet"), ("activations", "activations/*.safetensors")):
                made = sorted(p.stat().st_mtime for p in (Path(folder) / f"ray{workers}").glob(glob))
                # The actors' first shards end about together; what comes after them is work of loaded models.
                rate[f"{stage}_{workers}"] = (len(made) - workers) / (made[-1] - made[workers - 1])
        library.shutdown()
        torch.set_num_threads(1)
        run(config, Path(folder) / "local", stages=["plan", "generate", "activations", "vectors"], progress=False)
        vectors = [Run.open(Path(folder) / n).vectors().vectors for n in ("local", "ray1", "ray2")]
    apart = max(float((v - vectors[0]).abs().max()) for v in vectors[1:])
    speed = {s: rate[f"{s}_2"] / rate[f"{s}_1"] for s in ("generate", "activations")}
    loading = {s: seconds[f"{s}_1"] / seconds[f"{s}_2"] for s in ("generate", "activations")}
    return {
        "seconds": seconds,
        "shards_per_s": rate,
        "two_over_one": speed,
        "two_over_one_with_loading": loading,
        "largest_difference_from_local": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kill", "memory", "plan", "ray"])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--questions", type=int, default=24, help="of ray: questions a role; a shard is 8 rollouts")
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    found = (
        kill(said.kills, said.seed)
        if said.what == "kill"
        else ray(said.questions)
        if said.what == "ray"
        else {"memory": memory, "plan": plan}[said.what]()
    )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
