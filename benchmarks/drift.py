"""Figures for drift on the embedded model: exactness of turns and of the monitor, domains, prediction, behaviour.

python benchmarks/drift.py exact --axis runs/own/vectors.safetensors
python benchmarks/drift.py simulate --axis runs/own/vectors.safetensors --out runs/drift
python benchmarks/drift.py predict --out runs/drift
python benchmarks/drift.py timing
python benchmarks/drift.py behaviour --axis runs/own/vectors.safetensors --out runs/behaviour
python benchmarks/drift.py transcripts --axis runs/own/vectors.safetensors --files 'transcripts/**/*.json*'
"""

import argparse
import glob
import json
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch


def load(path: str) -> tuple[Any, Any]:
    from assistant_axis import PersonaVectors, load_model

    return load_model("smollm2-135m-instruct"), PersonaVectors.load(path).axis()


def exact(args: argparse.Namespace) -> dict[str, Any]:
    """Turn means against one plain HF pass a prefix; the monitor against the trajectory of the transcript."""
    from assistant_axis.drift.monitor import DriftMonitor
    from assistant_axis.drift.trajectory import trajectories
    from assistant_axis.drift.users import scripted_scenarios

    model, axis = load(args.axis)
    scenarios = scripted_scenarios(per_domain=args.per_domain)
    talks: list[list[dict[str, str]]] = [[] for _ in scenarios]
    monitor = DriftMonitor(model, axis)
    apart, retokenised, by_hand = [], 0, []
    for turn in range(2):
        talks = [[*t, {"role": "user", "content": s.turns[turn]}] for t, s in zip(talks, scenarios, strict=True)]
        monitor.turns.clear()
        answers = monitor.generate(talks, max_new_tokens=48, temperature=0.7, top_p=0.9, seed=turn)
        talks = [[*t, {"role": "assistant", "content": a.text}] for t, a in zip(talks, answers, strict=True)]
        for read, watched in zip(trajectories(model, axis, talks), monitor.turns, strict=True):
            last = read.turns[-1]
            if last.n_tokens != len(watched.ids):
                retokenised += 1
            else:
                apart.append(abs(float(last.mean[0]) - watched.mean) / abs(watched.mean))
    for talk, read in zip(talks[:4], trajectories(model, axis, talks[:4]), strict=True):
        for n, turn_read in enumerate(read.turns):
            chat = model.chat.encode(talk[: 2 * n + 2])
            start, stop = chat.turns[-1].content
            with torch.inference_mode():
                states = model.lens.module(torch.tensor([chat.ids]), output_hidden_states=True).hidden_states
            value = float((states[monitor.layer + 1][0, start:stop] @ axis.at(monitor.layer)).mean())
            by_hand.append(abs(float(turn_read.mean[0]) - value) / abs(value))
    return {
        "turns vs one pass a prefix, largest relative difference": max(by_hand),
        "monitor vs trajectory, largest relative difference": max(apart),
        "turns compared": len(apart),
        "turns whose text tokenises otherwise (left out)": retokenised,
    }


def simulate(args: argparse.Namespace) -> dict[str, Any]:
    """Scripted conversations; means, slopes and the contrast."""
    from assistant_axis.drift.simulate import simulate as hold
    from assistant_axis.drift.summary import contrast, per_turn, slopes
    from assistant_axis.drift.users import scripted_scenarios

    model, axis = load(args.axis)
    began = time.perf_counter()
    held = hold(model, axis, scripted_scenarios(per_domain=args.per_domain), out=args.out)
    return {
        "minutes": (time.perf_counter() - began) / 60,
        "exchanges": len(held.turns),
        "per turn, centred": [asdict(m) for m in per_turn(held)],
        "slopes": [asdict(s) for s in slopes(held)],
        "contrast": asdict(contrast(held)),
    }


def predict(args: argparse.Namespace) -> dict[str, Any]:
    """Ridge figures and clusters of a simulation."""
    from assistant_axis.drift.clusters import assign, rank_clusters
    from assistant_axis.drift.embed import Embedder
    from assistant_axis.drift.predict import Exchanges, evaluate
    from assistant_axis.drift.simulate import Simulation

    exchanges = Exchanges.of(Simulation.load(args.out))
    rows = Embedder().embed(exchanges.messages)
    out: dict[str, Any] = {t: asdict(evaluate(exchanges, rows, t)) for t in ("next", "change")}
    ranked = rank_clusters(exchanges, rows, assign(rows, k=12))
    out["clusters"] = [(c.kind, round(c.next, 2), c.n, c.keywords[:5]) for c in (*ranked[:3], *ranked[-3:])]
    return out


def timing(args: argparse.Namespace) -> dict[str, Any]:
    """Everything `drift predict` does after embedding, for 15,000 made messages of 1,500 conversations."""
    from assistant_axis.drift.clusters import assign, map_messages, rank_clusters
    from assistant_axis.drift.predict import DriftPredictor, Exchanges, evaluate

    n, turns = 15_000, 10
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 384)) + np.repeat(rng.normal(size=(n // turns, 384)), turns, axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = 20 * x[:, 0] + rng.normal(size=n)
    change = y - np.roll(y, 1)
    change[::turns] = np.nan
    words = tuple(f"message about topic{k % 97} and word{k % 1009}" for k in range(n))
    many = Exchanges(words, tuple(k // turns for k in range(n)), ("",) * n, y, change)
    out: dict[str, Any] = {}

    def clock(what: str, call: Any) -> Any:
        began = time.perf_counter()
        found = call()
        out[what] = round(time.perf_counter() - began, 1)
        print(what, out[what], file=sys.stderr, flush=True)
        return found

    clock("ridge, next: in sample, grouped, 99 permutations, control", lambda: evaluate(many, x))
    clock("ridge, change", lambda: evaluate(many, x, "change"))
    labels = clock("k-means, 20 clusters", lambda: assign(x, k=20))
    clock("ranking and keywords", lambda: rank_clusters(many, x, labels))
    clock("HDBSCAN", lambda: assign(x, "hdbscan"))
    clock("map", lambda: map_messages(x))
    clock("predictor", lambda: DriftPredictor.fit(many, x))
    return {"seconds": out, "all": round(sum(out.values()), 1)}


def behaviour(args: argparse.Namespace) -> dict[str, Any]:
    """First-turn projection and role adherence of the second answer, beside random directions."""
    from assistant_axis.drift import behaviour as b
    from assistant_axis.drift.simulate import simulate as hold

    model, axis = load(args.axis)
    scenarios = b.role_scenarios(roles=args.roles, per_role=2)
    held = hold(model, axis, scenarios, turns=2, max_new_tokens=args.tokens, out=args.out)
    outcomes = b.adherence_outcomes(model, held)
    found = b.relate(outcomes)
    chance = np.abs(b.random_relations(model, held, outcomes))
    return asdict(found) | {
        "layer": held.layer,
        "|r| of 200 random directions: median, 95 %": [float(v) for v in np.quantile(chance, [0.5, 0.95])],
        "share of random directions as large": float((chance >= abs(found.pearson)).mean()),
        "incoherent second answers": sum(o.incoherent for o in outcomes) / len(outcomes),
        "mean adherence": sum(o.outcome for o in outcomes) / len(outcomes),
    }


def transcripts(args: argparse.Namespace) -> dict[str, Any]:
    """Trace every conversation of every file; what is done is printed to standard error as it comes."""
    from itertools import islice

    from assistant_axis.drift.trajectory import trajectory
    from assistant_axis.drift.transcripts import read_transcripts

    model, axis = load(args.axis)
    found: list[dict[str, Any]] = []
    for file in sorted(glob.glob(args.files, recursive=True)):  # noqa: PTH207
        for talk in islice(read_transcripts(file), args.limit):
            began = time.perf_counter()
            path = trajectory(model, axis, talk.messages, window=args.window)
            found.append(
                {
                    "conversation": talk.name,
                    "tokens": len(model.chat.encode(talk.messages).ids),
                    "answers": len(path),
                    "seconds": round(time.perf_counter() - began, 1),
                    "first and last mean": [round(float(path.means()[i]), 2) for i in (0, -1)],
                    "finite": bool(path.means().isfinite().all()),
                    "notes": [*talk.notes, *path.warnings],
                }
            )
            print(json.dumps(found[-1], ensure_ascii=False), file=sys.stderr, flush=True)
    return {
        "conversations": len(found),
        "answers": sum(f["answers"] for f in found),
        "tokens": sum(f["tokens"] for f in found),
        "longest": max(f["tokens"] for f in found),
        "read in windows": sum("overlapping windows" in n for f in found for n in f["notes"]),
        "every mean is finite": all(f["finite"] for f in found),
        "seconds": round(sum(f["seconds"] for f in found), 1),
    }


KINDS = {
    "exact": exact,
    "simulate": simulate,
    "predict": predict,
    "timing": timing,
    "behaviour": behaviour,
    "transcripts": transcripts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=list(KINDS))
    parser.add_argument("--axis")
    parser.add_argument("--out", default="runs/drift")
    parser.add_argument("--per-domain", type=int, default=25)
    parser.add_argument("--files", default="")
    parser.add_argument("--limit", type=int, help="conversations a file")
    parser.add_argument("--roles", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--window", type=int, help="longest pass in tokens; default: the model's context")
    args = parser.parse_args()
    found = KINDS[args.what](args)
    print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
