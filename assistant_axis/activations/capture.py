"""Streaming means of the residual stream, taken inside the hooks.

A forward pass never keeps its activations: every hook reduces its span to one float32 mean a sequence, so memory is
O(batch × layers × d_model) whatever the length. No logits are computed but the last one, passes end after the last
layer that is wanted, sequences of like length share a batch under a token budget, and sequences that open with the
same tokens (one system prompt, many questions) share the keys and values of that prefix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from assistant_axis.activations.spans import Reading
from assistant_axis.errors import NonFiniteError, SettingError
from assistant_axis.models.hook_points import HookPoint, ResidPost
from assistant_axis.models.lens import HookFunction
from assistant_axis.models.prefixes import Group, group_by_prefix, plain_cache, sliding_window
from assistant_axis.progress import track

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel


@dataclass(frozen=True)
class Means:
    """What one batch gave: for sequences `rows`, the mean activation and the mean per-token norm over their spans."""

    rows: tuple[int, ...]
    means: Float[Tensor, "batch layer d_model"]
    norms: Float[Tensor, "batch layer"]


def capture_means(
    model: "HookedChatModel",
    readings: Sequence[Reading],
    layers: Sequence[int],
    *,
    kind: type[HookPoint] = ResidPost,
    reading: str = "post",
    token_budget: int | None = None,
    share_prefixes: bool = True,
    progress: str | None = None,
) -> Float[Tensor, "sequence layer d_model"]:
    """Mean activation over each sequence's span, float32, on the CPU, in the order given.

    See [`stream_means`][assistant_axis.activations.capture.stream_means] for the arguments.
    """
    out = torch.empty(len(readings), len(layers), model.d_model)
    with track(len(readings), progress or "", show=progress is not None) as advance:
        for part in stream_means(
            model,
            readings,
            layers,
            kind=kind,
            reading=reading,
            token_budget=token_budget,
            share_prefixes=share_prefixes,
        ):
            out[list(part.rows)] = part.means
            advance(len(part.rows))
    return out


def stream_means(
    model: "HookedChatModel",
    readings: Sequence[Reading],
    layers: Sequence[int],
    *,
    kind: type[HookPoint] = ResidPost,
    reading: str = "post",
    token_budget: int | None = None,
    share_prefixes: bool = True,
) -> Iterator[Means]:
    """Mean activations batch by batch; every sequence comes exactly once, in the order that wastes least padding.

    Args:
        model: the model; interventions in force act.
        readings: token ids and positions of each sequence.
        layers: block indices.
        kind: which hook point of each layer.
        reading: `"post"` (after interventions in force) or `"pre"`.
        token_budget: padded tokens a batch; default 1,536 on a CPU and 32,768 on a GPU. Halved when memory runs out.
        share_prefixes: compute a prefix that sequences share once. Needs a model whose key-value cache is plain
            attention; others take the plain way without being asked.

    Raises:
        NonFiniteError: naming the layer and the sequence.
    """
    if reading not in ("pre", "post"):
        raise SettingError(f'reading={reading!r} is not known; use "pre" or "post".')
    if not layers:
        raise SettingError("No layers were asked for.")
    budget = token_budget or default_token_budget(model.device)
    run = _Run(model, readings, [kind(i) for i in layers], reading == "pre")
    groups = (
        group_by_prefix([r.ids for r in readings], [r.at[0] for r in readings])
        if share_prefixes and plain_cache(model)
        else [Group((k,), 0) for k in range(len(readings))]
    )
    single = sorted((g.rows[0] for g in groups if len(g.rows) == 1), key=lambda k: len(readings[k].ids))
    shared = sorted((g for g in groups if len(g.rows) > 1), key=lambda g: g.prefix)
    for rows in _plain_batches(readings, single, budget):
        yield from run.plain(rows)
    for batch in _group_batches(readings, shared, budget):
        yield from run.shared(batch)


def default_token_budget(device: torch.device) -> int:
    """Padded tokens of a batch: 1,536 on a CPU, where batches of 4,096 took 13 % longer, and 32,768 on a GPU."""
    return 32_768 if device.type == "cuda" else 1_536


def _plain_batches(readings: Sequence[Reading], rows: Sequence[int], budget: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for k in rows:  # sorted by length: the newest is the longest
        if batch and (len(batch) + 1) * len(readings[k].ids) > budget:
            yield batch
            batch = []
        batch.append(k)
    if batch:
        yield batch


def _group_batches(readings: Sequence[Reading], groups: Sequence[Group], budget: int) -> Iterator[list[Group]]:
    """Groups whose prefix pass and suffix pass both fit the budget; a group too large for it is split."""
    batch: list[Group] = []
    rows = suffix = 0
    for group in groups:  # sorted by prefix length
        longest = max(len(readings[k].ids) - group.prefix for k in group.rows)
        fit = max(1, budget // (longest + group.prefix))  # the attention of a suffix token sees its prefix too
        for start in range(0, len(group.rows), fit):
            part = Group(group.rows[start : start + fit], group.prefix)
            more = rows + len(part.rows), max(suffix, longest)
            if batch and max((len(batch) + 1) * part.prefix, more[0] * more[1]) > budget:
                yield batch
                batch, rows, suffix = [], 0, 0
            batch.append(part)
            rows, suffix = rows + len(part.rows), max(suffix, longest)
    if batch:
        yield batch


class _Run:
    """One capture: a model, the sequences, the hook points, and before or after interventions."""

    def __init__(
        self, model: "HookedChatModel", readings: Sequence[Reading], points: Sequence[HookPoint], before: bool
    ) -> None:
        self.model, self.readings, self.points, self.before = model, readings, points, before
        last = max(p.layer for p in points)
        self.until = last if all(isinstance(p, ResidPost) for p in points) else None
        self.sliding = sliding_window(model)

    def plain(self, rows: Sequence[int]) -> Iterator[Means]:
        """Right-padded sequences, one pass."""
        try:
            ids, mask = self.model.pad([self.readings[k].ids for k in rows])
            response = None
            if self.model.positions.active:
                response = torch.zeros_like(mask)
                for b, k in enumerate(rows):
                    for span in self.readings[k].responses:
                        response[b, span.start : span.stop] = True
            take = _Reducer(self.model, self.points, [self.readings[k].at for k in rows])
            with self.model.positions.known(response), self.model.hooks(take.hooks(), before_others=self.before):
                self.model.forward(ids, mask, until=self.until)
            found = self._finish(rows, take)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            found = None
        if found is not None:
            yield found
            return
        # Outside the handler, where the failed pass no longer holds its tensors.
        take = None
        _free(self.model)
        half = len(rows) // 2
        yield from self.plain(rows[:half])
        yield from self.plain(rows[half:])

    def shared(self, groups: Sequence[Group]) -> Iterator[Means]:
        """Left-padded prefixes in one pass, then right-padded suffixes on the selected cache rows."""
        readings = self.readings
        rows = [k for g in groups for k in g.rows]
        if self.sliding is not None and max(len(readings[k].ids) for k in rows) > self.sliding:
            yield from self.plain(sorted(rows, key=lambda k: len(readings[k].ids)))
            return
        try:
            owner = torch.tensor([n for n, g in enumerate(groups) for _ in g.rows])
            lengths = torch.tensor([g.prefix for g in groups])
            heads, head_mask = self.model.pad([readings[g.rows[0]].ids[: g.prefix] for g in groups], side="left")
            places = (head_mask.cumsum(1) - 1).clamp(min=0)
            done = self.model.forward(heads, head_mask, use_cache=True, position_ids=places.to(self.model.device))
            cache = done.past_key_values
            del done
            cache.batch_select_indices(owner.to(self.model.device))
            tails, tail_mask = self.model.pad([readings[k].ids[g.prefix :] for g in groups for k in g.rows])
            places = lengths[owner][:, None] + torch.arange(tails.shape[1])
            at = [
                range(readings[k].at[0] - g.prefix, readings[k].at[-1] + 1 - g.prefix) for g in groups for k in g.rows
            ]
            take = _Reducer(self.model, self.points, at)
            with self.model.hooks(take.hooks(), before_others=self.before):
                self.model.forward(
                    tails,
                    torch.cat([head_mask[owner], tail_mask], dim=1),
                    until=self.until,
                    use_cache=True,
                    past_key_values=cache,
                    position_ids=places.to(self.model.device),
                )
            found = self._finish(rows, take)
        except torch.OutOfMemoryError:
            found = None
        if found is not None:
            yield found
            return
        cache = take = None
        _free(self.model)
        if len(groups) > 1:
            half = len(groups) // 2
            yield from self.shared(groups[:half])
            yield from self.shared(groups[half:])
        else:
            yield from self.plain(rows)

    def _label(self, row: int) -> str:
        return f" ({self.readings[row].label})" if self.readings[row].label else ""

    def _finish(self, rows: Sequence[int], take: "_Reducer") -> Means:
        means, norms, finite = take.result()
        if not finite.all():
            bad = (~finite).nonzero()[0].tolist()
            raise NonFiniteError(
                f"The activations of sequence {rows[bad[0]]}{self._label(rows[bad[0]])} are not finite at layer {self.points[bad[1]].layer}. "
                f"Load the model in bfloat16 or float32 (it runs in {str(self.model.dtype).removeprefix('torch.')}), "
                "or check interventions in force."
            )
        return Means(tuple(rows), means, norms)


class _Reducer:
    """Hooks that reduce `[batch, pos, d_model]` to a mean and a mean norm per sequence, on the activation's device."""

    def __init__(self, model: "HookedChatModel", points: Sequence[HookPoint], at: Sequence[range]) -> None:
        self.points = points
        counts = torch.tensor([len(r) for r in at])
        row = torch.repeat_interleave(torch.arange(len(at)), counts)
        pos = torch.cat([torch.arange(r.start, r.stop, r.step) for r in at])
        weights = torch.zeros(len(at), len(row))
        weights[row, torch.arange(len(row))] = (1.0 / counts)[row]
        self._index = {model.device: (row.to(model.device), pos.to(model.device), weights.to(model.device))}
        self._found: dict[HookPoint, Tensor] = {}

    def hooks(self) -> list[tuple[HookPoint, HookFunction]]:
        return [(p, self._hook(p)) for p in self.points]

    def _hook(self, point: HookPoint) -> HookFunction:
        def reduce(x: Tensor) -> None:
            row, pos, weights = self._on(x.device)
            tokens = x[row, pos].to(torch.float32)
            norms = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
            # In a product one bad token would spoil every row (0 × NaN is NaN): count bad tokens row by row.
            bad = (~torch.isfinite(norms)).to(torch.float32)
            self._found[point] = torch.cat([weights @ tokens, weights @ norms, weights @ bad], dim=1)

        return reduce

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._index:
            first = next(iter(self._index.values()))
            self._index[device] = (first[0].to(device), first[1].to(device), first[2].to(device))
        return self._index[device]

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means `[batch, point, d_model]`, mean norms `[batch, point]`, and which of them come from finite tokens."""
        stacked = torch.stack([self._found[p].cpu() for p in self.points], dim=1)
        return stacked[..., :-2], stacked[..., -2], stacked[..., -1] == 0


def _free(model: "HookedChatModel") -> None:
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
