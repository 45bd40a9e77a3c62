"""Synthetic persona vectors: forty roles on a line with noise, the default at its Assistant end."""

import pytest
import torch

from assistant_axis.activations.store import Conditions
from assistant_axis.geometry.vectors import PersonaVectors


def make_vectors(n_roles: int = 40, n_layers: int = 4, d_model: int = 16, first: str = "<b>&co") -> PersonaVectors:
    g = torch.Generator().manual_seed(0)
    direction = torch.randn(n_layers, d_model, generator=g)
    place = torch.linspace(1, -1, n_roles)[:, None, None] * 4
    vectors = place * direction + 0.6 * torch.randn(n_roles, n_layers, d_model, generator=g) + 3
    default = 4.5 * direction + 3
    return PersonaVectors(
        roles=(first, *(f"role_{k}" for k in range(1, n_roles))),
        layers=tuple(range(n_layers)),
        vectors=vectors,
        default=default,
        default_conditions=torch.stack([default - 0.3, default + 0.3]),
        counts=torch.full((n_roles,), 8),
        default_count=10,
        resid_norms=torch.full((n_layers,), 20.0),
        conditions=Conditions(
            "tiny<model>",
            "f00",
            n_layers,
            d_model,
            "resid_post",
            "header",
            "t",
            "template",
            "float32",
            "own",
            "p",
            "2 × 4",
            0,
        ),
    )


@pytest.fixture(scope="session")
def vectors() -> PersonaVectors:
    return make_vectors()
