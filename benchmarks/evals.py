"""What the recommended cap of the embedded model gains and costs. Prints tables.

    python benchmarks/evals.py --reference FOLDER --out FOLDER --part cap|capability|tasks|overhead

`cap` makes the cap of the how-to (PC1, layers 16 to 23, 70th percentile) from the vectors that ship, and a random direction
of equal length with its own calibration. `capability` runs HellaSwag items with lm-evaluation-harness' own `hf` model, with
ours, with ours under an intervention of zero strength, and with ours under the cap and under the random direction, in parts
that are kept: `--stop-after 2` ends after two new ones, and the same command goes on from there. `tasks` runs GSM8K and EQ-Bench
as local tasks that generate, without and with the cap. `overhead` times the harness with its own model and with ours, in turns.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side_by_side import Comparison, compare, save  # beside this file
from steering import calibration_rollouts

from assistant_axis import Add, Cap, load_model, load_precomputed_axis
from assistant_axis.steering.calibrate import calibrate
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.formats import load_intervention, save_intervention

MODEL = "smollm2-135m-instruct"
WINDOW = range(16, 24)
PERCENTILE = 70
PART = 125  # items
RUNS = ("hf", "ours", "zero", "cap", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="folder with hellaswag_val_1000.txt and the like")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("cap", "capability", "tasks", "overhead"), required=True)
    parser.add_argument("--limit", type=int, help="items; default: 1000, or 40 to be timed")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--stop-after", type=int, help="of capability: so many new parts")
    parser.add_argument("--rounds", type=int, default=5, help="of overhead")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=Path, default=Path("benchmarks/results/evals.json"), help="of overhead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "cap":
        caps(args.out)
    elif args.part == "capability":
        hellaswag(args.reference, args.out, args.runs, args.limit or 1000, args.stop_after)
    elif args.part == "tasks":
        generating(args.reference, args.out, args.limit)
    else:
        overhead(args.reference, args.out, args.limit or 40, args.rounds, args.save)


def caps(out: Path) -> None:
    """The recommended cap and its random control, written to `cap.safetensors` and `random.safetensors`."""
    axis = load_precomputed_axis(MODEL, "pc1")
    print(save_intervention(out / "cap.safetensors", Cap.calibrated(axis, PERCENTILE, layers=WINDOW)))
    model = load_model(MODEL, device="cpu", dtype="float32")
    found = calibrate(Direction.of(axis).random(0), model, calibration_rollouts(model), layers=WINDOW).calibrated()
    print(save_intervention(out / "random.safetensors", Cap.calibrated(found, PERCENTILE, layers=WINDOW)))


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


def hellaswag(reference: Path, out: Path, names: list[str], limit: int, stop_after: int | None) -> None:
    """Accuracies, largest difference of log-likelihoods, times, and paired changes over the items that two runs share."""
    from assistant_axis.evals.capability import paired_metrics

    task = str(write_task(reference / "hellaswag_val_1000.txt", out / "task"))
    left = sys.maxsize if stop_after is None else stop_after
    for name in names:
        for items in parts(limit):
            file = part_file(out, name, items)
            if file.is_file() or left == 0:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            found = run(name, task, out, list(items))
            kept = {"samples": found["samples"], "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            file.write_text(json.dumps(kept, default=str), encoding="utf-8")
            print(f"{file}: {kept['wall']:.0f} s")
            left -= 1
    runs = {name: kept_parts(out, name, limit) for name in RUNS}
    runs = {name: found for name, found in runs.items() if found["samples"]["hellaswag_local"]}
    for name, found in runs.items():
        rows = found["samples"]["hellaswag_local"]
        means = {metric: sum(float(r[metric]) for r in rows) / len(rows) for metric in ("acc", "acc_norm")}
        print(f"{name}: {len(rows)} items, {means}, wall {found['wall']:.0f} s, cpu {found['cpu']:.0f} s")
        for against in ("hf", "ours"):
            if against not in runs or name == against or (name, against) == ("hf", "ours"):
                continue
            before, after = shared(runs[against], found)
            apart = [abs(a - b) for a, b in zip(scores(before), scores(after), strict=True)]
            print(f"  {len(apart)} log-likelihoods: largest difference from {against} {max(apart):.1e}")
            if against == "ours":
                for change in paired_metrics(before, after):
                    said = change.change
                    print(f"  {change.metric}: {said}; of {said.n} items {said.lost} fell, {said.gained} rose")


def parts(limit: int) -> list[range]:
    """All items in parts of `PART`."""
    return [range(start, min(start + PART, limit)) for start in range(0, limit, PART)]


def part_file(out: Path, name: str, items: range) -> Path:
    """Where a part is kept."""
    return out / f"hellaswag-{name}-{items.start}-{items.stop}.json"


def kept_parts(out: Path, name: str, limit: int) -> dict[str, Any]:
    """Samples and times of the parts that are there."""
    files = [part_file(out, name, items) for items in parts(limit)]
    held = [json.loads(f.read_text(encoding="utf-8")) for f in files if f.is_file()]
    rows = [row for part in held for row in part["samples"]["hellaswag_local"]]
    return {"samples": {"hellaswag_local": rows}} | {c: sum(part[c] for part in held) for c in ("wall", "cpu")}


def shared(first: dict[str, Any], second: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two results with the items of both."""
    rows = [r["samples"]["hellaswag_local"] for r in (first, second)]
    both = {r["doc_id"] for r in rows[0]} & {r["doc_id"] for r in rows[1]}
    one, two = ({"samples": {"hellaswag_local": [r for r in found if r["doc_id"] in both]}} for found in rows)
    return one, two


def run(name: str, task: str, out: Path, items: list[int]) -> dict[str, Any]:
    """One run of the harness over these items, with its samples; loading the model is not timed apart."""
    from lm_eval import simple_evaluate

    from assistant_axis.evals.tasks import read_task

    evaluate: Any = simple_evaluate
    lm = wrapped(name, out)
    return evaluate(lm, tasks=[read_task(task)], samples={"hellaswag_local": items}, bootstrap_iters=0)


def wrapped(name: str, out: Path, batch_size: int = 16) -> Any:
    """The harness' own model, or ours without or with an intervention."""
    from lm_eval.models import huggingface
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from assistant_axis.evals.harness import HookedLM
    from assistant_axis.models.embedded import ensure

    if name == "hf":
        folder = ensure(MODEL)
        hf: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        theirs: Any = huggingface.HFLM
        return theirs(hf, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=batch_size)
    model = load_model(MODEL, device="cpu", dtype="float32")
    steps: dict[str, Callable[[], list[Any]]] = {
        "ours": lambda: [],
        "zero": lambda: [Add(load_precomputed_axis(MODEL, "pc1"), 0.0)],
        "cap": lambda: [load_intervention(out / "cap.safetensors", model)],
        "random": lambda: [load_intervention(out / "random.safetensors", model)],
    }
    return HookedLM(model, *steps[name](), batch_size=batch_size)


def generating(reference: Path, out: Path, limit: int | None) -> None:
    """GSM8K as a task file and EQ-Bench as the harness has it over local data, chat template on, without and with the cap."""
    from assistant_axis.evals.capability import capability

    model = load_model(MODEL, device="cpu", dtype="float32")
    cap = load_intervention(out / "cap.safetensors", model)
    answers = eq_bench(reference, out / "task")
    for task, local in ((str(gsm8k(reference, out / "task")), {}), ("eq_bench", {"eq_bench": answers})):
        started = time.perf_counter()
        found = capability(
            model, [task], cap, limit=limit, local=local, out=out / "tasks", keep=out / "tasks" / "answers"
        )
        for row in found.rows():
            print(", ".join(f"{k}: {v}" for k, v in row.items()))
        print(f"{time.perf_counter() - started:.0f} s")


def gsm8k(reference: Path, folder: Path, tokens: int = 128) -> Path:
    """GSM8K as a local task that generates."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gsm8k_test.jsonl").write_bytes((reference / "gsm8k_test.jsonl").read_bytes())
    task = folder / "gsm8k_local.yaml"
    task.write_text(GSM8K.replace("TOKENS", str(tokens)), encoding="utf-8")
    return task


GSM8K = """\
task: gsm8k_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: gsm8k_test.jsonl
output_type: generate_until
test_split: test
doc_to_text: "{{question}} Reason step by step, and end with: The answer is"
doc_to_target: "{{answer.split('#### ')[-1]}}"
generation_kwargs:
  until: ["<|im_end|>"]
  do_sample: false
  max_gen_toks: TOKENS
filter_list:
  - name: last-number
    filter:
      - function: regex
        group_select: -1
        regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"
      - function: take_first
metric_list:
  - metric: exact_match
    regexes_to_ignore: [",", "\\\\$", "\\\\.$"]
"""


def eq_bench(reference: Path, folder: Path) -> Path:
    """EQ-Bench's questions as JSON lines with the columns that the harness reads."""
    folder.mkdir(parents=True, exist_ok=True)
    said = json.loads((reference / "eq_bench_v2_171.json").read_text(encoding="utf-8"))
    rows = [
        {"prompt": item["prompt"], "reference_answer_fullscale": str(item["reference_answer_fullscale"])}
        for item in said.values()
    ]
    file = folder / "eq_bench.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    return file


def overhead(reference: Path, out: Path, limit: int, rounds: int, results: Path) -> None:
    """The same requests answered by the harness' own model and by ours, in turns; models and requests are made before."""
    from lm_eval.api.instance import Instance
    from lm_eval.models import huggingface

    from assistant_axis.evals.harness import HookedLM

    theirs: Any = huggingface.HFLM

    class Alone(HookedLM):
        """Ours with the harness' own loop over requests, in which endings do not share the pass of their context."""

        _loglikelihood_tokens = theirs._loglikelihood_tokens

    plain: Any = wrapped("hf", out)
    ours: Any = wrapped("ours", out)
    alone = Alone(ours.hooked, batch_size=16)
    capped = HookedLM(ours.hooked, load_intervention(out / "cap.safetensors", ours.hooked), batch_size=16)
    lines = (reference / "hellaswag_val_1000.txt").read_text(encoding="utf-8").splitlines()
    endings = [(lines[k], f" {lines[k + 2 + n]}") for k in range(0, 6 * limit, 6) for n in range(4)]
    scored = [Instance("loglikelihood", {}, pair, k) for k, pair in enumerate(endings)]
    problems = (reference / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()[:16]
    options = {"until": ["<|im_end|>"], "max_gen_toks": 32, "do_sample": False}
    chats = [[{"role": "user", "content": json.loads(x)["question"]}] for x in problems]
    asked = [
        Instance("generate_until", {}, (ours.apply_chat_template(c), dict(options)), k) for k, c in enumerate(chats)
    ]
    models = {"hf": plain, "ours": ours, "ours, no shared context": alone, "ours, capped": capped}

    def timed(title: str, kind: str, requests: list[Any], names: tuple[str, ...]) -> Comparison:
        for name in names:  # warm, and the same answers
            getattr(models[name], kind)(requests[:16], disable_tqdm=True)
        work = {
            name: lambda name=name: void(getattr(models[name], kind)(requests, disable_tqdm=True)) for name in names
        }
        return compare(title, work, rounds=rounds, warm=False, target="target: ours, at most 1.10")

    found = [
        timed(
            f"log-likelihoods, {len(scored)} endings of {limit} HellaSwag items", "loglikelihood", scored, tuple(models)
        ),
        timed(
            f"generation, {len(asked)} GSM8K problems, 32 tokens",
            "generate_until",
            asked,
            ("hf", "ours", "ours, capped"),
        ),
    ]
    save(results, "overhead", found, batch_size=16)


def void(_: object) -> None:
    """What `compare` takes for work that is measured whole."""


def scores(results: dict[str, Any]) -> list[float]:
    """Every log-likelihood, in the order of items and endings."""
    rows = sorted(next(iter(results["samples"].values())), key=lambda r: r["doc_id"])
    return [float(choice[0]) for row in rows for choice in row["filtered_resps"]]


if __name__ == "__main__":
    main()
