"""What capping and steering do to the embedded model, and what they cost. Prints tables; takes minutes on a CPU.

    python benchmarks/steering.py --vectors persona-vectors.safetensors [--part cap|dose|all]

Effect: adherence to the role (nats per token) of 36 answers under twelve theatrical personas, by the unsteered model. Cost:
perplexity of neutral text. Settings are chosen on half of the cases and checked on the other half, beside a random direction
and the shuffled-label direction, both with floors at the same percentile of their own calibration.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from assistant_axis import PersonaVectors, load_model, load_personas
from assistant_axis.models.generation import Answer
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.personas.rollouts import Rollout
from assistant_axis.steering.adherence import THEATRICAL, adherence, answer_cases, neutral_perplexity, persona_cases
from assistant_axis.steering.calibrate import calibrate, shuffled_direction
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.interventions import Add, Cap
from assistant_axis.steering.sweep import measure, sweep

WINDOWS = (range(16, 24), range(18, 26), range(20, 28))
PERCENTILES = (10, 25, 50, 60, 65, 70, 75)
DOSES = (-0.3, -0.15, 0.0, 0.15, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--part", choices=("cap", "dose", "all"), default="all")
    parser.add_argument("--methods", nargs="+", default=["pc1", "contrast"])
    parser.add_argument("--out", type=Path, default=None, help="folder for resumable JSONL")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)
    model = load_model("smollm2-135m-instruct", device="cpu", dtype="float32")
    vectors = PersonaVectors.load(args.vectors)
    vectors.check(model)
    started = time.perf_counter()
    if args.part in ("dose", "all"):
        dose_response(model, vectors, console)
    if args.part in ("cap", "all"):
        rollouts = calibration_rollouts(model)
        for method in args.methods:
            capping(model, vectors, rollouts, method, console, args.out)
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
) -> None:
    """Sweep, recommendation, held-out check and controls for one direction."""
    axis = vectors.axis(method)  # type: ignore[arg-type]
    calibration = calibrate(axis, model, rollouts)
    direction = calibration.calibrated()
    cases = persona_cases()
    log = None if out is None else out / f"sweep-{method}.jsonl"
    found = sweep(model, direction, WINDOWS, PERCENTILES, cases=cases, batch_size=18, out=log)
    table = Table(title=f"Capping along {direction.name}: {len(cases) // 2} answers a setting (search half)")
    for name in found.rows()[0]:
        table.add_column(name)
    for row in found.rows():
        table.add_row(*row.values())
    console.print(table)
    if found.recommended is None or found.held_out is None:
        console.print("No setting keeps the allowed cost.")
        return
    best = found.recommended
    assert best.window is not None
    assert best.percentile is not None
    plain, capped = found.held_out
    drop = plain.adherence - capped.adherence
    checks = Table(title=f"Held-out half: {best.name}")
    for name in (
        "direction",
        "adherence",
        "falls by",
        "of the cap's fall",
        "perplexity",
        "incoherent",
        "tokens changed",
    ):
        checks.add_column(name)
    checks.add_row(
        "unsteered", f"{plain.adherence:.3f}", "", "", f"{plain.perplexity:.2f}", f"{plain.incoherent:.0%}", ""
    )
    entries = [("cap", capped)]
    for control in (direction.random(0), direction.random(1), direction.random(2), shuffled_direction(vectors)):
        own = calibrate(control, model, rollouts, layers=range(*best.window)).calibrated()
        cap = Cap.calibrated(own, best.percentile, layers=range(*best.window))
        entries.append((control.name, measure(model, cap, cases[1::2], batch_size=18)))
    for name, o in entries:
        fall = plain.adherence - o.adherence
        checks.add_row(
            name,
            f"{o.adherence:.3f} [{o.interval[0]:.2f}, {o.interval[1]:.2f}]",
            f"{fall:.3f} ({fall / plain.adherence:.0%})",
            f"{fall / drop:.0%}",
            f"{o.perplexity:.2f} ({o.perplexity / plain.perplexity - 1:+.1%})",
            f"{o.incoherent:.0%}",
            f"{o.mean_changed:.0%}",
        )
    console.print(checks)
    randoms = [plain.adherence - o.adherence for name, o in entries if name.startswith("random")]
    console.print(
        f"Targets on the held-out half: adherence falls by {drop / plain.adherence:.0%} (≥ 67 %), perplexity "
        f"{capped.perplexity / plain.perplexity - 1:+.1%} (< +3 %), median random fall {statistics.median(randoms) / drop:.0%} "
        "of the cap's (< 25 %)"
    )


def dose_response(model: HookedChatModel, vectors: PersonaVectors, console: Console) -> None:
    """Five doses along −axis and +axis at the monitoring layer, beside a random direction."""
    cases = persona_cases(questions=2, seed=5)
    axis = vectors.axis("pc1")
    table = Table(title=f"Add along PC1 at layer {model.profile.layer}, {len(cases)} answers in role a dose")
    for name in ("dose (× residual norm)", "direction", "adherence", "incoherent", "perplexity"):
        table.add_column(name)
    for direction in (Direction.of(axis), Direction.of(axis).random(0)):
        for dose in DOSES:
            add = Add(direction, dose)
            answers = answer_cases(model, cases, add, max_new_tokens=40, batch_size=24)
            found = adherence(model, cases, answers)
            low, high = found.interval()
            table.add_row(
                f"{dose:+.2f}",
                direction.name,
                f"{found.mean:+.3f} [{low:+.2f}, {high:+.2f}]",
                f"{found.incoherent_share:.0%}",
                f"{neutral_perplexity(model, add, count=20):.2f}",
            )
    console.print(table)


if __name__ == "__main__":
    main()
