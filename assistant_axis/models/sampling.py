"""Sampling from the likeliest tokens only: temperature, top-k and nucleus without sorting the vocabulary.

A full sort of the vocabulary at every step costs a small model on a CPU a fifth of its time. The nucleus lies among the
likeliest tokens, which a partial sort finds; where it does not, more of them are taken, so that the distribution is that of
the full sort.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

_FIRST = 256


class Sampler:
    """Draws one token a row.

    Args:
        temperature: above 0.
        top_p: nucleus mass in (0, 1]: the fewest likeliest tokens that hold at least this mass (Holtzman et al. 2020).
        top_k: only the k likeliest tokens, before the nucleus; 0: all.
    """

    def __init__(self, temperature: float, top_p: float = 1.0, top_k: int = 0) -> None:
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k

    def draw(self, scores: Float[Tensor, "batch vocab"], at: Float[Tensor, "batch"]) -> Int[Tensor, "batch 1"]:
        """One token a row: where its distribution, the likeliest tokens first, has this much mass.

        Args:
            scores: logits.
            at: a uniform random number in [0, 1) for each row.
        """
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
            return index.gather(-1, _invert(mass, at))
        return _invert(scores.softmax(-1), at)


class Picked(LogitsProcessor):
    """For another library's greedy loop: leaves one token a row in the scores, drawn from the row's own stream.

    Args:
        sampler: how it is drawn.
        seeds: of each row's stream.
        limit: most tokens a row.
    """

    def __init__(self, sampler: Sampler, seeds: Sequence[int], limit: int) -> None:
        self.sampler, self.seeds = sampler, tuple(seeds)
        self._draws = torch.stack([stream(s, limit) for s in seeds])
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at = self._draws[:, self._step].to(scores.device)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, self.sampler.draw(scores, at), 0.0)


def stream(seed: int, count: int) -> Float[Tensor, "count"]:
    """Uniform numbers in [0, 1), on the CPU; the first ones do not depend on how many are asked for."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def _invert(mass: Float[Tensor, "batch kept"], at: Float[Tensor, "batch"]) -> Int[Tensor, "batch 1"]:
    """The first column whose cumulated mass is beyond a share of the total."""
    cumulated = mass.cumsum(-1)
    found = torch.searchsorted(cumulated, at[:, None] * cumulated[:, -1:], right=True)
    last = mass.shape[-1] - 1 - (mass.flip(-1) > 0).to(torch.int8).argmax(-1, keepdim=True)
    return torch.minimum(found, last)  # rounding must not lead beyond what has mass
