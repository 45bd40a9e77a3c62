"""Batched, seeded generation: by our own loop over slots where the model allows it, else by the model's own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from assistant_axis.errors import SettingError
from assistant_axis.models.chat import Conversation
from assistant_axis.models.decode import can_decode, decode_prompts
from assistant_axis.models.packing import packed_linears
from assistant_axis.models.sampling import Picked, Sampler
from assistant_axis.models.scoring import log_likelihoods
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
        means: mean residual stream over the content tokens, float32, of the layers asked for; `None` if none were or
            the answer is empty.
        norms: mean norm of the residual stream over the content tokens, of the layers asked for.
        logprob: mean log-probability of a content token (nats, temperature 1) by the model as it stood, if asked for.
    """

    text: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    finish_reason: str
    means: Float[Tensor, "layer d_model"] | None = field(default=None, compare=False, repr=False)
    norms: Float[Tensor, "layer"] | None = field(default=None, compare=False, repr=False)
    logprob: float | None = field(default=None, compare=False, repr=False)

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
    seed: int | Sequence[int] = 0,
    batch_size: int = 16,
    layers: Sequence[int | float] | None = None,
    logprobs: bool = False,
    compile: bool = False,
    progress: str | bool = False,
) -> list[Answer]:
    """Answer conversations; interventions in force act at every step.

    The loop keeps `batch_size` rows busy: an answer that ends leaves its row to the next prompt, and a beginning that
    prompts share (one system prompt, many questions) is computed once. Models with another cache than plain attention,
    with stop strings, or steered at some positions only are served by their own loop in fixed batches.

    Args:
        model: the model.
        conversations: each ends with a user (or tool) turn.
        max_new_tokens: upper bound of new tokens an answer.
        temperature: 0 is greedy; the paper samples at 0.7.
        top_p: nucleus mass, in (0, 1].
        top_k: keep the k likeliest tokens; 0 keeps all.
        seed: of the sampling, one number or one for each conversation; the same seed and the same conversations give the
            same answers. Every conversation has a random stream of its own, so that `batch_size` changes an answer only
            through rounding.
        batch_size: rows computed at a time.
        layers: indices or depths whose residual stream is averaged over each answer in the same pass (`Answer.means`).
        logprobs: also measure how likely the model found each answer (`Answer.logprob`).
        compile: compile the step of one token a row (`torch.compile`, and a CUDA graph on a GPU), interventions included.
            The first answers wait for it, tens of seconds on a CPU; it pays for long runs, and on a GPU for large models.
        progress: show a bar (a string is its label).

    Returns:
        Answers in the order of `conversations`.

    Raises:
        SettingError: a parameter out of range.
        LayerError: a layer that the model does not have.
        ConversationError: a conversation that cannot be answered.
        NonFiniteError: activations or logits that are not finite.
        ModelError: `compile=True` for a model whose compiled step differs from the plain one.
    """
    return continue_prompts(
        model,
        [model.chat.encode_prompt(c).ids for c in conversations],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        batch_size=batch_size,
        stop_strings=model.chat.stop_strings,
        layers=layers,
        logprobs=logprobs,
        compile=compile,
        progress=progress,
    )


def continue_prompts(
    model: "HookedChatModel",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | Sequence[int] = 0,
    batch_size: int = 16,
    stop_strings: Sequence[str] = (),
    layers: Sequence[int | float] | None = None,
    logprobs: bool = False,
    compile: bool = False,
    progress: str | bool = False,
) -> list[Answer]:
    """Continue token ids as they are, without a template. See `generate` for the arguments.

    Args:
        prompts: token ids of each prompt.
        stop_strings: text that ends an answer.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise SettingError(f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be at least 1.")
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise SettingError(
            f"temperature={temperature}, top_p={top_p}, top_k={top_k}: expected temperature ≥ 0, 0 < top_p ≤ 1, top_k ≥ 0."
        )
    if not prompts:
        return []
    longest = max(len(p) for p in prompts)
    model.check_length(longest)
    read = None if layers is None else model.layers(layers)
    sampler = Sampler(temperature, top_p, top_k) if temperature > 0 else None
    seeds = streams(seed, len(prompts)) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise SettingError(f"{len(seeds)} seeds came for {len(prompts)} prompts; give one number, or one for each.")
    if not stop_strings and can_decode(model, longest + max_new_tokens):
        answered = _slots(model, prompts, max_new_tokens, sampler, seeds, batch_size, read, logprobs, compile)
    elif compile:
        raise SettingError(
            "compile=True is for the slot loop, and this generation needs the model's own: stop strings, interventions at some "
            "positions only, a drift monitor, another attention than SDPA, or another cache than plain attention."
        )
    else:
        answered = _batches(model, prompts, max_new_tokens, sampler, seeds, batch_size, stop_strings, read, logprobs)
    answers: dict[int, Answer] = {}
    label = progress if isinstance(progress, str) else "Generating"
    with track(len(prompts), label, show=bool(progress)) as advance:
        for k, answer in answered:
            answers[k] = answer
            advance(1)
    return [answers[k] for k in range(len(prompts))]


def streams(seed: int, count: int) -> list[int]:
    """Seeds of the random streams of `count` conversations."""
    return [(seed * 1_000_003 + k) % 2**63 for k in range(count)]


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


def _slots(
    model: "HookedChatModel",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampler: Sampler | None,
    seeds: Sequence[int],
    batch_size: int,
    layers: Sequence[int] | None,
    logprobs: bool,
    compile: bool,
) -> Iterator[tuple[int, Answer]]:
    """Our own loop (`decode_prompts`)."""
    found = decode_prompts(
        model,
        prompts,
        stops=stop_ids(model),
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        seeds=seeds,
        slots=batch_size,
        layers=layers,
        logprobs=logprobs,
        compile=compile,
    )
    for k, done in found:
        ids = tuple(done.ids)
        reason = "stop" if done.stopped else "length"
        likely = done.logprob / len(ids) if logprobs and ids else None
        yield k, Answer(decode(model, ids), ids, tuple(prompts[k]), reason, done.means, done.norms, likely)


def _batches(
    model: "HookedChatModel",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampler: Sampler | None,
    seeds: Sequence[int],
    batch_size: int,
    stop_strings: Sequence[str],
    layers: Sequence[int] | None,
    logprobs: bool,
) -> Iterator[tuple[int, Answer]]:
    """The model's own loop over left-padded batches; what is to be read of the answers takes a second pass."""
    order = sorted(range(len(prompts)), key=lambda k: len(prompts[k]))
    stops = stop_ids(model)
    pad = model.tokenizer.pad_token_id
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": list(stops) or None,
        "pad_token_id": pad if pad is not None else (stops[0] if stops else 0),
        "num_beams": 1,
        "repetition_penalty": 1.0,
    }
    if stop_strings:
        options |= {"stop_strings": list(stop_strings), "tokenizer": model.tokenizer}
    with packed_linears(model, min(batch_size, len(order)), max_new_tokens * -(-len(order) // batch_size)):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            picked = None if sampler is None else Picked(sampler, [seeds[k] for k in batch], max_new_tokens)
            answers = _one_batch(model, [prompts[k] for k in batch], {**options, "sampler": picked})
            yield from zip(batch, _read(model, answers, layers, logprobs), strict=True)


def _one_batch(model: "HookedChatModel", rows: Sequence[Sequence[int]], options: dict[str, Any]) -> list[Answer]:
    ids, mask = model.pad(rows, side="left")
    prompt_side = torch.zeros_like(mask)  # no response token yet
    with (
        torch.inference_mode(),
        model.positions.known(prompt_side, generating=True),
    ):
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
    cut = min((at for s in options.get("stop_strings", ()) if (at := text.find(s)) >= 0), default=None)
    if cut is not None:
        text, reason = text[:cut], "stop"
        content = content[: _tokens_within(model, content, cut)]
    return Answer(text, tuple(content), tuple(prompt), reason)


def _read(
    model: "HookedChatModel", answers: Sequence[Answer], layers: Sequence[int] | None, logprobs: bool
) -> list[Answer]:
    """Answers with what was asked to be read of them, by a pass over the whole sequences."""
    out = list(answers)
    said = [k for k, a in enumerate(answers) if a.ids]
    if layers is not None and said:
        from assistant_axis.activations.capture import stream_means
        from assistant_axis.activations.spans import read_answer

        readings = [read_answer(answers[k].prompt_ids, answers[k].ids) for k in said]
        for part in stream_means(model, readings, layers):
            for row, means, norms in zip(part.rows, part.means, part.norms, strict=True):
                out[said[row]] = replace(out[said[row]], means=means, norms=norms)
    if logprobs and said:
        likely = log_likelihoods(model, [(answers[k].prompt_ids, answers[k].ids) for k in said])
        for k, nats in zip(said, likely, strict=True):
            out[k] = replace(out[k], logprob=nats)
    return out


def decode(model: "HookedChatModel", ids: Sequence[int]) -> str:
    """Text of token ids, without special tokens."""
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _tokens_within(model: "HookedChatModel", ids: Sequence[int], length: int) -> int:
    """How many leading tokens decode to at most `length` characters."""
    count = len(ids)
    while count and len(decode(model, ids[:count])) > length:
        count -= 1
    return count
