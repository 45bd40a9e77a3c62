"""The decode step of the slot loop, compiled: static shapes, every block by `torch.compile`, one CUDA graph a step.

TransformerLens' wrappers cannot be traced, so the step runs on a twin of the model that shares every weight: its blocks are
bare, and each block's hook points are called between the compiled regions, where whatever is attached acts as always. All
blocks of one shape share one compilation. On a GPU the whole step, hooks included, is then captured as one CUDA graph, so that
no Python runs between its kernels.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from assistant_axis.errors import ModelError, SettingError

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

_RECOMPILES = 64
"""Shapes and kinds of block that one process may compile; beyond, PyTorch would run them uncompiled without a word."""


def check_compilable(model: "HookedChatModel") -> None:
    """Refuse what cannot be compiled.

    Raises:
        SettingError: a model across devices, or with hook points inside its blocks.
    """
    if model.lens.hook_set != "residual":
        raise SettingError('compile=True needs the residual hook set; load the model with hooks="residual".')
    devices = {p.device for p in model.lens.module.parameters()}
    if len(devices) > 1:
        raise SettingError(
            f"compile=True needs a model on one device; this one lies on {', '.join(sorted(map(str, devices)))}."
        )


class CompiledStep:
    """One token for every slot, with keys and values written in place.

    Args:
        model: the model, its hooks attached.
        keys, values: of each layer, `[slot, head, pos, d_head]`, filled up to each slot's length. They must stay where
            they are.
    """

    def __init__(self, model: "HookedChatModel", keys: list[Tensor], values: list[Tensor]) -> None:
        slots, _, width, _ = keys[0].shape
        device = keys[0].device
        self.model, self.width = model, width
        self.tokens = torch.zeros(slots, 1, dtype=torch.long, device=device)
        self.places = torch.zeros(slots, 1, dtype=torch.long, device=device)
        self._columns = torch.arange(width, device=device)
        rows = torch.arange(slots, device=device)
        caches = [_LayerCache(k, v, rows, self.places) for k, v in zip(keys, values, strict=True)]
        self._whole = _WholeCache(width)
        self._twin = _twin_of(model, caches)
        self._graph: Any = None
        self._logits: Tensor | None = None
        self._cuda = device.type == "cuda"

    def prepare(self, tokens: Int[Tensor, "slot"], lengths: Int[Tensor, "slot"], plain: Tensor) -> None:
        """Compile, and compare the first step with the plain one: writing the same token twice changes nothing.

        Args:
            tokens, lengths: of the step.
            plain: its logits by the model itself, `[slot, vocab]`.

        Raises:
            ModelError: the compiled step says something else, or cannot be compiled.
        """
        from torch._dynamo.exc import TorchDynamoException

        self._set(tokens, lengths)
        try:
            found = self._aside() if self._cuda else self._run()
        except TorchDynamoException as e:
            raise ModelError(
                f"This model's decode step could not be compiled ({str(e).strip().splitlines()[0]}). PyTorch needs a C++ "
                "compiler on a CPU and Triton on a GPU. Generate with compile=False."
            ) from e
        apart = float((found.float() - plain.float()).abs().amax() / plain.float().std().clamp(min=1e-6))
        if not apart < (0.5 if plain.dtype in (torch.bfloat16, torch.float16) else 1e-2):
            raise ModelError(
                f"The compiled decode step of {self.model.name} differs from the plain one by {apart:.2g} standard deviations "
                "of the logits: its blocks depend on more than their weights. Generate with compile=False."
            )

    def __call__(self, tokens: Int[Tensor, "slot"], lengths: Int[Tensor, "slot"]) -> Float[Tensor, "slot vocab"]:
        """Logits after these tokens, each at the place `lengths` of its slot; overwritten by the next call."""
        self._set(tokens, lengths)
        if not self._cuda:
            return self._run()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._logits = self._run()
        self._graph.replay()
        assert self._logits is not None
        return self._logits

    def _set(self, tokens: Tensor, lengths: Tensor) -> None:
        self.tokens.copy_(tokens[:, None])
        self.places.copy_(lengths[:, None], non_blocking=True)

    def _run(self) -> Tensor:
        from torch._dynamo import config

        seen = (self._columns <= self.places)[:, None, None]
        with config.patch(recompile_limit=_RECOMPILES):
            return self._twin(
                input_ids=self.tokens,
                attention_mask=seen,
                past_key_values=self._whole,
                use_cache=True,
                position_ids=self.places,
                logits_to_keep=1,
            ).logits[:, -1]

    def _aside(self) -> Tensor:
        """A graph may only be captured after its kernels ran, on another stream than the default one."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            found = self._run()
        torch.cuda.current_stream().wait_stream(side)
        return found


class _WholeCache(Cache):
    """What the model itself asks of a cache; its blocks have caches of their own."""

    def __init__(self, width: int) -> None:
        super().__init__(layers=[])
        self.width = width

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.width - 1

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return self.width, 0


# What follows is traced by torch.compile, so without annotations: checked shapes would be traced too.
def write_tokens(held, new, rows, places):
    """Put one token a row, `[row, head, 1, d_head]`, into `[row, head, pos, d_head]` at each row's place."""
    if held.is_cuda:  # one kernel; on a CPU the other way is faster
        held.scatter_(2, places[:, None, None, None].expand(-1, new.shape[1], 1, new.shape[3]), new)
    else:
        held[rows, :, places] = new[:, :, 0]


class _LayerCache(Cache):
    """Keys and values of one block."""

    def __init__(self, keys, values, rows, places):
        super().__init__(layers=[])
        self.keys, self.values, self.rows, self.places = keys, values, rows, places

    def update(self, key_states, value_states, layer_idx=0, *args, **kwargs):
        write_tokens(self.keys, key_states, self.rows, self.places[:, 0])
        write_tokens(self.values, value_states, self.rows, self.places[:, 0])
        return self.keys, self.values

    def get_seq_length(self, layer_idx=0):
        return self.keys.shape[2] - 1


def _block(layer, hidden, cache, given):
    out = layer(hidden, past_key_values=cache, **given)
    return out[0] if isinstance(out, tuple) else out


class _Region(torch.nn.Module):
    """A block of the twin: the compiled bare block between the hook points of the wrapped one."""

    def __init__(self, wrapped, cache, compiled):
        super().__init__()
        self.bare = _bare(wrapped.original_component)
        self.hook_in, self.hook_out = wrapped.hook_in, wrapped.hook_out
        self.cache, self.compiled = cache, compiled

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("bare"), name)

    def forward(self, hidden_states, *args, **given):
        given.pop("past_key_values", None)
        return self.hook_out(self.compiled(self.bare, self.hook_in(hidden_states), self.cache, given))


def _bare(module):
    """The module with its weights, and without its place among the layers: blocks of one kind are one compilation."""
    twin = copy.copy(module)
    twin._modules = {name: child if child is None else _bare(child) for name, child in module._modules.items()}
    if "layer_idx" in twin.__dict__:
        twin.layer_idx = 0
    return twin


def _twin_of(model: Any, caches: list[Any]) -> Any:
    blocks = list(model.lens.bridge.blocks)
    compiled = torch.compile(_block, dynamic=False)
    regions = torch.nn.ModuleList([_Region(b, c, compiled) for b, c in zip(blocks, caches, strict=True)])

    def along(module: Any) -> Any:
        if isinstance(module, torch.nn.ModuleList) and len(module) == len(blocks) and module[0] is blocks[0]:
            return regions
        held = {name: child if child is None else along(child) for name, child in module._modules.items()}
        if all(held[name] is module._modules[name] for name in held):
            return module
        twin = copy.copy(module)
        twin._modules = held  # pyright: ignore[reportAttributeAccessIssue]
        return twin

    return along(model.lens.module).eval()
