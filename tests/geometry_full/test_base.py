import numpy as np
import pytest
import tiny
import torch

from assistant_axis.errors import SettingError
from assistant_axis.pipeline.base import (
    Completion,
    cluster_completions,
    complete_prefills,
    is_broken,
    label_completions,
)
from assistant_axis.pipeline.extract import extract_persona_vectors
from assistant_axis.plots.geometry_extra import completion_shares
from assistant_axis.plots.style import save_figure


@pytest.fixture(scope="module")
def base():
    return tiny.make_pair("llama", tokenizer=tiny.make_tokenizer(None, eos="<eos>"), name="tiny-base")[0]


class Letters:
    """Stands in for a sentence encoder: counts letters."""

    def embed(self, messages, *, progress=False):
        rows = np.array([[m.count(x) for x in "abcdefghijklmnopqrstuvwxyz"] for m in messages], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_doses_change_completions_and_zero_changes_nothing(base):
    axis = extract_persona_vectors(
        base, roles=["pirate", "ghost", "judge"], prompts_per_role=1, questions_per_prompt=2, progress=False
    ).axis()
    options = {"samples": 3, "max_new_tokens": 6, "layer": 1, "progress": False}
    found = complete_prefills(base, axis, doses=(-4.0, 0.0, 4.0), **options)
    assert len(found) == 3 * 3 * 3
    assert [c for c in found if c.dose == 0] == complete_prefills(base, axis, doses=(0.0,), **options)
    assert [c.text for c in found if c.dose == -4] != [c.text for c in found if c.dose == 4]
    with pytest.raises(SettingError, match="temperature"):
        complete_prefills(base, axis, temperature=0.0)
    with pytest.raises(SettingError, match="empty"):
        complete_prefills(base, axis, prefills=[" "])


def test_clusters_follow_the_words():
    made = [Completion("My job is to", -1.0, t) for t in ("haunt moors", "haunt moor", "haunt the moors", "")]
    made += [Completion("My job is to", 1.0, t) for t in ("help you plan", "help you", "help people plan", "help plan")]
    c = cluster_completions(made, 2, embedder=Letters())
    assert c.doses == (-1.0, 1.0)
    assert np.allclose(c.shares.sum(1), 1)
    ghost = next(k for k, label in enumerate(c.labels) if "haunt" in label)
    assert c.shares[0, ghost] == 0.75
    assert c.shares[1, ghost] == 0
    assert c.labels[-1] == "(nothing)"
    assert c.shares[0, -1] == 0.25
    assert c.broken.tolist() == [0.25, 0.0]
    assert "75%" in str(c)
    with pytest.raises(SettingError, match="clusters"):
        cluster_completions(made, 9, embedder=Letters())
    shares = label_completions(made, lambda _prefill, text: "helps" if "help" in text else "other")
    assert shares == {-1.0: {"other": 1.0}, 1.0: {"helps": 1.0}}
    assert torch.is_tensor(torch.tensor(c.members))


def test_clusters_are_about_the_continuation_and_not_the_opening():
    made = [
        Completion(p, d, t)
        for p in ("My job is to", "I would describe myself as")
        for d, t in ((-1.0, "zzz zzz"), (-1.0, "zzz zzzz"), (1.0, "qqq qqq"), (1.0, "qqq qqqq"))
    ]
    c = cluster_completions(made, 2, embedder=Letters())
    assert sorted(c.shares.tolist()) == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("", True),
        ("<b><b><b><b><b><b><b><b>", True),
        ("chipchipchipchipchipchipchip", True),
        ("to die to die to die to die", True),
        ("keep you informed about the latest developments in the industry.", False),
        ("a fine, fine cook", False),
    ],
)
def test_broken_text_is_told(text, broken):
    assert is_broken(text) is broken


def test_the_figure_shows_every_group_and_what_is_broken(tmp_path):
    made = [
        Completion("My job is to", d, t)
        for d, t in ((-1.0, "haunt moors"), (-1.0, ""), (1.0, "help you"), (1.0, "help us"))
    ]
    figure = completion_shares(cluster_completions(made, 2, embedder=Letters()))
    assert len(figure.axes) == 2
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels[-1].startswith("broken")
    assert "(nothing)" in labels
    assert save_figure(figure, tmp_path / "shares.png").stat().st_size > 5000
