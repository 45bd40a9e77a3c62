"""`assistant-axis drift trace | simulate | predict | behaviour`, and `assistant-axis chat`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant_axis.cli.options import DEFAULT_MODEL, ModelOption, load_axis, one_layer

if TYPE_CHECKING:
    from assistant_axis.drift.users import User
    from assistant_axis.geometry.axis import AssistantAxis
    from assistant_axis.models.hooked import HookedChatModel

app = typer.Typer(
    no_args_is_help=True, help="How the persona moves over a conversation, what moves it, and what follows."
)

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
    skip: Annotated[bool, typer.Option("--skip", help="Name conversations that cannot be read and go on.")] = False,
    window: Annotated[int | None, typer.Option(help="Longest pass in tokens; default: the model's context.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Write the last conversation's figure here.")] = None,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="Capped and uncapped in panels.")] = False,
    tokens: Annotated[
        Path | None, typer.Option(help="Write the last conversation's tokens, coloured, as HTML here.")
    ] = None,
    circuitsvis: Annotated[bool, typer.Option("--circuitsvis", help="Colour the tokens with CircuitsVis.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write every turn as JSON lines here.")] = None,
) -> None:
    """Mean projection of every turn, from one forward pass a conversation; nothing but the last trace is kept."""
    import json
    from contextlib import ExitStack
    from itertools import islice

    from rich.console import Console

    from assistant_axis.activations.store import atomic
    from assistant_axis.drift.trajectory import trajectory
    from assistant_axis.drift.transcripts import read_transcripts
    from assistant_axis.errors import AssistantAxisError, ConversationError, SettingError
    from assistant_axis.steering.interventions import Cap

    if span not in ("response", "header"):
        raise SettingError(f'--span {span} is not known; use "response" or "header".')
    hooked, found = _load(model, axis)
    capped = None if cap is None else Cap.calibrated(found, cap)
    options: dict[str, Any] = {"layers": one_layer(layer), "users": users, "span": span, "window": window}
    traces: dict[str, Any] = {}
    console = Console()
    left_out = 0

    def leave_out(error: AssistantAxisError) -> None:
        nonlocal left_out
        left_out += 1
        console.print(f"left out: {error}", style="dim", markup=False)

    with ExitStack() as stack:
        lines = None
        if out is not None:
            lines = stack.enter_context(stack.enter_context(atomic(out)).open("w", encoding="utf-8"))
        for talk in islice(read_transcripts(conversation, on_error=leave_out if skip else None), limit):
            try:
                one = trajectory(hooked, found, talk.messages, **options)
            except ConversationError as e:
                if not skip:
                    raise ConversationError(f"{talk.name}: {e}") from e
                leave_out(ConversationError(f"{talk.name}: {e}"))
                continue
            traces = {"": one}
            if capped is not None:
                with hooked.steered(capped):
                    under = trajectory(hooked, found, talk.messages, **options)
                traces = {"uncapped": one, f"cap at percentile {cap:g}": under}
            for name, read in traces.items():
                title = f"{talk.name}: layer {read.layers[0]}" + (f", {name}" if name else "")
                console.print(_table(read, title))
                if lines is not None:
                    lines.writelines(
                        json.dumps({"conversation": talk.name, "under": name} | r) + "\n" for r in read.rows()
                    )
            for note in dict.fromkeys((*talk.notes, *(w for t in traces.values() for w in t.warnings))):
                console.print(f"note: {note}", style="dim", markup=False)
    if left_out:
        console.print(f"{left_out} conversations were left out.", markup=False)
    if not traces:
        raise ConversationError(f"No conversation of {conversation} could be traced.")
    last = next(iter(traces.values()))
    if figure is not None:
        from assistant_axis.plots.drift import drift_trace
        from assistant_axis.plots.style import save_figure

        floor = None
        if capped is not None and last.layers[0] in capped.resolved(hooked):
            floor = capped.thresholds(last.layers[0])[0]
        drawn = traces if len(traces) > 1 else last
        save_figure(drift_trace(drawn, floor=floor, side_by_side=side_by_side), figure)
        console.print(f"Figure written to {figure}", markup=False)
    if tokens is not None:
        from assistant_axis.plots.drift import drift_tokens

        page = "".join(
            f"<h3>{name}</h3>{drift_tokens(t, circuitsvis=circuitsvis)._repr_html_()}" for name, t in traces.items()
        )
        with atomic(tokens) as scratch:
            scratch.write_text(f'<!doctype html><meta charset="utf-8"><title>tokens</title>{page}', encoding="utf-8")
        console.print(f"Tokens written to {tokens}", markup=False)


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
    run: Annotated[Path, typer.Argument(help="Folder or file of a simulation, or a predictor to score with.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the predictor, table and map.")] = None,
    embedder: Annotated[str, typer.Option(help="Any sentence-transformers model.")] = "all-minilm-l6-v2",
    clusters: Annotated[int, typer.Option(min=2, help="Clusters of k-means.")] = 12,
    method: Annotated[str, typer.Option(help="kmeans or hdbscan.")] = "kmeans",
    permutations: Annotated[int, typer.Option(min=0)] = 99,
    message: Annotated[list[str] | None, typer.Option(help="Score this message (repeat).")] = None,
    seed: int = 0,
) -> None:
    """How far user messages predict what follows, and which kinds of messages are followed by drift.

    With a predictor that was written before (predictor.safetensors), score messages that were not answered yet.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from assistant_axis.drift.clusters import assign, map_messages, rank_clusters
    from assistant_axis.drift.embed import Embedder
    from assistant_axis.drift.predict import DriftPredictor, Exchanges, evaluate
    from assistant_axis.drift.simulate import Simulation
    from assistant_axis.errors import SettingError

    if method not in ("kmeans", "hdbscan"):
        raise SettingError(f"--method {method} is not known; use kmeans or hdbscan.")
    console = Console()
    if run.suffix == ".safetensors":
        if not message:
            raise SettingError("A predictor scores messages: give --message, once for each.")
        _say_scores(DriftPredictor.load(run).score(message))
        return
    held = Simulation.load(run)
    exchanges = Exchanges.of(held)
    encoder = Embedder(embedder)
    rows = encoder.embed(exchanges.messages)
    table = Table("target", "messages", "R² in-sample", "R² whole conversations", "p", "R² shuffled", title="Ridge")
    for target in ("next", "change"):
        try:
            r = evaluate(exchanges, rows, target, permutations=permutations, seed=seed)
        except SettingError as e:
            if target == "next":
                raise
            console.print(f"note: {e}", style="dim", markup=False)  # short conversations: few changes, or none
            continue
        table.add_row(target, str(r.n), f"{r.in_sample:.3f}", f"{r.grouped:.3f}", f"{r.p:.3g}", f"{r.shuffled:.3f}")
    console.print(table)
    labels = assign(rows, "hdbscan" if method == "hdbscan" else "kmeans", k=clusters, seed=seed)
    kinds = Table("", "next (raw)", "change", "n", "keywords", "nearest message", title="Messages, drift first")
    ranked = rank_clusters(exchanges, rows, labels)
    for c in ranked:
        kinds.add_row(
            c.kind, f"{c.next:+.2f}", f"{c.change:+.2f}", str(c.n), ", ".join(c.keywords[:6]), c.messages[0][:80]
        )
    console.print(kinds)
    conditions = dict(held.conditions)
    fitted = DriftPredictor.fit(exchanges, rows, embedder=embedder, conditions=conditions)
    if out is not None:
        from assistant_axis.activations.store import atomic
        from assistant_axis.plots.drift import message_map
        from assistant_axis.plots.style import save_figure

        console.print(f"Predictor written to {fitted.save(out / 'predictor.safetensors')}", markup=False)
        save_figure(message_map(exchanges, map_messages(rows)), out / "messages.png")
        with atomic(out / "clusters.json") as scratch:
            scratch.write_text(json.dumps([asdict(c) for c in ranked], indent=1, ensure_ascii=False), encoding="utf-8")
        console.print(f"Map of messages and table of clusters written to {out}", markup=False)
    if message:
        _say_scores(fitted.score(message, encoder))


@app.command()
def behaviour(
    axis: AxisOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; an interrupted run goes on from here.")],
    model: ModelOption = DEFAULT_MODEL,
    roles: Annotated[int | None, typer.Option(min=5, help="Draw this many roles; default: all.")] = None,
    per_role: Annotated[int, typer.Option(min=1, help="Conversations a role.")] = 2,
    second: Annotated[Path | None, typer.Option(help="Second questions, one a line; default: the bundled.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help='Outcomes of your own: JSON lines {"conversation": id, "label": number}.')
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 48,
    layer: LayerOption = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    seed: int = 0,
) -> None:
    """Put the model in roles for two turns: does where the first answer stands say what the second will be?

    The outcome is role adherence; outcomes.jsonl holds the conversations, to be labelled for harm and given back by
    --labels.
    """
    from rich.console import Console

    from assistant_axis.drift import behaviour as b
    from assistant_axis.drift.simulate import simulate as hold
    from assistant_axis.drift.users import Scripted
    from assistant_axis.plots.drift import behaviour_map
    from assistant_axis.plots.style import save_figure

    asked = None
    if second is not None:
        asked = [line.strip() for line in second.read_text(encoding="utf-8").splitlines() if line.strip()]
    given = None if labels is None else b.read_labels(labels)
    scenarios = b.role_scenarios(roles=roles, per_role=per_role, second=asked, seed=seed)
    hooked, found = _load(model, axis)
    options: dict[str, Any] = {"turns": 2, "max_new_tokens": tokens, "batch_size": batch_size, "seed": seed}
    held = hold(hooked, found, scenarios, Scripted(), layer=one_layer(layer), out=out, **options)
    outcomes = b.adherence_outcomes(hooked, held) if given is None else b.labelled_outcomes(held, given)
    relation = b.relate(outcomes, seed=seed)
    chance = abs(b.random_relations(hooked, held, outcomes, seed=seed))
    console = Console()
    label = "role adherence of the second answer (nats per token)" if given is None else "label of the second answer"
    console.print(f"first-turn projection and {label}, layer {held.layer}:", markup=False)
    console.print(str(relation), markup=False)
    console.print(
        f"|r| of 200 random directions: median {sorted(chance)[len(chance) // 2]:.3f}, "
        f"as large as the axis' in {(chance >= abs(relation.pearson)).mean():.0%}",
        markup=False,
    )
    if given is None:
        console.print(f"incoherent second answers: {sum(o.incoherent for o in outcomes) / len(outcomes):.0%}")
        console.print(f"Written to {b.write_outcomes(out / 'outcomes.jsonl', held, outcomes)}", markup=False)
    where = f"{hooked.name} · layer {held.layer}"
    save_figure(behaviour_map(outcomes, relation, label=label, conditions=where), out / "behaviour.png")


def chat(
    axis: AxisOption,
    model: ModelOption = DEFAULT_MODEL,
    layer: LayerOption = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.7,
    predictor: Annotated[
        Path | None, typer.Option(help="predictor.safetensors: say which messages pull away before they are answered.")
    ] = None,
    seed: int = 0,
) -> None:
    """Talk to the model and watch where it stands, token by token."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from assistant_axis.drift.session import HELP, ChatSession

    hooked, found = _load(model, axis)
    options: dict[str, Any] = {"system": system, "max_new_tokens": tokens, "temperature": temperature, "seed": seed}
    if predictor is not None:
        from assistant_axis.drift.predict import DriftPredictor

        options["predictor"] = DriftPredictor.load(predictor)
    session = ChatSession(hooked, found, one_layer(layer), **options)
    console = Console()
    console.print(
        f"{hooked.name}, layer {session.monitor.layer}. /help lists the commands.\n{HELP}", style="dim", markup=False
    )
    for note in session.monitor.notes:
        console.print(f"note: {note}", style="dim", markup=False)
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
        foreseen = session.foresee(line)
        if foreseen:
            console.print(foreseen, style="dim", markup=False)
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


def _say_scores(scores: Any) -> None:
    from rich.console import Console

    for score in scores:
        Console().print(f"{score.said}\n    {score.message}", markup=False)


def _table(trace: Any, title: str) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from assistant_axis.drift.trajectory import shown

    table = Table("turn", "role", "raw", "centred", "percentile", "tokens", title=escape(title))
    for row in trace.rows():
        if row["layer"] == trace.layers[0]:
            table.add_row(
                str(row["turn"]),
                row["role"],
                f"{row['raw']:+.2f}" + (f" ± {row['stderr']:.2f}" if row["n_tokens"] > 1 else ""),
                f"{row['centered']:+.2f}",
                shown(row["percentile"]),
                str(row["n_tokens"]),
            )
    return table


def _say_simulation(held: Any, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from assistant_axis.drift.summary import FEWEST, contrast, per_turn, slopes
    from assistant_axis.errors import SettingError
    from assistant_axis.plots.drift import domain_traces
    from assistant_axis.plots.style import save_figure

    console = Console()
    table = Table("domain", "turn", "n", "centred mean", "95 % band", title=f"Layer {held.layer}")
    means = per_turn(held)
    for m in means:
        table.add_row(m.domain, str(m.turn + 1), str(m.n), f"{m.mean:+.2f}", f"{m.low:+.2f} … {m.high:+.2f}")
    if means:
        console.print(table)
    else:
        console.print(f"No domain has {FEWEST} conversations at any turn: no means are shown.")
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
