"""Where interventions act: words for tokens and layers, the default window, and whether a model is quantised."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from assistant_axis.models.hooked import text_config

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

Where: TypeAlias = Literal["all", "response", "prompt", "last"]
"""`"all"`: every token (the paper). `"response"`: content of assistant turns and everything generated. `"prompt"`: the rest.
`"last"`: the last token of each pass, so the prompt's last and every generated one."""
Layers: TypeAlias = Iterable[int | float] | int | float | None

# The published windows lie at 72–84 % (Qwen 3 32B) and 70–90 % (Llama 3.3 70B) of the depth.
_WINDOW_DEPTH = (0.70, 0.90)


SAID: dict[str, str] = {
    "all": "all, prompt and answer",
    "response": "content of the assistant's turns, and everything generated",
    "prompt": "the prompt: all but the content of the assistant's turns",
    "last": "the last token of each pass: the prompt's last, then every generated one",
}


def default_window(model: "HookedChatModel") -> tuple[int, ...]:
    """Where to cap a model: its published or measured window, else 70–90 % of its depth."""
    if model.profile.capping is not None:
        return tuple(model.profile.capping.layers)
    first, last = (int(model.n_layers * depth) for depth in _WINDOW_DEPTH)
    return tuple(range(first, max(last, first + 1)))


def is_quantised(model: "HookedChatModel") -> bool:
    """Whether the model's weights are quantised (bitsandbytes, GPTQ, AWQ, …)."""
    module = model.lens.module
    config = text_config(module)
    return (
        bool(getattr(module, "is_quantized", False))
        or getattr(module, "hf_quantizer", None) is not None
        or getattr(config, "quantization_config", None) is not None
    )


def say_layers(layers: Sequence[int]) -> str:
    """Layers as people write them: `20–27`, `3, 7`, `none`."""
    if not layers:
        return "none"
    if len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers))
