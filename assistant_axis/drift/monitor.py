"""`DriftMonitor`: projections while an answer is being generated, a value a token, with thresholds and callbacks.

A token's activation exists when the token is fed back to the model, one step after it was sampled. The last sampled
token is never fed back: if it is an end-of-turn token nothing is missing, and where an answer was cut by its length
`DriftMonitor.generate` runs that one token on the key-value cache that generation leaves behind.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assistant_axis.drift.trajectory import about_calibration, calibrated_rank
from assistant_axis.errors import ModelError, SettingError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.models.generation import Answer, stop_ids, streams
from assistant_axis.models.hook_points import ResidPost
from assistant_axis.models.hooked import as_batch, is_batch

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel


@dataclass(frozen=True)
class TokenReading:
    """One generated token: which conversation of the batch, which turn, its place in the answer, and its projection.

    Attributes:
        row: conversation within the batch.
        turn: number of the generation since the monitor was made.
        position: place in the answer, from 0.
        token_id: the token.
        projection: raw projection, activation units.
        level: raw mean over the last `smooth` tokens of the answer; thresholds look at this.
    """

    row: int
    turn: int
    position: int
    token_id: int
    projection: float
    level: float


@dataclass(frozen=True)
class Crossing:
    """The moving mean went past the threshold.

    Attributes:
        direction: `"below"` (away from the Assistant) or `"above"` (back).
        threshold: raw projection.
        at: the token at which it happened.
    """

    direction: Literal["below", "above"]
    threshold: float
    at: TokenReading


@dataclass(frozen=True)
class MonitoredTurn:
    """What was read of one answer while it was generated.

    Attributes:
        turn: number of the generation.
        row: conversation within its batch.
        ids: the tokens read.
        tokens: raw projection of each, `[pos]`.
        complete: whether every content token of the answer was read (see the module's text).
    """

    turn: int
    row: int
    ids: tuple[int, ...]
    tokens: Float[Tensor, "pos"]
    complete: bool

    @property
    def mean(self) -> float:
        """Raw mean over the tokens; NaN for an empty answer."""
        return float(self.tokens.double().mean()) if len(self.ids) else float("nan")


class DriftMonitor:
    """Watch a model's answers along the axis while they are generated.

    >>> monitor = DriftMonitor(model, axis, threshold=-5.0, on_cross=print)      # doctest: +SKIP
    >>> answer = monitor.generate(messages, max_new_tokens=200)                  # doctest: +SKIP
    >>> monitor.turns[-1].mean                                                   # doctest: +SKIP

    `with monitor:` watches any generation of the model inside the block instead, without the last token of answers
    that were cut by their length.

    Args:
        model: the model.
        axis: an axis of this model.
        layer: index or depth; default: the layer this model is watched at.
        threshold: raw projection; `on_cross` is called when the moving mean goes below it, and when it comes back.
        on_cross: gets a `Crossing`. What it raises ends the generation.
        on_token: gets a `TokenReading` for every content token.
        smooth: tokens in the moving mean; a threshold is not looked at before that many tokens (or a smaller number
            for a shorter answer) were read.
        reading: `"post"` or `"pre"` interventions in force.
        force: accept an axis of another model of the same shape.

    Attributes:
        turns: a `MonitoredTurn` for each answer, in the order of the conversations.
        crossings: every `Crossing` so far.

    Raises:
        ArtefactMismatchError: an axis of another model.
        LayerError: a layer that the model or the axis does not have.
        ModelError: a `HookedTransformer`, whose generation cannot be followed.
    """

    def __init__(
        self,
        model: "HookedChatModel",
        axis: AssistantAxis,
        layer: int | float | None = None,
        *,
        threshold: float | int | Tensor | None = None,
        on_cross: Callable[[Crossing], Any] | None = None,
        on_token: Callable[[TokenReading], Any] | None = None,
        smooth: int = 8,
        reading: str = "post",
        force: bool = False,
    ) -> None:
        axis.check(model, force=force)
        if not hasattr(model.lens, "bridge"):
            raise ModelError(
                "A HookedTransformer generates without a cache to follow; load the model with load_model()."
            )
        if smooth < 1 or reading not in ("pre", "post"):
            raise SettingError(f'smooth={smooth}, reading={reading!r}: expected smooth ≥ 1 and "pre" or "post".')
        self.model, self.axis = model, axis
        self.layer = model.layer(model.profile.layer if layer is None else layer)
        self.threshold = None if threshold is None else float(threshold)
        self.on_cross, self.on_token = on_cross, on_token
        self.smooth, self.reading = smooth, reading
        self.turns: list[MonitoredTurn] = []
        self.crossings: list[Crossing] = []
        self._unit = axis.at(self.layer).to(torch.float32)
        self._center = float(axis.center()[axis.layer_index(self.layer)])
        self._running: _Running | None = None
        self._count = 0
        self._block: Any = None

    # -- watching ------------------------------------------------------------------------------------------------------

    def generate(self, conversations: Any, *, batch_size: int = 16, **kwargs: Any) -> Any:
        """`model.generate` under watch, with every content token read; the same arguments and answers."""
        batch = as_batch(conversations)
        answers: dict[int, Answer] = {}
        lengths = [len(self.model.chat.encode_prompt(c).ids) for c in batch]
        order = sorted(range(len(batch)), key=lengths.__getitem__)
        seeds = streams(int(kwargs.pop("seed", 0)), len(batch))
        found: dict[int, MonitoredTurn] = {}
        first = len(self.turns)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            with self._watching():
                given = self.model.generate(
                    [batch[k] for k in rows], batch_size=len(rows), seed=[seeds[k] for k in rows], **kwargs
                )
                running = self._running
                assert running is not None
                self._last_token(running, given)
            for row, (k, answer) in enumerate(zip(rows, given, strict=True)):
                answers[k] = answer
                found[k] = running.turn(row, len(answer.ids))
        del self.turns[first:]
        self.turns += [found[k] for k in range(len(batch))]
        out = [answers[k] for k in range(len(batch))]
        return out if is_batch(conversations) else out[0]

    def __enter__(self) -> "DriftMonitor":
        self._block = self._watching()
        self._block.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        block, self._block = self._block, None
        block.__exit__(*error)

    # -- reading -------------------------------------------------------------------------------------------------------

    @property
    def center(self) -> float:
        """Raw projection of the role mean at the layer: raw minus this is centred."""
        return self._center

    def percentile(self, projection: float) -> float:
        """Where an answer's raw projection stands among the calibration (0 … 100).

        NaN without calibration, and for an axis that was not measured on answers; `notes` says which.
        """
        return calibrated_rank(self.axis, projection, self.layer)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why there are no percentiles; empty where there are."""
        return about_calibration(self.axis, "response")

    # -- inside --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Follow the forward passes: a pass that starts at position 0 opens a turn, later ones bring its tokens."""
        stops = set(stop_ids(self.model))

        def look(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            past = kwargs.get("past_key_values")
            ids = kwargs.get("input_ids", args[0] if args else None)
            offset = int(past.get_seq_length()) if past is not None else 0
            if self._running is None or offset == 0:
                self._close()
                self._running = _Running(self._count, stops, self.smooth)
                self._count += 1
                self._running.prompt = True
            else:
                self._running.prompt = False
            self._running.ids = ids
            self._running.past = past
            self._running.mask = kwargs.get("attention_mask")

        def read(x: Tensor) -> None:
            running = self._running
            if running is None or running.prompt or not isinstance(running.ids, Tensor):
                return
            values = (x.to(torch.float32) @ self._unit.to(x.device)).cpu()
            for reading in running.take(values):
                self._tell(running, reading)

        handle = self.model.lens.module.register_forward_pre_hook(look, with_kwargs=True)
        try:
            with (
                self.model.positions.watching(),  # rows keep their places
                self.model.hooks([(ResidPost(self.layer), read)], before_others=self.reading == "pre"),
            ):
                yield
        finally:
            handle.remove()
            self._close()

    def _close(self) -> None:
        if self._running is not None:
            self.turns += [self._running.turn(row) for row in range(len(self._running.tokens))]
            self._running = None

    def _last_token(self, running: "_Running", answers: Sequence[Answer]) -> None:
        """Run the last token of answers that were cut by their length, on the cache that generation left."""
        missing = [k for k, a in enumerate(answers) if len(a.ids) > running.count(k)]
        if not missing:
            return
        pad = self.model.tokenizer.pad_token_id or 0
        last = torch.tensor([[answers[k].ids[-1] if k in missing else pad] for k in range(len(answers))])
        if not running.tokens:  # one new token: nothing was fed back yet
            running.open(len(answers))
        past, mask = running.past, running.mask
        if past is not None and mask is None:  # generation leaves it out where nothing is padded
            mask = torch.ones(len(answers), past.get_seq_length(), dtype=torch.bool, device=self.model.device)
        if past is not None and isinstance(mask, Tensor) and mask.ndim == 2:
            whole = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            places = whole.long().sum(1, keepdim=True) - 1
            self.model.forward(last, whole.bool(), past_key_values=past, use_cache=True, position_ids=places)
            return
        for k in missing:  # no cache to go on with: the whole answer in one pass
            ids = (*answers[k].prompt_ids, *answers[k].ids)
            values: list[float] = []

            def read(x: Tensor, values: list[float] = values) -> None:
                values.append(float(x[0, -1].to(torch.float32) @ self._unit.to(x.device)))

            with self.model.hooks([(ResidPost(self.layer), read)], before_others=self.reading == "pre"):
                running_before, self._running = self._running, None
                self.model.forward(torch.tensor([ids]))
                self._running = running_before
            self._tell(running, running.add(k, ids[-1], values[-1]))

    def _tell(self, running: "_Running", reading: TokenReading) -> None:
        if self.on_token is not None:
            self.on_token(reading)
        self._look_at_threshold(running, reading)

    def _look_at_threshold(self, running: "_Running", reading: TokenReading) -> None:
        if self.threshold is None or reading.position + 1 < self.smooth:
            return
        below = reading.level < self.threshold
        if below != running.below.get(reading.row, False):
            running.below[reading.row] = below
            crossing = Crossing("below" if below else "above", self.threshold, reading)
            self.crossings.append(crossing)
            if self.on_cross is not None:
                self.on_cross(crossing)


class _Running:
    """The generation under way: what each row of the batch has said so far."""

    def __init__(self, number: int, stops: set[int], smooth: int) -> None:
        self.number, self.stops, self.smooth = number, stops, smooth
        self.prompt = True
        self.ids: Any = None
        self.past: Any = None
        self.mask: Any = None
        self.tokens: list[list[tuple[int, float]]] = []
        self.done: list[bool] = []
        self.below: dict[int, bool] = {}

    def open(self, rows: int) -> None:
        self.tokens = [[] for _ in range(rows)]
        self.done = [False] * rows

    def take(self, values: Float[Tensor, "batch pos"]) -> Iterator[TokenReading]:
        if not self.tokens:
            self.open(len(values))
        for column, ids in enumerate(self.ids.T.tolist()):
            for row, token in enumerate(ids):
                if token in self.stops:
                    self.done[row] = True
                if not self.done[row]:
                    yield self.add(row, token, float(values[row, column]))

    def add(self, row: int, token: int, projection: float) -> TokenReading:
        said = self.tokens[row]
        said.append((token, projection))
        recent = [p for _, p in said[-self.smooth :]]
        return TokenReading(row, self.number, len(said) - 1, token, projection, sum(recent) / len(recent))

    def count(self, row: int) -> int:
        return len(self.tokens[row]) if self.tokens else 0

    def turn(self, row: int, length: int | None = None) -> MonitoredTurn:
        """The row's answer; `length` is how many content tokens it has, where that is known."""
        said = self.tokens[row][:length] if self.tokens else []
        complete = self.done[row] if length is None else len(said) == length
        values = torch.tensor([p for _, p in said], dtype=torch.float32)
        return MonitoredTurn(self.number, row, tuple(t for t, _ in said), values, complete)
