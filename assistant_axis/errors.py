"""The errors a user can meet. Each message says what came, what was expected, and what to do.

The command line prints these without a traceback; anything else is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AssistantAxisError(Exception):
    """Base of every error raised on purpose by this package."""


class UnknownNameError(AssistantAxisError, KeyError):
    """A model, role, trait, question or setting of that name does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        said = f"Unknown {kind} {name!r}."
        if close:
            said += f" Did you mean {' or '.join(repr(c) for c in close)}?"
        elif names:
            shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            said += f" Known: {shown}."
        super().__init__(f"{said} {hint}".strip())
        self.close_matches = close

    def __str__(self) -> str:  # KeyError would quote the message
        return str(self.args[0])


class FetchError(AssistantAxisError):
    """A package could not be fetched: no network, or the index does not have it."""


class IntegrityError(AssistantAxisError):
    """Bytes do not have the hash they should have, or a file is truncated or tampered with."""


class UnsafeFileError(AssistantAxisError):
    """A pickle holds more than tensors and will not be loaded."""


class ArtefactMismatchError(AssistantAxisError):
    """An artefact was made for another model, layer set or chat template."""


class ModelError(AssistantAxisError):
    """A model cannot be used in the way that was asked."""


class LayerError(AssistantAxisError, IndexError):
    """A layer index or depth lies outside the model or the artefact."""


class ConversationError(AssistantAxisError, ValueError):
    """A conversation is not one: wrong roles, order, or empty content."""


class TemplateError(AssistantAxisError, ValueError):
    """A chat template drops, moves or changes what it was given."""


class NonFiniteError(AssistantAxisError, ValueError):
    """Activations hold NaN or infinity."""


class PersonaFileError(AssistantAxisError, ValueError):
    """A role, trait or question file is malformed; the message names file and line."""


class DatasetError(AssistantAxisError, ValueError):
    """An evaluation's dataset or labels are malformed; the message names file and line."""


class JudgeError(AssistantAxisError):
    """A judge cannot work: no key, no thresholds, an endpoint that refuses, or scores that do not fit together."""


class RunError(AssistantAxisError):
    """A run's folder cannot be used: another configuration, a missing stage, a folder that cannot be written."""


class RunLockedError(RunError):
    """Another process is writing to this run."""


class DiskFullError(RunError, OSError):
    """No space is left; everything that was finished is kept."""


class WorkerError(RunError):
    """Some shards failed again after a retry; the message names them."""


class SettingError(AssistantAxisError, ValueError):
    """A parameter has a value that cannot be used."""


class GeometryError(AssistantAxisError, ValueError):
    """Vectors do not allow the computation: too few roles, constant, wrong shapes."""


class MissingExtraError(AssistantAxisError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'assistant-axis[{extra}]'"
        )
