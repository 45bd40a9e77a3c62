"""What capping and steering do to the embedded model, and what they cost. Prints tables; takes minutes on a CPU.

    python benchmarks/steering.py --vectors persona-vectors.safetensors [--part cap|dose|all] [--figures docs/assets/figures]

Effect: adherence to the role (nats per token) of 36 answers under twelve theatrical personas, by the unsteered model. Cost:
perplexity of neutral text. Settings are chosen on half of the cases and checked on the other half, beside a random direction
and the shuffled-label direction, both with floors at the same percentile of their own calibration.
"""

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from assistant_axis import PersonaVectors, load_model, load_personas
from assistant_axis.models.generation import Answer
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.personas.rollouts import Rollout
from assistant_axis.steering.adherence import THEATRICAL
from assistant_axis.steering.calibrate import calibrate, control_directions, shuffled_direction
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.doses import DoseResponse, dose_response
from assistant_axis.steering.sweep import Sweep, sweep

WINDOWS = (range(16, 24), range(18, 26), range(20, 28))
PERCENTILES = (10, 25, 50, 60, 65, 70, 75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--part", choices=("cap", "dose", "all"), default="all")
    parser.add_argument("--methods", nargs="+", default=["pc1", "contrast"])
    parser.add_argument("--figures", type=Path, default=None, help="folder for the figures of the docs")
    parser.add_argument("--out", type=Path, default=None, help="folder for resumable JSONL")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)
    model = load_model("smollm2-135m-instruct", device="cpu", dtype="float32")
    vectors = PersonaVectors.load(args.vectors)
    vectors.check(model)
    started = time.perf_counter()
    if args.figures is not None:
        args.figures.mkdir(parents=True, exist_ok=True)
    if args.part in ("dose", "all"):
        doses = dosing(model, vectors, console)
        if args.figures is not None:
            save(doses.plot(), args.figures / "dose-response.png")
    if args.part in ("cap", "all"):
        rollouts = calibration_rollouts(model)
        for method in args.methods:
            found = capping(model, vectors, rollouts, method, console, args.out)
            if args.figures is not None:
                save(found.plot(), args.figures / f"sweep-{method}.png")
    console.print(f"{time.perf_counter() - started:.0f} s")


def calibration_rollouts(model: HookedChatModel, roles: int = 72, default: int = 24, seed: int = 1) -> list[Rollout]:
    """Unsteered answers of roles that the cases do not use, and of the default."""
    library = load_personas()
    rng = random.Random(seed)
    names = rng.sample([r for r in library.role_names if r not in THEATRICAL], roles) + ["default"] * default
    asked = []
    for name in names:
        role = library.role(name)
        system = rng.choice(role.prompts).replace("{model_name}", "SmolLM2")
        asked.append((name, system, rng.choice(library.questions)))
    chats = [
        [*([{"role": "system", "content": s}] if s else []), {"role": "user", "content": q.text}] for _, s, q in asked
    ]
    answers: list[Answer] = model.generate(chats, max_new_tokens=40, temperature=0.7, top_p=0.9, seed=seed)
    return [
        Rollout(n, 0, q.id, 0, s, q.text, a.text, a.prompt_ids, a.ids, a.finish_reason)
        for (n, s, q), a in zip(asked, answers, strict=True)
    ]


def capping(
    model: HookedChatModel,
    vectors: PersonaVectors,
    rollouts: list[Rollout],
    method: str,
    console: Console,
    out: Path | None,
) -> Sweep:
    """Sweep, recommendation, held-out check and controls for one direction."""
    axis = vectors.axis(method)  # type: ignore[arg-type]
    direction = calibrate(axis, model, rollouts).calibrated()
    held = sorted({x for window in WINDOWS for x in window})
    controls = control_directions(direction, vectors=vectors, model=model, rollouts=rollouts, layers=held)
    log = None if out is None else out / f"sweep-{method}.jsonl"
    found = sweep(model, direction, WINDOWS, PERCENTILES, controls=controls, batch_size=18, out=log)
    show(
        console,
        f"Capping along {direction.name}: {found.baseline.answers} answers a setting (search half)",
        found.rows(),
    )
    if found.recommended is None or found.held_out is None:
        console.print("No setting keeps the allowed cost.")
        return found
    show(console, f"Held-out half: {found.recommended.name}", found.check_rows())
    plain, capped = found.held_out
    drop = plain.adherence - capped.adherence
    randoms = [plain.adherence - o.adherence for name, o in found.controls if name.startswith("random")]
    console.print(
        f"Targets on the held-out half: adherence falls by {drop / plain.adherence:.0%} (≥ 67 %), perplexity "
        f"{capped.perplexity / plain.perplexity - 1:+.1%} (< +3 %), median random fall {statistics.median(randoms) / drop:.0%} "
        "of the cap's (< 25 %)"
    )
    return found


def dosing(model: HookedChatModel, vectors: PersonaVectors, console: Console) -> DoseResponse:
    """Five doses along −PC1 and +PC1 at the monitoring layer, beside a random and the shuffled-label direction."""
    axis = vectors.axis("pc1")
    controls = [Direction.of(axis).random(0), shuffled_direction(vectors)]
    found = dose_response(model, axis, controls=controls)
    answers = found.doses[0].answers
    show(console, f"Add along PC1 at layer {found.layer}, {answers} answers in role a dose", found.rows())
    console.print(f"Monotone over the coherent range: {found.monotone()}")
    return found


def show(console: Console, title: str, rows: list[dict[str, str]]) -> None:
    """One table."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def save(plotted: Any, path: Path) -> None:
    """A figure for the docs, readable on light and dark pages alike."""
    figure = (plotted[0] if hasattr(plotted, "__len__") else plotted).figure
    figure.savefig(path, dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
