"""Which tokens of a conversation are averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from assistant_axis.errors import ConversationError, SettingError
from assistant_axis.models.chat import Conversation, EncodedChat

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

Span: TypeAlias = Literal["response", "header", "header_mean", "prompt"]
"""`"response"`: content tokens of the last assistant turn (the paper). `"header"`: the last of the tokens that open the
assistant's turn, where the model is about to speak and nothing has been generated. `"header_mean"`: all of these tokens.
`"prompt"`: content of the last user turn."""

SPANS: tuple[str, ...] = get_args(Span)


@dataclass(frozen=True)
class Reading:
    """One sequence to read.

    Attributes:
        ids: token ids, `[pos]`.
        at: the positions to average over.
        responses: content positions of every assistant turn, which `positions="response"` of an intervention means.
        label: what errors call this sequence beside its number.
    """

    ids: tuple[int, ...]
    at: range
    responses: tuple[range, ...] = ()
    label: str = ""


def locate(model: "HookedChatModel", messages: Conversation, span: str) -> Reading:
    """Token ids of a conversation and the positions of a span in them.

    For `header` and `header_mean` a conversation that ends on a user turn is enough; one that ends with an answer is
    read up to that answer.

    Raises:
        ConversationError: the conversation lacks the turn that the span needs.
        SettingError: an unknown span.
    """
    if span not in SPANS:
        raise SettingError(f"span={span!r} is not known; use one of {', '.join(SPANS)}.")
    if span in ("header", "header_mean"):
        question = messages[:-1] if _ends_with_answer(messages) else messages
        earlier_answers = any(isinstance(m, dict) and m.get("role") == "assistant" for m in question)
        if earlier_answers and model.positions.active:
            chat = model.chat.encode(question, add_generation_prompt=True)
        else:
            chat = model.chat.encode_prompt(question)  # turn spans are not needed
        assert chat.generation_header is not None
        start, stop = chat.generation_header
        return Reading(chat.ids, range(stop - 1, stop) if span == "header" else range(start, stop), _responses(chat))
    chat = model.chat.encode(messages)
    return Reading(chat.ids, _last_turn(chat, "assistant" if span == "response" else "user", span), _responses(chat))


def read_turns(chat: EncodedChat, role: str) -> list[Reading]:
    """One reading for every turn of `role`: its content positions in the whole conversation."""
    return [Reading(chat.ids, range(*t.content), _responses(chat)) for t in chat.turns_of(role)]


def read_answer(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Reading:
    """A prompt with its generated answer, by the token ids as they were generated.

    Raises:
        ConversationError: the answer is empty.
    """
    if not answer_ids:
        raise ConversationError("The answer is empty: it has no token to average.")
    at = range(len(prompt_ids), len(prompt_ids) + len(answer_ids))
    return Reading((*prompt_ids, *answer_ids), at, (at,))


def _last_turn(chat: EncodedChat, role: str, span: str) -> range:
    turns = chat.turns_of(role)
    if not turns:
        said = " → ".join(t.role for t in chat.turns)
        hint = 'Add the answer, or use span="header", which needs none.' if role == "assistant" else "Add a user turn."
        raise ConversationError(f"span={span!r} needs a {role} turn, but the conversation is {said}. {hint}")
    if turns[-1].n_tokens == 0:
        raise ConversationError(f"The last {role} turn (turn {turns[-1].index}) has no tokens to average.")
    return range(*turns[-1].content)


def _responses(chat: EncodedChat) -> tuple[range, ...]:
    return tuple(range(*t.content) for t in chat.turns_of("assistant"))


def _ends_with_answer(messages: Conversation) -> bool:
    return len(messages) > 0 and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
