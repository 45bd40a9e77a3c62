"""A build step of the site: the command line's reference is written from the commands themselves."""

import inspect
from collections.abc import Iterator
from typing import Any

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put every command in place of the mark."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown


def commands() -> str:
    """Every command with its arguments and options, in Markdown."""
    from typer.main import get_command

    from assistant_axis.cli.main import app

    return "\n".join(_describe("assistant-axis", get_command(app), 2))


def _describe(name: str, command: Any, level: int) -> Iterator[str]:
    inside = getattr(command, "commands", {})
    yield f"\n{'#' * level} `{name}`\n"
    yield inspect.cleandoc(command.help or command.callback.__doc__ or "").replace("\b", "")
    if not inside:
        words = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
        yield f"\n```console\n$ {' '.join([name, '[OPTIONS]', *words])}\n```\n"
        yield from _table(command)
    for key, one in inside.items():
        if not one.hidden:
            yield from _describe(f"{name} {key}", one, min(level + 1, 3))


def _table(command: Any) -> Iterator[str]:
    rows = [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
    if rows:
        yield "\n| argument or option | | default |\n|---|---|---|"
    for p in rows:
        is_option = p.param_type_name == "option"
        names = ", ".join(f"`{x}`" for x in [*p.opts, *p.secondary_opts]) if is_option else f"`{p.name.upper()}`"
        said = " ".join((p.help or "").split()).replace("|", "\\|")
        given = p.default() if callable(p.default) else p.default
        plain = given is None or given == () or given == [] or type(given).__module__.startswith(("typer", "click"))
        default = "required" if p.required else "" if plain else f"`{given}`"
        yield f"| {names} | {said} | {default} |"
