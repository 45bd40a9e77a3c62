"""A `HookedChatModel` as a model of lm-evaluation-harness, with interventions in force."""

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from assistant_axis.errors import MissingExtraError, ModelError, SettingError
from assistant_axis.models.generation import stop_ids

try:
    from lm_eval.models import huggingface
except ImportError as e:
    raise MissingExtraError("lm_eval", "eval", "Capability through lm-evaluation-harness") from e

if TYPE_CHECKING:
    Base = Any
    from assistant_axis.models.hooked import HookedChatModel, Intervention

_CPU_BATCH = 32
_Base: Any = huggingface.HFLM  # its decorator hides its type


class HookedLM(_Base):
    """What `lm_eval.simple_evaluate(model=…)` takes.

    Requests are tokenised, cut and post-processed by the harness' own Hugging Face model, so that figures are the same to
    rounding. Forward passes and generation run through our model with the interventions in force: continuations that share a
    context share its pass, `positions` are honoured (a continuation is the response), and chats are rendered with our template.

    Args:
        model: the model.
        interventions: in force in every pass.
        batch_size: requests a batch, or `"auto"`: what fits on a GPU; 32 on a CPU, where memory does not say when it ends.
        max_length: longest request in tokens; default: the model's context.

    Raises:
        SettingError: a batch size that is neither.
        ModelError: not a bridge of a Hugging Face model.
        MissingExtraError: at import, without lm-evaluation-harness.
    """

    def __init__(
        self,
        model: "HookedChatModel",
        *interventions: "Intervention",
        batch_size: int | str = "auto",
        max_length: int | None = None,
    ) -> None:
        if not str(batch_size).startswith("auto") and not (str(batch_size).isdigit() and int(batch_size) > 0):
            raise SettingError(f'batch_size={batch_size!r}: give a number of at least 1, or "auto".')
        if not hasattr(model.lens.module, "config"):
            raise ModelError("lm-evaluation-harness needs a Hugging Face model; load this one by its name or folder.")
        self.hooked, self.interventions = model, interventions
        for step in interventions:
            step.compile(model)  # an intervention for another model is refused before anything runs
        logger = logging.getLogger("lm_eval.models.huggingface")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns that it did not load the model itself
        try:
            super().__init__(
                model.lens.module,
                backend="causal",
                tokenizer=copy.deepcopy(model.tokenizer),  # the harness gives it a pad token
                batch_size=batch_size,
                max_length=max_length,
            )
        finally:
            logger.setLevel(level)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as the model reads it: our template, with a system prompt joined where it has no system role."""
        chat = self.hooked.chat
        turns = [dict(m) for m in chat_history]
        if chat.system_rule == "joined" and len(turns) > 1 and turns[0]["role"] == "system":
            system, turns = turns[0]["content"], turns[1:]
            turns[0]["content"] = f"{system}\n\n{turns[0]['content']}"
        if add_generation_prompt:
            return chat.render(turns, add_generation_prompt=True)
        return str(
            self.tokenizer.apply_chat_template(
                turns, chat_template=chat.template, tokenize=False, continue_final_message=True, **chat.arguments
            )
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template in use, as the harness writes it down; `None` without one."""
        return self.hooked.chat.template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        return self.hooked.name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside the results."""
        return {
            "model": self.hooked.name,
            "model_fingerprint": self.hooked.fingerprint,
            "model_dtype": str(self.hooked.dtype),
            "interventions": [
                i.describe(self.hooked) if hasattr(i, "describe") else repr(i)  # type: ignore[attr-defined]
                for i in self.interventions
            ],
        }

    # -- what the harness calls ----------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Continuations of one context share its pass; logits are computed where they are scored, nowhere else."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for k, (_, context, continuation) in enumerate(requests):
            kept = (list(context) + list(continuation))[-(self.max_length + 1) :]  # as the harness cuts
            groups.setdefault(tuple(kept[: len(kept) - len(continuation)]), []).append(k)
        size = override_bs or (self._detect_batch_size() if self.batch_size == "auto" else int(self.batch_size))
        found: dict[int, tuple[float, bool]] = {}
        order = sorted(groups.items(), key=lambda kv: (-len(kv[0]), kv[0]))
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Scoring continuations") as bar:
            for batch in _batches(order, size):
                rows = [(context, list(requests[k][2])) for context, ks in batch for k in ks]
                members = [k for _, ks in batch for k in ks]
                with self.hooked.steered(*self.interventions):
                    scored = self._score([c for c, _ in batch], [len(ks) for _, ks in batch], [y for _, y in rows])
                for k, answer in zip(members, scored, strict=True):
                    found[k] = answer
                    if requests[k][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[k][0], answer)
                bar.update(len(members))
        return [found[k] for k in range(len(requests))]

    def _score(
        self, contexts: list[tuple[int, ...]], counts: list[int], continuations: list[list[int]]
    ) -> list[tuple[float, bool]]:
        """One batch: `counts[i]` continuations belong to `contexts[i]`."""
        model, device = self.hooked, self.hooked.device
        ids, mask = model.pad(contexts, side="left")
        row = torch.repeat_interleave(torch.arange(len(contexts)), torch.tensor(counts))
        place = (mask.long().cumsum(-1) - 1).clamp_min(0)
        with model.positions.known(torch.zeros_like(mask)):
            first = model.forward(ids, mask, logits=1, use_cache=True, position_ids=place.to(device))
        opening = first.logits[:, -1].float().log_softmax(-1)[row.to(device)]
        longest = max(len(y) for y in continuations)
        following = None
        if longest > 1:  # the last token of a continuation is scored, never read
            cache = first.past_key_values
            cache.batch_select_indices(row.to(device))
            more, real = model.pad([y[:-1] or [0] for y in continuations])
            whole = torch.cat([mask[row], real], dim=1)
            response = torch.cat([torch.zeros_like(mask[row]), torch.ones_like(real)], dim=1)
            start = mask.sum(-1)[row][:, None]
            place = (start + torch.arange(more.shape[1])).to(device)
            with model.positions.known(response):
                out = model.forward(more, whole, logits=None, past_key_values=cache, use_cache=True, position_ids=place)
            following = out.logits
        answers = []
        for k, said in enumerate(continuations):
            logs = opening[k][None]
            if following is not None and len(said) > 1:
                logs = torch.cat([logs, following[k, : len(said) - 1].float().log_softmax(-1)])
            target = torch.tensor(said, device=logs.device)
            total = float(logs.gather(-1, target[:, None]).sum())
            answers.append((total, bool((logs.argmax(-1) == target).all())))
        return answers

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        if self.hooked.device.type == "cpu":
            return _CPU_BATCH
        with self.hooked.steered(*self.interventions):
            return super()._detect_batch_size(requests, pos)

    def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
        with self.hooked.steered(*self.interventions):
            return self.hooked.forward(inps, logits=None).logits

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        prompt = torch.zeros_like(context, dtype=torch.bool)  # no response token yet
        generation_kwargs.setdefault("eos_token_id", list(stop_ids(self.hooked)) or None)
        with self.hooked.steered(*self.interventions), self.hooked.positions.known(prompt, generating=True):
            return super()._model_generate(context, max_length, stop, **generation_kwargs)


def _batches(
    groups: Sequence[tuple[tuple[int, ...], list[int]]], size: int
) -> Iterator[list[tuple[tuple[int, ...], list[int]]]]:
    """Groups of one context each, joined while they hold at most `size` requests; a larger group is divided."""
    batch: list[tuple[tuple[int, ...], list[int]]] = []
    held = 0
    for context, members in groups:
        for start in range(0, len(members), size):
            part = members[start : start + size]
            if batch and held + len(part) > size:
                yield batch
                batch, held = [], 0
            batch.append((context, part))
            held += len(part)
    if batch:
        yield batch
