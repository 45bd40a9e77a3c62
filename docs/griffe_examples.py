"""A build step of the site: `>>>` examples in docstrings become code blocks."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^|(?<=\n))>>> [^\n]*(?:\n(?!\n)[^\n]+)*")


class Examples(griffe.Extension):
    """Fences every paragraph that opens with `>>>`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe once for every object."""
        if obj.docstring is not None and ">>> " in obj.docstring.value:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(found: re.Match[str]) -> str:
    said = re.sub(r"\s*# doctest: \+SKIP", "", found.group())
    return f"```pycon\n{said}\n```"
