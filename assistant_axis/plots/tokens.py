"""Tokens in colour: by the turn they belong to, or by a value. No script, no network, everything escaped."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from assistant_axis.errors import SettingError

if TYPE_CHECKING:
    from rich.text import Text

    from assistant_axis.models.chat import Conversation
    from assistant_axis.models.hooked import HookedChatModel

# name of a kind -> hue (degrees) and how strong; headers are paler than what is said.
_HUES = {"system": 275, "user": 30, "assistant": 212, "tool": 150}
_RICH = {"system": "magenta", "user": "dark_orange", "assistant": "dodger_blue1", "tool": "green"}

_CSS = (
    ".aa-tokens{font:13px/1.9 ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere;"
    "color:#1d2530;background:#fff;border:1px solid #8884;border-radius:6px;padding:.7em .9em;margin:.4em 0}"
    ".aa-tokens .t{border-radius:3px;padding:.1em 0;box-shadow:inset -1px 0 #8883;"
    "background:hsl(var(--h) 75% 50%/calc(var(--a)*.55))}"
    ".aa-tokens .e{opacity:.55}.aa-tokens .k{display:block;font:12px/1.6 system-ui,sans-serif;margin-bottom:.4em}"
    ".aa-tokens .k b{font-weight:500;border-radius:3px;padding:.1em .5em;margin-right:.5em;"
    "background:hsl(var(--h) 75% 50%/calc(var(--a)*.55))}"
    "@media(prefers-color-scheme:dark){.aa-tokens{color:#e4e8ed;background:#14181d}"
    ".aa-tokens .t,.aa-tokens .k b{background:hsl(var(--h) 75% 55%/calc(var(--a)*.75))}}"
)


@dataclass(frozen=True)
class Token:
    """One token as it is shown.

    Attributes:
        text: its text; a lone byte of a longer character shows as �.
        hue: of its background, in degrees.
        strength: of its background, 0 … 1.
        note: what the mouse says.
        style: a rich style for the terminal.
    """

    text: str
    hue: int
    strength: float
    note: str
    style: str


@dataclass(frozen=True)
class TokenView:
    """Tokens in colour: a notebook shows HTML, rich prints colours, `str()` is plain text."""

    tokens: tuple[Token, ...]
    legend: tuple[Token, ...] = ()
    caption: str = ""

    def _repr_html_(self) -> str:
        keys = "".join(f'<b style="--h:{k.hue};--a:{k.strength:.2f}">{escape(k.text)}</b>' for k in self.legend)
        head = f'<span class="k">{keys}{escape(self.caption)}</span>' if keys or self.caption else ""
        body = "".join(
            f'<span class="t" style="--h:{t.hue};--a:{t.strength:.3f}" title="{_attribute(t.note)}">{_shown(t.text)}</span>'
            for t in self.tokens
        )
        return f'<style>{_CSS}</style><div class="aa-tokens">{head}{body}</div>'

    def __html__(self) -> str:
        """For templates that escape: this is HTML already."""
        return self._repr_html_()

    def __rich__(self) -> "Text":
        from rich.text import Text

        text = Text()
        for key in self.legend:
            text.append(f" {key.text} ", style=key.style)
            text.append(" ")
        if self.caption:
            text.append(_visible(self.caption), style="dim")
        if text:
            text.append("\n")
        for token in self.tokens:
            text.append(_visible(token.text), style=token.style)
        return text

    def __str__(self) -> str:
        return "".join(t.text for t in self.tokens)


def spans_view(model: "HookedChatModel", messages: "Conversation") -> TokenView:
    """A conversation's tokens, coloured by the turn they belong to: strong for what is said, pale for its header.

    Tokens that belong to no turn (what closes one) are not coloured. The mouse says position, token id and turn.

    Raises:
        ConversationError, TemplateError: as `ChatFormat.encode` does.
    """
    chat = model.chat.encode(messages)
    kinds: list[tuple[str, str, float, int]] = [("", "template", 0.0, -1)] * len(chat.ids)
    for turn in chat.turns:
        for part, (start, stop), strength in (("header", turn.header, 0.3), ("content", turn.content, 1.0)):
            kinds[start:stop] = [(turn.role, part, strength, turn.index)] * (stop - start)
    tokens = []
    for k, (text, (role, part, strength, index)) in enumerate(zip(_pieces(model, chat.ids), kinds, strict=True)):
        where = f"turn {index} {role} {part}" if role else "template"
        note = f"{where} · position {k} · id {chat.ids[k]}"
        tokens.append(Token(text, _HUES.get(role, 0), strength, note, _span_style(role, part)))
    seen = [r for r in _HUES if any(t.role == r for t in chat.turns)]
    legend = [Token(r, _HUES[r], 1.0, "", _span_style(r, "content")) for r in seen]
    legend.append(Token("headers pale", 212, 0.3, "", _span_style("assistant", "header")))
    return TokenView(tuple(tokens), tuple(legend), f"{model.name}, {len(tokens)} tokens")


def values_view(
    tokens: Sequence[str],
    values: Sequence[float],
    *,
    center: float = 0.0,
    limit: float | None = None,
    caption: str = "",
) -> TokenView:
    """Tokens coloured by a value on a diverging scale: blue above `center` (Assistant-like), orange below it.

    Args:
        tokens: the text of each token.
        values: one number a token, in one unit (say in `caption` whether a projection is raw or centred).
        center: the value without colour.
        limit: distance from `center` of the strongest colour; default: the largest there is.
        caption: shown above.

    Raises:
        SettingError: not as many values as tokens.
    """
    numbers = _numbers(tokens, values)
    reach = max((abs(v - center) for v in numbers if math.isfinite(v)), default=0.0) if limit is None else limit
    out = []
    for text, value in zip(tokens, numbers, strict=True):
        share = (value - center) / reach if reach > 0 and math.isfinite(value) else 0.0
        share = max(-1.0, min(1.0, share))
        hue = _HUES["assistant"] if share >= 0 else _HUES["user"]
        out.append(Token(str(text), hue, abs(share), f"{value:+.4g}", _value_style(share)))
    legend = (
        Token(f"{center - reach:+.3g}", _HUES["user"], 1.0, "", _value_style(-1)),
        Token(f"{center + reach:+.3g}", _HUES["assistant"], 1.0, "", _value_style(1)),
    )
    return TokenView(tuple(out), legend, caption)


@dataclass(frozen=True)
class FramedHtml:
    """An HTML page of its own inside an iframe: nothing leaves it, and nothing is fetched."""

    page: str = field(repr=False)
    height: int
    text: str

    def _repr_html_(self) -> str:
        return (
            f'<iframe title="tokens" sandbox="allow-scripts" style="width:100%;height:{self.height}px;border:0;'
            f'background:#fff" srcdoc="{_attribute(self.page)}"></iframe>'
        )

    def __html__(self) -> str:
        return self._repr_html_()

    def __str__(self) -> str:
        return self.text


def circuitsvis_view(tokens: Sequence[str], values: Sequence[float], *, height: int = 220) -> FramedHtml:
    """CircuitsVis' `colored_tokens`, self-contained: its script is inside, tokens cannot break out, no network.

    CircuitsVis by itself links a CDN, asks the network whether it is there, and writes tokens into a script
    unescaped. The scripts here run in a sandboxed frame whose policy forbids every request.

    Args:
        tokens: the text of each token.
        values: one number a token; positive is blue.
        height: of the frame in pixels.

    Raises:
        SettingError: not as many values as tokens.
    """
    import base64
    import gzip
    import json
    from importlib import resources

    props = {
        "tokens": [escape(_visible(str(t))) for t in tokens],  # CircuitsVis sets them as HTML
        "values": [v if math.isfinite(v) else 0.0 for v in _numbers(tokens, values)],
        "positiveColor": "blue",
        "negativeColor": "red",
    }
    said = json.dumps(props)  # ASCII only
    for mark in "<>&":  # in a script, JSON may hold them as escapes alone
        said = said.replace(mark, f"\\u{ord(mark):04x}")
    source = (resources.files("circuitsvis") / "dist" / "cdn" / "iife.js").read_bytes()
    packed = base64.b64encode(gzip.compress(source, mtime=0)).decode()  # 1.3 MB become 0.5: a notebook keeps every view
    policy = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; font-src data:"
    page = (
        f'<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<body style="margin:8px;font-family:system-ui,sans-serif"><div id="view"></div><script>(async () => {'
        f'const packed = Uint8Array.from(atob("{packed}"), c => c.charCodeAt(0));'
        'const whole = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));'
        'const library = document.createElement("script");'
        "library.textContent = await new Response(whole).text();"
        "document.head.append(library);"
        f"\nCircuitsVis.render('view', CircuitsVis.ColoredTokens, {said});}})();</script>"
    )
    return FramedHtml(page, height, "".join(str(t) for t in tokens))


def _pieces(model: "HookedChatModel", ids: Sequence[int]) -> list[str]:
    """Each token's own text. Tokens that share a character (bytes of an emoji) decode to � each: the first of such a
    run gets the character, the others nothing."""
    decode = model.tokenizer.decode
    pieces = [str(decode([i], clean_up_tokenization_spaces=False)) for i in ids]
    k = 0
    while k < len(ids):
        if "\ufffd" not in pieces[k]:
            k += 1
            continue
        stop = k + 1
        while stop < min(len(ids), k + 8) and "\ufffd" in (whole := str(decode(list(ids[k:stop])))) and whole:
            stop += 1
        whole = str(decode(list(ids[k:stop]), clean_up_tokenization_spaces=False))
        if "\ufffd" not in whole:
            pieces[k:stop] = [whole, *[""] * (stop - k - 1)]
        k = stop
    return pieces


def _numbers(tokens: Sequence[str], values: Any) -> list[float]:
    numbers = [float(v) for v in values]
    if len(numbers) != len(tokens):
        raise SettingError(f"There are {len(numbers)} values for {len(tokens)} tokens; give one a token.")
    return numbers


def _span_style(role: str, part: str) -> str:
    if not role:
        return "dim"
    return f"black on {_RICH[role]}" if part == "content" else f"{_RICH[role]} dim"


def _value_style(share: float) -> str:
    if abs(share) < 0.08:
        return ""
    amount = abs(share)
    full = (47, 127, 209) if share > 0 else (217, 119, 43)
    mixed = [round(255 - (255 - c) * amount) for c in full]
    return f"#101418 on #{mixed[0]:02x}{mixed[1]:02x}{mixed[2]:02x}"


def _mended(text: str) -> str:
    """Lone surrogates (bytes read with `surrogateescape`) cannot be written as UTF-8; they show as �."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _visible(text: str) -> str:
    """Control characters as pictures, so that no token acts on what shows it."""
    return "".join(
        chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else "␡" if c == "\x7f" else c for c in _mended(text)
    )


def _shown(text: str) -> str:
    return (
        escape(_visible(text)).replace("\n", '<span class="e">⏎</span>\n').replace("\t", '<span class="e">⇥</span>\t')
    )


def _attribute(text: str) -> str:
    return escape(_mended(text), quote=True)
