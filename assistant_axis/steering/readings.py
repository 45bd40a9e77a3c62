"""Projections before and after an intervention, token by token, while it runs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assistant_axis.errors import SettingError
from assistant_axis.models.chat import Conversation
from assistant_axis.models.generation import Answer
from assistant_axis.models.hook_points import HookPoint, ResidPost
from assistant_axis.models.lens import HookFunction
from assistant_axis.steering.direction import Direction, DirectionLike

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel, Intervention


@dataclass(frozen=True)
class TurnReading:
    """Mean projections over the content tokens of one turn at one layer."""

    index: int
    role: str
    layer: int
    pre: float
    post: float
    changed: float


@dataclass(frozen=True, eq=False)
class Trace:
    """One sequence under interventions.

    At a layer, `pre` is what block and residual stream would have passed on and `post` what they did pass on. A layer below
    an intervention has the same in both; a layer above it has moved in both, because what reached it had moved.

    Attributes:
        layers: block indices, the rows below.
        ids: token ids, `[pos]`. The last sampled token of an answer is never fed back, so it has no reading.
        pre, post: raw projections, Assistant-positive, `[layer, pos]`.
        changed: whether the residual stream at the token was changed at that layer, in any component, `[layer, pos]`.
        turns: (role, range of content positions) of each turn.
    """

    layers: tuple[int, ...]
    ids: tuple[int, ...]
    pre: Float[Tensor, "layer pos"]
    post: Float[Tensor, "layer pos"]
    changed: Bool[Tensor, "layer pos"]
    turns: tuple[tuple[str, range], ...]

    def at(self, layer: int) -> int:
        """The row of a layer.

        Raises:
            SettingError: it was not read.
        """
        if layer not in self.layers:
            raise SettingError(f"Layer {layer} was not read; read were {list(self.layers)}.")
        return self.layers.index(layer)

    def changed_share(self, role: str | None = None) -> Float[Tensor, "layer"]:
        """Fraction of tokens changed at each layer, over all tokens or over the turns of a role."""
        where = torch.zeros(len(self.ids), dtype=torch.bool)
        for said, span in self.turns:
            where[span.start : span.stop] |= role is None or said == role
        if role is None:
            where[:] = True
        return self.changed[:, where].float().mean(1)

    def per_turn(self, layer: int) -> list[TurnReading]:
        """One reading a turn at a layer."""
        k = self.at(layer)
        found = []
        for n, (role, span) in enumerate(self.turns):
            here = slice(span.start, min(span.stop, len(self.ids)))
            if here.stop > here.start:
                pre, post = float(self.pre[k, here].mean()), float(self.post[k, here].mean())
                found.append(TurnReading(n, role, layer, pre, post, float(self.changed[k, here].float().mean())))
        return found


class Recorder:
    """Collects projections of every pass inside `recorded`; each chunk is `[layer, batch, pos]`."""

    def __init__(self, model: "HookedChatModel", direction: Direction, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._units = {x: direction.unit[direction.index(x)] for x in self.layers}
        self._last = max(self.layers)
        self._before: dict[int, Tensor] = {}
        self._now: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.chunks: list[tuple[Tensor, Tensor, Tensor]] = []

    def first(self) -> list[tuple[HookPoint, HookFunction]]:
        """Hooks that run before interventions."""

        def keep(layer: int) -> HookFunction:
            def hook(x: Tensor) -> None:
                self._before[layer] = x  # interventions never edit in place, so the reference suffices

            return hook

        return [(ResidPost(x), keep(x)) for x in self.layers]

    def last(self) -> list[tuple[HookPoint, HookFunction]]:
        """Hooks that run after interventions."""

        def keep(layer: int) -> HookFunction:
            def hook(x: Tensor) -> None:
                before, unit = self._before.pop(layer), self._units[layer].to(x.device)
                changed = (before != x).any(-1)
                self._now[layer] = ((before.float() @ unit).cpu(), (x.float() @ unit).cpu(), changed.cpu())
                if layer == self._last:
                    rows = [self._now[k] for k in self.layers]
                    pre, post, moved = (torch.stack([r[n] for r in rows]) for n in range(3))
                    self.chunks.append((pre, post, moved))

            return hook

        return [(ResidPost(x), keep(x)) for x in self.layers]

    def joined(self, row: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """(pre, post, changed) of one row of the batch over all passes, each `[layer, pos]`."""
        pre, post, moved = (torch.cat([c[n][:, row] for c in self.chunks], dim=1) for n in range(3))
        return pre, post, moved


@contextmanager
def recorded(
    model: "HookedChatModel", axis: DirectionLike, layers: Iterable[int | float] | int | float | None = None
) -> Iterator[Recorder]:
    """Record projections before and after the interventions in force; enter it inside `model.steered(...)`.

    Args:
        model: the model.
        axis: what to project on.
        layers: default: every layer that the direction holds.
    """
    direction = Direction.of(axis)
    chosen = tuple(sorted(model.layers(direction.layers if layers is None else layers)))
    recorder = Recorder(model, direction, chosen)
    with model.hooks(recorder.first(), before_others=True), model.hooks(recorder.last()):
        yield recorder


def trace(
    model: "HookedChatModel",
    conversation: Conversation,
    axis: DirectionLike,
    *interventions: "Intervention",
    layers: Iterable[int | float] | int | float | None = None,
) -> Trace:
    """Read a finished conversation under interventions: one forward pass.

    Args:
        model: the model.
        conversation: with its answers.
        axis: what to project on.
        interventions: in force while it is read.
        layers: default: every layer that the direction holds.

    Raises:
        ConversationError: malformed.
    """
    chat = model.chat.encode(conversation)
    with model.steered(*interventions), recorded(model, axis, layers) as recorder:
        model.run_with_cache(conversation, [])
    pre, post, moved = recorder.joined()
    turns = tuple((t.role, range(*t.content)) for t in chat.turns)
    return Trace(recorder.layers, chat.ids, pre, post, moved, turns)


def generate_traced(
    model: "HookedChatModel",
    conversation: Conversation,
    axis: DirectionLike,
    *interventions: "Intervention",
    layers: Iterable[int | float] | int | float | None = None,
    **options: Any,
) -> tuple[Answer, Trace]:
    """Answer a conversation under interventions and read every token as it is made.

    Args:
        model: the model.
        conversation: ends with a user turn.
        axis: what to project on.
        interventions: in force while it answers.
        layers: default: every layer that the direction holds.
        options: of `model.generate`.

    Returns:
        The answer, and the trace of prompt and answer (without the last token that was sampled, which is never read).
    """
    with model.steered(*interventions), recorded(model, axis, layers) as recorder:
        answer = model.generate(conversation, **options)
    pre, post, moved = recorder.joined()
    start = len(answer.prompt_ids)
    width = min(pre.shape[1], start + len(answer.ids))
    chat = model.chat.encode(conversation, add_generation_prompt=True)
    turns = [(t.role, range(*t.content)) for t in chat.turns]
    turns.append(("assistant", range(start, width)))
    ids = (*answer.prompt_ids, *answer.ids)[:width]
    return answer, Trace(recorder.layers, ids, pre[:, :width], post[:, :width], moved[:, :width], tuple(turns))
