"""The stages that work shard by shard: what is not there whole is made, by this process or by Ray."""

from collections.abc import Callable, Sequence

from assistant_axis.errors import AssistantAxisError, DiskFullError, WorkerError
from assistant_axis.personas.library import DEFAULT
from assistant_axis.progress import track
from assistant_axis.runs.planning import bucket
from assistant_axis.runs.state import State, numbers_of
from assistant_axis.runs.worker import activation_file, kept_layers


def make_shards(run: State, stage: str, progress: bool, say: Callable[[str], None]) -> str:
    """Make the shards that are not there whole; a shard that fails is tried once more, and then named."""
    run.require_before(stage)
    numbers = range(run.plan.shards)
    todo = [n for n in numbers if not run.whole(stage, n)]
    if not todo:
        return f"{len(numbers)} shards, done before"
    if stage == "activations" or (stage == "generate" and len(todo) == len(numbers)):
        announce(run, say)
    if stage == "judge" and run.config.judge.kind == "api":
        estimate(run, todo, say)
    done = len(numbers) - len(todo)
    engine = _ray if run.config.engine.kind == "ray" and not _api(run, stage) else _local
    with track(len(numbers), f"{stage} ({len(run.plan.asks):,} rollouts)", show=progress) as advance:
        advance(done)
        failed = engine(run, stage, todo, advance)
        if failed:
            say(f"{stage}: trying {len(failed)} shards again, after {next(iter(failed.values()))}")
            failed = engine(run, stage, sorted(failed), advance)
    name = f"failed/{stage}.json"
    if failed:
        run.folder.put_json(name, {"shards": {str(k): v for k, v in failed.items()}})
        first = next(iter(failed.values()))
        raise WorkerError(
            f"{stage}: {len(failed)} of {len(numbers)} shards failed twice ({numbers_of(sorted(failed))}); the first with "
            f"{first}. All others are kept: mend the cause and start the same run again."
        )
    run.folder.remove(name)
    return f"{len(todo)} shards made" + (f", {done} kept" if done else "")


def _api(run: State, stage: str) -> bool:
    return stage == "judge" and run.config.judge.kind == "api"


def _local(run: State, stage: str, todo: Sequence[int], advance: Callable[[int], None]) -> dict[int, str]:
    failed = {}
    work = getattr(run.worker, stage)
    for n in todo:
        try:
            work(n)
            advance(1)
        except (AssistantAxisError, DiskFullError):
            raise  # it would happen again, and says what to do
        except Exception as e:  # whatever a worker dies of, the other shards are still to be made
            failed[n] = f"{type(e).__name__}: {e}"
    return failed


def _ray(run: State, stage: str, todo: Sequence[int], advance: Callable[[int], None]) -> dict[int, str]:
    from assistant_axis.runs.ray import work

    return work(run.config, run.folder.url, stage, todo, advance)


def announce(run: State, say: Callable[[str], None]) -> None:
    """What the folder will hold, before anything long begins; refuses what the disk has no room for."""
    model = run.worker.model
    layers = run.worker.layers
    count = len(run.plan.asks)
    kept = kept_layers(run.config, count, layers, model.n_layers, model.d_model)
    each = count * len(kept) * model.d_model * 2
    keep = run.config.keep_samples if len(kept) < len(layers) else 0
    samples = min(count, keep) * len(layers) * model.d_model * 2
    groups = len({bucket(a) for a in run.plan.asks}) + 2 * run.plan.shards
    sums = groups * 2 * len(layers) * model.d_model * 4
    total = each + samples + sums
    held = f"of {len(kept)} of {len(layers)} layers" if kept else "of no layer"
    say(
        f"size: single-rollout vectors {held} {_bytes(each)}, samples {_bytes(samples)}, sums about {_bytes(sums)}; "
        f"about {_bytes(total)} beside the text"
    )
    free = run.folder.free_bytes()
    if free is not None and total > free and not run.folder.exists(activation_file(0)):
        raise DiskFullError(
            f"{run.folder} needs about {_bytes(total)}, but {_bytes(free)} are free. Keep fewer layers (keep: none), read "
            "fewer layers, or use another disk."
        )


def estimate(run: State, todo: Sequence[int], say: Callable[[str], None]) -> None:
    """Say what a judge behind an API is going to be sent, before it is."""
    from assistant_axis.judges.api import APIJudge
    from assistant_axis.judges.rubric import rubric_messages

    judge = run.worker.judging
    assert isinstance(judge, APIJudge)
    requests = characters = 0
    for n in todo:
        asked = [r for r in run.worker.rollouts(n) if r.role != DEFAULT and r.answer.strip()]
        requests += len(asked)
        characters += sum(len(rubric_messages(r)[0]["content"]) for r in asked)
    say(f"judge: {judge.endpoint.estimate_of(requests, characters)}")


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
