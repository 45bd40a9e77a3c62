"""One kind of progress bar, on standard error, that vanishes where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def track(total: int, label: str, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar with elapsed and remaining time; yields `advance(n)`.

    >>> with track(3, "Counting", show=False) as advance:
    ...     advance(3)
    """
    if not show:
        yield lambda _n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda n: bar.advance(task, n)


@contextmanager
def without_loading_bars(quiet: bool = True) -> Iterator[None]:
    """No bar of the library's own while weights are read from the disk, which takes a second.

    Args:
        quiet: `False` leaves them: a download keeps its bar.
    """
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    if quiet:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            hf_logging.enable_progress_bar()
