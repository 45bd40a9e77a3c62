"""The main job on the embedded model against its targets: python benchmarks/persona_space.py [--official DIR] …

Prints, for the bundled prompts and (with --official) the published ones: Spearman of PC1 with the published Qwen 3 32B
ranking per layer, with both halves of the roles, |cos(axis, PC1)|, dimensions, and the wall time of the run; with
--response the same for generated answers; with --reference DIR the largest difference between our activations and
forward hooks on a plain HF copy over real conversations. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from assistant_axis.activations.capture import capture_means
from assistant_axis.activations.spans import read_turns
from assistant_axis.geometry.published import published
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.models.embedded import ensure
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.models.loading import load_model
from assistant_axis.pipeline.extract import Sampling, extract_persona_vectors

REFERENCE_TURNS = 6  # of each transcript


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--official", type=Path, help="folder in the published layout (roles/instructions/*.json)")
    parser.add_argument(
        "--response", action="store_true", help="also 8 rollouts × 48 tokens a role (a quarter of an hour)"
    )
    parser.add_argument(
        "--reference", type=Path, help="folder of transcripts (*.json with a list under 'conversation')"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-header", action="store_true", help="leave out the header-span runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, Python {platform.python_version()}"
    )
    model = load_model(args.model)
    print(model)
    if not args.no_header:
        _run(model, "header span, bundled prompts", "header", None)
        if args.official is not None:
            _run(model, "header span, published prompts", "header", args.official)
    if args.response:
        _run(model, "response span, 8 rollouts × 48 tokens, bundled prompts", "response", None)
    if args.reference is not None:
        _compare_with_hf(model, args.reference)


def _run(model: HookedChatModel, title: str, span: str, personas: Path | None) -> None:
    started = time.perf_counter()
    vectors = extract_persona_vectors(model, span, personas=personas, sampling=Sampling(batch_size=64))
    seconds = time.perf_counter() - started
    rollouts = int(vectors.counts.sum()) + vectors.default_count
    print(f"\n{title}: {rollouts} rollouts in {seconds:.0f} s; {int(vectors.counts.min())} or more a role")
    _table(vectors)


def _table(vectors: PersonaVectors) -> None:
    ranking = published("qwen3-32b")
    figures = dict(zip(ranking.roles, ranking.projections, strict=True))
    shared = [k for k, r in enumerate(vectors.roles) if r in figures]
    y = np.array([figures[vectors.roles[k]] for k in shared])
    even = np.arange(len(shared)) % 2 == 0
    print("layer  Spearman PC1   even half   odd half   |cos(axis, PC1)|   dims for 70 %   default on PC1")
    best = (-1.0, 0)
    for layer in vectors.layers:
        space = vectors.space(layer)
        x = space.scores(1).numpy()[shared]
        r = [_spearman(x[m], y[m]) for m in (slice(None), even, ~even)]
        best = max(best, (r[0], layer))
        if layer < 10:
            continue
        mark = "  ← monitoring layer" if layer == vectors.monitoring_layer else ""
        print(
            f"{layer:>5}  {r[0]:>12.3f}  {r[1]:>10.3f}  {r[2]:>9.3f}  {space.axis_cosine():>17.2f}"
            f"  {space.dimensions(0.7):>14}  {space.default_position():>15.2f}{mark}"
        )
    print(f"best layer {best[1]}: {best[0]:.3f}")


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(np.asarray(spearmanr(x, y)).reshape(-1)[0])


def _compare_with_hf(model: HookedChatModel, folder: Path) -> None:
    """Every answer of every transcript: our means against forward hooks on a plain HF copy of the same weights."""
    from transformers import AutoModelForCausalLM

    from assistant_axis.drift.transcripts import read_transcripts

    plain = AutoModelForCausalLM.from_pretrained(ensure(model.name), dtype=torch.float32).eval()
    seen: dict[int, torch.Tensor] = {}

    def record(layer: int):
        def hook(_module, _args, out):
            seen[layer] = (out[0] if isinstance(out, tuple) else out)[0]

        return hook

    for i, block in enumerate(plain.model.layers):
        block.register_forward_hook(record(i))
    worst, turns, files = 0.0, 0, sorted(folder.rglob("*.json"))
    for file in files:
        for transcript in read_transcripts(file):
            chat = model.chat.encode(transcript.messages[:REFERENCE_TURNS])
            readings = read_turns(chat, "assistant")
            # The rest of the conversation cannot reach back: each answer is read from the start up to its own end.
            ours = capture_means(model, [replace(r, ids=r.ids[: r.at.stop]) for r in readings], model.layers())
            with torch.inference_mode():
                plain(input_ids=torch.tensor([chat.ids]), use_cache=False, logits_to_keep=1)
            for k, reading in enumerate(readings):
                for layer in range(model.n_layers):
                    theirs = seen[layer][list(reading.at)].mean(0)
                    worst = max(worst, float((ours[k, layer] - theirs).abs().max() / theirs.norm()))
            turns += len(readings)
    print(
        f"\nactivations against forward hooks on plain HF: {len(files)} files, first {REFERENCE_TURNS} turns, {turns} answers, all layers: "
        f"largest difference {worst:.2e} of the vector's norm"
    )


if __name__ == "__main__":
    main()
