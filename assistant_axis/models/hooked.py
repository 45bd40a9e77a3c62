"""`HookedChatModel`: a chat model with typed hook points; what everything else in this package holds."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assistant_axis.errors import ConversationError, LayerError, SettingError
from assistant_axis.models.chat import ChatFormat, Conversation, EncodedChat
from assistant_axis.models.hook_points import AttnOut, HookPoint, MlpOut, ResidPost, ResidPre
from assistant_axis.models.lens import HookFunction, Lens, Positions, StopForward, attached
from assistant_axis.models.profiles import Profile, profile_for

if TYPE_CHECKING:
    from assistant_axis.activations.spans import Span
    from assistant_axis.models.generation import Answer
    from assistant_axis.plots.tokens import TokenView


@runtime_checkable
class Intervention(Protocol):
    """Anything that changes activations: see `assistant_axis.steering`."""

    @property
    def positions(self) -> str: ...
    def compile(self, model: "HookedChatModel") -> list[tuple[HookPoint, HookFunction]]: ...


class ActivationCache(Mapping[HookPoint, Tensor]):
    """Activations of one forward pass: `cache[ResidPost(18)]` is `[batch, pos, d_model]`.

    Attributes:
        ids: token ids, `[batch, pos]`, right-padded.
        mask: which positions are real, `[batch, pos]`.
        chats: the encoded conversations with their turn spans, if conversations were given.
    """

    def __init__(
        self,
        tensors: dict[HookPoint, Tensor],
        ids: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        chats: Sequence[EncodedChat] | None,
    ) -> None:
        self._tensors = tensors
        self.ids, self.mask, self.chats = ids, mask, chats

    def __getitem__(self, point: HookPoint | str) -> Float[Tensor, "batch pos d_model"]:
        for key, tensor in self._tensors.items():
            if key == point or key.name == point:
                return tensor
        raise LayerError(f"{point} was not cached; cached: {', '.join(k.name for k in self._tensors)}.")

    def __iter__(self) -> Iterator[HookPoint]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def stack(self) -> Float[Tensor, "point batch pos d_model"]:
        """All cached points in the order they were asked for."""
        return torch.stack(list(self._tensors.values()))


@dataclass(frozen=True)
class Verification:
    """Largest differences between our hook points and forward hooks on the HF blocks (`HookedChatModel.verify`)."""

    model: str
    max_abs: tuple[float, ...]
    max_relative: tuple[float, ...]

    @property
    def ok(self) -> bool:
        """Whether every layer agrees to 1e-3 of the vectors' norm."""
        return max(self.max_relative) < 1e-3

    def __str__(self) -> str:
        worst = max(range(len(self.max_relative)), key=self.max_relative.__getitem__)
        return (
            f"{self.model}: {len(self.max_abs)} layers, largest difference {self.max_abs[worst]:.2e} "
            f"({self.max_relative[worst]:.2e} of the norm) at layer {worst}: {'ok' if self.ok else 'NOT EQUAL'}"
        )


class HookedChatModel:
    """A chat model with typed hook points on its residual stream. Made by [`load_model`][assistant_axis.load_model].

    Layers are zero-based block indices; wherever a layer is asked for, a depth in (0, 1) is taken too. All
    activations that come out are float32; the model computes in its own dtype.

    Attributes:
        name: what artefacts call this model.
        chat: how its conversations are rendered, and where their turns lie.
        profile: what is known about it (monitoring layer, published capping window).
        fingerprint: short hash of the weights.
    """

    def __init__(self, lens: Lens, chat: ChatFormat, *, name: str, fingerprint: str) -> None:
        self.lens = lens
        self.chat = chat
        self.name = name
        self.fingerprint = fingerprint
        self.profile: Profile = profile_for(name, lens.n_layers)
        self.positions = Positions()

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        return self.lens.n_layers

    @property
    def d_model(self) -> int:
        return self.lens.d_model

    @property
    def device(self) -> torch.device:
        """Where token ids go (for a model across devices: where its embedding is)."""
        return self.lens.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lens.dtype

    @property
    def tokenizer(self) -> Any:
        return self.chat.tokenizer

    @property
    def max_length(self) -> int | None:
        """The longest sequence the model was made for, if its configuration says."""
        length = getattr(text_config(self.lens.module), "max_position_embeddings", None)
        return int(length) if length else None

    def __repr__(self) -> str:
        return (
            f"HookedChatModel({self.name!r}, n_layers={self.n_layers}, d_model={self.d_model}, "
            f"dtype={str(self.dtype).removeprefix('torch.')}, device={str(self.device)!r}, hooks={self.lens.hook_set!r})"
        )

    def layer(self, layer: int | float) -> int:
        """A layer index from an index (negative counts from the end) or a depth in (0, 1).

        Raises:
            LayerError: outside the model.
        """
        if isinstance(layer, float) and 0 < layer < 1:
            return min(int(layer * self.n_layers), self.n_layers - 1)
        if isinstance(layer, float) and not layer.is_integer():
            raise LayerError(f"Layer {layer} is neither an index nor a depth in (0, 1).")
        index = int(layer)
        if not -self.n_layers <= index < self.n_layers:
            raise LayerError(f"Layer {index} is out of range: {self.name} has layers 0 to {self.n_layers - 1}.")
        return index % self.n_layers

    def layers(self, layers: Iterable[int | float] | int | float | None = None) -> tuple[int, ...]:
        """Layer indices, in the order given; `None` means all.

        Raises:
            LayerError: one of them is outside the model, or one comes twice.
        """
        if layers is None:
            return tuple(range(self.n_layers))
        chosen = tuple(self.layer(x) for x in ([layers] if isinstance(layers, (int, float)) else layers))
        if len(set(chosen)) != len(chosen):
            raise LayerError(f"The same layer is asked for twice: {chosen}.")
        return chosen

    def hook_points(self) -> list[HookPoint]:
        """Every typed hook point that this model has."""
        kinds: tuple[type[HookPoint], ...] = (ResidPre, ResidPost)
        if self.lens.hook_set == "all":
            kinds = (ResidPre, AttnOut, MlpOut, ResidPost)
        return [kind(i) for i in range(self.n_layers) for kind in kinds]

    # -- running it ----------------------------------------------------------------------------------------------------

    def hooks(self, hooks: Iterable[tuple[HookPoint, HookFunction]], *, before_others: bool = False) -> Any:
        """Attach functions to hook points for the length of a `with` block.

        Args:
            hooks: pairs `(ResidPost(18), f)`; `f` takes the activation `[batch, pos, d_model]` and returns a
                replacement or `None`.
            before_others: run before hooks attached earlier: `True` reads values before an intervention in force.
        """
        return attached(self.lens, hooks, before_others=before_others)

    @contextmanager
    def steered(self, *interventions: Intervention) -> Iterator["HookedChatModel"]:
        """Put interventions in force for the length of a `with` block; they act in the order given.

        >>> with model.steered(Cap(axis, floor=axis.percentile(25))):   # doctest: +SKIP
        ...     model.generate(messages)
        """
        with ExitStack() as stack:
            if any(i.positions != "all" for i in interventions):
                stack.enter_context(self.positions.tracked(self.lens.module))
            for intervention in interventions:
                stack.enter_context(self.hooks(intervention.compile(self)))
            yield self

    def forward(
        self,
        ids: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch cached_and_pos"] | None = None,
        *,
        logits: int | None = 1,
        until: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """One forward pass of the model itself, without gradients.

        Args:
            ids: token ids.
            mask: real positions (pads are `False`), those of a key-value cache first.
            logits: how many last positions get logits; `None` for all.
            until: last layer that is wanted; the pass ends there and returns `None`.
            kwargs: passed to the HF model.
        """
        attention = None if mask is None else mask.to(self.device, torch.long)
        stop: list[tuple[HookPoint, HookFunction]] = []
        if until is not None and until < self.n_layers - 1:
            stop = [(ResidPost(until), _stop)]
        with torch.inference_mode(), self.hooks(stop):
            try:
                return self.lens.forward(ids.to(self.device), attention, logits, **kwargs)
            except StopForward:
                return None

    def encode_batch(
        self, conversations: Conversation | Sequence[Conversation]
    ) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"], list[EncodedChat]]:
        """Right-padded token ids, the mask of real positions, and the encoded conversations.

        Raises:
            ConversationError: no conversations, or one that is malformed or longer than the model's context.
        """
        chats = [self.chat.encode(c) for c in as_batch(conversations)]
        return *self.pad([c.ids for c in chats]), chats

    def check_length(self, longest: int) -> None:
        """Refuse a sequence of more tokens than the model was made for.

        Raises:
            ConversationError: with both lengths.
        """
        limit = self.max_length
        if limit is not None and longest > limit:
            raise ConversationError(
                f"A conversation of {longest} tokens does not fit the model's context of {limit} tokens; shorten it."
            )

    def pad(
        self, rows: Sequence[Sequence[int]], side: str = "right"
    ) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Token ids padded to one length, and the mask of real positions."""
        longest = max(len(r) for r in rows)
        self.check_length(longest)
        fill = self.tokenizer.pad_token_id
        fill = fill if fill is not None else (self.tokenizer.eos_token_id or 0)
        ids = torch.full((len(rows), longest), int(fill), dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for k, row in enumerate(rows):
            where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
            ids[k, where] = torch.tensor(row, dtype=torch.long)
            mask[k, where] = True
        return ids, mask

    def run_with_cache(
        self,
        conversations: Conversation | Sequence[Conversation] | Int[Tensor, "batch pos"],
        points: Iterable[HookPoint] | None = None,
        *,
        mask: Bool[Tensor, "batch pos"] | None = None,
        reading: str = "post",
        logits: int | None = 1,
    ) -> tuple[Any, ActivationCache]:
        """One forward pass with the activations of the hook points asked for.

        Args:
            conversations: one conversation, several, or right-padded token ids (with `mask`).
            points: hook points to keep; default: `ResidPost` of every layer.
            mask: for token ids: real positions; default: all.
            reading: `"post"` (after interventions in force) or `"pre"` (before them).
            logits: how many last positions get logits; `None` for all.

        Returns:
            The HF model's output, and the cache: `cache[ResidPost(18)]` is `[batch, pos, d_model]`, float32.

        Raises:
            LayerError, ModelError: a hook point that this model does not have.
            ConversationError: malformed conversations.
        """
        if reading not in ("pre", "post"):
            raise SettingError(f'reading={reading!r} is not known; use "pre" or "post".')
        chats: list[EncodedChat] | None = None
        if isinstance(conversations, Tensor):
            ids = conversations
            real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
            response = None
        else:
            ids, real, chats = self.encode_batch(conversations)
            response = response_mask(chats, ids.shape[1])
        wanted = list(points) if points is not None else [ResidPost(i) for i in range(self.n_layers)]
        kept: dict[HookPoint, Tensor] = {}

        def keep(point: HookPoint) -> HookFunction:
            def hook(x: Tensor) -> None:
                kept[point] = x.detach().to(torch.float32, copy=True)

            return hook

        hooks = [(p, keep(p)) for p in wanted]
        with self.positions.known(response), self.hooks(hooks, before_others=reading == "pre"):
            out = self.forward(ids, real, logits=logits)
        return out, ActivationCache({p: kept[p] for p in wanted}, ids, real, chats)

    @overload
    def generate(self, conversations: Sequence[Sequence[Mapping[str, str]]], **kwargs: Any) -> "list[Answer]": ...
    @overload
    def generate(self, conversations: Sequence[Mapping[str, str]], **kwargs: Any) -> "Answer": ...
    def generate(self, conversations: Any, **kwargs: Any) -> Any:
        """Answer one conversation (→ `Answer`) or many (→ list of `Answer`, in the same order).

        See [`generate`][assistant_axis.models.generation.generate] for all arguments:
        `max_new_tokens=128, temperature=0.0, top_p=1.0, top_k=0, seed=0, batch_size=16, layers=None, logprobs=False,
        progress=False`.
        """
        from assistant_axis.models.generation import generate

        answers = generate(self, as_batch(conversations), **kwargs)
        return answers if is_batch(conversations) else answers[0]

    def activations(
        self,
        conversations: Conversation | Sequence[Conversation],
        span: "Span" = "response",
        layers: Iterable[int | float] | int | float | None = None,
        *,
        reading: str = "post",
        progress: bool = False,
    ) -> Float[Tensor, "*conversation layer d_model"]:
        """Mean residual stream over a span of tokens, float32.

        Args:
            conversations: one conversation (→ `[layer, d_model]`) or several (→ `[conversation, layer, d_model]`).
            span: `"response"` (content of the last assistant turn, as the paper), `"header"` (the last of the
                tokens that open the assistant's turn), `"header_mean"` (all of them), `"prompt"` (content of the last
                user turn).
            layers: indices or depths; default all.
            reading: `"post"` or `"pre"` interventions in force.
            progress: show a bar.

        Raises:
            ConversationError: malformed, or without the turn that the span needs.
            NonFiniteError: naming layer and conversation.
        """
        from assistant_axis.activations.capture import capture_means
        from assistant_axis.activations.spans import locate

        means = capture_means(
            self,
            [locate(self, c, span) for c in as_batch(conversations)],
            self.layers(layers),
            reading=reading,
            progress="Reading activations" if progress else None,
        )
        return means if is_batch(conversations) else means[0]

    def show_spans(self, messages: Conversation) -> "TokenView":
        """The conversation's tokens coloured by turn: displays in a notebook, prints in a terminal."""
        from assistant_axis.plots.tokens import spans_view

        return spans_view(self, messages)

    def verify(self, messages: Conversation | None = None) -> Verification:
        """Compare every `ResidPost` with a forward hook on the HF block itself, on this model.

        Args:
            messages: a conversation to run; default: a short one.

        Returns:
            The largest absolute and relative difference per layer; `str()` of it is one line.
        """
        blocks = hf_blocks(self)
        conversation = messages or [
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": "I am an assistant. I answer questions and help with tasks."},
        ]
        ids, mask, _ = self.encode_batch(conversation)
        seen: dict[int, Tensor] = {}

        def record(layer: int) -> Any:
            def hook(_module: Any, _args: Any, out: Any) -> None:
                seen[layer] = (out[0] if isinstance(out, tuple) else out).detach().float()

            return hook

        handles = [b.register_forward_hook(record(i)) for i, b in enumerate(blocks)]
        try:
            _, cache = self.run_with_cache(ids, mask=mask)
        finally:
            for h in handles:
                h.remove()
        apart = [(cache[ResidPost(i)] - seen[i]).abs().amax().item() for i in range(self.n_layers)]
        norms = [seen[i].norm(dim=-1).mean().item() for i in range(self.n_layers)]
        relative = tuple(a / n if n > 0 else math.inf for a, n in zip(apart, norms, strict=True))
        return Verification(self.name, tuple(apart), relative)


def text_config(module: Any) -> Any:
    """The configuration of a model's language part (multimodal models nest it), or `None`."""
    config = getattr(module, "config", None)
    return config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config


def hf_blocks(model: HookedChatModel) -> list[torch.nn.Module]:
    """The decoder blocks of the HF model, as HF wrote them (inside TransformerLens' wrappers)."""
    bridge = getattr(model.lens, "bridge", None)
    if bridge is None:  # a HookedTransformer holds converted weights and its own blocks
        return list(model.lens.module.blocks)
    return [block.original_component for block in bridge.blocks]


def is_batch(conversations: Any) -> bool:
    """Whether this is a list of conversations rather than one conversation."""
    return isinstance(conversations, Sequence) and len(conversations) > 0 and not isinstance(conversations[0], Mapping)


def as_batch(conversations: Conversation | Sequence[Conversation]) -> list[Conversation]:
    """One conversation or several, as a list of conversations.

    Raises:
        ConversationError: nothing was given.
    """
    if isinstance(conversations, (str, bytes)) or not isinstance(conversations, Sequence) or len(conversations) == 0:
        raise ConversationError(
            f"Expected a conversation or a list of conversations, got {conversations!r:.60}. "
            'Write [{"role": "user", "content": "…"}].'
        )
    return list(conversations) if is_batch(conversations) else [conversations]  # type: ignore[list-item]


def response_mask(chats: Sequence[EncodedChat], width: int) -> Bool[Tensor, "batch pos"]:
    """Which positions are content of an assistant turn, for right-padded rows."""
    mask = torch.zeros(len(chats), width, dtype=torch.bool)
    for k, chat in enumerate(chats):
        for turn in chat.turns_of("assistant"):
            mask[k, turn.content[0] : turn.content[1]] = True
    return mask


def _stop(_x: Tensor) -> None:
    raise StopForward
