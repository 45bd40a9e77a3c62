import numpy as np
import pytest
import tiny
import torch

from assistant_axis.errors import SettingError
from assistant_axis.pipeline.base import Completion, cluster_completions, complete_prefills, label_completions
from assistant_axis.pipeline.extract import extract_persona_vectors


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
    with pytest.raises(SettingError, match="clusters"):
        cluster_completions(made, 9, embedder=Letters())
    shares = label_completions(made, lambda _prefill, text: "helps" if "help" in text else "other")
    assert shares == {-1.0: {"other": 1.0}, 1.0: {"helps": 1.0}}
    assert torch.is_tensor(torch.tensor(c.members))
