"""Sentence embeddings of user messages, L2-normalised, through sentence-transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from assistant_axis.errors import ConversationError, MissingExtraError
from assistant_axis.progress import without_loading_bars

DEFAULT_EMBEDDER = "all-minilm-l6-v2"


class Embedder:
    """A sentence embedding model by name.

    Args:
        name: an embedded encoder (`all-minilm-l6-v2`, 384 numbers, messages are cut after 256 tokens), or whatever
            sentence-transformers loads: a hub id or a folder.
        device: where it runs; default: what sentence-transformers chooses.
        batch_size: messages a batch.
        model: a ready object with `encode`, instead.

    Raises:
        MissingExtraError: sentence-transformers is not installed (the extra `drift`).
    """

    def __init__(
        self, name: str = DEFAULT_EMBEDDER, *, device: str | None = None, batch_size: int = 64, model: Any = None
    ) -> None:
        self.name, self.batch_size = name, batch_size
        self._model = model if model is not None else _load(name, device)

    def embed(self, messages: Sequence[str], *, progress: bool = False) -> Float[np.ndarray, "message embedding"]:
        """One row a message, L2-normalised, float32.

        Raises:
            ConversationError: an empty message.
        """
        for k, message in enumerate(messages):
            if not isinstance(message, str) or not message.strip():
                raise ConversationError(f"Message {k} is empty or no text: {message!r:.40}")
        rows = self._model.encode(
            list(messages), batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=progress
        )
        return np.asarray(rows, dtype=np.float32)


def _load(name: str, device: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as e:
        raise MissingExtraError("sentence-transformers", "drift", "Embedding user messages") from e
    from assistant_axis.models.embedded import EMBEDDED, ensure

    source = str(ensure(name)) if name in EMBEDDED else name
    with without_loading_bars(Path(source).is_dir()):
        return SentenceTransformer(source, device=device)
