"""`trajectory`: where a model stands along the axis, turn by turn, from one forward pass over a conversation.

Every hook reduces its activation to one projection a token, so a pass keeps `layers × tokens` numbers, whatever the
width of the model. A turn's value is the mean over its content tokens, as in Lu et al. 2026, section 4.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assistant_axis.activations.capture import default_token_budget
from assistant_axis.errors import ConversationError, LayerError, NonFiniteError, SettingError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.models.chat import Conversation, EncodedChat, TurnSpan
from assistant_axis.models.hook_points import ResidPost
from assistant_axis.models.lens import HookFunction

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

TurnSpanName = Literal["response", "header"]


@dataclass(frozen=True)
class TurnReading:
    """One turn along the axis.

    Attributes:
        index: number of the message in the conversation.
        role: who speaks.
        content: what is said; empty for the header of an answer that is not there yet.
        pieces: the text of every token that was read; a character of several tokens is with the last of them.
        tokens: raw projection of every token, `[layer, pos]`, activation units.
        mean: raw mean over the tokens, `[layer]`.
        stderr: standard error of the mean over tokens, `[layer]`; NaN for a single token. Neighbouring tokens resemble
            each other, so it is a lower bound of the uncertainty.
        percentile: where `mean` stands among the axis's calibration (0 … 100), `[layer]`. NaN where that says nothing:
            without calibration, for an axis measured on another span, and for turns that are no answers.
    """

    index: int
    role: str
    content: str
    pieces: tuple[str, ...]
    tokens: Float[Tensor, "layer pos"]
    mean: Float[Tensor, "layer"]
    stderr: Float[Tensor, "layer"]
    percentile: Float[Tensor, "layer"]

    @property
    def n_tokens(self) -> int:
        return self.tokens.shape[1]


@dataclass(frozen=True)
class Trajectory:
    """A conversation along the axis, one reading a turn, in order.

    Attributes:
        turns: the turns that were read.
        layers: block indices, the order of every `[layer]` here.
        center: raw projection of the role mean, `[layer]`; raw minus this is centred.
        default_band: raw 5th, 50th and 95th percentile of the default persona's own rollouts, `[3, layer]`; NaN where
            percentiles are (see `TurnReading`).
        model: name of the model.
        reading: `"post"` (after interventions in force) or `"pre"`.
        span: `"response"` (content tokens) or `"header"` (the token at which the turn is about to be spoken).
        warnings: what a reader of the numbers should know; also shown by `str()`.
    """

    turns: tuple[TurnReading, ...]
    layers: tuple[int, ...]
    center: Float[Tensor, "layer"]
    default_band: Float[Tensor, "3 layer"]
    model: str
    reading: str
    span: str
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.turns)

    def of(self, role: str) -> tuple[TurnReading, ...]:
        """The turns of one role."""
        return tuple(t for t in self.turns if t.role == role)

    def layer_index(self, layer: int | None = None) -> int:
        """Where a layer stands in `layers`; the first one by default.

        Raises:
            LayerError: it was not read.
        """
        if layer is None:
            return 0
        if layer not in self.layers:
            raise LayerError(f"Layer {layer} was not read; this trajectory holds {list(self.layers)}.")
        return self.layers.index(layer)

    def means(
        self, layer: int | None = None, *, centered: bool = False, role: str | None = "assistant"
    ) -> Float[Tensor, "turn"]:
        """Mean projection of every turn at one layer (default: the first read), raw or centred.

        Args:
            layer: block index.
            centered: subtract the role mean's projection.
            role: whose turns; `None` for all that were read.
        """
        k = self.layer_index(layer)
        values = torch.tensor([float(t.mean[k]) for t in self._chosen(role)])
        return values - self.center[k] if centered else values

    def stderrs(self, layer: int | None = None, *, role: str | None = "assistant") -> Float[Tensor, "turn"]:
        """Standard error over tokens of every turn at one layer."""
        k = self.layer_index(layer)
        return torch.tensor([float(t.stderr[k]) for t in self._chosen(role)])

    def percentiles(self, layer: int | None = None, *, role: str | None = "assistant") -> Float[Tensor, "turn"]:
        """Percentile among calibration of every turn at one layer."""
        k = self.layer_index(layer)
        return torch.tensor([float(t.percentile[k]) for t in self._chosen(role)])

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a turn and layer, for a table or a data frame; raw and centred means are both there."""
        return [
            {
                "turn": n,
                "message": t.index,
                "role": t.role,
                "layer": layer,
                "raw": float(t.mean[k]),
                "centered": float(t.mean[k] - self.center[k]),
                "stderr": float(t.stderr[k]),
                "percentile": float(t.percentile[k]),
                "n_tokens": t.n_tokens,
            }
            for n, t in enumerate(self.turns)
            for k, layer in enumerate(self.layers)
        ]

    def __str__(self) -> str:
        lines = [f"{self.model}, layer {self.layers[0]}, {self.span} tokens, {self.reading} interventions"]
        lines.append("turn  role        raw      ± se   centred   percentile  tokens")
        for n, t in enumerate(self.turns):
            raw = float(t.mean[0])
            lines.append(
                f"{n:>4}  {t.role:<9}{raw:>8.2f}{shown(float(t.stderr[0]), 2):>9}{raw - float(self.center[0]):>10.2f}"
                f"{shown(float(t.percentile[0]), 1):>12}{t.n_tokens:>8}"
            )
        return "\n".join(lines + [f"note: {w}" for w in self.warnings])

    def _chosen(self, role: str | None) -> tuple[TurnReading, ...]:
        return self.turns if role is None else self.of(role)


def trajectory(
    model: "HookedChatModel",
    axis: AssistantAxis,
    conversation: Conversation,
    layers: Iterable[int | float] | int | float | None = None,
    *,
    role: str = "assistant",
    users: bool = False,
    reading: str = "post",
    span: TurnSpanName = "response",
    window: int | None = None,
    force: bool = False,
) -> Trajectory:
    """Where each turn of a conversation stands along the axis, from one forward pass.

    >>> path = trajectory(model, axis, messages)     # doctest: +SKIP
    >>> path.means(centered=True)                    # doctest: +SKIP
    tensor([41.2, 38.9, 30.5])

    A conversation that ends on a user turn is traced as far as it goes. One that is longer than the window is read in
    overlapping windows: each later token sees at least a quarter of a window before it, windows open at a turn where
    they can, and the system prompt stays in front; the result says so in `warnings`.

    Args:
        model: the model; interventions in force act.
        axis: an axis of this model.
        conversation: messages, oldest first.
        layers: indices or depths; default: the layer this model is watched at (`model.profile.layer`).
        role: whose turns are read.
        users: read user turns too.
        reading: `"post"` or `"pre"` interventions in force at the layer.
        span: `"response"`: content tokens (the paper). `"header"`: the one token at which the turn is about to be
            spoken, to be used with an axis of that span; a conversation ending on a user turn gets a last reading.
        window: longest sequence of one pass; default: the model's context.
        force: accept an axis of another model of the same shape.

    Raises:
        ConversationError: malformed, or without a turn of that role.
        ArtefactMismatchError: an axis of another model.
        LayerError: a layer that the model or the axis does not have.
        NonFiniteError: activations that are not finite, naming layer and turn.
    """
    return trajectories(
        model,
        axis,
        [conversation],
        layers,
        role=role,
        users=users,
        reading=reading,
        span=span,
        window=window,
        force=force,
    )[0]


def trajectories(
    model: "HookedChatModel",
    axis: AssistantAxis,
    conversations: Sequence[Conversation],
    layers: Iterable[int | float] | int | float | None = None,
    *,
    role: str = "assistant",
    users: bool = False,
    reading: str = "post",
    span: TurnSpanName = "response",
    window: int | None = None,
    token_budget: int | None = None,
    force: bool = False,
) -> list[Trajectory]:
    """[`trajectory`][assistant_axis.drift.trajectory.trajectory] of many conversations, batched by length."""
    if reading not in ("pre", "post"):
        raise SettingError(f'reading={reading!r} is not known; use "pre" or "post".')
    if span not in ("response", "header"):
        raise SettingError(f'span={span!r} is not known; use "response" or "header".')
    axis.check(model, force=force)
    chosen = model.layers(model.profile.layer if layers is None else layers)
    roles = (role, "user") if users and role != "user" else (role,)
    encoded = [_encode(model, c, span, roles) for c in conversations]
    limit = _limit(model, window)
    projected, cut = project_tokens(
        model, axis, [e[0] for e in encoded], chosen, reading=reading, window=limit, token_budget=token_budget
    )
    k = [axis.layer_index(x) for x in chosen]
    band = torch.full((3, len(k)), math.nan)
    if is_calibrated(axis, span):
        band = torch.stack([axis.default_percentile(q)[k] for q in (5.0, 50.0, 95.0)])
    shared = about_calibration(axis, span)
    results = []
    for (chat, spans), tokens, long in zip(encoded, projected, cut, strict=True):
        said = shared
        if long:
            said = (
                *said,
                f"The conversation has {len(chat.ids)} tokens, more than the window of {limit}: it was read in "
                "overlapping windows, so later turns were seen without the beginning.",
            )
        turns = tuple(_read_turn(model, axis, chat, turn, at, tokens, chosen, span) for turn, at in spans)
        results.append(
            Trajectory(
                turns=turns,
                layers=chosen,
                center=axis.center()[k],
                default_band=band,
                model=model.name,
                reading=reading,
                span=span,
                warnings=said,
            )
        )
    return results


def project_tokens(
    model: "HookedChatModel",
    axis: AssistantAxis,
    chats: Sequence[EncodedChat],
    layers: Sequence[int],
    *,
    reading: str = "post",
    window: int | None = None,
    token_budget: int | None = None,
) -> tuple[list[Float[Tensor, "layer pos"]], list[bool]]:
    """Raw projection of every token of every conversation, and which conversations were longer than the window.

    Args:
        model: the model; interventions in force act.
        axis: holds `layers`.
        chats: encoded conversations.
        layers: block indices.
        reading: `"post"` or `"pre"`.
        window: longest sequence of one pass.
        token_budget: padded tokens a batch; default 1,536 on a CPU and 32,768 on a GPU.
    """
    budget = token_budget or default_token_budget(model.device)
    pieces = [p for n, chat in enumerate(chats) for p in _windows(n, chat, window)]
    order = sorted(pieces, key=lambda p: len(p.ids))
    out = [torch.full((len(layers), len(c.ids)), math.nan) for c in chats]
    batch: list[_Piece] = []
    for piece in [*order, None]:
        if batch and (piece is None or (len(batch) + 1) * len(piece.ids) > budget):
            for p, values in zip(batch, _project_batch(model, axis, batch, layers, reading), strict=True):
                out[p.chat][:, p.read.start : p.read.stop] = values[:, len(p.ids) - len(p.read) :]
            batch = []
        if piece is not None:
            batch.append(piece)
    return out, [window is not None and len(c.ids) > window for c in chats]


# -- inside ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """A stretch of one conversation for one pass; its last tokens are those of `read`."""

    chat: int
    ids: tuple[int, ...]
    response: tuple[bool, ...]
    read: range


def _windows(number: int, chat: EncodedChat, window: int | None) -> Iterator[_Piece]:
    ids, n = chat.ids, len(chat.ids)
    response = [False] * n
    for turn in chat.turns_of("assistant"):
        response[turn.content[0] : turn.content[1]] = [True] * turn.n_tokens
    if window is None or n <= window:
        yield _Piece(number, ids, tuple(response), range(n))
        return
    yield _Piece(number, ids[:window], tuple(response[:window]), range(window))
    opening = next((t.header[0] for t in chat.turns if t.role != "system"), 0)
    opening = opening if opening <= window // 4 else 0
    borders = [t.header[0] for t in chat.turns]
    done = window
    while done < n:
        stop = min(n, done + window // 2)
        earliest = max(opening, stop - (window - opening))
        start = next((b for b in borders if earliest <= b <= done - window // 4), earliest)
        kept = [*range(opening), *range(start, stop)]
        yield _Piece(number, tuple(ids[k] for k in kept), tuple(response[k] for k in kept), range(done, stop))
        done = stop


def _project_batch(
    model: "HookedChatModel", axis: AssistantAxis, batch: Sequence[_Piece], layers: Sequence[int], reading: str
) -> list[Tensor]:
    lengths = [len(p.ids) for p in batch]
    ids, mask = model.pad([p.ids for p in batch])
    response = torch.zeros_like(mask)
    for row, piece in enumerate(batch):
        response[row, : lengths[row]] = torch.tensor(piece.response)
    found: dict[int, list[Tensor]] = {}

    def keep(layer: int) -> HookFunction:
        unit = axis.at(layer).to(torch.float32)

        def hook(x: Tensor) -> None:
            v = unit.to(x.device)  # row by row: half precision is widened for one row at a time
            found[layer] = [(x[row, :length].to(torch.float32) @ v).cpu() for row, length in enumerate(lengths)]

        return hook

    hooks = [(ResidPost(layer), keep(layer)) for layer in layers]
    with model.positions.known(response), model.hooks(hooks, before_others=reading == "pre"):
        model.forward(ids, mask, until=max(layers))
    return [torch.stack([found[layer][row] for layer in layers]) for row in range(len(batch))]


def _encode(
    model: "HookedChatModel", conversation: Conversation, span: str, roles: Sequence[str]
) -> tuple[EncodedChat, list[tuple[TurnSpan, range]]]:
    """The encoded conversation and, for every turn to read, its positions."""
    coming = span == "header" and len(conversation) > 0 and dict(conversation[-1]).get("role") == "user"
    chat = model.chat.encode(conversation, add_generation_prompt=coming)
    spans = []
    for turn in chat.turns:
        start, stop = turn.content if span == "response" else (turn.header[1] - 1, turn.header[1])
        if turn.role in roles and stop > start >= 0:
            spans.append((turn, range(start, stop)))
    if coming and "assistant" in roles and chat.generation_header is not None:
        end = chat.generation_header[1]
        after = TurnSpan(len(chat.turns), "assistant", chat.generation_header, (end, end))
        spans.append((after, range(end - 1, end)))
    if not spans:
        said = " → ".join(t.role for t in chat.turns)
        raise ConversationError(f"The conversation has no {' or '.join(roles)} turn to read: it is {said}.")
    return chat, spans


def _read_turn(
    model: "HookedChatModel",
    axis: AssistantAxis,
    chat: EncodedChat,
    turn: TurnSpan,
    at: range,
    projected: Tensor,
    layers: Sequence[int],
    span: str,
) -> TurnReading:
    tokens = projected[:, at.start : at.stop].contiguous()
    if not torch.isfinite(tokens).all():
        bad = int((~torch.isfinite(tokens)).any(-1).nonzero()[0])
        raise NonFiniteError(
            f"The activations of turn {turn.index} ({turn.role}) are not finite at layer {layers[bad]}. Load the model "
            f"in bfloat16 or float32 (it runs in {str(model.dtype).removeprefix('torch.')}), or check interventions."
        )
    decode = model.tokenizer.decode
    mean = tokens.double().mean(1).float()
    spread = tokens.std(1) / math.sqrt(len(at)) if len(at) > 1 else torch.full_like(mean, math.nan)
    ranks = torch.full_like(mean, math.nan)
    if turn.role == "assistant":  # calibration is over answers
        ranks = torch.tensor([calibrated_rank(axis, float(m), x, span) for m, x in zip(mean, layers, strict=True)])
    return TurnReading(
        index=turn.index,
        role=turn.role,
        content=decode(list(chat.ids[turn.content[0] : turn.content[1]]), clean_up_tokenization_spaces=False),
        pieces=_pieces(decode, chat.ids[at.start : at.stop]),
        tokens=tokens,
        mean=mean,
        stderr=spread,
        percentile=ranks,
    )


def _pieces(decode: Callable[..., str], ids: Sequence[int]) -> tuple[str, ...]:
    out: list[str] = []
    waiting: list[int] = []
    for i in ids:
        waiting.append(i)
        text = decode(waiting, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and len(waiting) < 8:  # bytes of a character that is not whole yet
            out.append("")
            continue
        out.append(text)
        waiting = []
    if waiting:
        out[-1] = decode(waiting, clean_up_tokenization_spaces=False)
    return tuple(out)


def is_calibrated(axis: AssistantAxis, span: str) -> bool:
    """Whether the axis keeps a calibration over that span: percentiles of another kind of token would mislead."""
    return axis.calibration != "none" and axis.conditions.span == span


def calibrated_rank(axis: AssistantAxis, projection: float, layer: int, span: str = "response") -> float:
    """`axis.rank`, or NaN where the axis keeps no calibration over that span."""
    return axis.rank(projection, layer) if is_calibrated(axis, span) else math.nan


def shown(value: float, digits: int = 0) -> str:
    """A number for a table; a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def about_calibration(axis: AssistantAxis, span: str) -> tuple[str, ...]:
    """Why there are no percentiles for tokens of that span, in words; empty where there are."""
    if axis.calibration == "none":
        return ("The axis keeps no calibration: there are no percentiles and no band of the default.",)
    if axis.conditions.span != span:
        return (
            f"The axis was measured on {axis.conditions.span!r} tokens and these are {span!r} tokens: compare turns with "
            "each other. Percentiles and the default's band are left out, for they are those of the other kind of token.",
        )
    return ()


def _limit(model: "HookedChatModel", window: int | None) -> int | None:
    longest = model.max_length
    if window is None:
        return longest
    if window < 8:
        raise SettingError(f"window={window} is too short; use at least 8 tokens.")
    return window if longest is None else min(window, longest)
