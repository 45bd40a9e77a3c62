"""A direction of the tiny model, and small files."""

import json
from pathlib import Path

import pytest
import torch

from assistant_axis.steering.direction import Direction


@pytest.fixture(scope="session")
def tiny_direction(tiny_model) -> Direction:
    """A seeded direction at every layer of the tiny model, with residual norms of one and a calibration."""
    vectors = torch.randn(tiny_model.n_layers, tiny_model.d_model, generator=torch.Generator().manual_seed(3))
    grid = torch.linspace(-1, 1, 101)[:, None].expand(101, tiny_model.n_layers).contiguous()
    return Direction.from_vectors(
        range(tiny_model.n_layers), vectors, resid_norms=torch.ones(tiny_model.n_layers), quantiles=grid
    )


@pytest.fixture
def choice_task(tmp_path: Path) -> Path:
    """A multiple-choice task file with data beside it."""
    items = [
        {"question": f"Name number {k}: the moon and the", "choices": ["sun", "wind", "sea"], "answer": k % 3}
        for k in range(9)
    ]
    (tmp_path / "items.json").write_text("\n".join(json.dumps(i) for i in items))
    path = tmp_path / "moon.yaml"
    path.write_text(
        "task: moon\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: items.json\n"
        "output_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\ndoc_to_choice: choices\n'
        "metric_list:\n  - metric: acc\n"
    )
    return path


@pytest.fixture
def story_task(tmp_path: Path) -> Path:
    """A task that generates, scored by exact match."""
    items = [{"question": f"Tell me story {k}.", "answer": "the"} for k in range(4)]
    (tmp_path / "stories.json").write_text("\n".join(json.dumps(i) for i in items))
    path = tmp_path / "stories.yaml"
    path.write_text(
        "task: stories\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: stories.json\n"
        "output_type: generate_until\ntest_split: test\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        "generation_kwargs:\n  until: ['\\n\\n']\n  max_gen_toks: 6\n  do_sample: false\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    return path
