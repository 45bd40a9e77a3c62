"""Generation by vLLM where it is installed: text only; activations are read by our own hooks afterwards."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from assistant_axis.errors import MissingExtraError
from assistant_axis.models.generation import Answer, decode, stop_ids
from assistant_axis.personas.library import Ask
from assistant_axis.runs.config import SamplingSettings

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

_ENGINES: dict[str, Any] = {}


def require_vllm() -> Any:
    """The vllm package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import vllm  # pyright: ignore
    except ImportError as e:
        raise MissingExtraError("vllm", "vllm", "sampling.backend vllm") from e
    return vllm


def answers(model: "HookedChatModel", asks: Sequence[Ask], sampling: SamplingSettings, seed: int) -> list[Answer]:
    """Answers to asks, by the token ids of our own chat rendering.

    Args:
        model: whose weights vLLM loads once more, for the tokens of prompts and the ends of answers.
        asks: what is asked.
        sampling: how.
        seed: of the sampling; each ask has its own.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    library = require_vllm()
    source = model.lens.module.config._name_or_path
    engine = _ENGINES.setdefault(source, None) or library.LLM(model=source, enable_prefix_caching=True)
    _ENGINES[source] = engine
    stops = list(stop_ids(model))
    prompts = [model.chat.encode_prompt(a.messages).ids for a in asks]
    each = [
        library.SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed + k,
            stop_token_ids=stops,
            ignore_eos=False,
        )
        for k in range(len(asks))
    ]
    replies = engine.generate([{"prompt_token_ids": list(p)} for p in prompts], each, use_tqdm=False)
    found = []
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = [int(i) for i in reply.outputs[0].token_ids]
        end = next((k for k, i in enumerate(ids) if i in stops), None)
        kept = ids if end is None else ids[:end]
        found.append(Answer(decode(model, kept), tuple(kept), tuple(prompt), "length" if end is None else "stop"))
    return found
