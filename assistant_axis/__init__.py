"""Who is this model being right now?

Persona vectors, the Assistant Axis, steering, activation capping and drift for any chat model, after Lu et al. 2026
("The Assistant Axis", arXiv 2601.10387). Positive means Assistant-like, everywhere.

Public names are loaded when they are first used: `import assistant_axis` costs milliseconds and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from assistant_axis._version import __version__

if TYPE_CHECKING:
    from assistant_axis.activations.spans import Span as Span
    from assistant_axis.activations.store import Conditions as Conditions
    from assistant_axis.drift.trajectory import Trajectory as Trajectory
    from assistant_axis.drift.trajectory import trajectory as trajectory
    from assistant_axis.drift.transcripts import read_transcripts as read_transcripts
    from assistant_axis.geometry.axis import AssistantAxis as AssistantAxis
    from assistant_axis.geometry.precomputed import load_precomputed as load_precomputed
    from assistant_axis.geometry.precomputed import load_precomputed_axis as load_precomputed_axis
    from assistant_axis.geometry.published import compare_published as compare_published
    from assistant_axis.geometry.space import PersonaSpace as PersonaSpace
    from assistant_axis.geometry.vectors import PersonaVectors as PersonaVectors
    from assistant_axis.models.chat import ChatFormat as ChatFormat
    from assistant_axis.models.generation import Answer as Answer
    from assistant_axis.models.hook_points import AttnOut as AttnOut
    from assistant_axis.models.hook_points import HookPoint as HookPoint
    from assistant_axis.models.hook_points import MlpOut as MlpOut
    from assistant_axis.models.hook_points import ResidPost as ResidPost
    from assistant_axis.models.hook_points import ResidPre as ResidPre
    from assistant_axis.models.hooked import ActivationCache as ActivationCache
    from assistant_axis.models.hooked import HookedChatModel as HookedChatModel
    from assistant_axis.models.loading import load_model as load_model
    from assistant_axis.personas.library import PersonaLibrary as PersonaLibrary
    from assistant_axis.personas.library import Question as Question
    from assistant_axis.personas.library import Role as Role
    from assistant_axis.personas.library import Trait as Trait
    from assistant_axis.personas.library import load_personas as load_personas
    from assistant_axis.pipeline.extract import Sampling as Sampling
    from assistant_axis.pipeline.extract import extract_persona_vectors as extract_persona_vectors
    from assistant_axis.runs.run import Run as Run
    from assistant_axis.runs.run import run as run
    from assistant_axis.steering.direction import Direction as Direction
    from assistant_axis.steering.interventions import Ablate as Ablate
    from assistant_axis.steering.interventions import Add as Add
    from assistant_axis.steering.interventions import Cap as Cap

# Public name -> module; the order is that of the reference pages.
_WHERE: dict[str, str] = {
    "load_model": "models.loading",
    "HookedChatModel": "models.hooked",
    "ActivationCache": "models.hooked",
    "Answer": "models.generation",
    "ChatFormat": "models.chat",
    "HookPoint": "models.hook_points",
    "ResidPost": "models.hook_points",
    "ResidPre": "models.hook_points",
    "AttnOut": "models.hook_points",
    "MlpOut": "models.hook_points",
    "load_personas": "personas.library",
    "PersonaLibrary": "personas.library",
    "Role": "personas.library",
    "Trait": "personas.library",
    "Question": "personas.library",
    "Span": "activations.spans",
    "Conditions": "activations.store",
    "extract_persona_vectors": "pipeline.extract",
    "Sampling": "pipeline.extract",
    "run": "runs.run",
    "Run": "runs.run",
    "PersonaVectors": "geometry.vectors",
    "load_precomputed": "geometry.precomputed",
    "load_precomputed_axis": "geometry.precomputed",
    "AssistantAxis": "geometry.axis",
    "PersonaSpace": "geometry.space",
    "compare_published": "geometry.published",
    "Direction": "steering.direction",
    "Add": "steering.interventions",
    "Cap": "steering.interventions",
    "Ablate": "steering.interventions",
    "trajectory": "drift.trajectory",
    "Trajectory": "drift.trajectory",
    "read_transcripts": "drift.transcripts",
}

__all__ = ["__version__", *_WHERE]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
