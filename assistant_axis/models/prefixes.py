"""Token sequences that begin alike: which ones, and whether a model can compute their beginning once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from assistant_axis.models.hooked import text_config

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

SHARED_AT_LEAST = 16
"""Tokens; a shorter common prefix does not pay for a second pass."""


@dataclass(frozen=True)
class Group:
    """Sequences whose first `prefix` tokens are the same."""

    rows: tuple[int, ...]
    prefix: int


def group_by_prefix(sequences: Sequence[Sequence[int]], ends: Sequence[int] | None = None) -> list[Group]:
    """Greedy groups over lexicographically sorted sequences; singles have the prefix 0.

    Args:
        sequences: token ids.
        ends: where the prefix of each must end at the latest; default and at most: before its last token.
    """
    order = sorted(range(len(sequences)), key=lambda k: tuple(sequences[k]))
    groups: list[Group] = []
    rows: list[int] = []
    prefix = 0

    def close() -> None:
        groups.append(Group(tuple(rows), prefix if len(rows) > 1 else 0))

    for k in order:
        ids = sequences[k]
        limit = len(ids) - 1 if ends is None else min(ends[k], len(ids) - 1)
        if rows:
            common = _common(sequences[rows[0]], ids, min(prefix, limit))
            if common >= SHARED_AT_LEAST and 2 * common >= prefix:
                rows.append(k)
                prefix = common
                continue
            close()
        rows, prefix = [k], limit
    if rows:
        close()
    return groups


def plain_cache(model: "HookedChatModel") -> bool:
    """Whether the model keeps a plain key-value cache that can be built once and selected by row."""
    if model.lens.hook_set != "residual" or model.positions.active:
        return False
    kinds = set(getattr(text_config(model.lens.module), "layer_types", None) or ["full_attention"])
    stateful = getattr(model.lens.module, "_is_stateful", False)
    return kinds <= {"full_attention", "sliding_attention"} and not stateful


def sliding_window(model: "HookedChatModel") -> int | None:
    """How far back the model's sliding layers see; `None` without such layers."""
    config = text_config(model.lens.module)
    kinds = getattr(config, "layer_types", None) or ("sliding_attention",)
    window = getattr(config, "sliding_window", None)
    return int(window) if window and "sliding_attention" in kinds else None


def _common(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    limit = max(min(limit, len(a), len(b)), 0)
    return next((k for k in range(limit) if a[k] != b[k]), limit)
