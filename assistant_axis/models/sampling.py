"""Sampling from the likeliest tokens only: temperature, top-k and nucleus without sorting the vocabulary.

A full sort of the vocabulary at every step costs a small model on a CPU a fifth of its time. The nucleus lies among the
likeliest tokens, which a partial sort finds; where it does not, more of them are taken, so that the distribution is that of
the full sort.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

_FIRST = 256


class Sampler(LogitsProcessor):
    """Draws one token a row and leaves it alone in the scores, so that a greedy loop picks it.

    Args:
        temperature: above 0.
        top_p: nucleus mass in (0, 1]: the fewest likeliest tokens that hold at least this mass (Holtzman et al. 2020).
        top_k: only the k likeliest tokens, before the nucleus; 0: all.
    """

    def __init__(self, temperature: float, top_p: float = 1.0, top_k: int = 0) -> None:
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k

    def draw(self, scores: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch 1"]:
        """One token a row, from the global random state."""
        scores = scores.float() / self.temperature
        size = scores.shape[-1]
        if self.top_k or self.top_p < 1:
            count = min(self.top_k or _FIRST, size)
            likeliest, index = scores.topk(count)
            whole = likeliest if self.top_k else scores
            while (mass := (likeliest - whole.logsumexp(-1, keepdim=True)).exp()).sum(-1).min() < self.top_p:
                if self.top_k or count == size:
                    break
                count = min(4 * count, size)
                likeliest, index = scores.topk(count)
            if self.top_p < 1:
                before = mass.cumsum(-1) - mass
                mass = mass.masked_fill(before >= self.top_p, 0.0)
            return index.gather(-1, torch.multinomial(mass, 1))
        return torch.multinomial(scores.softmax(-1), 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).scatter_(-1, self.draw(scores), 0.0)
