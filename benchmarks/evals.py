"""What the recommended cap of the embedded model gains and costs. Prints tables; takes an hour on a CPU.

    python benchmarks/evals.py --vectors persona-vectors.safetensors --reference FOLDER --out FOLDER --part cap|capability

`cap` calibrates the cap of the how-to (PC1, layers 16 to 23, 70th percentile) and a random direction of equal length with its
own calibration. `capability` runs HellaSwag items with lm-evaluation-harness' own `hf` model, with ours, with ours under an
intervention of zero strength, and with ours under the cap and under the random direction.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from steering import calibration_rollouts  # the benchmark beside this one

from assistant_axis import Add, Cap, PersonaVectors, load_model
from assistant_axis.steering.calibrate import calibrate
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.formats import load_intervention, save_intervention

WINDOW = range(16, 24)
PERCENTILE = 70
PART = 250  # items
RUNS = ("hf", "ours", "zero", "cap", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--reference", type=Path, help="folder with hellaswag_val_1000.txt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("cap", "capability"), required=True)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "cap":
        caps(args.vectors, args.out)
    else:
        hellaswag(args.reference, args.vectors, args.out, args.runs, args.limit)


def caps(vectors: Path, out: Path) -> None:
    """The recommended cap and its random control, written to `cap.safetensors` and `random.safetensors`."""
    model = load_model("smollm2-135m-instruct", device="cpu", dtype="float32")
    axis = Direction.of(PersonaVectors.load(vectors).axis("pc1"))
    rollouts = calibration_rollouts(model)
    for name, direction in (("cap", axis), ("random", axis.random(0))):
        found = calibrate(direction, model, rollouts, layers=WINDOW).calibrated()
        print(save_intervention(out / f"{name}.safetensors", Cap.calibrated(found, PERCENTILE, layers=WINDOW)))


def write_task(source: Path, folder: Path) -> Path:
    """HellaSwag as a local task: six lines an item in `source` (context, gold, four endings)."""
    lines = source.read_text(encoding="utf-8").splitlines()
    items = [
        {"query": lines[k], "gold": int(lines[k + 1]), "choices": lines[k + 2 : k + 6]}
        for k in range(0, len(lines) - 5, 6)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.json").write_text("\n".join(json.dumps(i) for i in items), encoding="utf-8")
    task = folder / "hellaswag_local.yaml"
    task.write_text(
        "task: hellaswag_local\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: items.json\n"
        "output_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{query}}"\ndoc_to_target: "{{gold}}"\ndoc_to_choice: choices\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
        "  - metric: acc_norm\n    aggregation: mean\n    higher_is_better: true\n",
        encoding="utf-8",
    )
    return task


def hellaswag(reference: Path, vectors: Path, out: Path, names: list[str], limit: int) -> None:
    """Accuracies, largest difference of log-likelihoods from `hf`, times, paired changes; runs are kept in `out`."""
    from assistant_axis.evals.capability import paired_metrics

    task = write_task(reference / "hellaswag_val_1000.txt", out / "task")
    runs: dict[str, dict[str, Any]] = {}
    for name in names:
        file = out / f"hellaswag-{name}-{limit}.json"
        if not file.is_file():
            file.write_text(json.dumps(in_parts(name, str(task), vectors, out, limit), default=str), encoding="utf-8")
    for name in RUNS:
        file = out / f"hellaswag-{name}-{limit}.json"
        if not file.is_file():
            continue
        runs[name] = json.loads(file.read_text(encoding="utf-8"))
        said = {k: v for k, v in runs[name]["results"]["hellaswag_local"].items() if k.startswith("acc")}
        print(f"{name}: {said}, wall {runs[name]['wall']:.0f} s, cpu {runs[name]['cpu']:.0f} s")
        for against in ("hf", "ours"):
            if against in runs and against != name:
                apart = [abs(a - b) for a, b in zip(scores(runs[against]), scores(runs[name]), strict=True)]
                print(f"  {len(apart)} log-likelihoods: largest difference from {against} {max(apart):.1e}")
        if "ours" in runs and name not in ("hf", "ours"):
            for change in paired_metrics(runs["ours"], runs[name]):
                print(f"  {change.metric}: {change.change}; {change.change.lost} fell, {change.change.gained} rose")


def in_parts(name: str, task: str, vectors: Path, out: Path, limit: int) -> dict[str, Any]:
    """All items in parts of `PART`; each part is kept, so that an interrupted run goes on where it was."""
    parts = []
    for start in range(0, limit, PART):
        file = out / f"hellaswag-{name}-{start}-{min(start + PART, limit)}.json"
        if not file.is_file():
            wall, cpu = time.perf_counter(), time.process_time()
            found = run(name, task, vectors, out, list(range(start, min(start + PART, limit))))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            kept = {"samples": found["samples"], "wall": wall, "cpu": cpu}
            file.write_text(json.dumps(kept, default=str), encoding="utf-8")
        parts.append(json.loads(file.read_text(encoding="utf-8")))
    rows = [row for part in parts for row in next(iter(part["samples"].values()))]
    means = {metric: sum(float(r[metric]) for r in rows) / len(rows) for metric in ("acc", "acc_norm")}
    totals = {clock: sum(part[clock] for part in parts) for clock in ("wall", "cpu")}
    return {"results": {"hellaswag_local": means}, "samples": {"hellaswag_local": rows}, **totals}


def run(name: str, task: str, vectors: Path, out: Path, items: list[int]) -> dict[str, Any]:
    """One run of the harness over these items, with its samples; loading the model is not timed apart."""
    from lm_eval import simple_evaluate
    from lm_eval.models import huggingface
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from assistant_axis.evals.capability import read_task
    from assistant_axis.evals.harness import HookedLM
    from assistant_axis.models.embedded import ensure

    lm: Any
    if name == "hf":
        folder = ensure("smollm2-135m-instruct")
        hf: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        theirs: Any = huggingface.HFLM
        lm = theirs(hf, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=16)
    else:
        model = load_model("smollm2-135m-instruct", device="cpu", dtype="float32")
        steps: dict[str, Any] = {
            "ours": lambda: [],
            "zero": lambda: [Add(PersonaVectors.load(vectors).axis("pc1"), 0.0)],
            "cap": lambda: [load_intervention(out / "cap.safetensors", model)],
            "random": lambda: [load_intervention(out / "random.safetensors", model)],
        }
        lm = HookedLM(model, *steps[name](), batch_size=16)
    evaluate: Any = simple_evaluate
    return evaluate(lm, tasks=[read_task(task)], samples={"hellaswag_local": items}, bootstrap_iters=1000)


def scores(results: dict[str, Any]) -> list[float]:
    """Every log-likelihood, in the order of items and endings."""
    rows = sorted(next(iter(results["samples"].values())), key=lambda r: r["doc_id"])
    return [float(choice[0]) for row in rows for choice in row["filtered_resps"]]


if __name__ == "__main__":
    main()
