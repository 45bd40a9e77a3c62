"""The user's side of a transcript, played again with and without interventions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assistant_axis.errors import ConversationError
from assistant_axis.models.chat import Conversation
from assistant_axis.steering.direction import Direction, DirectionLike
from assistant_axis.steering.readings import generate_traced

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel, Intervention


@dataclass(frozen=True)
class ReplayedTurn:
    """One user turn and its two answers; projections are means over each answer's tokens at the replay's layer.

    Attributes:
        user: what the user said.
        plain: the unsteered answer, `steered` the other.
        plain_projection: of the unsteered answer.
        pre, post: of the steered answer, before and after the interventions act at that layer.
        changed: fraction of the steered answer's tokens that were changed at the layer where most were.
    """

    user: str
    plain: str
    steered: str
    plain_projection: float
    pre: float
    post: float
    changed: float


@dataclass(frozen=True)
class Replay:
    """Two conversations with the same user turns, side by side.

    Attributes:
        layer: where the projections are read, raw and Assistant-positive.
        turns: one entry a user turn.
    """

    layer: int
    turns: tuple[ReplayedTurn, ...]

    def table(self) -> Any:
        """A rich table, one row a turn."""
        from rich.table import Table

        table = Table(title=f"Projections at layer {self.layer}; larger is more Assistant-like", show_lines=True)
        for name in (
            "turn",
            "user",
            "unsteered",
            "steered",
            "unsteered ⟨h, v̂⟩",
            "steered pre → post",
            "tokens changed",
        ):
            table.add_column(name)
        for k, t in enumerate(self.turns, start=1):
            numbers = (f"{t.plain_projection:.2f}", f"{t.pre:.2f} → {t.post:.2f}", f"{t.changed:.0%}")
            table.add_row(str(k), t.user, t.plain, t.steered, *numbers)
        return table

    def plot(self, ax: Any = None) -> Any:
        """Projection a turn, unsteered and steered (pre and post); returns the matplotlib axes."""
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(layout="constrained").subplots()
        at = list(range(1, len(self.turns) + 1))
        ax.plot(at, [t.plain_projection for t in self.turns], marker="o", label="unsteered")
        ax.plot(at, [t.pre for t in self.turns], marker="o", linestyle="--", label="steered, before the intervention")
        ax.plot(at, [t.post for t in self.turns], marker="o", label="steered, after it")
        ax.set_xlabel("turn")
        ax.set_ylabel(f"projection at layer {self.layer} (raw, larger is more Assistant-like)")
        ax.set_xticks(at)
        ax.legend()
        return ax


def replay(
    model: "HookedChatModel",
    conversation: Conversation,
    axis: DirectionLike,
    *interventions: "Intervention",
    layer: int | float | None = None,
    max_new_tokens: int = 96,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Replay:
    """Play the user turns of a transcript twice, without and with interventions, from the same seed.

    Each side answers its own history: after the first turn the two conversations differ in what the model has said. The answers
    in the transcript are not used; its system prompt is.

    Args:
        model: the model.
        conversation: a transcript, or only its user turns.
        axis: what the projections are on.
        interventions: in force on the steered side.
        layer: where to read; default: the model's monitoring layer. The layers of a cap lie above it in most settings, so
            there pre and post are the same and move through changed text only; read a capped layer to see both.
        max_new_tokens, temperature, top_p, seed: of both sides; turn k samples from `seed + k`.

    Raises:
        ConversationError: no user turn, or an answer that is empty, so that the conversation cannot go on.
    """
    direction = Direction.of(axis)
    at = model.profile.layer if layer is None else model.layer(layer)
    users = [m["content"] for m in conversation if m["role"] == "user"]
    if not users:
        raise ConversationError("The transcript has no user turn to replay.")
    system = [dict(m) for m in conversation if m["role"] == "system"]
    layers = sorted({at, *(p.layer for i in interventions for p, _ in i.compile(model))})
    layers = [x for x in layers if x in direction.layers]
    sides: tuple[list[dict[str, str]], list[dict[str, str]]] = (list(system), list(system))
    turns = []
    for k, user in enumerate(users):
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed + k}
        read = []
        for side, steps in zip(sides, ((), interventions), strict=True):
            side.append({"role": "user", "content": user})
            answer, trace = generate_traced(model, side, direction, *steps, layers=layers, **options)
            if not answer.text.strip():
                raise ConversationError(f"The answer to user turn {k + 1} is empty; the replay cannot go on.")
            side.append({"role": "assistant", "content": answer.text})
            own = trace.per_turn(at)
            # An answer of one token is never fed back, so it has no reading.
            last = own[-1] if own and own[-1].index == len(trace.turns) - 1 else None
            pre, post = (last.pre, last.post) if last is not None else (float("nan"), float("nan"))
            start, stop = trace.turns[-1][1].start, trace.turns[-1][1].stop
            moved = trace.changed[:, start:stop].float().mean(1).max() if stop > start else 0.0
            read.append((answer.text, pre, post, float(moved)))
        (plain, _, plain_at, _), (steered, pre, post, changed) = read
        turns.append(ReplayedTurn(user, plain, steered, plain_at, pre, post, changed))
    return Replay(at, tuple(turns))


def user_turns(texts: Sequence[str]) -> list[dict[str, str]]:
    """User turns alone, as `replay` takes them."""
    return [{"role": "user", "content": t} for t in texts]
