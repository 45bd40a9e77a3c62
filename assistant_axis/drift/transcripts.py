"""Conversations from files and standard input, whatever wrote them.

Read are: OpenAI and Hugging Face messages (`{"messages": [{"role": …, "content": …}]}`, contents as text or as lists of
text parts), the published transcripts (`{"conversation": […], "model": …}`), ShareGPT (`{"conversations": [{"from": …,
"value": …}]}`), HH-RLHF dialogues (`{"chosen": "\\n\\nHuman: …"}`) and bare lists of messages; as one JSON document or as
JSON lines, plain or gzip, in UTF-8 or UTF-16. JSON lines are read one at a time, so a file may be of any length.
"""

import codecs
import gzip
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from assistant_axis.errors import ConversationError
from assistant_axis.models.chat import check_conversation

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_LISTS = ("messages", "conversation", "conversations", "history", "chosen")
_INTERNAL = re.compile(r"<INTERNAL_STATE>.*?(?:</INTERNAL_STATE>|\Z)", re.DOTALL)
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_HH = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


OnError: TypeAlias = Callable[[ConversationError], Any] | None


@dataclass(frozen=True)
class Transcript:
    """A conversation that was read.

    Attributes:
        messages: the turns, ready for `trajectory`.
        name: file name and place in it, `selfharm_unsteered:1`.
        fields: everything else that stood beside the turns (model, domain, topic, …).
        notes: what was changed to make it a conversation.
    """

    messages: tuple[Mapping[str, str], ...]
    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_transcripts(
    source: str | Path | io.BufferedIOBase | io.RawIOBase,
    *,
    strict: bool = False,
    on_error: OnError = None,
) -> Iterator[Transcript]:
    """The conversations of a file, one at a time.

    What is changed, and said in `notes`: `<INTERNAL_STATE>` blocks in user turns and `<think>` blocks in answers are
    removed; empty turns are left out; an answer before any question is left out; neighbouring turns of one speaker are
    joined. With `strict=True` these are errors (the blocks excepted).

    Args:
        source: a path, `"-"` for standard input, or a binary stream.
        strict: refuse what would be repaired.
        on_error: is told of a conversation that cannot be read, which is then left out; by default that is an error. A
            file that is damaged as a whole is one in any case.

    Raises:
        ConversationError: naming file and line: not JSON, another encoding, an unknown role, content that is no text.
        FileNotFoundError: there is no such file.
    """
    if isinstance(source, (str, Path)) and str(source) != "-":
        path = Path(source).expanduser()
        if path.is_dir():
            raise ConversationError(f"{path} is a folder; give a file, or each of its files.")
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist.")
        with path.open("rb") as stream:
            yield from _from_stream(cast(io.BufferedReader, stream), path.name, strict, on_error)
        return
    if isinstance(source, (str, Path)):
        yield from _from_stream(cast(io.BufferedReader, sys.stdin.buffer), "standard input", strict, on_error)
        return
    yield from _from_stream(source, str(getattr(source, "name", "stream")), strict, on_error)


def read_transcript(source: str | Path | io.BufferedIOBase | io.RawIOBase, *, strict: bool = False) -> Transcript:
    """The first conversation of a file; see [`read_transcripts`][assistant_axis.drift.transcripts.read_transcripts].

    Raises:
        ConversationError: the file holds none.
    """
    for found in read_transcripts(source, strict=strict):
        return found
    raise ConversationError(f"{source} holds no conversation.")


def as_transcript(entry: Any, where: str, *, strict: bool = False) -> Transcript:
    """A conversation from one decoded JSON value.

    Args:
        entry: a list of messages, or an object that holds one.
        where: its place, for errors and the name.
        strict: refuse what would be repaired.

    Raises:
        ConversationError: see `read_transcripts`.
    """
    turns, fields = _turns(entry, where)
    notes: dict[str, int] = {}

    def changed(what: str) -> None:
        if strict and "block" not in what:
            raise ConversationError(f"{where}: {what}.")
        notes[what] = notes.get(what, 0) + 1

    out: list[dict[str, str]] = []
    for number, (role, raw) in enumerate(turns):
        text = _content(raw, f"{where}, turn {number} ({role})")
        if role == "user" and "<INTERNAL_STATE>" in text:
            text = _INTERNAL.sub("", text).strip()
            changed("an <INTERNAL_STATE> block was removed")
        if role == "assistant" and "<think>" in text:
            text = _THINKING.sub("", text).strip()
            changed("a <think> block was removed")
        if not text.strip() and role != "system":
            changed(f"an empty {role} turn was left out")
        elif role == "assistant" and not any(m["role"] == "user" for m in out):
            changed("an answer before any question was left out")
        elif out and out[-1]["role"] == role and role != "tool":
            changed(f"neighbouring {role} turns were joined")
            out[-1] = {"role": role, "content": f"{out[-1]['content']}\n\n{text}"}
        else:
            out.append({"role": role, "content": text})
    try:
        check_conversation(out)
    except ConversationError as e:
        raise ConversationError(f"{where}: {e}") from e
    said = tuple(what if n == 1 else f"{what} ({n} times)" for what, n in notes.items())
    return Transcript(tuple(out), where, fields, said)


# -- bytes to JSON values ----------------------------------------------------------------------------------------------


def _from_stream(
    stream: io.BufferedIOBase | io.RawIOBase, name: str, strict: bool, on_error: OnError
) -> Iterator[Transcript]:
    buffered = cast(io.BufferedReader, stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream)))
    if buffered.peek(2)[:2] == b"\x1f\x8b":
        buffered = cast(io.BufferedReader, io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=buffered))))
    short = re.sub(r"(\.jsonl?|\.gz)+$", "", name)
    try:
        for number, entry in _values(buffered, name, on_error):
            try:
                found = as_transcript(entry, f"{name}:{number}", strict=strict)
            except ConversationError as e:
                if on_error is None:
                    raise
                on_error(e)
                continue
            yield Transcript(found.messages, f"{short}:{number}", found.fields, found.notes)
    except (EOFError, gzip.BadGzipFile) as e:
        raise ConversationError(f"{name}: the compressed file is truncated or damaged ({e}).") from e


def _values(stream: io.BufferedReader, name: str, on_error: OnError) -> Iterator[tuple[int, Any]]:
    """(line, JSON value) of every conversation; a document that is no JSON lines is read whole."""
    lines = _lines(stream, name)
    first = next(((n, line) for n, line in lines if line.strip()), None)
    if first is None:
        raise ConversationError(f"{name} is empty; expected conversations as JSON or JSON lines.")
    number, line = first
    try:
        value = json.loads(line)
    except json.JSONDecodeError as e:
        if e.pos < len(line.rstrip()) - 1:  # a document over several lines breaks off at the end of its first
            raise ConversationError(f"{name}:{number}: not JSON ({e.msg}, column {e.colno}).") from e
        yield from _document(line, number, lines, name)
        return
    if isinstance(value, list) and not _is_message(value[0] if value else None):
        for entry in value:  # a list of conversations on one line
            yield number, entry
    else:
        yield number, value
    for number, line in lines:
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as e:
            error = ConversationError(f"{name}:{number}: not JSON ({_said(e)}).")
            if on_error is None:
                raise error from e
            on_error(error)
            continue
        yield number, entry


def _document(first: str, start: int, rest: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[int, Any]]:
    text = "\n" * (start - 1) + first + "".join(line for _, line in rest)
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as e:
        line = e.lineno if isinstance(e, json.JSONDecodeError) else start
        raise ConversationError(f"{name}:{line}: neither a JSON document nor JSON lines ({_said(e)}).") from e
    if isinstance(value, list) and not _is_message(value[0] if value else None):
        yield from enumerate(value, start=1)
        return
    yield start, value


def _lines(stream: io.BufferedReader, name: str) -> Iterator[tuple[int, str]]:
    encoding = _encoding(stream)
    if encoding.startswith("utf-16") or encoding.startswith("utf-32"):
        reader = io.TextIOWrapper(stream, encoding=encoding, errors="strict", newline=None)
        number = 0
        try:
            for number, line in enumerate(reader, start=1):
                yield number, line.lstrip("\ufeff") if number == 1 else line
        except UnicodeError as e:
            raise ConversationError(f"{name}:{number + 1}: begins as {encoding} but is not ({e}).") from e
        finally:
            reader.detach()
        return
    for number, raw in enumerate(stream, start=1):  # line by line, so that an error names its line
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise ConversationError(
                f"{name}:{number}: byte {raw[e.start]:#04x} is not UTF-8 (or the file mixes encodings). Convert the file: "
                "iconv -f latin1 -t utf-8."
            ) from e


def _encoding(stream: io.BufferedReader) -> str:
    head = stream.peek(4)[:4]
    for mark, name in ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")):
        if head.startswith(mark):
            return name
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(head) >= 2 and head[0] and not head[1]:  # JSON opens with ASCII, so a zero byte tells the width
        return "utf-16-le"
    if len(head) >= 2 and not head[0] and head[1]:
        return "utf-16-be"
    return "utf-8"


# -- JSON values to turns ----------------------------------------------------------------------------------------------


def _turns(entry: Any, where: str) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
    fields: dict[str, Any] = {}
    if isinstance(entry, Mapping):
        key = next((k for k in _LISTS if isinstance(entry.get(k), list)), None)
        key = key or next((k for k in _LISTS if isinstance(entry.get(k), str) and _HH.search(entry[k])), None)
        if key is None:
            raise ConversationError(
                f"{where}: no list of messages under {', '.join(map(repr, _LISTS))}; the object has "
                f"{', '.join(map(repr, list(entry)[:8])) or 'no fields'}."
            )
        fields = {k: v for k, v in entry.items() if k != key}
        entry = entry[key]
    if isinstance(entry, str) and _HH.search(entry):
        parts = _HH.split(entry)
        return [(_ROLES[parts[k].lower()], parts[k + 1].strip()) for k in range(1, len(parts), 2)], fields
    if not isinstance(entry, list):
        raise ConversationError(f"{where}: expected an object or a list of messages, got {type(entry).__name__}.")
    turns = [_turn(message, f"{where}, turn {k}") for k, message in enumerate(entry)]
    system = fields.get("system") or fields.get("system_prompt")
    if isinstance(system, str) and system.strip() and turns and turns[0][0] != "system":
        turns.insert(0, ("system", system))
    return turns, fields


def _turn(message: Any, where: str) -> tuple[str, Any]:
    if not isinstance(message, Mapping):
        raise ConversationError(f"{where}: expected an object with role and content, got {type(message).__name__}.")
    role = message.get("role", message.get("from"))
    known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise ConversationError(
            f"{where}: unknown role {role!r}; expected system, user, assistant or tool (or human, gpt, …)."
        )
    if "content" not in message and "value" not in message:
        raise ConversationError(f"{where}: the message has neither 'content' nor 'value'.")
    content = message.get("content", message.get("value"))
    if content is None and message.get("tool_calls"):
        content = json.dumps(message["tool_calls"], ensure_ascii=False)
    return known, content


def _content(raw: Any, where: str) -> str:
    if isinstance(raw, list):
        raw = "\n".join(_parts(raw, where))
    if not isinstance(raw, str):
        raise ConversationError(f"{where}: the content is {type(raw).__name__}, not text: {raw!r:.60}")
    try:
        raw.encode("utf-8")
    except UnicodeEncodeError as e:
        raise ConversationError(f"{where}: the content holds half a surrogate pair at character {e.start}.") from e
    return raw


def _parts(raw: Iterable[Any], where: str) -> Iterator[str]:
    for part in raw:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            yield part["text"]
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ConversationError(f"{where}: a content part of type {kind!r} holds no text; only text can be read.")


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def _said(e: Exception) -> str:
    return f"{e.msg}, column {e.colno}" if isinstance(e, json.JSONDecodeError) else "nested too deeply"
