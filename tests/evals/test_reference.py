"""The reference page names what the package has."""

import ast
from itertools import pairwise
from pathlib import Path

import assistant_axis.evals

ROOT = Path(__file__).resolve().parents[2]
INSIDE = {  # used by the commands and by one another
    "assistant_axis.evals.inspect_entry.assistant_axis",
    "assistant_axis.evals.inspect_provider.chat_messages",
    "assistant_axis.evals.inspect_provider.cut",
    "assistant_axis.evals.judging.named",
    "assistant_axis.evals.saving.direction_digest",
    "assistant_axis.evals.saving.identity",
    "assistant_axis.evals.tasks.leaves",
    "assistant_axis.evals.tasks.shown_examples",
    "assistant_axis.evals.tasks.task_error",
}


def test_every_public_name_is_on_the_page():
    said = (ROOT / "docs" / "reference" / "evals.md").read_text(encoding="utf-8").split()
    documented = {word for before, word in pairwise(said) if before == ":::"}
    (folder,) = assistant_axis.evals.__path__
    held = set()
    for file in Path(folder).glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                held.add(f"assistant_axis.evals.{file.stem}.{node.name}")
    assert held - INSIDE <= documented
    assert held >= INSIDE  # no name that has gone
