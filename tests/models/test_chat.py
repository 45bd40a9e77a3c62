import inspect
import re

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant_axis.errors import ConversationError, TemplateError
from assistant_axis.models.chat import PLAIN_TEMPLATE, ChatFormat, check_conversation


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


TEMPLATES = {
    "chatml": (tiny.CHATML, "<|im_end|>"),
    "chatml-default-system": (tiny.CHATML_DEFAULT_SYSTEM, "<|im_end|>"),
    "llama3": (tiny.LLAMA3, "<|eot_id|>"),
    "gemma": (tiny.GEMMA, "<end_of_turn>"),
    "qwen3": (tiny.QWEN3, "<|im_end|>"),
    "mistral": (tiny.MISTRAL, "<eos>"),
    "plain": (None, "<eos>"),
}

TALK = [
    user("Who are you?"),
    assistant("I am an assistant. Who are you?"),
    user("Who are you? I am an assistant."),
    assistant("Who are you? I am an assistant."),
]


@pytest.fixture(scope="module", params=list(TEMPLATES))
def chat(request):
    template, eos = TEMPLATES[request.param]
    return ChatFormat(tiny.make_tokenizer(template, eos=eos))


@pytest.fixture(scope="module")
def chatml():
    return ChatFormat(tiny.make_tokenizer(tiny.CHATML))


def decoded(chat, encoded, span):
    return chat.tokenizer.decode(encoded.ids[span[0] : span[1]])


def test_content_that_repeats_earlier_text_is_found_by_place(chat):
    encoded = chat.encode(TALK)
    assert [t.role for t in encoded.turns] == ["user", "assistant"] * 2
    for turn, message in zip(encoded.turns, TALK, strict=True):
        assert decoded(chat, encoded, turn.content).strip() == message["content"]
        assert turn.header[1] == turn.content[0]
        assert turn.header[0] <= turn.header[1]
    starts = [t.content[0] for t in encoded.turns]
    assert starts == sorted(starts)
    assert len(set(starts)) == 4


@pytest.mark.parametrize(
    "content",
    [
        "  two blanks before",
        "blank after  \n",
        "\n\nlines before and after\n\n",
        "Grüße, 東京 🙂 — naïve Σ\u0301",
        "a",
        "user\nassistant\nUser:\nAssistant:",
        "qZ first probe Qz",
        "xK second probe kX",
        "{{ 7 * 7 }} {% raw %} </script>",
        "tabs\tand\r\nreturns",
    ],
)
def test_awkward_contents_keep_their_span(chat, content):
    encoded = chat.encode([user(content), assistant(content), user("Who?"), assistant(content)])
    for k in (0, 1, 3):
        assert decoded(chat, encoded, encoded.turns[k].content).strip() == content.strip()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=5),
    st.sampled_from(list(TEMPLATES)),
)
def test_spans_decode_to_their_content_whatever_it_is(contents, kind):
    chat = _CHATS.setdefault(kind, ChatFormat(tiny.make_tokenizer(TEMPLATES[kind][0], eos=TEMPLATES[kind][1])))
    messages = [user(c) if k % 2 == 0 else assistant(c) for k, c in enumerate(contents)]
    try:
        encoded = chat.encode(messages)
    except TemplateError as e:
        if not re.search("changes turn|decode to|drops", str(e)):  # refused by name, never wrong
            raise
        return
    last = 0
    for turn, content in zip(encoded.turns, contents, strict=True):
        assert turn.content[0] >= last
        last = turn.content[1]
        text = decoded(chat, encoded, turn.content)
        assert text.strip() == content.strip()


_CHATS: dict = {}


def test_chatml_spans_by_hand(chatml):
    encoded = chatml.encode([system("You are a pirate."), *TALK[:2]], add_generation_prompt=False)
    text = "<|im_start|>system\nYou are a pirate.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n"
    assert encoded.text.startswith(text)
    first = chatml.tokenizer(text, add_special_tokens=False)["input_ids"]
    opened = chatml.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    turn = encoded.turns[2]
    assert turn.header == (len(first), len(first) + len(opened))
    assert turn.content[0] == turn.header[1]
    # the end of turn and the newline after it are not content
    assert turn.content[1] == len(encoded.ids) - 2
    assert chatml.system_rule == "template"


def test_generation_header_is_what_opens_the_answer():
    opens = {
        "chatml": "<|im_start|>assistant\n",
        "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "gemma": "<start_of_turn>model\n",
        "qwen3": "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "plain": "Assistant:\n",
    }
    for kind, expected in opens.items():
        template, eos = TEMPLATES[kind]
        chat = ChatFormat(tiny.make_tokenizer(template, eos=eos))
        encoded = chat.encode_prompt(TALK[:3])
        assert encoded.generation_header is not None
        assert encoded.generation_header[1] == len(encoded.ids)
        assert decoded(chat, encoded, encoded.generation_header) == expected, kind
        assert chat.encode(TALK[:3], add_generation_prompt=True).generation_header == encoded.generation_header


def test_a_template_that_opens_no_answer_is_read_at_the_last_token_of_the_prompt():
    chat = ChatFormat(tiny.make_tokenizer(tiny.MISTRAL, eos="<eos>"))
    encoded = chat.encode_prompt(TALK[:1])
    assert encoded.generation_header == (len(encoded.ids) - 1, len(encoded.ids))


def test_the_header_of_an_answer_is_the_generation_header(chatml):
    whole, prompt = chatml.encode(TALK), chatml.encode_prompt(TALK[:3])
    assert prompt.generation_header == whole.turns[3].header
    assert whole.ids[: len(prompt.ids)] == prompt.ids


def test_system_joined_where_the_template_has_none():
    chat = ChatFormat(tiny.make_tokenizer(tiny.GEMMA, eos="<end_of_turn>"))
    assert chat.system_rule == "joined"
    encoded = chat.encode([system("You are a pirate."), *TALK])
    assert len(encoded.turns) == 4
    assert decoded(chat, encoded, encoded.turns[0].content) == "You are a pirate.\n\nWho are you?"
    assert "system" not in encoded.text
    with pytest.raises(ConversationError, match="only a system turn"):
        chat.encode([system("You are a pirate.")])


def test_a_template_that_refuses_a_lone_system_turn_still_gives_spans():
    chat = ChatFormat(tiny.make_tokenizer(tiny.MISTRAL, eos="<eos>"))
    assert chat.system_rule == "template"
    encoded = chat.encode([system("You are a pirate."), *TALK])
    assert [decoded(chat, encoded, t.content).strip() for t in encoded.turns] == [
        "You are a pirate.",
        *(m["content"] for m in TALK),
    ]


def test_an_empty_system_prompt_is_none(chatml):
    assert chatml.encode([system(""), *TALK]).ids == chatml.encode(TALK).ids


def test_thinking_is_off_unless_asked():
    tokenizer = tiny.make_tokenizer(tiny.QWEN3)
    off, on = ChatFormat(tokenizer), ChatFormat(tokenizer, thinking=True)
    assert off.render(TALK[:1], add_generation_prompt=True).endswith("<think>\n\n</think>\n\n")
    assert on.render(TALK[:1], add_generation_prompt=True).endswith("assistant\n")
    assert off.hash != on.hash


def test_thinking_that_the_template_drops_is_refused():
    chat = ChatFormat(tiny.make_tokenizer(tiny.QWEN3))
    with pytest.raises(TemplateError, match=r"turn 1 .*thinking block"):
        chat.encode([TALK[0], assistant("<think>\nhm\n</think>\n\nI am."), *TALK[2:]])


def test_dates_are_the_same_every_day():
    chat = ChatFormat(tiny.make_tokenizer(tiny.LLAMA3, eos="<|eot_id|>"))
    assert "26 Jul 2024" in chat.render(TALK)


def test_plain_template_with_bos():
    tokenizer = tiny.make_tokenizer(None, eos="<eos>")
    chat = ChatFormat(tokenizer)
    assert chat.plain
    assert chat.template == PLAIN_TEMPLATE
    encoded = chat.encode([system("Be brief."), *TALK[:2]])
    assert encoded.ids[0] == tokenizer.bos_token_id
    assert encoded.ids.count(tokenizer.bos_token_id) == 1
    assert encoded.text == "<bos>Be brief.\n\nUser:\nWho are you?\n\nAssistant:\nI am an assistant. Who are you?\n\n"
    assert chat.stop_strings
    assert not ChatFormat(tiny.make_tokenizer(tiny.CHATML)).stop_strings


def test_two_bos_are_refused():
    twice = "{{ bos_token + bos_token }}" + tiny.CHATML
    with pytest.raises(TemplateError, match="two BOS"):
        ChatFormat(tiny.make_tokenizer(twice)).encode(TALK)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'][:5] + '\n' }}{% endfor %}", "changes turn"),
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] | upper + '\n' }}{% endfor %}", "changes turn"),
        ("{{ 'nothing' }}", "turn 0"),
        ("{{ raise_exception('no') }}", "refused the turns user → assistant"),
    ],
)
def test_templates_that_change_content_are_refused(template, said):
    with pytest.raises(TemplateError, match=said):
        ChatFormat(tiny.make_tokenizer(template)).encode(TALK)


def test_a_dropped_system_prompt_is_noticed():
    cuts = tiny.CHATML.replace("m['content']", "(m['content'] if m['role'] != 'system' else m['content'][:20])")
    chat = ChatFormat(tiny.make_tokenizer(cuts))
    with pytest.raises(TemplateError, match="system prompt"):
        chat.encode_prompt([system("You are a pirate who sails the seven seas."), *TALK[:1]])


def test_own_template_and_hash():
    tokenizer = tiny.make_tokenizer(tiny.CHATML)
    assert ChatFormat(tokenizer, template=tiny.LLAMA3).hash != ChatFormat(tokenizer).hash
    assert ChatFormat(tokenizer).hash == ChatFormat(tiny.make_tokenizer(tiny.CHATML)).hash
    assert tokenizer.chat_template == tiny.CHATML


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(TemplateError, match="fast tokenizer"):
        ChatFormat(Slow())


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Who are you?", "a str came"),
        ([], "empty"),
        ([user("")], "Turn 0 .* is empty"),
        ([user("  \n")], "Turn 0 .* is empty"),
        ([*TALK[:1], assistant("")], "Turn 1 .assistant. is empty"),
        ([user("a"), user("b")], "Turns 0 and 1 are both user"),
        ([user("a"), assistant("b"), assistant("c")], "Turns 1 and 2 are both assistant"),
        ([assistant("a")], "no user turn before"),
        ([system("a"), assistant("b")], "no user turn before"),
        ([system("a")], "only a system turn"),
        ([user("a"), system("b")], "only the first turn"),
        ([{"role": "human", "content": "a"}], "unknown role 'human'"),
        ([{"role": "user"}], "Turn 0 is not"),
        ([{"role": "user", "content": None}], "NoneType"),
        ([{"role": "user", "content": ["a"]}], "list"),
        (["hello"], "Turn 0 is not"),
    ],
)
def test_bad_conversations_are_named(messages, said):
    raw = inspect.unwrap(check_conversation)  # a user has no type checker that would refuse these first
    with pytest.raises(ConversationError, match=said):
        raw(messages)


def test_tool_turns_and_repeated_tool_calls_pass():
    check_conversation([user("a"), {"role": "tool", "content": "b"}, {"role": "tool", "content": "c"}, assistant("d")])


def test_a_prompt_must_not_end_with_an_answer(chatml):
    with pytest.raises(ConversationError, match="ends with an assistant turn"):
        chatml.encode_prompt(TALK)
