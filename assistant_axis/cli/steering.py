"""`assistant-axis steer` and `assistant-axis cap …`: answers next to the unsteered ones, thresholds, windows, files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant_axis.cli.options import (
    DEFAULT_MODEL,
    ModelOption,
    load_axis,
    parse_layers,
    parse_window,
    print_table,
    vectors_behind,
)

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

app_cap = typer.Typer(
    no_args_is_help=True, help="Activation capping: calibrate, apply, search windows, replay, exchange."
)

AxisOption = Annotated[Path, typer.Option("--axis", "-a", help="An axis or persona vectors (.safetensors).")]
MethodOption = Annotated[str, typer.Option(help="For persona vectors: contrast or pc1.")]
LayersOption = Annotated[
    str | None, typer.Option("--layers", "-l", help="As 18, 20:28 (a Python range: 20 to 27), or 20,22,24.")
]
PositionsOption = Annotated[str, typer.Option(help="all, response, prompt or last.")]
SystemOption = Annotated[str, typer.Option(help="A system prompt.")]
TokensOption = Annotated[int, typer.Option(help="New tokens an answer.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Accept an axis of another model of the same width.")]


def steer(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    axis: AxisOption,
    dose: Annotated[
        list[float] | None, typer.Option("--dose", "-d", help="Positive is Assistant-like; may be given several times.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    method: MethodOption = "contrast",
    layers: LayersOption = None,
    unit: Annotated[str, typer.Option(help="resid_norm, axis or raw.")] = "resid_norm",
    positions: PositionsOption = "all",
    system: SystemOption = "",
    max_new_tokens: TokensOption = 64,
    force: ForceOption = False,
) -> None:
    """Answer a prompt unsteered, and with doses along the axis, side by side."""
    from assistant_axis.models.loading import load_model
    from assistant_axis.steering.interventions import Add

    said, loaded = load_axis(axis, method), load_model(model)
    doses = dose or [-0.25, 0.25]
    steps = [
        Add(
            said, d, layers=parse_layers(layers), unit=unit, positions=positions, force=force
        )  # checked before anything runs
        for d in doses
    ]
    for step in steps:
        step.explain(loaded)
    _side_by_side(
        loaded, prompt, system, [(f"{d:+g} {unit}", s) for d, s in zip(doses, steps, strict=True)], max_new_tokens
    )


@app_cap.command("calibrate")
def cap_calibrate(
    axis: AxisOption,
    rollouts: Annotated[Path, typer.Option("--rollouts", "-r", help="Rollouts (.parquet) with generated answers.")],
    model: ModelOption = DEFAULT_MODEL,
    method: MethodOption = "contrast",
    layers: LayersOption = None,
    percentile: Annotated[list[float] | None, typer.Option("--percentile", "-p", help="Assistant-positive.")] = None,
    over: Annotated[str, typer.Option(help="responses (means, as the paper) or tokens.")] = "responses",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the cap at the last percentile (.safetensors).")
    ] = None,
) -> None:
    """Where answers project, per layer, with bootstrap intervals; thresholds for a cap."""
    from assistant_axis.errors import SettingError
    from assistant_axis.models.loading import load_model
    from assistant_axis.personas.rollouts import read_rollouts
    from assistant_axis.steering.calibrate import calibrate
    from assistant_axis.steering.formats import save_intervention
    from assistant_axis.steering.interventions import Cap
    from assistant_axis.steering.placement import default_window

    if over not in ("responses", "tokens"):
        raise SettingError(f"--over {over!r} is not known; use responses or tokens.")
    loaded = load_model(model)
    window = parse_layers(layers) or default_window(loaded)
    found = calibrate(load_axis(axis, method), loaded, read_rollouts(rollouts), layers=window, progress=True)
    asked = percentile or [25.0, 50.0, 75.0]
    rows = found.rows(asked)
    print_table(
        f"{len(found.responses)} answers, {found.tokens} tokens; raw projections, Assistant-positive",
        [{k: f"{v:.0f}" if k == "layer" else f"{v:.3g}" for k, v in row.items()} for row in rows],
    )
    if out is not None:
        direction = found.calibrated("tokens" if over == "tokens" else "responses")
        print(f"wrote {save_intervention(out, Cap.calibrated(direction, asked[-1], layers=found.layers))}")


@app_cap.command("apply")
def cap_apply(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    axis: Annotated[
        Path | None, typer.Option("--axis", "-a", help="An axis or persona vectors (.safetensors).")
    ] = None,
    cap: Annotated[Path | None, typer.Option("--cap", "-c", help="A saved intervention (.safetensors).")] = None,
    percentile: Annotated[
        float, typer.Option("--percentile", "-p", help="Floor, Assistant-positive percentile.")
    ] = 75.0,
    model: ModelOption = DEFAULT_MODEL,
    method: MethodOption = "contrast",
    layers: LayersOption = None,
    positions: PositionsOption = "all",
    system: SystemOption = "",
    max_new_tokens: TokensOption = 64,
) -> None:
    """Answer a prompt unsteered and capped, side by side."""
    from assistant_axis.models.loading import load_model

    loaded = load_model(model)
    step = _cap(cap, axis, method, percentile, layers, positions, loaded)
    step.explain(loaded)
    _side_by_side(loaded, prompt, system, [("capped", step)], max_new_tokens)


@app_cap.command("sweep")
def cap_sweep(
    axis: AxisOption,
    windows: Annotated[list[str], typer.Option("--window", "-w", help="As 20:28 (layers 20 to 27); several times.")],
    percentiles: Annotated[list[float], typer.Option("--percentile", "-p", help="Assistant-positive; several times.")],
    model: ModelOption = DEFAULT_MODEL,
    method: MethodOption = "contrast",
    rollouts: Annotated[
        Path | None, typer.Option("--rollouts", "-r", help="Calibrate on these answers instead of the axis's own.")
    ] = None,
    max_cost: Annotated[float, typer.Option(help="Allowed rise of neutral perplexity.")] = 0.03,
    max_incoherent: Annotated[float, typer.Option(help="Allowed rise of the share of incoherent answers.")] = 0.15,
    controls: Annotated[int, typer.Option(help="Random directions measured beside the recommended setting.")] = 3,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder: sweep.jsonl (resumable), sweep.png.")] = None,
    force: ForceOption = False,
) -> None:
    """Windows × percentiles: effect, cost, the Pareto front, and a recommended setting checked on held-out cases.

    Control directions stand beside it: random ones, and that of shuffled labels if --axis is a file of persona vectors.
    """
    from assistant_axis.models.loading import load_model
    from assistant_axis.personas.rollouts import read_rollouts
    from assistant_axis.steering.calibrate import calibrate, control_directions
    from assistant_axis.steering.direction import Direction
    from assistant_axis.steering.sweep import sweep

    loaded = load_model(model)
    direction = Direction.of(load_axis(axis, method))
    direction.check(loaded, force=force)
    said = read_rollouts(rollouts) if rollouts is not None else None
    if said is not None:
        direction = calibrate(direction, loaded, said, progress=True, force=force).calibrated()
    vectors = vectors_behind(axis)
    beside = []
    if controls and (vectors is not None or said is not None):
        beside = control_directions(direction, vectors=vectors, model=loaded, rollouts=said, randoms=controls)
    spans = [parse_window(w) for w in windows]
    log = None if out is None else out / "sweep.jsonl"
    found = sweep(
        loaded,
        direction,
        spans,
        percentiles,
        controls=beside,
        max_cost=max_cost,
        max_incoherent=max_incoherent,
        out=log,
        progress=True,
    )
    print_table(f"Capping along the {direction.name}; search half", found.rows())
    if found.recommended is None or found.held_out is None:
        print(f"No setting keeps the cost below {max_cost:.0%} and incoherence within {max_incoherent:.0%}.")
    else:
        print_table(f"Held-out half, recommended: {found.recommended.name}", found.check_rows())
        if not beside:
            print("No controls: give --axis as persona vectors with single rollouts, or --rollouts.")
    if out is not None:
        found.plot().figure.savefig(out / "sweep.png", dpi=150)


@app_cap.command("replay")
def cap_replay(
    transcript: Annotated[
        Path, typer.Argument(help='JSON: a list of {"role", "content"}, or an object with "messages".')
    ],
    axis: AxisOption,
    cap: Annotated[Path | None, typer.Option("--cap", "-c", help="A saved intervention (.safetensors).")] = None,
    percentile: Annotated[
        float, typer.Option("--percentile", "-p", help="Floor, Assistant-positive percentile.")
    ] = 75.0,
    model: ModelOption = DEFAULT_MODEL,
    method: MethodOption = "contrast",
    layers: LayersOption = None,
    positions: PositionsOption = "all",
    read_at: Annotated[int | None, typer.Option("--read-at", help="Layer of the projections.")] = None,
    max_new_tokens: TokensOption = 96,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the plot (.png).")] = None,
) -> None:
    """Replay the user turns of a transcript with and without a cap."""
    import json

    from rich.console import Console

    from assistant_axis.errors import ConversationError
    from assistant_axis.models.loading import load_model
    from assistant_axis.steering.replay import replay

    try:
        talk = json.loads(transcript.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ConversationError(f"{transcript} is not JSON ({e}).") from e
    for key in ("messages", "conversation"):
        talk = talk[key] if isinstance(talk, dict) and key in talk else talk
    if not isinstance(talk, list) or not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in talk):
        raise ConversationError(f'{transcript} holds no list of {{"role", "content"}}.')
    loaded = load_model(model)
    step = _cap(cap, axis, method, percentile, layers, positions, loaded)
    step.explain(loaded)
    found = replay(
        loaded,
        talk,
        load_axis(axis, method),
        step,
        layer=read_at,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    Console().print(found.table())
    if out is not None:
        found.plot().figure.savefig(out, dpi=150)
        print(f"wrote {out}")


@app_cap.command("import")
def cap_import(
    source: Annotated[Path, typer.Argument(help="A released capping config (.pt) or a control vector (.gguf).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The intervention to write (.safetensors).")],
    experiment: Annotated[str | None, typer.Option("--experiment", "-e", help="As layers_46:54-p0.25.")] = None,
) -> None:
    """Turn a released capping config or a GGUF control vector into an intervention with our sign."""
    from assistant_axis.errors import SettingError
    from assistant_axis.steering.formats import load_capping_config, load_control_vector, save_intervention

    if source.suffix == ".gguf":
        made: Any = load_control_vector(source)
    else:
        config = load_capping_config(source)
        if experiment is None:
            raise SettingError(f"Which experiment? --experiment {' | '.join(config.experiments)}")
        made = config.cap(experiment)
    print(f"wrote {save_intervention(out, made)}")


@app_cap.command("export")
def cap_export(
    source: Annotated[Path, typer.Argument(help="A saved intervention (.safetensors).")],
    out: Annotated[Path, typer.Option("--out", "-o", help=".pt: released capping config. .gguf: control vector.")],
    name: Annotated[str | None, typer.Option(help="Experiment id in the config; default: from layers.")] = None,
    hint: Annotated[str, typer.Option(help="For .gguf: the architecture, as llama or qwen3.")] = "",
) -> None:
    """Write a cap in the released format, or a steering vector for llama.cpp."""
    from assistant_axis.errors import SettingError
    from assistant_axis.steering.formats import load_intervention, save_capping_config, save_control_vector
    from assistant_axis.steering.interventions import Add, Cap

    made = load_intervention(source)
    if out.suffix == ".pt" and isinstance(made, Cap):
        held = made.layers if isinstance(made.layers, tuple) else made.direction.layers
        print(f"wrote {save_capping_config(out, {name or f'layers_{held[0]}:{int(held[-1]) + 1}': made})}")
    elif out.suffix == ".gguf" and isinstance(made, Add):
        print(f"wrote {save_control_vector(out, made, hint=hint)}")
    else:
        raise SettingError(
            f"A {type(made).__name__} cannot be written as {out.suffix or out.name}: caps go to .pt, additive steering to .gguf."
        )


# -- shared by the commands --------------------------------------------------------------------------------------------


def _cap(
    saved: Path | None,
    axis: Path | None,
    method: str,
    percentile: float,
    layers: str | None,
    positions: str,
    model: HookedChatModel,
) -> Any:
    from assistant_axis.errors import SettingError
    from assistant_axis.steering.formats import load_intervention
    from assistant_axis.steering.interventions import Cap

    if saved is not None:
        return load_intervention(saved, model)
    if axis is None:
        raise SettingError("Give --cap (a saved intervention) or --axis (with --percentile).")
    return Cap.calibrated(load_axis(axis, method), percentile, layers=parse_layers(layers), positions=positions)


def _side_by_side(
    model: HookedChatModel, prompt: str, system: str, steps: list[tuple[str, Any]], max_new_tokens: int
) -> None:
    from rich.console import Console
    from rich.table import Table

    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
    table = Table(title=prompt, show_lines=True)
    table.add_column("unsteered", ratio=1)
    texts = [model.generate(messages, max_new_tokens=max_new_tokens).text]
    for name, step in steps:
        table.add_column(name, ratio=1)
        with model.steered(step):
            texts.append(model.generate(messages, max_new_tokens=max_new_tokens).text)
    table.add_row(*texts)
    Console().print(table)
