"""Rollouts that waste nothing: a decode loop over slots of one key-value buffer.

A finished answer leaves its slot and the next prompt takes it, so that no row is computed after its end. Keys and values
are written into a buffer in place instead of being concatenated, and a prefix that prompts share (one system prompt, many
questions) is computed once. Every prompt draws from a random stream of its own: an answer does not depend on the batch
size, nor on which prompts ran beside it (but for rounding).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache

from assistant_axis.models.compiled import CompiledStep, check_compilable, write_tokens
from assistant_axis.models.hook_points import HookPoint, ResidPost
from assistant_axis.models.hooked import text_config
from assistant_axis.models.lens import HookFunction
from assistant_axis.models.packing import packed_linears
from assistant_axis.models.prefixes import Group, group_by_prefix, plain_cache, sliding_window
from assistant_axis.models.sampling import Sampler, stream

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

_REFILL = 8
"""Waiting prompts take slots once an eighth of the slots is free."""
_ROOM = 128
"""The buffer grows by whole stretches of this many tokens."""


def can_decode(model: "HookedChatModel", longest: int) -> bool:
    """Whether the loop serves this model now, for sequences of at most `longest` tokens.

    It needs a plain key-value cache, attention through PyTorch's own kernel, and nobody who follows generation pass by
    pass (interventions on some positions only, a `DriftMonitor`); the model's own loop serves the rest.
    """
    window = sliding_window(model)
    config = getattr(model.lens.module, "config", None)
    return (
        plain_cache(model)
        and text_config(model.lens.module) is config
        and not model.positions.watched
        and getattr(config, "_attn_implementation", None) == "sdpa"
        and (window is None or longest <= window)
    )


@dataclass
class Decoded:
    """What became of one prompt.

    Attributes:
        ids: new tokens without the one that ended them.
        stopped: whether a stop token ended them.
        means: mean activation over them, `[layer, d_model]`, if asked for and there are any.
        norms: mean norm over them, `[layer]`.
        logprob: summed log-probability of them (nats), if asked for.
    """

    ids: list[int] = field(default_factory=list)
    stopped: bool = False
    means: Float[Tensor, "layer d_model"] | None = None
    norms: Float[Tensor, "layer"] | None = None
    logprob: float = 0.0


def decode_prompts(
    model: "HookedChatModel",
    prompts: Sequence[Sequence[int]],
    *,
    stops: Sequence[int],
    max_new_tokens: int,
    sampler: Sampler | None,
    seeds: Sequence[int],
    slots: int,
    layers: Sequence[int] | None = None,
    logprobs: bool = False,
    compile: bool = False,
) -> Iterator[tuple[int, Decoded]]:
    """Continue token ids; yields `(index, Decoded)` as answers end.

    Args:
        model: interventions in force act.
        prompts: token ids.
        stops: token ids that end an answer.
        max_new_tokens: upper bound of new tokens.
        sampler: how tokens are drawn; `None`: the likeliest.
        seeds: of each prompt's own random stream.
        slots: rows computed at a time.
        layers: read the mean activation of these blocks' outputs over the new tokens, in the same pass.
        logprobs: add up the log-probability of the new tokens (at temperature 1, over the whole vocabulary).
        compile: run the step of one token a slot compiled, on buffers as long as the longest prompt and its answer.

    Raises:
        SettingError: a model that cannot be compiled.
        ModelError: one whose compiled step differs from the plain one.
    """
    if compile:
        check_compilable(model)
    loop = _Loop(model, prompts, tuple(stops), max_new_tokens, sampler, seeds, slots, layers, logprobs, compile)
    steps = max_new_tokens * -(-len(prompts) // slots)
    with (
        torch.inference_mode(),
        packed_linears(model, min(slots, len(prompts)), steps, head_only=compile),
        model.hooks(loop.reader.hooks() if loop.reader else []),
    ):
        yield from loop.run()


class _Buffer(Cache):
    """Keys and values of all slots: each row's tokens lie at the front of its own stretch."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.at: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.width = 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        k, v = self.keys[layer_idx], self.values[layer_idx]
        rows, places = self._on(k.device)
        write_tokens(k, key_states, rows, places)
        write_tokens(v, value_states, rows, places)
        return k[:, :, : self.width], v[:, :, : self.width]

    def point(self, lengths: Int[Tensor, "slot"], device: torch.device) -> None:
        """Where the next token of every slot goes."""
        self.width = int(lengths.max()) + 1
        self.at = {device: (torch.arange(len(lengths), device=device), lengths.to(device))}

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self.at:
            rows, places = next(iter(self.at.values()))
            self.at[device] = (rows.to(device), places.to(device))
        return self.at[device]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.width - 1

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return self.width, 0

    def make_room(self, like: DynamicCache, rows: int, width: int) -> None:
        """At least this many slots and tokens; what is there stays."""
        width = -(-width // _ROOM) * _ROOM
        for n, (keys, values) in enumerate(_tensors(like)):
            for held, new in ((self.keys, keys), (self.values, values)):
                shape = (rows, new.shape[1], width, new.shape[3])
                if n == len(held):
                    held.append(new.new_zeros(shape))
                    continue
                old = held[n]
                if old.shape[0] < rows or old.shape[2] < width:
                    grown = old.new_zeros(max(rows, old.shape[0]), shape[1], max(width, old.shape[2]), shape[3])
                    grown[: old.shape[0], :, : old.shape[2]] = old
                    held[n] = grown

    def put(self, slots: Int[Tensor, "new"], source: DynamicCache, real: Bool[Tensor, "new pos"]) -> None:
        """Move the real positions of a padded cache to the front of these slots."""
        order = (~real).to(torch.int8).argsort(dim=1, stable=True)[:, : int(real.sum(1).max())]
        for n, (keys, values) in enumerate(_tensors(source)):
            for held, new in ((self.keys[n], keys), (self.values[n], values)):
                at = order.to(new.device)[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
                held[slots.to(held.device), :, : order.shape[1]] = new.gather(2, at)

    def keep(self, slots: Int[Tensor, "kept"]) -> None:
        for held in (self.keys, self.values):
            for n, old in enumerate(held):
                held[n] = old[slots.to(old.device)]


def _tensors(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, `[row, head, pos, d_head]`."""
    layers: list[Any] = list(cache.layers)
    return [(layer.keys, layer.values) for layer in layers]


class _Reader:
    """Sums of activations and norms per slot, over the tokens that are fed back.

    A hook only puts its layer's token aside; all layers are added up at once after the pass.
    """

    def __init__(self, layers: Sequence[int], d_model: int, slots: int, device: torch.device) -> None:
        self.layers = tuple(layers)
        self.sums = torch.zeros(len(layers), slots, d_model, device=device)
        self.norms = torch.zeros(len(layers), slots, device=device)
        self._put_aside(torch.zeros_like(self.sums))
        self.on = False

    def _put_aside(self, tokens: Float[Tensor, "layer slot d_model"]) -> None:
        self.tokens, self.each = tokens, [tokens[k] for k in range(len(tokens))]

    def hooks(self) -> list[tuple[HookPoint, HookFunction]]:
        return [(ResidPost(layer), self._hook(k)) for k, layer in enumerate(self.layers)]

    def _hook(self, k: int) -> HookFunction:
        def read(x: Tensor) -> None:
            if self.on:
                self.each[k].copy_(x[:, 0])

        return read

    def add(self) -> None:
        """Add the tokens of the pass that just ended."""
        self.sums += self.tokens
        self.norms += torch.linalg.vector_norm(self.tokens, dim=-1)

    def clear(self, slots: Tensor) -> None:
        self.sums[:, slots] = 0.0
        self.norms[:, slots] = 0.0

    def keep(self, slots: Tensor) -> None:
        self.sums, self.norms = self.sums[:, slots], self.norms[:, slots]
        self._put_aside(self.tokens[:, slots])


class _Loop:
    def __init__(
        self,
        model: "HookedChatModel",
        prompts: Sequence[Sequence[int]],
        stops: tuple[int, ...],
        max_new_tokens: int,
        sampler: Sampler | None,
        seeds: Sequence[int],
        slots: int,
        layers: Sequence[int] | None,
        logprobs: bool,
        compile: bool,
    ) -> None:
        self.model, self.prompts, self.limit = model, [list(p) for p in prompts], max_new_tokens
        self.sampler, self.seeds, self.logprobs = sampler, seeds, logprobs
        self.device = model.device
        self.stops = torch.tensor(stops, dtype=torch.long, device=self.device)
        self.groups = sorted(group_by_prefix(self.prompts), key=lambda g: (g.prefix, len(self.prompts[g.rows[0]])))
        self.waiting = [(k, g) for g in self.groups for k in g.rows]
        self.at = 0
        self.size = min(slots, len(self.prompts))
        self.heads: dict[Group, tuple[list[Tensor], list[Tensor]]] = {}
        self.left = {g: len(g.rows) for g in self.groups}
        self.buffer = _Buffer()
        self.owner = [-1] * self.size  # which prompt a slot holds
        self.found = [Decoded() for _ in prompts]
        self.draws = torch.zeros(self.size, self.limit if sampler else 0, device=self.device)
        self.count = torch.zeros(self.size, dtype=torch.long, device=self.device)
        self.next = torch.zeros(self.size, dtype=torch.long, device=self.device)
        self.lengths = torch.zeros(self.size, dtype=torch.long)  # known without asking the device
        self.reader = None if layers is None else _Reader(layers, model.d_model, self.size, self.device)
        self.room = max(map(len, self.prompts)) + self.limit if compile else 0  # what is compiled has one shape
        self.compiled: CompiledStep | None = None

    def run(self) -> Iterator[tuple[int, Decoded]]:
        while self.at < len(self.waiting) or any(k >= 0 for k in self.owner):
            free = [s for s, k in enumerate(self.owner) if k < 0]
            if self.at < len(self.waiting) and len(free) * _REFILL >= self.size:
                yield from self._fill(free)
            elif self.at == len(self.waiting) and 4 * len(free) >= len(self.owner) and not self.room:
                self._compact()
            if any(k >= 0 for k in self.owner):
                yield from self._step()

    # -- one token a slot ----------------------------------------------------------------------------------------------

    def _step(self) -> Iterator[tuple[int, Decoded]]:
        if self.room and self.compiled is None:
            self.compiled = CompiledStep(self.model, self.buffer.keys, self.buffer.values)
            self.compiled.prepare(self.next, self.lengths, self._plain_step())
        if self.reader is not None:
            self.reader.on = True
        logits = self._plain_step() if self.compiled is None else self.compiled(self.next, self.lengths)
        if self.reader is not None:
            self.reader.on = False
            self.reader.add()
        self.lengths = self.lengths + 1
        live = [s for s, k in enumerate(self.owner) if k >= 0]
        full = {s for s in live if len(self.found[self.owner[s]].ids) == self.limit}  # their last token was only read
        yield from (self._leave(s) for s in full)
        going = [s for s in live if s not in full]
        if going:
            yield from self._choose(going, logits if len(going) == len(logits) else logits[going])

    def _plain_step(self) -> Float[Tensor, "slot vocab"]:
        b = self.buffer
        b.point(self.lengths, self.device)
        places = self.lengths.to(self.device)[:, None]
        unseen = torch.arange(b.width, device=self.device) > places
        # Added to the scores: of a mask of truth values PyTorch would make this again in every layer.
        mask = torch.zeros(unseen.shape, dtype=self.model.dtype, device=self.device).masked_fill_(unseen, -torch.inf)
        return self.model.lens.forward(
            self.next[:, None], mask[:, None, None], 1, past_key_values=b, use_cache=True,
            position_ids=places,
        ).logits[:, -1]  # fmt: skip

    def _choose(self, slots: Sequence[int], scores: Float[Tensor, "new vocab"]) -> Iterator[tuple[int, Decoded]]:
        """The next token of these slots."""
        rows = torch.tensor(slots, device=self.device)
        if self.sampler is None:
            tokens = scores.argmax(-1)
        else:
            tokens = self.sampler.draw(scores, self.draws[rows, self.count[rows]])[:, 0]
        self.count[rows] += 1
        ends = torch.isin(tokens, self.stops).tolist()
        self.next[rows] = tokens
        nats = [0.0] * len(slots)
        if self.logprobs:
            picked = scores.gather(-1, tokens[:, None])[:, 0].float()
            nats = (picked - scores.float().logsumexp(-1)).tolist()
        for s, token, end, nat in zip(slots, tokens.tolist(), ends, nats, strict=True):
            answer = self.found[self.owner[s]]
            if end:
                answer.stopped = True
            else:
                answer.ids.append(token)
                answer.logprob += nat
            if end or (len(answer.ids) == self.limit and self.reader is None):
                yield self._leave(s)

    def _leave(self, slot: int) -> tuple[int, Decoded]:
        k = self.owner[slot]
        answer = self.found[k]
        if self.reader is not None and answer.ids:
            answer.means = (self.reader.sums[:, slot] / len(answer.ids)).cpu()
            answer.norms = (self.reader.norms[:, slot] / len(answer.ids)).cpu()
        self.owner[slot] = -1
        self.lengths[slot] = 0
        self.found[k] = Decoded()  # handed over, not kept
        return k, answer

    def _compact(self) -> None:
        held = torch.tensor([s for s, k in enumerate(self.owner) if k >= 0], dtype=torch.long)
        kept = held.to(self.device)
        self.buffer.keep(kept)
        self.next, self.lengths = self.next[kept], self.lengths[held]
        self.draws, self.count = self.draws[kept], self.count[kept]
        self.owner = [k for k in self.owner if k >= 0]
        if self.reader is not None:
            self.reader.keep(kept)

    # -- new prompts ---------------------------------------------------------------------------------------------------

    def _fill(self, free: Sequence[int]) -> Iterator[tuple[int, Decoded]]:
        """Prompts take free slots: their prefix from the group's, the rest in one left-padded pass."""
        chosen = self.waiting[self.at : self.at + len(free)]
        self.at += len(chosen)
        self._make_heads([g for _, g in chosen if g.prefix and g not in self.heads])
        tails, tail_mask = self.model.pad([self.prompts[k][g.prefix :] for k, g in chosen], side="left")
        prefix = torch.tensor([g.prefix for _, g in chosen])
        widest = int(prefix.max())
        head_mask = torch.arange(widest) >= widest - prefix[:, None]
        real = torch.cat([head_mask, tail_mask], dim=1)
        cache = self._prefixes([g for _, g in chosen], widest)
        places = (real.cumsum(1) - 1).clamp(min=0)[:, widest:]
        out = self.model.lens.forward(
            tails.to(self.device), real.to(self.device, torch.long), 1, past_key_values=cache, use_cache=True,
            position_ids=places.to(self.device),
        )  # fmt: skip
        lengths = real.sum(1)
        self.buffer.make_room(cache, len(self.owner), self.room or int(lengths.max()) + self.limit)
        slots = list(free[: len(chosen)])
        index = torch.tensor(slots, device=self.device)
        self.buffer.put(index, cache, real)
        self.lengths[slots] = lengths
        if self.reader is not None:
            self.reader.clear(index)
        for s, (k, g) in zip(slots, chosen, strict=True):
            self.owner[s] = k
            if self.sampler is not None:
                self.draws[s] = stream(self.seeds[k], self.limit)
            self.left[g] -= 1
            if not self.left[g]:
                self.heads.pop(g, None)
        self.count[index] = 0
        yield from self._choose(slots, out.logits[:, -1])

    def _make_heads(self, groups: Sequence[Group]) -> None:
        """Keys and values of prefixes that are needed now, and kept until their group is through."""
        new = list(dict.fromkeys(groups))
        if not new:
            return
        ids, mask = self.model.pad([self.prompts[g.rows[0]][: g.prefix] for g in new], side="left")
        cache = DynamicCache()
        self.model.lens.forward(
            ids.to(self.device), mask.to(self.device, torch.long), 1, past_key_values=cache, use_cache=True,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(self.device),
        )  # fmt: skip
        for row, g in enumerate(new):
            self.heads[g] = (
                [keys[row, :, -g.prefix :].clone() for keys, _ in _tensors(cache)],
                [values[row, :, -g.prefix :].clone() for _, values in _tensors(cache)],
            )

    def _prefixes(self, groups: Sequence[Group], widest: int) -> DynamicCache:
        """A cache with each row's prefix, left-padded; empty where no row has one."""
        cache = DynamicCache()
        if not widest:
            return cache
        some = next(self.heads[g] for g in groups if g.prefix)
        for n in range(len(some[0])):
            stacked = []
            for side in (0, 1):
                like = some[side][n]
                out = like.new_zeros(len(groups), like.shape[0], widest, like.shape[2])
                for row, g in enumerate(groups):
                    if g.prefix:
                        out[row, :, widest - g.prefix :] = self.heads[g][side][n]
                stacked.append(out)
            cache.update(stacked[0], stacked[1], n)
        return cache
