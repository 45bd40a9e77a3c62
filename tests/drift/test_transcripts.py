"""Every format that is read, every quirk, and what is refused with file and line."""

import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from assistant_axis.drift.transcripts import read_transcript, read_transcripts
from assistant_axis.errors import ConversationError

TALK = [{"role": "user", "content": "Grüezi"}, {"role": "assistant", "content": "Hello – 你好"}]


def stream(text: str | bytes) -> io.BytesIO:
    return io.BytesIO(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize(
    "entry",
    [
        TALK,
        {"messages": TALK},
        {"conversation": TALK, "model": "m"},
        {"conversations": [{"from": "human", "value": "Grüezi"}, {"from": "gpt", "value": "Hello – 你好"}]},
        {"messages": [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in TALK]},
        {"chosen": "\n\nHuman: Grüezi\n\nAssistant: Hello – 你好"},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_formats(entry: Any, indent: int | None) -> None:
    assert list(read_transcript(stream(json.dumps(entry, indent=indent))).messages) == TALK


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(encoding: str) -> None:
    text = "\n".join(json.dumps({"messages": TALK}, ensure_ascii=False) for _ in range(3))
    found = list(read_transcripts(stream(text.encode(encoding))))
    assert len(found) == 3
    assert list(found[2].messages) == TALK


def test_compressed_files_and_double_suffixes(tmp_path: Path) -> None:
    path = tmp_path / "talk.json.json"
    path.write_bytes(gzip.compress(json.dumps({"conversation": TALK, "domain": "x"}).encode()))
    found = read_transcript(path)
    assert found.name == "talk:1"
    assert found.fields == {"domain": "x"}
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ConversationError, match="truncated"):
        read_transcript(path)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = stream(json.dumps(TALK))

    monkeypatch.setattr("sys.stdin", Stdin())
    assert list(read_transcript("-").messages) == TALK


def test_a_list_of_conversations() -> None:
    for indent in (None, 1):
        assert len(list(read_transcripts(stream(json.dumps([TALK, {"messages": TALK}], indent=indent))))) == 2


def test_quirks_are_repaired_and_said() -> None:
    messy = [
        {"role": "assistant", "content": "Welcome!"},
        {"role": "user", "content": "Hi\n\n<INTERNAL_STATE>\ncurious\n</INTERNAL_STATE>"},
        {"role": "assistant", "content": "<think>hm</think>Hello"},
        {"role": "assistant", "content": "again"},
        {"role": "user", "content": " "},
        {"role": "user", "content": "Bye <INTERNAL_STATE> cut off"},
    ]
    found = read_transcript(stream(json.dumps(messy)))
    assert [m["content"] for m in found.messages] == ["Hi", "Hello\n\nagain", "Bye"]
    assert len(found.notes) == 5
    with pytest.raises(ConversationError, match="before any question"):
        read_transcript(stream(json.dumps(messy)), strict=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"messages": [{"role": "user", "content": 3}]}', "int, not text"),
        (b'{"messages": [{"role": "user", "content": null}]}', "NoneType, not text"),
        (b'{"messages": [{"role": "narrator", "content": "x"}]}', "unknown role 'narrator'"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "'image_url' holds no text"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b'{"messages": []}', "empty"),
        (b'{"text": "x"}', "no list of messages"),
        (b'{"messages": [', "not JSON"),
        (b'"text"', "expected an object or a list"),
        (b'{"messages": [{"role": "user", "content": "\xe9"}]}', "0xe9 is not UTF-8"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(json.dumps({"messages": TALK}).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(ConversationError, match="chats.jsonl:3.*" + said):
        list(read_transcripts(path))


def test_empty_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConversationError, match="is empty"):
        read_transcript(stream(""))
    with pytest.raises(FileNotFoundError):
        read_transcript(tmp_path / "none.json")
    with pytest.raises(ConversationError, match="folder"):
        read_transcript(tmp_path)


def test_json_lines_are_streamed() -> None:
    """A source without end can be read from: nothing asks for the whole of it."""

    class Endless(io.RawIOBase):
        line = json.dumps({"messages": TALK}).encode() + b"\n"
        rest = b""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            self.rest = self.rest or self.line
            n = min(len(buffer), len(self.rest))
            buffer[:n], self.rest = self.rest[:n], self.rest[n:]
            return n

    found = read_transcripts(io.BufferedReader(Endless()))
    assert [next(found).name.split(":")[-1] for _ in range(500)][-1] == "500"


def test_a_long_file_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    long = [TALK[0], {"role": "assistant", "content": "word " * 4_000}]
    with path.open("w") as stream:
        stream.writelines(json.dumps({"messages": long}) + "\n" for _ in range(400))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_transcripts(path)) == 400
        assert tracemalloc.get_traced_memory()[1] < 1_000_000 < path.stat().st_size / 5
    finally:
        tracemalloc.stop()


def test_the_published_transcripts(reference: Path) -> None:
    files = sorted((reference / "official" / "transcripts").rglob("*.json"))
    found = [t for f in files for t in read_transcripts(f)]
    assert len(found) == 16
    assert not any("INTERNAL_STATE" in m["content"] for t in found for m in t.messages)
    assert sum("INTERNAL_STATE" in n for t in found for n in t.notes) == 1
