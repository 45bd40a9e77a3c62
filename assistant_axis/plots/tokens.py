"""Tokens in colour: in a notebook (script-free, escaped HTML), in a terminal (rich), and through CircuitsVis."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from assistant_axis.errors import SettingError

if TYPE_CHECKING:
    from rich.text import Text

    from assistant_axis.models.chat import Conversation
    from assistant_axis.models.hooked import HookedChatModel

# (red, green, blue) of each role's content; headers are grey.
_ROLE_COLOURS = {"system": (147, 51, 234), "user": (249, 115, 22), "assistant": (37, 99, 235), "tool": (22, 163, 74)}
_HEADER = (107, 114, 128)


@dataclass(frozen=True)
class TokenView:
    """Tokens with a colour and a note each. A notebook shows it by itself; `print` of rich shows it in a terminal.

    Attributes:
        tokens: the text of each token.
        colours: (red, green, blue, opacity) of each token's ground.
        notes: what a reader sees when pointing at a token.
        legend: (label, colour) pairs.
    """

    tokens: tuple[str, ...]
    colours: tuple[tuple[int, int, int, float], ...]
    notes: tuple[str, ...]
    legend: tuple[tuple[str, tuple[int, int, int, float]], ...] = ()

    def _repr_html_(self) -> str:
        pieces = [
            f'<span title="{html.escape(note)}" style="background:{_css(colour)};border-radius:3px">{_visible(token)}</span>'
            for token, colour, note in zip(self.tokens, self.colours, self.notes, strict=True)
        ]
        keys = " ".join(
            f'<span style="background:{_css(c)};border-radius:3px;padding:0 .4em">{html.escape(label)}</span>'
            for label, c in self.legend
        )
        return (
            '<div style="font-family:ui-monospace,monospace;font-size:13px;line-height:1.7;white-space:pre-wrap;'
            f'overflow-wrap:anywhere"><div style="margin-bottom:.5em">{keys}</div>{"".join(pieces)}</div>'
        )

    def __rich__(self) -> Text:
        from rich.text import Text

        text = Text()
        for label, colour in self.legend:
            text.append(f" {label} ", style=_rich(colour)).append(" ")
        if self.legend:
            text.append("\n")
        for token, colour in zip(self.tokens, self.colours, strict=True):
            text.append(token, style=_rich(colour))
        return text

    def __str__(self) -> str:
        return "".join(self.tokens)


def spans_view(model: HookedChatModel, messages: Conversation) -> TokenView:
    """A conversation's tokens coloured by turn: content in the colour of its speaker, headers grey, the rest plain.

    Raises:
        ConversationError, TemplateError: as `ChatFormat.encode`.
    """
    ends_with_answer = messages[-1]["role"] == "assistant" if len(messages) else True
    chat = model.chat.encode(messages, add_generation_prompt=not ends_with_answer)
    tokens = pieces(model, chat.ids)
    colours: list[tuple[int, int, int, float]] = [(0, 0, 0, 0.0)] * len(tokens)
    notes = [f"token {k}: outside every turn" for k in range(len(tokens))]

    def paint(start: int, stop: int, colour: tuple[int, int, int, float], what: str) -> None:
        for k in range(start, stop):
            colours[k], notes[k] = colour, f"token {k}: {what}"

    for turn in chat.turns:
        paint(*turn.header, (*_HEADER, 0.25), f"header of turn {turn.index} ({turn.role})")
        paint(*turn.content, (*_ROLE_COLOURS[turn.role], 0.28), f"content of turn {turn.index} ({turn.role})")
    if chat.generation_header is not None:
        paint(*chat.generation_header, (*_HEADER, 0.5), "header of the answer to come")
    seen = dict.fromkeys(t.role for t in chat.turns)
    legend = [(role, (*_ROLE_COLOURS[role], 0.28)) for role in seen] + [("header", (*_HEADER, 0.25))]
    return TokenView(tuple(tokens), tuple(colours), tuple(notes), tuple(legend))


def values_view(
    tokens: Sequence[str], values: Sequence[float], *, center: float = 0.0, label: str = "projection"
) -> TokenView:
    """Tokens coloured by a number each: blue above `center` (Assistant-like), orange below.

    Raises:
        SettingError: not one value a token.
    """
    if len(tokens) != len(values):
        raise SettingError(f"{len(values)} values came for {len(tokens)} tokens; one for each is needed.")
    widest = max((abs(v - center) for v in values if v == v), default=0.0) or 1.0
    colours = tuple(
        (
            *(_ROLE_COLOURS["assistant"] if v >= center else _ROLE_COLOURS["user"]),
            0.75 * min(1.0, abs(v - center) / widest),
        )
        if v == v
        else (0, 0, 0, 0.0)
        for v in values
    )
    notes = tuple(f"{label} {v:+.3g}" for v in values)
    legend = (
        (f"{label} above {center:.3g}", (*_ROLE_COLOURS["assistant"], 0.5)),
        ("below", (*_ROLE_COLOURS["user"], 0.5)),
    )
    return TokenView(tuple(tokens), colours, notes, legend)


def pieces(model: HookedChatModel, ids: Sequence[int]) -> list[str]:
    """The text of every token such that they join to the whole text (a character split over tokens stands at its last)."""
    decode = model.tokenizer.decode
    found, done = [], 0
    whole = ""
    for k in range(1, len(ids) + 1):
        whole = str(decode(list(ids[done:k]), clean_up_tokenization_spaces=False))
        if whole.endswith("\ufffd") and k < len(ids):
            found.append("")
            continue
        found.append(whole)
        done = k
    return found


@dataclass(frozen=True)
class CircuitsVisView:
    """A CircuitsVis view with its script inside: nothing is fetched, and no token can end the script."""

    source: str

    def _repr_html_(self) -> str:
        return self.source


def circuitsvis_view(tokens: Sequence[str], values: Sequence[float]) -> CircuitsVisView:
    """CircuitsVis' `colored_tokens`, self-contained and escaped.

    By itself CircuitsVis links a content network (or asks the network whether it is there), and a token such as
    `</script>` ends its script. Here the bundle is written into the page and `<` in tokens is written as `\\u003c`.

    Raises:
        SettingError: not one value a token.
    """
    if len(tokens) != len(values):
        raise SettingError(f"{len(values)} values came for {len(tokens)} tokens; one for each is needed.")
    from circuitsvis.utils.render import render_local

    stand_in = "\ue000"  # a private-use character: JSON writes it as the six characters \ue000
    page = render_local(
        "ColoredTokens", tokens=[t.replace("<", stand_in) for t in tokens], values=[float(v) for v in values]
    )
    head, call, tail = page.rpartition("CircuitsVis.render(")
    return CircuitsVisView(head + call + tail.replace("\\ue000", "\\u003c").replace(stand_in, "\\u003c"))


def _visible(token: str) -> str:
    """Escaped, with line breaks shown and kept."""
    return html.escape(token).replace("\n", '<span style="opacity:.45">⏎</span>\n')


def _css(colour: tuple[int, int, int, float]) -> str:
    red, green, blue, opacity = colour
    return f"rgba({red},{green},{blue},{opacity:.2f})"


def _rich(colour: tuple[int, int, int, float]) -> str:
    red, green, blue, opacity = colour
    if opacity == 0:
        return ""
    # A terminal knows no opacity: mix with white, and write in black so that it reads on any ground.
    mixed = [round(255 - (255 - c) * min(1.0, opacity * 1.2)) for c in (red, green, blue)]
    return f"black on rgb({mixed[0]},{mixed[1]},{mixed[2]})"
