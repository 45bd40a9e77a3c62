"""A tiny axis for the tiny model, and conversations to trace."""

from collections.abc import Callable

import pytest
import torch

from assistant_axis.activations.store import Conditions
from assistant_axis.drift.users import Scenario
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.models.hooked import HookedChatModel


def make_axis(model: HookedChatModel, span: str = "response", seed: int = 0) -> AssistantAxis:
    generator = torch.Generator().manual_seed(seed)
    shape = (model.n_layers, model.d_model)
    default, mean = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    grid = torch.linspace(-3, 3, 101)[:, None].repeat(1, model.n_layers)
    return AssistantAxis(
        layers=tuple(range(model.n_layers)),
        vectors=default - mean,
        default=default,
        role_mean=mean,
        resid_norms=torch.ones(model.n_layers),
        quantiles=grid,
        default_quantiles=grid + 1,
        calibration="rollouts",
        method="contrast",
        conditions=Conditions.of(model, span=span, personas="test", personas_hash="", design="test", seed=seed),
    )


@pytest.fixture(scope="session")
def axis_of() -> Callable[..., AssistantAxis]:
    """Makes a random axis for a tiny model."""
    return make_axis


@pytest.fixture(scope="session")
def tiny_axis(tiny_model: HookedChatModel) -> AssistantAxis:
    return make_axis(tiny_model)


@pytest.fixture
def talk() -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a river?"},
        {"role": "assistant", "content": "Water that flows to the sea."},
        {"role": "user", "content": "And a lake?"},
        {"role": "assistant", "content": "Water that stays where it is."},
        {"role": "user", "content": "Do you like lakes?"},
    ]


@pytest.fixture(scope="session")
def scenarios() -> list[Scenario]:
    return [
        Scenario(f"{domain}-{k}", domain, "p", "You are a tester.", "Tests.", (f"first {k}", f"second {k}", "third"))
        for k in range(3)
        for domain in ("therapy", "coding")
    ]
