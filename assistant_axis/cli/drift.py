"""`assistant-axis drift trace | simulate | predict`, and `assistant-axis chat`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant_axis.cli.options import DEFAULT_MODEL, ModelOption, load_axis, one_layer

if TYPE_CHECKING:
    from assistant_axis.drift.users import User
    from assistant_axis.geometry.axis import AssistantAxis
    from assistant_axis.models.hooked import HookedChatModel

app = typer.Typer(no_args_is_help=True, help="How the persona moves over a conversation: trace, simulate, predict.")

AxisOption = Annotated[
    Path, typer.Option("--axis", "-a", help="axis.safetensors, vectors.safetensors, or a run's folder.")
]
LayerOption = Annotated[float | None, typer.Option(help="Layer index or depth in (0, 1); default: the model's own.")]


@app.command()
def trace(
    conversation: Annotated[str, typer.Argument(help="Chats as JSON or JSON lines, or - for standard input.")],
    axis: AxisOption,
    model: ModelOption = DEFAULT_MODEL,
    layer: LayerOption = None,
    users: Annotated[bool, typer.Option("--users", help="Read user turns too.")] = False,
    span: Annotated[str, typer.Option(help="response (content) or header (about to speak).")] = "response",
    cap: Annotated[float | None, typer.Option(help="Trace under a cap at this percentile too.")] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after this many conversations.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Write the last conversation's figure here.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write every turn as JSON lines here.")] = None,
) -> None:
    """Mean projection of every turn, from one forward pass a conversation."""
    import json
    from itertools import islice

    from rich.console import Console

    from assistant_axis.activations.store import atomic
    from assistant_axis.drift.trajectory import trajectory
    from assistant_axis.drift.transcripts import read_transcripts
    from assistant_axis.errors import SettingError
    from assistant_axis.steering.interventions import Cap

    if span not in ("response", "header"):
        raise SettingError(f'--span {span} is not known; use "response" or "header".')
    hooked, found = _load(model, axis)
    rows: list[str] = []
    traces: dict[str, Any] = {}
    console = Console()
    for transcript in islice(read_transcripts(conversation), limit):
        options: dict[str, Any] = {"users": users, "span": span}
        traces = {"": trajectory(hooked, found, transcript.messages, one_layer(layer), **options)}
        if cap is not None:
            with hooked.steered(Cap.calibrated(found, cap)):
                capped = trajectory(hooked, found, transcript.messages, one_layer(layer), **options)
            traces = {"uncapped": traces[""], f"cap at percentile {cap:g}": capped}
        for name, one in traces.items():
            title = f"{transcript.name}: layer {one.layers[0]}" + (f", {name}" if name else "")
            console.print(_table(one, title))
            rows += [json.dumps({"conversation": transcript.name, "under": name} | r) for r in one.rows()]
            for warning in dict.fromkeys((*transcript.notes, *one.warnings)):
                console.print(f"note: {warning}", style="dim", markup=False)
    if out is not None:
        with atomic(out) as scratch:
            scratch.write_text("".join(r + "\n" for r in rows), encoding="utf-8")
    if figure is not None and traces:
        from assistant_axis.plots.drift import drift_trace
        from assistant_axis.plots.style import save_figure

        save_figure(drift_trace(traces if len(traces) > 1 else traces[""]), figure)


@app.command()
def simulate(
    axis: AxisOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; an interrupted run goes on from here.")],
    model: ModelOption = DEFAULT_MODEL,
    user: Annotated[str, typer.Option(help="scripted, model:NAME, or api:NAME (OpenAI-compatible).")] = "scripted",
    base_url: Annotated[str | None, typer.Option(help="Endpoint of an api: user.")] = None,
    domain: Annotated[list[str] | None, typer.Option(help="Only these domains (repeat).")] = None,
    per_domain: Annotated[int, typer.Option(min=1, help="Conversations a domain.")] = 25,
    turns: Annotated[int, typer.Option(min=1, max=15, help="Exchanges a conversation.")] = 6,
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 48,
    layer: LayerOption = None,
    cap: Annotated[float | None, typer.Option(help="Cap the target at this percentile.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    seed: int = 0,
) -> None:
    """Hold conversations with a simulated user, and say which domains drift."""
    from assistant_axis.drift.simulate import simulate as hold
    from assistant_axis.drift.users import Scripted, played_scenarios, scripted_scenarios
    from assistant_axis.steering.interventions import Cap

    hooked, found = _load(model, axis)
    simulator = _user(user, base_url)
    script = isinstance(simulator, Scripted)
    scenarios = scripted_scenarios(domain, per_domain) if script else played_scenarios(domain, per_domain, seed)
    held = hold(
        hooked,
        found,
        scenarios,
        simulator,
        turns=turns,
        layer=one_layer(layer),
        interventions=[] if cap is None else [Cap.calibrated(found, cap)],
        max_new_tokens=tokens,
        batch_size=batch_size,
        seed=seed,
        out=out,
    )
    _say_simulation(held, out)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder or file of a simulation.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the predictor, table and map.")] = None,
    embedder: Annotated[str, typer.Option(help="Any sentence-transformers model.")] = "all-minilm-l6-v2",
    clusters: Annotated[int, typer.Option(min=2, help="Clusters of k-means.")] = 12,
    method: Annotated[str, typer.Option(help="kmeans or hdbscan.")] = "kmeans",
    permutations: Annotated[int, typer.Option(min=0)] = 99,
    message: Annotated[list[str] | None, typer.Option(help="Score this message (repeat).")] = None,
    seed: int = 0,
) -> None:
    """How far user messages predict what follows, and which kinds of messages are followed by drift."""
    from rich.console import Console
    from rich.table import Table

    from assistant_axis.drift.clusters import assign, map_messages, rank_clusters
    from assistant_axis.drift.embed import Embedder
    from assistant_axis.drift.figures import message_map
    from assistant_axis.drift.predict import DriftPredictor, Exchanges, evaluate
    from assistant_axis.drift.simulate import Simulation
    from assistant_axis.errors import SettingError

    if method not in ("kmeans", "hdbscan"):
        raise SettingError(f"--method {method} is not known; use kmeans or hdbscan.")
    console = Console()
    held = Simulation.load(run)
    exchanges = Exchanges.of(held)
    encoder = Embedder(embedder)
    rows = encoder.embed(exchanges.messages)
    table = Table("target", "messages", "R² in-sample", "R² whole conversations", "p", "R² shuffled", title="Ridge")
    for target in ("next", "change"):
        r = evaluate(exchanges, rows, target, permutations=permutations, seed=seed)
        table.add_row(target, str(r.n), f"{r.in_sample:.3f}", f"{r.grouped:.3f}", f"{r.p:.3g}", f"{r.shuffled:.3f}")
    console.print(table)
    labels = assign(rows, "hdbscan" if method == "hdbscan" else "kmeans", k=clusters, seed=seed)
    kinds = Table("", "next (raw)", "change", "n", "keywords", "nearest message", title="Messages, drift first")
    for c in rank_clusters(exchanges, rows, labels):
        kinds.add_row(
            c.kind, f"{c.next:+.2f}", f"{c.change:+.2f}", str(c.n), ", ".join(c.keywords[:6]), c.messages[0][:80]
        )
    console.print(kinds)
    fitted = DriftPredictor.fit(exchanges, rows, embedder=embedder, conditions=dict(held.conditions))
    if out is not None:
        from assistant_axis.plots.style import save_figure

        console.print(f"Predictor written to {fitted.save(out / 'predictor.safetensors')}")
        save_figure(message_map(exchanges, map_messages(rows)), out / "messages.png")
    for score in fitted.score(message or (), encoder) if message else ():
        said = " — likely to pull the model away" if score.pulls_away else ""
        console.print(
            f"{score.predicted:+.2f} raw, percentile {score.percentile:.0f}{said}: {score.message}", markup=False
        )


def chat(
    axis: AxisOption,
    model: ModelOption = DEFAULT_MODEL,
    layer: LayerOption = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.7,
    seed: int = 0,
) -> None:
    """Talk to the model and watch where it stands, token by token."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from assistant_axis.drift.session import HELP, ChatSession

    hooked, found = _load(model, axis)
    session = ChatSession(
        hooked, found, one_layer(layer), system=system, max_new_tokens=tokens, temperature=temperature, seed=seed
    )
    console = Console()
    console.print(f"{hooked.name}, layer {session.monitor.layer}. /help lists the commands.\n{HELP}", style="dim")
    while True:
        try:
            line = console.input("[bold]you> [/bold]")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        body, meter = Text(), Text(style="dim")
        if line.strip().startswith("/") or not line.strip():
            reply = session.handle(line)
            if reply.quit:
                return
            console.print(reply.text, markup=False)
            continue
        with Live(Group(body, meter), console=console, refresh_per_second=12) as live:

            def piece(text: str, reading: Any, body: Text = body, meter: Text = meter, live: Live = live) -> None:
                body.append(text)
                meter.plain = session.meter(reading.level)

            try:
                reply = session.handle(line, piece)
            except KeyboardInterrupt:
                meter.plain = "(interrupted; the answer is not kept)"
                continue
            body.plain = reply.text
            if reply.read is not None and reply.read.ids:
                meter.plain = session.meter(reply.read.mean)
            live.refresh()


# -- shared ------------------------------------------------------------------------------------------------------------


def _load(model: str, axis: Path) -> tuple[HookedChatModel, AssistantAxis]:
    from assistant_axis.models.loading import load_model

    found = load_axis(axis)
    hooked = load_model(model)
    found.check(hooked)
    return hooked, found


def _user(name: str, base_url: str | None) -> User:
    from assistant_axis.drift.users import APIUser, ModelUser, Scripted
    from assistant_axis.errors import SettingError
    from assistant_axis.models.loading import load_model

    kind, _, which = name.partition(":")
    if kind == "scripted":
        return Scripted()
    if kind == "model" and which:
        return ModelUser(load_model(which))
    if kind == "api" and which:
        return APIUser(which, base_url=base_url)
    raise SettingError(f"--user {name} is not known; use scripted, model:NAME or api:NAME.")


def _table(trace: Any, title: str) -> Any:
    from rich.table import Table

    table = Table("turn", "role", "raw", "centred", "percentile", "tokens", title=title)
    for row in trace.rows():
        if row["layer"] == trace.layers[0]:
            table.add_row(
                str(row["turn"]),
                row["role"],
                f"{row['raw']:+.2f} ± {row['stderr']:.2f}",
                f"{row['centered']:+.2f}",
                f"{row['percentile']:.0f}",
                str(row["n_tokens"]),
            )
    return table


def _say_simulation(held: Any, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from assistant_axis.drift.figures import domain_traces
    from assistant_axis.drift.summary import contrast, per_turn, slopes
    from assistant_axis.errors import SettingError
    from assistant_axis.plots.style import save_figure

    console = Console()
    table = Table("domain", "turn", "n", "centred mean", "95 % band", title=f"Layer {held.layer}")
    means = per_turn(held)
    for m in means:
        table.add_row(m.domain, str(m.turn + 1), str(m.n), f"{m.mean:+.2f}", f"{m.low:+.2f} … {m.high:+.2f}")
    console.print(table)
    drift = Table("domain", "n", "slope a turn", "95 %", "p", title="Drift")
    for s in slopes(held):
        drift.add_row(s.domain, str(s.n), f"{s.mean:+.3f}", f"{s.low:+.3f} … {s.high:+.3f}", f"{s.p:.3g}")
    console.print(drift)
    try:
        c = contrast(held)
        console.print(
            f"therapy and philosophy minus coding and writing: {c.difference:+.2f} "
            f"({c.low:+.2f} … {c.high:+.2f}), p = {c.p:.3g}, n = {c.n[0]} and {c.n[1]} conversations"
        )
    except SettingError as e:
        console.print(f"No contrast: {e}", markup=False)
    save_figure(domain_traces(held, means), out / "domains.png")
    console.print(f"Written to {out}")
