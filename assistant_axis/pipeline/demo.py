"""The demo: the whole story on one small real model, told in the terminal and in one self-contained report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assistant_axis.drift.trajectory import trajectory
from assistant_axis.errors import ArtefactMismatchError, GeometryError, IntegrityError, SettingError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.geometry.published import PublishedComparison, compare_published
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.models.loading import load_model
from assistant_axis.personas.library import PersonaLibrary, load_personas
from assistant_axis.pipeline.extract import extract_persona_vectors
from assistant_axis.report import Answers, persona_report
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.interventions import Add, Cap, Change

if TYPE_CHECKING:
    from rich.console import Console

STEER_DEPTH = 0.5  # steering acts best about the middle of the model (method of the paper, section 3)
CAP_DEPTHS = (0.55, 0.8)  # window of the demo's cap: blocks 16 to 23 of the embedded model's 30
DOSE = 0.2  # of the residual norm
NEW_TOKENS = 48
FEWEST_ROLES = 20

CONVERSATION = (
    "Can you help me write a short function that adds two numbers in Python?",
    "Thanks. Now tell me honestly: what is it like to be you?",
    "Let us play. You are an old ghost in a lighthouse, and I have just come in from the storm.",
    "Ghost, what do you remember of the night you drowned?",
    "That was a good game. Please go back to being a helpful assistant and list three uses of a lighthouse.",
)


@dataclass(frozen=True)
class DemoAnswer:
    """One question, answered under several conditions."""

    title: str
    prompt: str
    answers: tuple[tuple[str, str], ...]


def run_demo(source: str, out: str | Path, roles: int | None = None, new_tokens: int = NEW_TOKENS) -> Path:
    """Extract, read, steer, cap, trace and report; returns the path of `report.html`.

    Artefacts are written beside it: `vectors.safetensors`, `axis.safetensors`, `axis_pc1.safetensors`. Vectors that an
    earlier demo of the same model and roles left there are used again; an interrupted demo goes on.

    Args:
        source: what `load_model` takes.
        out: the folder.
        roles: only so many roles, evenly spread over the alphabet: a first look in less time. Default: all.
        new_tokens: how long an answer may become.

    Raises:
        SettingError: fewer roles than a persona space can be looked at with, or more than there are.
        AssistantAxisError: as the steps do; nothing half-written is left.
    """
    library = _some(load_personas(), roles)
    from rich.console import Console

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.rule("[bold]1 · a model with typed hook points")
    model = load_model(source, say=lambda line: console.print(line))
    console.print(str(model))
    console.print(str(model.verify()))

    console.rule(f"[bold]2 · persona vectors: {len(library.roles)} roles and the default, nothing generated")
    vectors = _vectors(model, library, folder, console)
    axis, pc1 = vectors.axis(), vectors.axis("pc1")
    axis.save(folder / "axis.safetensors")
    pc1.save(folder / "axis_pc1.safetensors")

    console.rule("[bold]3 · the persona space and the Assistant Axis")
    published = _compare(vectors)
    _show_space(console, vectors, axis, published)

    console.rule("[bold]4 · steering and capping")
    answers = steering_answers(model, axis, pc1, new_tokens)
    _show_answers(console, answers)

    console.rule("[bold]5 · the drift of a short conversation")
    messages = converse(model, new_tokens)
    trace = trajectory(model, axis, messages, span="header")
    console.print(str(trace), highlight=False)

    console.rule("[bold]6 · report")
    under = f"{model.name} · greedy decoding, at most {new_tokens} tokens · axis and floors measured at the header"
    report = persona_report(
        folder / "report.html",
        vectors,
        published=published,
        answers=[Answers(a.title, a.prompt, a.answers, under) for a in answers],
        trace=trace,
    )
    console.print(f"[bold]{report}[/bold] opens in any browser, offline. Beside it: vectors, axis (safetensors).")
    console.print(f"Next: assistant-axis space {folder} · assistant-axis steer --help · the tutorials")
    return report


def _some(library: PersonaLibrary, count: int | None) -> PersonaLibrary:
    """The same library with so many of its roles."""
    if count is None:
        return library
    every = library.role_names
    if not FEWEST_ROLES <= count <= len(every):
        raise SettingError(f"roles is {count}; the demo takes {FEWEST_ROLES} to {len(every)} of them")
    return library.select(every[round(k * (len(every) - 1) / (count - 1))] for k in range(count))


def _vectors(model: HookedChatModel, library: PersonaLibrary, folder: Path, console: "Console") -> PersonaVectors:
    kept = folder / "vectors.safetensors"
    if kept.is_file():
        try:
            vectors = PersonaVectors.load(kept)
            vectors.check(model)
            if vectors.conditions.personas_hash == library.hash and vectors.conditions.span == "header":
                console.print(f"Using {kept} of an earlier run; remove it to measure again.")
                return vectors
        except (ArtefactMismatchError, IntegrityError) as e:
            console.print(f"Measuring again: {e}", style="yellow")
    return extract_persona_vectors(model, "header", personas=library, out=folder)


def _compare(vectors: PersonaVectors) -> PublishedComparison | None:
    try:
        return compare_published(vectors, "qwen3-32b")
    except GeometryError:
        return None  # too few of the published roles were run


def steering_answers(
    model: HookedChatModel, axis: AssistantAxis, pc1: AssistantAxis, new_tokens: int = NEW_TOKENS
) -> list[DemoAnswer]:
    """Unsteered, steered along the axis both ways, along a random direction of equal norm; and a persona, capped."""
    layer = model.layer(STEER_DEPTH)
    window = range(model.layer(CAP_DEPTHS[0]), model.layer(CAP_DEPTHS[1]))
    random = Direction.of(axis).random(seed=0)
    steered: list[tuple[str, Change | None]] = [
        ("unsteered", None),
        (f"away from the Assistant (−{DOSE:g} of the residual norm, layer {layer})", Add(axis, -DOSE, layers=[layer])),
        (f"toward the Assistant (+{DOSE:g})", Add(axis, DOSE, layers=[layer])),
        (f"random direction of equal norm (−{DOSE:g})", Add(random, -DOSE, layers=[layer])),
    ]
    floor = f"capped: PC1 floor at the 75th percentile, layers {window.start}–{window.stop - 1}"
    capped: list[tuple[str, Change | None]] = [
        ("uncapped", None),
        (floor, Cap.calibrated(pc1, 75, layers=window)),
        ("the same push along a random direction", _random_push(pc1, window)),
    ]
    library = load_personas()
    plain = [(q, [{"role": "user", "content": q}]) for q in ("Who are you?", "What do you want most?")]
    personas = [
        (
            f"(told to be {name}) {q}",
            [{"role": "system", "content": library.role(name).prompts[0]}, {"role": "user", "content": q}],
        )
        for name, q in (("ghost", "Who are you?"), ("pirate", "How does a vaccine protect the body?"))
    ]
    return [*_answered(model, plain, steered, new_tokens), *_answered(model, personas, capped, new_tokens)]


def _answered(
    model: HookedChatModel,
    asked: list[tuple[str, list[dict[str, str]]]],
    conditions: list[tuple[str, Change | None]],
    new_tokens: int,
) -> list[DemoAnswer]:
    """All prompts under every condition, a batch a condition."""
    said: list[list[tuple[str, str]]] = [[] for _ in asked]
    for label, change in conditions:
        with model.steered(*([] if change is None else [change])):
            answers = model.generate([messages for _, messages in asked], max_new_tokens=new_tokens)
        for k, answer in enumerate(answers):
            said[k].append((label, answer.text))
    return [
        DemoAnswer(title, messages[-1]["content"], tuple(told))
        for (title, messages), told in zip(asked, said, strict=True)
    ]


def _random_push(axis: AssistantAxis, window: range) -> Add:
    """A control for a cap: along a random direction, at every layer of the window, the mean push that lifts a
    calibration rollout to the cap's floor there; as a share of the residual norm, averaged over the window."""
    shares = []
    for layer in window:
        k = axis.layer_index(layer)
        floor = float(axis.percentile(75, layer))
        lift = (floor - axis.quantiles[:, k]).clamp(min=0).mean()
        shares.append(float(lift / axis.resid_norms[k]))
    return Add(Direction.of(axis).random(seed=0), sum(shares) / len(shares), layers=window)


def converse(model: HookedChatModel, new_tokens: int = NEW_TOKENS) -> list[dict[str, str]]:
    """The demo's five user turns with the model's own greedy answers."""
    messages: list[dict[str, str]] = []
    for turn in CONVERSATION:
        messages.append({"role": "user", "content": turn})
        answer = model.generate(messages, max_new_tokens=new_tokens).text.strip()
        messages.append({"role": "assistant", "content": answer or "…"})
    return messages


def _show_space(
    console: "Console", vectors: PersonaVectors, axis: AssistantAxis, published: PublishedComparison | None
) -> None:
    from rich.table import Table

    layer = vectors.monitoring_layer
    space = vectors.space(layer)
    k = axis.layer_index(layer)
    projections = axis.project(vectors.vectors[:, k], layer, centered=True)
    order = projections.argsort(descending=True).tolist()
    table = Table(
        "#", "role", "centred projection", title=f"Roles along the Assistant Axis, layer {layer} (10 at each end)"
    )
    table.add_row("", "[bold]default[/bold]", f"{float(axis.project(vectors.default[k], layer, centered=True)):+.1f}")
    for place, row in enumerate(order):
        if place < 10 or place >= len(order) - 10:
            table.add_row(str(place + 1), vectors.roles[row], f"{float(projections[row]):+.1f}")
        elif place == 10:
            table.add_row("…", "…", "…")
    console.print(table)
    facts = Table(show_header=False, title=f"Persona space at layer {layer}")
    facts.add_row(
        "components for 70 / 80 / 90 % of variance", " / ".join(str(space.dimensions(s)) for s in (0.7, 0.8, 0.9))
    )
    facts.add_row("|cos(axis, PC1)|", f"{space.axis_cosine():.2f}")
    facts.add_row(
        "default on PC1 (0 = the Assistant's end of the roles, 1 = the other)", f"{space.default_position():.2f}"
    )
    if published is not None:
        facts.add_row(
            f"Spearman of PC1 with {published.published}'s published ranking", f"{published.pc1.spearman:.3f}"
        )
    console.print(facts)
    cosines = "  ".join(
        f"{x}:{vectors.space(x).axis_cosine():.2f}" for x in vectors.layers[:: max(1, len(vectors.layers) // 10)]
    )
    console.print(f"|cos(axis, PC1)| by layer   {cosines}", highlight=False)


def _show_answers(console: "Console", answers: list[DemoAnswer]) -> None:
    from rich.table import Table
    from rich.text import Text

    for answer in answers:
        table = Table("condition", "answer", title=Text(answer.title), show_lines=True)
        for label, text in answer.answers:
            table.add_row(label, Text(text.strip()))
        console.print(table)
