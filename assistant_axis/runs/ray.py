"""The same shards by an actor pool of Ray Data: one replica of the model in each actor. No scheduler of our own."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from assistant_axis.errors import MissingExtraError
from assistant_axis.runs.config import RunConfig


def require_ray() -> Any:
    """The ray package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as e:
        raise MissingExtraError("ray", "ray", "The engine ray") from e
    return ray


class Actor:
    """One worker of the pool: takes numbers of shards, writes the shards itself, and returns what failed."""

    def __init__(self, config: dict[str, Any], url: str, stage: str) -> None:
        import torch

        from assistant_axis.runs.config import load_config
        from assistant_axis.runs.folder import Folder
        from assistant_axis.runs.worker import Worker

        settings = load_config(config)
        torch.set_num_threads(settings.engine.threads)
        self.worker, self.stage = Worker(settings, Folder(url)), stage

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        errors = []
        for n in batch["shard"].tolist():
            try:
                getattr(self.worker, self.stage)(n)
                errors.append("")
            except Exception as e:  # one shard must not end the pipeline; it is tried again and then named
                errors.append(f"{type(e).__name__}: {e}")
        return {"shard": batch["shard"].tolist(), "error": errors}


def work(
    config: RunConfig, url: str, stage: str, shards: Sequence[int], advance: Callable[[int], None]
) -> dict[int, str]:
    """Make shards by a pool of `engine.concurrency` actors; an actor that dies is started again and its shard redone.

    Args:
        config: of the run; `engine` says how many actors with how many CPUs and GPUs, and which cluster.
        url: of the run's folder, which every actor must be able to reach.
        stage: `"generate"`, `"judge"` or `"activations"`.
        shards: their numbers.
        advance: called with 1 for each shard made.

    Returns:
        What failed, by shard.
    """
    ray = require_ray()
    e = config.engine
    if not ray.is_initialized():
        ray.init(address=e.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    size = min(e.concurrency, len(shards))
    rows = ray.data.from_items([{"shard": n} for n in shards], override_num_blocks=len(shards))
    done = rows.map_batches(
        Actor,
        fn_constructor_args=(config.model_dump(mode="json"), url, stage),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
        num_cpus=e.num_cpus,
        num_gpus=e.num_gpus or None,
    )
    failed: dict[int, str] = {}
    for row in done.iter_rows():
        if row["error"]:
            failed[int(row["shard"])] = str(row["error"])
        else:
            advance(1)
    return failed
