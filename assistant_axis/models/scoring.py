"""How likely a model finds given answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel


def log_likelihoods(
    model: "HookedChatModel", rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, token_budget: int = 2048
) -> list[float]:
    """Mean log-probability per token (nats) of each answer after its prompt, by the model as it stands.

    Args:
        model: the model; interventions in force act.
        rows: pairs of prompt ids and answer ids, neither empty.
        token_budget: padded tokens a batch.
    """
    out: dict[int, float] = {}
    order = sorted(range(len(rows)), key=lambda k: len(rows[k][0]) + len(rows[k][1]))
    batch: list[int] = []
    for place, k in enumerate(order):
        batch.append(k)
        following = order[place + 1] if place + 1 < len(order) else None
        longest = 0 if following is None else len(rows[following][0]) + len(rows[following][1])
        if following is None or (len(batch) + 1) * longest > token_budget:
            out |= zip(batch, _likelihood_batch(model, [rows[b] for b in batch]), strict=True)
            batch = []
    return [out[k] for k in range(len(rows))]


def _likelihood_batch(model: "HookedChatModel", rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    ids, mask = model.pad([[*p, *a] for p, a in rows])
    response = torch.zeros_like(mask)
    for k, (prompt, answer) in enumerate(rows):
        response[k, len(prompt) : len(prompt) + len(answer)] = True
    with model.positions.known(response):
        out = model.forward(ids, mask, logits=None)
    logits = out.logits if hasattr(out, "logits") else out
    scores = []
    for k, (prompt, answer) in enumerate(rows):
        said = logits[k, len(prompt) - 1 : len(prompt) + len(answer) - 1].float()
        picked = said.gather(-1, torch.tensor(answer, device=said.device)[:, None])[:, 0] - said.logsumexp(-1)
        scores.append(float(picked.mean()))
    return scores
