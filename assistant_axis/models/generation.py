"""Batched, left-padded, seeded generation with the model's own loop and key-value cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assistant_axis.errors import SettingError
from assistant_axis.models.chat import Conversation
from assistant_axis.progress import track

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        text: the content, without end-of-turn token and stop string.
        ids: its token ids (content only).
        prompt_ids: the token ids it was an answer to, assistant header included.
        finish_reason: `"stop"` (end-of-turn token or stop string) or `"length"`.
    """

    text: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    finish_reason: str

    def __str__(self) -> str:
        return self.text


def generate(
    model: "HookedChatModel",
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 16,
    progress: str | bool = False,
) -> list[Answer]:
    """Answer conversations; interventions in force act at every step.

    Args:
        model: the model.
        conversations: each ends with a user (or tool) turn.
        max_new_tokens: upper bound of new tokens an answer.
        temperature: 0 is greedy; the paper samples at 0.7.
        top_p: nucleus mass, in (0, 1].
        top_k: keep the k likeliest tokens; 0 keeps all.
        seed: of the sampling; the same seed and the same batches give the same answers.
        batch_size: conversations a batch, grouped by length.
        progress: show a bar (a string is its label).

    Returns:
        Answers in the order of `conversations`.

    Raises:
        SettingError: a parameter out of range.
        ConversationError: a conversation that cannot be answered.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise SettingError(f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be at least 1.")
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise SettingError(
            f"temperature={temperature}, top_p={top_p}, top_k={top_k}: expected temperature ≥ 0, 0 < top_p ≤ 1, top_k ≥ 0."
        )
    prompts = [model.chat.encode_prompt(c).ids for c in conversations]
    order = sorted(range(len(prompts)), key=lambda k: len(prompts[k]))
    answers: dict[int, Answer] = {}
    options = _options(model, max_new_tokens, temperature, top_p, top_k)
    label = progress if isinstance(progress, str) else "Generating"
    batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
    with track(len(prompts), label, show=bool(progress)) as advance:
        for number, batch in enumerate(batches):
            rows = [prompts[k] for k in batch]
            for k, answer in zip(batch, _one_batch(model, rows, options, seed + number), strict=True):
                answers[k] = answer
            advance(len(batch))
    return [answers[k] for k in range(len(prompts))]


def stop_ids(model: "HookedChatModel") -> tuple[int, ...]:
    """Token ids that end an answer: of the generation config, the tokenizer, and the template's end of turn."""
    found: set[int] = set()
    config = getattr(model.lens.module, "generation_config", None)
    for source in (getattr(config, "eos_token_id", None), model.tokenizer.eos_token_id):
        if isinstance(source, int):
            found.add(source)
        elif source is not None:
            found.update(int(i) for i in source)
    if not model.chat.plain:
        chat = model.chat.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        after = chat.turns[-1].content[1]
        if after < len(chat.ids) and chat.ids[after] in set(model.tokenizer.all_special_ids):
            found.add(chat.ids[after])
    return tuple(sorted(found))


def _options(
    model: "HookedChatModel", max_new_tokens: int, temperature: float, top_p: float, top_k: int
) -> dict[str, Any]:
    stops = stop_ids(model)
    pad = model.tokenizer.pad_token_id
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": list(stops) or None,
        "pad_token_id": pad if pad is not None else (stops[0] if stops else 0),
        "do_sample": temperature > 0,
        "num_beams": 1,
        "repetition_penalty": 1.0,
    }
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    if model.chat.stop_strings:
        options |= {"stop_strings": list(model.chat.stop_strings), "tokenizer": model.tokenizer}
    return options


def _one_batch(
    model: "HookedChatModel", rows: Sequence[Sequence[int]], options: dict[str, Any], seed: int
) -> list[Answer]:
    ids, mask = model.pad(rows, side="left")
    cuda = [model.device] if model.device.type == "cuda" else []
    prompt_side = torch.zeros_like(mask)  # no response token yet
    with (
        torch.inference_mode(),
        torch.random.fork_rng(devices=cuda),
        model.positions.known(prompt_side, generating=True),
    ):
        torch.manual_seed(seed)
        out = model.lens.generate(ids.to(model.device), mask.to(model.device, torch.long), **options)
    new = out[:, ids.shape[1] :].cpu()
    return [_answer(model, row, new[k], options) for k, row in enumerate(rows)]


def _answer(model: "HookedChatModel", prompt: Sequence[int], new: Tensor, options: dict[str, Any]) -> Answer:
    tokens: list[int] = new.tolist()
    stops = set(options["eos_token_id"] or ())
    end = next((k for k, t in enumerate(tokens) if t in stops), None)
    reason = "length" if end is None else "stop"
    content = tokens if end is None else tokens[:end]
    text = decode(model, content)
    cut = min((at for s in model.chat.stop_strings if (at := text.find(s)) >= 0), default=None)
    if cut is not None:
        text, reason = text[:cut], "stop"
        content = content[: _tokens_within(model, content, cut)]
    return Answer(text, tuple(content), tuple(prompt), reason)


def decode(model: "HookedChatModel", ids: Sequence[int]) -> str:
    """Text of token ids, without special tokens."""
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _tokens_within(model: "HookedChatModel", ids: Sequence[int], length: int) -> int:
    """How many leading tokens decode to at most `length` characters."""
    count = len(ids)
    while count and len(decode(model, ids[:count])) > length:
        count -= 1
    return count
