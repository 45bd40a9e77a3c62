"""A run on the hub: vectors, axis, manifest and a card that is written from them."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assistant_axis.errors import FetchError, IntegrityError, RunError
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.runs.folder import Folder

NEEDED = ("vectors.safetensors", "axis.safetensors")
WANTED = ("axis_pc1.safetensors", "manifest.json", "conditions.json", "yield.json", "figures/role_map.png")


def publish(run: str | Path, repo: str, *, private: bool = False, token: str | None = None, api: Any = None) -> str:
    """Upload a run's vectors, axis, manifest and a generated card to a repository of the hub.

    Rollouts are not uploaded: whether answers may be published is for you to decide.

    Args:
        run: the run's folder.
        repo: `owner/name`; made if it is not there.
        private: make it private.
        token: of the hub; default: the one you are logged in with.
        api: a `huggingface_hub.HfApi` to use.

    Returns:
        The address of the commit.

    Raises:
        RunError: vectors or axis are missing.
        FetchError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = api or HfApi(token=token)
    with tempfile.TemporaryDirectory() as scratch:
        prepare(run, repo, scratch)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo, folder_path=scratch, commit_message="Persona vectors and Assistant Axis"
            )
        except (HfHubHTTPError, HFValidationError, OSError) as e:
            raise FetchError(f"{repo} could not be published ({e}). Check its name, your token and the network.") from e
    return str(done)


def prepare(run: str | Path, repo: str, out: str | Path) -> list[str]:
    """Lay out in a folder what `publish` uploads, to look at it first; returns the names.

    Raises:
        RunError: vectors or axis are missing.
    """
    folder, target = Folder(run), Path(out)
    names = []
    for name in (*NEEDED, *WANTED):
        try:
            with folder.open_local(name) as path:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / name)
        except FileNotFoundError as e:
            if name in NEEDED:
                raise RunError(f"{run} holds no {name}. Run the stages vectors and axis first.") from e
            continue
        names.append(name)
    vectors = PersonaVectors.load(target / "vectors.safetensors")
    try:
        rows = folder.get_json("yield.json")["roles"]
    except (FileNotFoundError, IntegrityError):
        rows = []
    (target / "README.md").write_text(card(vectors, repo, rows), encoding="utf-8")
    return [*names, "README.md"]


def card(vectors: PersonaVectors, repo: str, yields: Sequence[dict[str, Any]] = ()) -> str:
    """The card of published vectors: what they are, under what conditions, how well they hold together, how to load them."""
    said = vectors.conditions
    layer = vectors.monitoring_layer
    axis = vectors.axis()
    facts = [
        ("model", f"{said.model} (weights {said.fingerprint[:12] or 'unknown'})"),
        ("layers, d_model", f"{len(vectors.layers)} of {said.n_layers}, {vectors.d_model}"),
        ("hook point, span", f"{said.hook_point}, {said.span}"),
        ("roles, rollouts", f"{len(vectors.roles)}, {int(vectors.counts.sum()) + vectors.default_count}"),
        ("rollouts a role", f"{int(vectors.counts.min())} to {int(vectors.counts.max())}"),
        ("design", said.design),
        ("judge", said.judge),
        ("personas", f"{said.personas} ({said.personas_hash})"),
        ("seed, dtype", f"{said.seed}, {said.dtype}"),
        ("sign", "positive is Assistant-like"),
        ("integrity of the axis", f"{float(axis.integrity().min()):.4f}"),
        ("package", said.package),
    ]
    if len(vectors.roles) > 2:
        facts.append((f"cos(axis, PC1) at layer {layer}", f"{vectors.space(layer).axis_cosine():.2f}"))
    if yields:
        total = [sum(row["scores"][k] for row in yields) for k in range(4)]
        failed = sum(sum(row["failures"].values()) for row in yields)
        facts.append(("rollouts with score 0, 1, 2, 3; none", f"{', '.join(map(str, total))}; {failed}"))
    table = "\n".join(f"| {k} | {v} |" for k, v in facts)
    base = f"base_model: {said.model}\n" if said.model.count("/") == 1 else ""
    return (
        f"---\nlibrary_name: assistant-axis\ntags: [interpretability, persona-vectors, activation-steering]\n{base}---\n\n"
        f"# Persona vectors and Assistant Axis of {said.model}\n\n"
        "Mean activations of the residual stream under each role and under the model's default persona, and the direction "
        "from the mean of the roles to the default (method: Lu et al. 2026, arXiv 2601.10387).\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "```python\nfrom assistant_axis import AssistantAxis, load_model\n\n"
        f'model = load_model("{said.model}")\naxis = AssistantAxis.from_hub("{repo}", model=model)\n```\n\n'
        "The vectors belong to these weights and this chat template; loading them for others is refused by name.\n"
    )
