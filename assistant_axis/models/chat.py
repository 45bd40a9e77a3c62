"""Conversations as the model reads them: rendering through its own template, and where every turn's tokens lie.

Spans are never found by searching text. The content of a turn is where the rendered conversation starts and stops
depending on it: the conversation is rendered twice with two different probes in that turn's place, and the common
prefix and suffix of the two renderings bound the content. Token spans follow from the tokenizer's offsets and are
checked by decoding.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from assistant_axis.errors import ConversationError, TemplateError

Message: TypeAlias = Mapping[str, str]
"""One turn: `{"role": "system" | "user" | "assistant" | "tool", "content": "…"}`."""
Conversation: TypeAlias = Sequence[Message]
"""A list of messages, oldest first, as OpenAI and Hugging Face write them."""

ROLES = ("system", "user", "assistant", "tool")

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% else %}{{ message['role'][0] | upper + message['role'][1:] + ':\n' + message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""The explicit template for a base model: BOS, then turns opened by `User:` and `Assistant:` on lines of their own."""
PLAIN_STOPS = ("\n\nUser:", "\nUser:\n")

# Two probes that share neither their first nor their last character.
_PROBES = ("qZ first probe Qz", "xK second probe kX")


@dataclass(frozen=True)
class TurnSpan:
    """Token positions of one turn in an encoded conversation; each pair is a Python range `[start, stop)`."""

    index: int
    role: str
    header: tuple[int, int]
    content: tuple[int, int]

    @property
    def n_tokens(self) -> int:
        return self.content[1] - self.content[0]


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as token ids with the span of every turn.

    `generation_header` is the span of the tokens that open the assistant's turn when the conversation was rendered
    with `add_generation_prompt=True`, else `None`.
    """

    ids: tuple[int, ...]
    text: str
    turns: tuple[TurnSpan, ...]
    generation_header: tuple[int, int] | None = None

    def turns_of(self, role: str) -> tuple[TurnSpan, ...]:
        """The turns spoken by `role`, in order."""
        return tuple(t for t in self.turns if t.role == role)


@dataclass
class ChatFormat:
    """How one model's conversations are written.

    Args:
        tokenizer: a fast Hugging Face tokenizer; it is used as it is, never reloaded or changed.
        template: a Jinja chat template to use instead of the tokenizer's own; a tokenizer without one gets
            [`PLAIN_TEMPLATE`][assistant_axis.models.chat.PLAIN_TEMPLATE].
        thinking: for templates that know `enable_thinking`; off as in the paper.

    Attributes:
        system_rule: `"template"` where the template takes a system role, `"joined"` where the system prompt is
            joined to the first user turn.
        plain: whether the plain template is in use.
    """

    tokenizer: Any
    template: str | None = None
    thinking: bool = False
    system_rule: str = field(init=False)
    plain: bool = field(init=False)

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise TemplateError(
                f"The tokenizer {type(self.tokenizer).__name__} gives no character offsets; a fast tokenizer is needed. "
                "Load it with AutoTokenizer.from_pretrained(..., use_fast=True)."
            )
        if self.template is None:
            own = getattr(self.tokenizer, "chat_template", None)
            if isinstance(own, dict):  # several named templates
                own = own.get("default")
            self.template = own or PLAIN_TEMPLATE
        self.plain = self.template == PLAIN_TEMPLATE
        self._kwargs: dict[str, Any] = {}
        written = self.template or ""
        if "enable_thinking" in written:
            self._kwargs["enable_thinking"] = self.thinking
        if "date_string" in written:  # Llama 3 writes today's date: the same prompt must be the same every day
            self._kwargs["date_string"] = "26 Jul 2024"
        self.system_rule = "template" if self._takes_system() else "joined"

    # -- rendering -----------------------------------------------------------------------------------------------------

    @property
    def hash(self) -> str:
        """Short SHA-256 of the template, its arguments and the system rule, kept in every artefact."""
        said = json.dumps([self.template, sorted(self._kwargs.items()), self.system_rule])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def render(self, messages: Conversation, *, add_generation_prompt: bool = False) -> str:
        """The conversation as text, after `check_conversation`, with the system prompt proven to be in it.

        Raises:
            ConversationError: the messages are no conversation.
            TemplateError: the template fails or drops the system prompt.
        """
        messages = self._prepare(messages)
        text = self._apply(messages, add_generation_prompt)
        if messages[0]["role"] == "system" and messages[0]["content"].strip() not in text:
            raise TemplateError(
                "The chat template drops or changes the system prompt: "
                f"{_short(messages[0]['content'])} is not in the rendered text. "
                "Pass a template of your own (load_model(..., template=…))."
            )
        return text

    def encode(self, messages: Conversation, *, add_generation_prompt: bool = False) -> EncodedChat:
        """Token ids of a conversation and the spans of its turns (content only, checked by decoding).

        Args:
            messages: the conversation.
            add_generation_prompt: open an assistant turn at the end.

        Raises:
            ConversationError: the messages are no conversation.
            TemplateError: the template changes a turn's content, so that its tokens cannot be told.
        """
        joined = self._prepare(messages)
        text = self.render(messages, add_generation_prompt=add_generation_prompt)
        ids, offsets = self._tokenize(text)
        turns: list[TurnSpan] = []
        end_of_last = 0
        for i, message in enumerate(joined):
            start, stop = self._content_range(joined, i, add_generation_prompt, len(text))
            content = text[start:stop]
            if content.strip() != message["content"].strip():
                raise TemplateError(
                    f"The chat template changes turn {i} ({message['role']}): it holds {_short(content)} where "
                    f"{_short(message['content'])} was given. If the turn holds a thinking block, remove it first."
                )
            span = _tokens_of(offsets, start, stop, text)
            self._check_decodes(ids, offsets, span, text, message["content"], i)
            opens = self._opens_at(joined[:i], text, end_of_last)
            header = (min(_first_token_from(offsets, opens), span[0]), span[0])
            turns.append(TurnSpan(i, message["role"], header, span))
            end_of_last = stop
        generation_header = None
        if add_generation_prompt:
            generation_header = self._generation_header(joined, text, ids, offsets)
        return EncodedChat(tuple(ids), text, tuple(turns), generation_header)

    def encode_prompt(self, messages: Conversation) -> EncodedChat:
        """Token ids up to and with the header of the answer to come; without turn spans, and therefore fast.

        Raises:
            ConversationError: the messages are no conversation or end with an assistant turn.
        """
        joined = self._prepare(messages)
        if joined[-1]["role"] == "assistant":
            raise ConversationError(
                "The conversation ends with an assistant turn, so there is nothing to answer. Remove that turn, or read "
                'it with span="response".'
            )
        text = self.render(messages, add_generation_prompt=True)
        ids, offsets = self._tokenize(text)
        return EncodedChat(tuple(ids), text, (), self._generation_header(joined, text, ids, offsets))

    @property
    def arguments(self) -> dict[str, Any]:
        """What the template is called with beside the messages."""
        return dict(self._kwargs)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end an answer beside the end-of-turn token (a base model would play the user's part too)."""
        return PLAIN_STOPS if self.plain else ()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _opens_at(self, before: list[dict[str, str]], text: str, end_of_last: int) -> int:
        """Where the text of the next turn starts: after the rendering of the turns before it, where that is a prefix."""
        try:
            body = self._apply(before, False) if before else ""
        except TemplateError:  # some templates refuse a system turn that stands alone
            return end_of_last
        return len(body) if text.startswith(body) and len(body) >= end_of_last else end_of_last

    def _generation_header(
        self, messages: list[dict[str, str]], text: str, ids: list[int], offsets: list[tuple[int, int]]
    ) -> tuple[int, int]:
        """The tokens that `add_generation_prompt` adds: what opens the assistant's turn."""
        body = _common_prefix(self._apply(messages, False), text)
        first = _first_token_from(offsets, body)
        if first >= len(ids):
            return len(ids) - 1, len(ids)  # no header of its own (Mistral): the prompt's last token opens the answer
        return first, len(ids)

    def _prepare(self, messages: Conversation) -> list[dict[str, str]]:
        check_conversation(messages)
        out = [{"role": m["role"], "content": m["content"]} for m in messages]
        if out[0]["role"] == "system" and not out[0]["content"]:
            out = out[1:]  # an empty system prompt is no system prompt
        if out and out[0]["role"] == "system" and self.system_rule == "joined":
            system, out = out[0]["content"], out[1:]
            if not out or out[0]["role"] != "user":
                raise ConversationError(
                    "This model has no system role: a system prompt needs a user turn to be joined to."
                )
            out[0] = {"role": "user", "content": f"{system}\n\n{out[0]['content']}"}
        return out

    def _apply(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._kwargs,
            )
        except Exception as e:  # jinja2 raises many kinds, and templates raise their own
            roles = " → ".join(m["role"] for m in messages)
            raise TemplateError(f"The chat template refused the turns {roles}: {e}") from e
        return str(text)

    def _takes_system(self) -> bool:
        probe = "A system probe 7f3a."
        try:
            text = self._apply([{"role": "system", "content": probe}, {"role": "user", "content": "hello"}], True)
        except TemplateError:
            return False
        return probe in text

    def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        bos = self.tokenizer.bos_token_id
        doubled = bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]
        if doubled:
            raise TemplateError("The rendered text opens with two BOS tokens; use a template that writes one.")
        return ids, [tuple(o) for o in encoded["offset_mapping"]]

    def _content_range(self, messages: list[dict[str, str]], i: int, prompt: bool, length: int) -> tuple[int, int]:
        a, b = (
            self._apply([*messages[:i], {"role": messages[i]["role"], "content": p}, *messages[i + 1 :]], prompt)
            for p in _PROBES
        )
        start = _common_prefix(a, b)
        tail = _common_prefix(a[::-1], b[::-1])
        return start, length - tail

    def _check_decodes(
        self,
        ids: list[int],
        offsets: list[tuple[int, int]],
        span: tuple[int, int],
        text: str,
        content: str,
        turn: int,
    ) -> None:
        if span[0] == span[1]:
            if content.strip():
                raise TemplateError(f"No token of turn {turn} was found, although it holds {_short(content)}.")
            return
        decoded = self.tokenizer.decode(ids[span[0] : span[1]], clean_up_tokenization_spaces=False)
        by_offset = text[offsets[span[0]][0] : offsets[span[1] - 1][1]]
        if decoded.strip() != content.strip() and by_offset.strip() != content.strip():
            raise TemplateError(
                f"The tokens of turn {turn} decode to {_short(decoded)}, not to its content {_short(content)}. "
                "A token spans the border of the turn; use a template that ends its headers with a special token or a newline."
            )


def check_conversation(messages: Conversation) -> None:
    """Check roles, order and content of a conversation.

    A conversation holds at least one turn; a system turn may only stand first; user and assistant turns alternate
    (tool turns may stand anywhere after a user turn); contents are non-empty strings (a system turn may be empty).

    Raises:
        ConversationError: naming the turn and what is wrong with it.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise ConversationError(
            f"A conversation is a list of messages, but a {type(messages).__name__} came. "
            'Write [{"role": "user", "content": "…"}].'
        )
    if not messages:
        raise ConversationError("The conversation is empty; give at least one user turn.")
    previous = ""
    for i, m in enumerate(messages):
        if not isinstance(m, Mapping) or "role" not in m or "content" not in m:
            raise ConversationError(f'Turn {i} is not {{"role": …, "content": …}}: {_short(str(m))}')
        role, content = m["role"], m["content"]
        if role not in ROLES:
            raise ConversationError(f"Turn {i} has the unknown role {role!r}; expected one of {', '.join(ROLES)}.")
        if not isinstance(content, str):
            raise ConversationError(
                f"Turn {i} ({role}) has content of type {type(content).__name__}; expected a string."
            )
        if role == "system":
            if i > 0:
                raise ConversationError(f"Turn {i} is a system turn; only the first turn may be one.")
        elif not content.strip():
            raise ConversationError(f"Turn {i} ({role}) is empty; remove it or give it content.")
        if role == previous and role in ("user", "assistant"):
            raise ConversationError(
                f"Turns {i - 1} and {i} are both {role} turns; user and assistant turns must alternate. Join them into one."
            )
        if role == "assistant" and previous in ("", "system"):
            raise ConversationError(f"Turn {i} is an assistant turn with no user turn before it.")
        previous = role
    if previous == "system":
        raise ConversationError("The conversation holds only a system turn; add a user turn.")


def _tokens_of(offsets: list[tuple[int, int]], start: int, stop: int, text: str) -> tuple[int, int]:
    """Tokens that touch the non-blank part of `text[start:stop]`, or lie wholly inside `[start, stop)`."""
    blank_left = len(text[start:stop]) - len(text[start:stop].lstrip())
    inner = (start + blank_left, start + len(text[start:stop].rstrip()))
    chosen = [
        k
        for k, (a, b) in enumerate(offsets)
        if (a < inner[1] and b > inner[0] and b > a) or (start <= a and b <= stop and b > a)
    ]
    if not chosen:
        after = _first_token_from(offsets, start)
        return after, after
    return chosen[0], chosen[-1] + 1


def _first_token_from(offsets: list[tuple[int, int]], position: int) -> int:
    """Index of the first token whose text begins at or after `position`."""
    for k, (a, b) in enumerate(offsets):
        if a >= position and b > a:
            return k
    return len(offsets)


def _common_prefix(a: str, b: str) -> int:
    """How many leading characters two texts share."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _short(text: str, limit: int = 60) -> str:
    text = text.replace("\n", "⏎")
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
