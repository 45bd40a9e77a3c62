"""`assistant-axis publish` and `assistant-axis import`: to the hub, and from the official pipeline's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def publish(
    run: Annotated[str, typer.Argument(help="A run's folder with vectors and axis.")],
    repo: Annotated[str, typer.Option("--repo", help="owner/name on the hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    look: Annotated[
        Path | None, typer.Option("--look", help="Only lay out in this folder what would be uploaded.")
    ] = None,
) -> None:
    """Upload a run's vectors, axis, manifest and a generated card to the hub; rollouts stay at home."""
    from assistant_axis.runs import publish as publishing

    if look is not None:
        for name in publishing.prepare(run, repo, look):
            print(look / name)
        return
    print(publishing.publish(run, repo, private=private))
    print(f'Load it with: AssistantAxis.from_hub("{repo}")')


def import_official(
    folder: Annotated[Path, typer.Argument(help="Holds responses, activations and scores of the official pipeline.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for vectors.safetensors and axis.safetensors.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Whose activations they are.")],
    min_score: Annotated[int, typer.Option(help="The least score that counts; 0 takes all, scored or not.")] = 3,
    min_rollouts: Annotated[int, typer.Option(help="Roles with fewer are left out.")] = 50,
) -> None:
    """Persona vectors and axis from the folders of the official pipeline: activations as .pt, scores as JSON."""
    from assistant_axis.runs.official import import_vectors

    vectors = import_vectors(folder, model=model, min_score=min_score, min_rollouts=min_rollouts)
    vectors.save(out / "vectors.safetensors")
    vectors.axis().save(out / "axis.safetensors")
    print(vectors)
    print(f"Written to {out}. Next: assistant-axis space {out}")
