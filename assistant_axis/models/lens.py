"""The two kinds of TransformerLens model behind one narrow surface.

`BridgeLens` speaks to a TransformerLens 4 (or 3.9) `TransformerBridge`, `HookedTransformerLens` to a
TransformerLens 3 `HookedTransformer`. Everything above uses only this surface.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assistant_axis.errors import LayerError, ModelError
from assistant_axis.models.hook_points import HookPoint

HookSet = Literal["residual", "all"]
HookFunction = Callable[[Tensor], Tensor | None]
"""Takes the activation `[batch, pos, d_model]`; returns a replacement or `None`. Never edits in place."""


class StopForward(Exception):
    """Raised inside a hook to end a forward pass after the last layer that is wanted."""


@runtime_checkable
class Lens(Protocol):
    """What the wrapper needs of a TransformerLens model."""

    n_layers: int
    d_model: int
    hook_set: HookSet

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def module(self) -> Any: ...
    def hook_point(self, point: HookPoint) -> Any: ...
    def forward(self, ids: Tensor, mask: Tensor | None, logits: int | None, **kwargs: Any) -> Any: ...
    def generate(self, ids: Tensor, mask: Tensor, **kwargs: Any) -> Tensor: ...


class BridgeLens:
    """A `TransformerBridge`, residual-only or full."""

    def __init__(self, bridge: Any) -> None:
        self.bridge = bridge
        self.n_layers = int(bridge.cfg.n_layers)
        self.d_model = int(bridge.cfg.d_model)
        self._points = dict(bridge.hook_dict)
        self.hook_set: HookSet = "all" if "blocks.0.hook_attn_out" in self._points else "residual"

    @property
    def module(self) -> Any:
        """The HF model, its blocks wrapped by TransformerLens in place."""
        return self.bridge.original_model

    @property
    def device(self) -> torch.device:
        return self.module.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    def hook_point(self, point: HookPoint) -> Any:
        return _look_up(self._points, point, self.hook_set)

    def forward(self, ids: Int[Tensor, "batch pos"], mask: Tensor | None, logits: int | None = 1, **kwargs: Any) -> Any:
        """One forward pass of the HF model. `logits`: how many last positions get logits; `None` for all."""
        if logits is not None:
            kwargs["logits_to_keep"] = logits
        kwargs.setdefault("use_cache", False)
        return self.module(input_ids=ids, attention_mask=mask, **kwargs)

    def generate(self, ids: Int[Tensor, "batch pos"], mask: Tensor, **kwargs: Any) -> Tensor:
        """HF's own generation loop on left-padded ids; hooks fire at prefill and at every step."""
        sampler = kwargs.pop("sampler", None)  # it leaves one token in the scores: the loop is greedy
        chosen = [] if sampler is None else [sampler]
        return self.module.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, logits_processor=chosen, **kwargs
        )


class HookedTransformerLens:
    """A TransformerLens 3 `HookedTransformer`, through the surface it shares with the bridge.

    Its residual stream equals the HF model's only if it was loaded without weight processing
    (`from_pretrained_no_processing`) or has RMSNorm.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.n_layers = int(model.cfg.n_layers)
        self.d_model = int(model.cfg.d_model)
        self._points = dict(model.hook_dict)
        self.hook_set: HookSet = "all"

    @property
    def module(self) -> Any:
        return self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def hook_point(self, point: HookPoint) -> Any:
        return _look_up(self._points, point, self.hook_set)

    def forward(self, ids: Int[Tensor, "batch pos"], mask: Tensor | None, logits: int | None = 1, **kwargs: Any) -> Any:
        """One forward pass; right-padded rows need no mask under causal attention."""
        if kwargs:
            raise ModelError(f"A HookedTransformer's forward takes no {', '.join(kwargs)}; load the model as a bridge.")
        return self.model(ids, return_type="logits" if logits is None or logits > 0 else None)

    def generate(self, ids: Int[Tensor, "batch pos"], mask: Tensor, **kwargs: Any) -> Tensor:
        """Row by row without padding: its own batched generation ignores the attention mask."""
        wanted, pad, sampler = kwargs["max_new_tokens"], kwargs["pad_token_id"], kwargs.get("sampler")
        stops = kwargs.get("eos_token_id") or []
        settings: dict[str, Any] = {"do_sample": False}
        if sampler is not None:
            how = sampler.sampler
            settings = {
                "do_sample": True,
                "temperature": how.temperature,
                "top_p": how.top_p,
                "top_k": how.top_k or None,
            }
        rows = []
        for n, (row, real) in enumerate(zip(ids, mask, strict=True)):
            prompt = row[real.bool()][None]
            with torch.random.fork_rng(devices=[ids.device] if ids.device.type == "cuda" else []):
                if sampler is not None:  # its loop draws from the global state
                    torch.manual_seed(sampler.seeds[n])
                out = self.model.generate(
                    prompt,
                    max_new_tokens=wanted,
                    stop_at_eos=bool(stops),
                    eos_token_id=sorted(stops) or None,
                    return_type="tokens",
                    verbose=False,
                    prepend_bos=False,
                    **settings,
                )
            new = out[0, prompt.shape[1] :]
            rows.append(torch.cat([row, new, new.new_full((wanted - len(new),), pad)]))
        return torch.stack(rows)


def _look_up(points: dict[str, Any], point: HookPoint, hook_set: HookSet) -> Any:
    found = points.get(point.name)
    if found is None:
        layers = 1 + max((int(n.split(".")[1]) for n in points if n.startswith("blocks.")), default=-1)
        if not 0 <= point.layer < layers:
            raise LayerError(f"{point.name} does not exist: this model has layers 0 to {layers - 1}.")
        if not point.in_residual_set and hook_set == "residual":
            raise ModelError(f'{point.name} exists only in the full hook set: load_model(..., hooks="all").')
        raise ModelError(f"{point.name} does not exist in this model.")
    return found


@contextmanager
def attached(
    lens: Lens, hooks: Iterable[tuple[HookPoint, HookFunction]], *, before_others: bool = False
) -> Iterator[None]:
    """Attach hooks for the length of a `with` block and remove exactly these, also after an exception.

    Args:
        lens: the model.
        hooks: pairs of hook point and function; functions at one point run in the order given.
        before_others: run before the hooks that are attached already (to read values before an intervention).
    """
    handles: list[tuple[Any, Any]] = []
    chosen: Sequence[tuple[HookPoint, HookFunction]] = list(hooks)
    try:
        for point, function in reversed(chosen) if before_others else chosen:
            at = lens.hook_point(point)
            at.add_hook(_adapt(function), prepend=before_others)
            handles.append((at, at.fwd_hooks[0 if before_others else -1]))
        yield
    finally:
        for at, handle in handles:
            handle.hook.remove()
            at.fwd_hooks = [h for h in at.fwd_hooks if h is not handle]


def _adapt(function: HookFunction) -> Callable[..., Tensor | None]:
    def hook(tensor: Tensor, hook: Any) -> Tensor | None:
        return function(tensor)

    return hook


class Positions:
    """Which positions of the running forward pass are prompt, response and last.

    Interventions with `positions` other than `"all"` ask here. A forward pre-hook on the model keeps the offset of
    the current chunk (the length of the key-value cache) and its attention mask, so that prefill, chunked prefill,
    one-token prompts and decoding are told apart by position, never by shape.
    """

    def __init__(self) -> None:
        self._response: Bool[Tensor, "batch pos"] | None = None
        self._generating = False
        self._mask: Tensor | None = None
        self._offset = 0
        self._trackers = 0
        self._watchers = 0

    @property
    def active(self) -> bool:
        """Whether an intervention in force asks for positions."""
        return self._trackers > 0

    @property
    def watched(self) -> bool:
        """Whether somebody follows generation pass by pass, so that rows must keep their places."""
        return self._watchers > 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow generation pass by pass for the length of a `with` block."""
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1

    @contextmanager
    def known(self, response: Bool[Tensor, "batch pos"] | None, *, generating: bool = False) -> Iterator[None]:
        """Say which prompt-side positions are response tokens; positions generated later are response tokens."""
        before = self._response, self._generating
        self._response, self._generating = response, generating
        try:
            yield
        finally:
            self._response, self._generating = before

    @contextmanager
    def tracked(self, module: Any) -> Iterator[None]:
        """Follow the forward passes of `module`."""

        def look(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            past = kwargs.get("past_key_values")
            self._offset = int(past.get_seq_length()) if past is not None else 0
            mask = kwargs.get("attention_mask")
            self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

        handle = module.register_forward_pre_hook(look, with_kwargs=True)
        self._trackers += 1
        try:
            yield
        finally:
            self._trackers -= 1
            handle.remove()
            self._mask, self._offset = None, 0

    def select(self, which: str, x: Float[Tensor, "batch pos d_model"]) -> Bool[Tensor, "batch pos"]:
        """The positions of the current chunk that `which` means: `"response"`, `"prompt"` or `"last"`."""
        batch, width = x.shape[:2]
        start, stop = self._offset, self._offset + width
        real = torch.ones(batch, stop, dtype=torch.bool, device=x.device)
        if self._mask is not None and self._mask.shape[0] == batch:
            given = self._mask.to(x.device).bool()[:, :stop]
            real[:, : given.shape[1]] = given
        if which == "last":
            counted = real * torch.arange(1, stop + 1, device=x.device)
            last = counted.argmax(dim=1, keepdim=True)
            here = torch.arange(start, stop, device=x.device)[None]
            return here == last
        if self._response is None and not self._generating:
            raise ModelError(
                f'positions="{which}" needs to know the turns, but this forward pass got bare token ids. '
                'Pass conversations, or use positions="all".'
            )
        response = torch.ones(batch, stop, dtype=torch.bool, device=x.device)  # what comes later was generated
        if self._response is not None:
            if self._response.shape[0] != batch:
                raise ModelError(
                    f"The batch changed from {self._response.shape[0]} to {batch} rows inside a pass (beam search?); "
                    'positions other than "all" cannot follow that.'
                )
            given = self._response.to(x.device)[:, :stop]
            response[:, : given.shape[1]] = given
        chosen = response if which == "response" else ~response
        return (chosen & real)[:, start:stop]
