"""The items of `everyday_choice` for lm-evaluation-harness."""

import json
from pathlib import Path
from typing import Any

import datasets


def items(**_settings: Any) -> dict[str, datasets.Dataset]:
    """The test split, read from the file beside this one."""
    lines = Path(__file__).with_name("everyday_choice.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
