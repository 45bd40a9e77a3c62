"""Persona vectors with known structure."""

from dataclasses import replace

import torch

from assistant_axis.activations.store import Conditions
from assistant_axis.geometry.vectors import PersonaVectors, Samples


def conditions(model="toy", n_layers=3, d_model=24, **more) -> Conditions:
    return Conditions(
        **{
            "model": model, "fingerprint": model, "n_layers": n_layers, "d_model": d_model, "hook_point": "resid_post",
            "span": "header", "template_hash": "t", "system_rule": "template", "dtype": "float32", "personas": "bundled",
            "personas_hash": "p", "design": "d", "seed": 0, **more,
        }
    )  # fmt: skip


def vectors(names, *, layers=3, width=24, rollouts=8, noise=0.2, seed=0, **more) -> PersonaVectors:
    """Roles spread over five components of falling size; the default at the positive end of the first."""
    g = torch.Generator().manual_seed(seed)
    n = len(names)
    basis = torch.linalg.qr(torch.randn(layers, width, width, generator=g))[0][:, :5]
    spread = torch.randn(n, layers, 5, generator=g) * torch.tensor([4.0, 2.0, 1.4, 1.0, 0.7])
    true = torch.einsum("rlk,lkd->rld", spread, basis) + 3.0
    # The default lies beyond all roles on the first component and a little off on the others, so that signs are fixed.
    own = torch.einsum("lk,lkd->ld", torch.tensor([[12.0, 2.0, 1.5, 1.2, 1.0]]).expand(layers, 5), basis) + 3.0
    role = torch.arange(-1, n).repeat_interleave(rollouts)
    whole = torch.cat([own[None], true])
    x = whole.repeat_interleave(rollouts, 0)
    x = (x + noise * torch.randn(x.shape, generator=g)).half()
    means = torch.stack([x[role == r].float().mean(0) for r in range(-1, n)])
    return PersonaVectors(
        roles=tuple(names), layers=tuple(range(layers)), vectors=means[1:], default=means[0],
        default_conditions=means[:1].repeat(5, 1, 1), counts=torch.full((n,), rollouts), default_count=rollouts,
        resid_norms=torch.ones(layers), conditions=conditions(n_layers=layers, d_model=width, **more),
        samples=Samples(x, role),
    )  # fmt: skip


def rotated(v: PersonaVectors, width: int, scale: float, seed=1, **more) -> PersonaVectors:
    """The same geometry in other coordinates: a rotation into `width`, a scale (negative: flipped), a shift."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=g))[0][: v.d_model]
    return replace(
        v, vectors=scale * v.vectors @ turn + 5, default=scale * v.default @ turn + 5,
        default_conditions=scale * v.default_conditions @ turn + 5, samples=None,
        conditions=replace(v.conditions, **{"model": "other", "fingerprint": "o", "d_model": width, **more}),
    )  # fmt: skip
