"""Our models in Inspect: the model's own chat template, interventions in force, projections in the output's metadata."""

import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import anyio
import torch
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    TopLogprob,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from torch import Tensor

from assistant_axis.errors import ArtefactMismatchError, AssistantAxisError, ConversationError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.geometry.precomputed import load_precomputed_axis, precomputed_names
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.models.generation import Answer, decode
from assistant_axis.models.hook_points import HookPoint, ResidPost
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.models.lens import HookFunction
from assistant_axis.models.loading import load_model
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.formats import load_intervention
from assistant_axis.steering.interventions import Chain

UNSUPPORTED = ("best_of", "frequency_penalty", "presence_penalty", "logit_bias", "prompt_logprobs", "response_schema")
_LINGER = 0.1  # seconds that a batch waits for company


@dataclass(frozen=True)
class _Request:
    messages: tuple[dict[str, str], ...]
    config: GenerateConfig

    @property
    def key(self) -> Hashable:
        """Requests with one key share a batch; a seeded sample goes alone, so that its company cannot change it."""
        c = self.config
        sampled = bool(c.temperature) and c.seed is not None
        return (c.max_tokens, c.temperature, c.top_p, c.top_k, c.seed, id(self) if sampled else None)


@dataclass(frozen=True)
class _Scored:
    """An answer with what a second pass over it read."""

    answer: Answer
    logs: list[Logprob]
    projection: dict[str, Any] | None
    seconds: float


class AssistantAxisAPI(ModelAPI):
    """The provider `assistant_axis`.

    Model arguments (`-M name=value`):
        cap: a saved intervention, or several with commas; they act together.
        axis: an axis, persona vectors, a run's folder, or the name of a model whose axis ships, to project on; default: the
            direction of the first intervention.
        layer: block index to project at; default: the model's monitoring layer, or the nearest one held.
        batch_size: requests answered together; default 16 (`--max-connections` raises how many come at once).
        device, dtype, device_map, revision: as in `load_model`.
        loaded: a `HookedChatModel` that is there already, from Python.

    Of `GenerateConfig`, `max_tokens`, `temperature` (0 if not given: greedy), `top_p`, `top_k`, `seed`, `stop_seqs`,
    `logprobs`, `top_logprobs`, `num_choices`, `system_message` and `max_connections` are honoured, and what would be ignored
    is refused. A seeded sample is drawn in a batch of its own, so that the same seed gives the same answer.

    The metadata of every output hold `projection`: the mean raw projection of the answer's content tokens at `layer`, `pre`
    and `post` of the interventions there, `centered` by the role mean where the axis keeps it, and the number of tokens.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (Inspect's own signature)
        cap: str | Sequence[str] | None = None,
        axis: str | None = None,
        layer: int | None = None,
        batch_size: int = 16,
        loaded: HookedChatModel | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        unknown = set(model_args) - {"device", "dtype", "device_map", "revision"}
        if unknown:
            raise PrerequisiteError(
                f"Unknown model argument {', '.join(sorted(unknown))}; known: cap, axis, layer, batch_size, device, dtype, "
                "device_map, revision."
            )
        self.batch_size = int(batch_size)
        if self.batch_size < 1:
            raise PrerequisiteError(f"batch_size={batch_size}: at least 1 is needed.")
        try:
            self.hooked = loaded if loaded is not None else load_model(model_name, **model_args)
            paths = cap.split(",") if isinstance(cap, str) else list(cap or [])
            self.interventions = [load_intervention(p.strip(), self.hooked) for p in paths]
            for step in self.interventions:
                step.compile(self.hooked)
            self.direction = _direction(axis, self.interventions)
            if self.direction is not None:
                self.direction.check(self.hooked)
                wanted = self.hooked.profile.layer if layer is None else int(layer)
                held = self.direction.layers
                self.layer = wanted if layer is not None else min(held, key=lambda x: abs(x - wanted))
                self.direction.index(self.layer)
        except (AssistantAxisError, FileNotFoundError) as e:
            raise PrerequisiteError(str(e)) from e
        self._queue: Queue[tuple[_Request, Future[list[_Scored]]] | None] = Queue()
        self._worker: Thread | None = None

    # -- what Inspect calls --------------------------------------------------------------------------------------------

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """One answer (or `num_choices`) to a chat."""
        if tools:
            raise PrerequisiteError("The provider assistant_axis speaks plain chats; this task brings tools.")
        for name in UNSUPPORTED:
            if getattr(config, name, None):
                raise PrerequisiteError(f"The provider assistant_axis cannot honour {name}; leave it out.")
        messages = chat_messages(input)
        limit = self._room(messages, config.max_tokens or self.max_tokens() or 512)
        if limit < 1:
            said = f"The chat fills the model's context of {self.hooked.max_length} tokens."
            return ModelOutput.from_content(self.model_name, "", stop_reason="model_length", error=said)
        future: Future[list[_Scored]] = Future()
        self._start()
        self._queue.put((_Request(tuple(messages), config.model_copy(update={"max_tokens": limit})), future))
        while not future.done():
            await anyio.sleep(0.01)
        found = future.result()
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(s, config) for s in found],
            usage=ModelUsage(
                input_tokens=len(found[0].answer.prompt_ids),
                output_tokens=sum(len(s.answer.ids) for s in found),
                total_tokens=len(found[0].answer.prompt_ids) + sum(len(s.answer.ids) for s in found),
            ),
            time=found[0].seconds,
            metadata=None if self.direction is None else {"projection": found[0].projection},
        )

    def max_tokens(self) -> int | None:
        """New tokens, where a task does not say."""
        return 512

    def max_connections(self) -> int:
        """How many requests Inspect sends at once: two batches."""
        return 2 * self.batch_size

    def connection_key(self) -> str:
        return f"assistant_axis/{self.model_name}"

    def collapse_user_messages(self) -> bool:
        return True

    def collapse_assistant_messages(self) -> bool:
        return True

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._queue.put(None)
            self._worker.join()
            self._worker = None

    # -- inside --------------------------------------------------------------------------------------------------------

    def _room(self, messages: list[dict[str, str]], wanted: int) -> int:
        longest = self.hooked.max_length
        if longest is None:
            return wanted
        return min(wanted, longest - len(self.hooked.chat.encode_prompt(messages).ids))

    def _choice(self, scored: _Scored, config: GenerateConfig) -> ChatCompletionChoice:
        reason: StopReason = "stop" if scored.answer.finish_reason == "stop" else "max_tokens"
        return ChatCompletionChoice(
            message=ChatMessageAssistant(content=scored.answer.text, model=self.model_name, source="generate"),
            stop_reason=reason,
            logprobs=Logprobs(content=scored.logs) if config.logprobs else None,
        )

    def _start(self) -> None:
        if self._worker is None or not self._worker.is_alive():
            self._worker = Thread(target=self._work, name="assistant-axis", daemon=True)
            self._worker.start()

    def _work(self) -> None:
        """The only thread that touches the model: takes what has come, divides it by settings, answers."""
        while True:
            first = self._queue.get()
            if first is None:
                return
            waiting, ends = [first], time.monotonic() + _LINGER
            while len(waiting) < self.batch_size:
                try:
                    more = self._queue.get(timeout=max(ends - time.monotonic(), 0.0))
                except Empty:
                    break
                if more is None:
                    self._queue.put(None)  # after this batch
                    break
                waiting.append(more)
            groups: dict[Hashable, list[tuple[_Request, Future[list[_Scored]]]]] = {}
            for request, future in waiting:
                groups.setdefault(request.key, []).append((request, future))
            for group in groups.values():
                try:
                    answers = self._answer([r for r, _ in group])
                except Exception as e:  # every waiting request is told, and the worker goes on
                    for _, future in group:
                        future.set_exception(e)
                else:
                    for (_, future), scored in zip(group, answers, strict=True):
                        future.set_result(scored)

    def _answer(self, requests: Sequence[_Request]) -> list[list[_Scored]]:
        started, config = time.monotonic(), requests[0].config
        counts = [r.config.num_choices or 1 for r in requests]
        asked = [list(r.messages) for r, n in zip(requests, counts, strict=True) for _ in range(n)]
        owner = [r for r, n in zip(requests, counts, strict=True) for _ in range(n)]
        with self.hooked.steered(*self.interventions):
            answers: list[Answer] = self.hooked.generate(
                asked,
                max_new_tokens=config.max_tokens or 512,
                temperature=config.temperature or 0.0,
                top_p=config.top_p if config.top_p is not None else 1.0,
                top_k=config.top_k or 0,
                seed=config.seed or 0,
                batch_size=self.batch_size,
            )
        answers = [cut(self.hooked, a, r.config.stop_seqs or ()) for a, r in zip(answers, owner, strict=True)]
        scored = self._read(answers, [r.config for r in owner])
        seconds = time.monotonic() - started
        rows = iter([replace(s, seconds=seconds) for s in scored])
        return [[next(rows) for _ in range(n)] for n in counts]

    def _read(self, answers: Sequence[Answer], configs: Sequence[GenerateConfig]) -> list[_Scored]:
        """Log-probabilities and projections, from one pass over prompt and answer with the interventions in force."""
        wanted = any(c.logprobs for c in configs)
        if self.direction is None and not wanted:
            return [_Scored(a, [], None, 0.0) for a in answers]
        found: list[_Scored] = []
        for start in range(0, len(answers), self.batch_size):
            part = answers[start : start + self.batch_size]
            ids, mask = self.hooked.pad([[*a.prompt_ids, *a.ids] for a in part])
            response = torch.zeros_like(mask)
            for k, a in enumerate(part):
                response[k, len(a.prompt_ids) : len(a.prompt_ids) + len(a.ids)] = True
            read: dict[str, Tensor] = {}
            with self.hooked.positions.known(response), self.hooked.steered(*self.interventions):
                with self.hooked.hooks(self._reader(read, "post")):
                    with self.hooked.hooks(self._reader(read, "pre"), before_others=True):
                        out = self.hooked.forward(ids, mask, logits=None if wanted else 1)
            for k, a in enumerate(part):
                span = slice(len(a.prompt_ids), len(a.prompt_ids) + len(a.ids))
                logs = []
                if configs[start + k].logprobs:
                    said = out.logits[k, span.start - 1 : span.stop - 1].float().log_softmax(-1)
                    logs = self._logs(a, said, configs[start + k].top_logprobs or 0)
                found.append(_Scored(a, logs, self._projection({n: v[k, span] for n, v in read.items()}), 0.0))
        return found

    def _reader(self, read: dict[str, Tensor], name: str) -> list[tuple[HookPoint, HookFunction]]:
        if self.direction is None:
            return []
        unit = self.direction.unit[self.direction.index(self.layer)]

        def hook(x: Tensor) -> None:
            read[name] = (x.detach().float() @ unit.to(x.device)).cpu()

        return [(ResidPost(self.layer), hook)]

    def _projection(self, read: dict[str, Tensor]) -> dict[str, Any] | None:
        if self.direction is None:
            return None
        count = int(read["post"].numel())
        said: dict[str, Any] = {"direction": self.direction.name, "layer": self.layer, "tokens": count}
        if count:  # an empty answer stands nowhere
            said |= {name: round(float(values.mean()), 4) for name, values in read.items()}
            if "role_mean" in self.direction.landmarks:
                middle = float(self.direction.landmarks["role_mean"][self.direction.index(self.layer)])
                said["centered"] = round(said["post"] - middle, 4)
        return said

    def _logs(self, answer: Answer, logs: Tensor, top: int) -> list[Logprob]:
        def one(kind: Callable[..., Any], token: int, value: float, **more: Any) -> Any:
            text = str(self.hooked.tokenizer.decode([token]))
            return kind(token=text, logprob=value, bytes=list(text.encode()), **more)

        found = []
        for token, row in zip(answer.ids, logs, strict=True):
            best = row.topk(top) if top else None
            tops = [] if best is None else list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            listed = [one(TopLogprob, t, v) for t, v in tops] or None
            found.append(one(Logprob, token, float(row[token]), top_logprobs=listed))
        return found


def chat_messages(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Inspect's messages as a conversation: text only, system messages joined at the front.

    Raises:
        PrerequisiteError: an image, audio or other content that is no text.
    """
    system: list[str] = []
    turns: list[dict[str, str]] = []
    for message in messages:
        if not isinstance(message.content, str) and any(c.type not in ("text", "reasoning") for c in message.content):
            raise PrerequisiteError("The provider assistant_axis reads text only; a message brings other content.")
        if message.role == "system":
            system.append(message.text)
        else:
            turns.append({"role": message.role, "content": message.text})
    return [*([{"role": "system", "content": "\n\n".join(system)}] if system else []), *turns]


def cut(model: HookedChatModel, answer: Answer, stops: Sequence[str]) -> Answer:
    """An answer up to the first of some strings, which is left out.

    Raises:
        ConversationError: an empty stop string.
    """
    if any(not s for s in stops):
        raise ConversationError("An empty stop string would end every answer before it starts; remove it.")
    places = [at for s in stops if (at := answer.text.find(s)) >= 0]
    if not places:
        return answer
    ids = answer.ids
    while ids and len(decode(model, ids)) > min(places):
        ids = ids[:-1]
    return Answer(answer.text[: min(places)], ids, answer.prompt_ids, "stop")


def _direction(axis: str | None, interventions: Sequence[Any]) -> Direction | None:
    if axis is not None:
        path = Path(axis)
        if not path.exists() and axis in precomputed_names():
            return Direction.of(load_precomputed_axis(axis))
        if path.is_dir():
            path = path / ("vectors.safetensors" if (path / "vectors.safetensors").is_file() else "axis.safetensors")
        try:
            return Direction.of(AssistantAxis.load(path))
        except ArtefactMismatchError:  # persona vectors
            return Direction.of(PersonaVectors.load(path).axis())
    parts: list[Any] = [p for step in interventions for p in (step.parts if isinstance(step, Chain) else (step,))]
    return next((p.direction for p in parts if hasattr(p, "direction")), None)
