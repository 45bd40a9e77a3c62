"""Capture, generation and interventions against the model's own plain passes, on the embedded model.

    python benchmarks/speed.py [--parts capture rollouts onepass cap compile space linear memory start] [--out benchmarks/results/speed.json]

Every part runs its variants in turns in one process and prints medians and ratios. Run it alone on the machine: two
processes that use all cores slow each other down far more than twice.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from side_by_side import Comparison, Row, compare, save

from assistant_axis import load_model, load_personas, load_precomputed_axis
from assistant_axis.activations.capture import _plain_batches, capture_means, default_token_budget
from assistant_axis.activations.spans import Reading, locate, read_answer
from assistant_axis.models.embedded import ensure
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.personas.library import data_lines, plan
from assistant_axis.steering.interventions import Cap

NAME = "smollm2-135m-instruct"
BUDGET = default_token_budget(torch.device("cpu"))
NEW = 64
PARTS = ("capture", "rollouts", "onepass", "cap", "compile", "space", "linear", "memory", "start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=float, default=1.0, help="share of the work, to try it out")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", choices=("forward", "capture"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak(args.peak))
        return
    bench = Bench(args.rounds, args.size)
    for part in args.parts:
        found = getattr(bench, part)()
        if args.out is not None:
            save(args.out, part, found, size=args.size)


def plain_hf(dtype: torch.dtype = torch.float32) -> Any:
    """The same weights in the model library alone, without a hook point."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(ensure(NAME), dtype=dtype).eval()


class Bench:
    def __init__(self, rounds: int, size: float) -> None:
        self.rounds, self.size = rounds, size
        self.model: HookedChatModel = load_model(NAME, device="cpu", dtype="float32")
        self.hf = plain_hf()

    def count(self, whole: int) -> int:
        return max(8, int(whole * self.size))

    # -- capture -------------------------------------------------------------------------------------------------------

    def capture(self) -> list[Comparison]:
        readings = mixed_readings(self.model, self.count(512))
        layers = range(self.model.n_layers)
        tokens = sum(len(r.ids) for r in readings)
        every = list(range(self.model.n_layers))
        assert (capture_means(self.model, readings[:4], every) - self._by_hand(readings[:4])).abs().max() < 1e-2
        return [
            compare(
                f"Response means at all {len(layers)} layers, {len(readings)} conversations, {tokens} tokens",
                {
                    "plain forward, same batches, no head": lambda: self._forward(readings),
                    "capture, same batches": lambda: self._capture(readings, share=False),
                    "capture, prefixes shared": lambda: self._capture(readings, share=True),
                },
                rounds=self.rounds,
                target="target ≤ 1.05 ×",
                warm=False,
            )
        ]

    def _forward(self, readings: Sequence[Reading]) -> None:
        order = sorted(range(len(readings)), key=lambda k: len(readings[k].ids))
        with torch.inference_mode():
            for rows in _plain_batches(readings, order, BUDGET):
                ids, mask = self.model.pad([readings[k].ids for k in rows])
                self.hf.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)

    def _capture(self, readings: Sequence[Reading], *, share: bool) -> None:
        capture_means(self.model, readings, range(self.model.n_layers), token_budget=BUDGET, share_prefixes=share)

    def _by_hand(self, readings: Sequence[Reading]) -> torch.Tensor:
        out = []
        seen: dict[int, torch.Tensor] = {}
        handles = [
            block.register_forward_hook(lambda _m, _a, o, i=i: seen.update({i: o[0] if isinstance(o, tuple) else o}))
            for i, block in enumerate(self.hf.model.layers)
        ]
        for r in readings:
            with torch.inference_mode():
                self.hf.model(input_ids=torch.tensor([r.ids]), use_cache=False)
            rows = [seen[i].reshape(len(r.ids), -1)[r.at.start : r.at.stop].mean(0) for i in range(len(handles))]
            out.append(torch.stack(rows))
        for handle in handles:
            handle.remove()
        return torch.stack(out)

    def space(self) -> list[Comparison]:
        library = load_personas()
        asks = plan(library, prompts_per_role=5, questions_per_prompt=2, model_name="SmolLM2", seed=0)
        asks = [a for a in asks if a.role != "default"][: self.count(2750)]
        readings = [locate(self.model, a.messages, "header") for a in asks]
        return [
            compare(
                f"Persona space, header span, {len(readings)} prompts",
                {
                    "plain forward of the same tokens, no head": lambda: self._forward(readings),
                    "capture, prefixes shared": lambda: self._capture(readings, share=True),
                },
                rounds=min(self.rounds, 3),
                target="target ≤ 1.10 ×, stretch < 0.6 ×",
                warm=False,
            )
        ]

    def linear(self) -> list[Comparison]:
        base = self.count(32)
        readings = mixed_readings(self.model, 16 * base)
        rows = []
        self._capture(readings[::16], share=True)
        for times in (1, 4, 16):
            part = readings[:: 16 // times]
            tokens = sum(len(r.ids) for r in part)
            row = Row(f"{times} ×, {len(part)} conversations")
            for _ in range(self.rounds):
                started = time.perf_counter()
                self._capture(part, share=True)
                row.seconds.append((time.perf_counter() - started) / tokens)
            row.note = f"peak memory so far {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
            rows.append(row)
        for row in rows:
            row.ratios = [s / rows[0].median for s in row.seconds]
        found = Comparison("Cost against work: seconds a token", rows, "target: within 5 %, flat memory")
        found.print()
        return [found]

    # -- generation ----------------------------------------------------------------------------------------------------

    def prompts(self, count: int) -> list[list[dict[str, str]]]:
        asks = plan(
            load_personas(), prompts_per_role=4, questions_per_prompt=4, spread=True, model_name="SmolLM2", seed=0
        )
        asks = [a for a in asks if a.role != "default"]
        return [list(a.messages) for a in asks[:count]]

    def rollouts(self) -> list[Comparison]:
        return [
            self._rollouts("greedy", {"temperature": 0.0}),
            self._rollouts("temperature 0.7, nucleus 0.9", {"temperature": 0.7, "top_p": 0.9}),
        ]

    def _rollouts(self, title: str, settings: dict[str, float]) -> Comparison:
        conversations = self.prompts(self.count(512))
        said: dict[str, list[tuple[int, ...]]] = {}

        def theirs() -> float:
            count, said["theirs"] = self._hf_generate(conversations, settings)
            return count

        def ours() -> float:
            answers = self.model.generate(conversations, max_new_tokens=NEW, batch_size=16, **settings)
            said["ours"] = [a.ids for a in answers]
            return float(sum(map(len, said["ours"])))

        found = compare(
            f"{len(conversations)} rollouts of at most {NEW} tokens, 16 at a time, {title}: seconds a token",
            {"model.generate, fixed batches": theirs, "ours": ours},
            rounds=max(1, self.rounds - 1),
            target="target ≥ 1.4 × as fast, stretch 2 ×",
            warm=False,
            inverse=True,
        )
        lengths = [len(ids) for ids in said["ours"]]
        print(f"answers: median {statistics.median(lengths):.0f} tokens, mean {statistics.mean(lengths):.1f}")
        if title == "greedy":
            same = sum(a == b for a, b in zip(said["ours"], said["theirs"], strict=True))
            found.rows[-1].note = f"{same} of {len(lengths)} answers equal"
            print(found.rows[-1].note)
        return found

    def _ours(self, conversations: Sequence[Any], **options: Any) -> float:
        answers = self.model.generate(conversations, max_new_tokens=NEW, **options)
        return float(sum(len(a.ids) for a in answers))

    def _hf_generate(self, conversations: Sequence[Any], settings: dict[str, float]) -> tuple[float, list[Any]]:
        from assistant_axis.models.generation import stop_ids

        stops = set(stop_ids(self.model))
        answers = []
        how = {"do_sample": False} if not settings["temperature"] else {"do_sample": True, **settings, "top_k": 0}
        for start in range(0, len(conversations), 16):
            rows = [self.model.chat.encode_prompt(c).ids for c in conversations[start : start + 16]]
            ids, mask = self.model.pad(rows, side="left")
            with torch.inference_mode():
                out = self.hf.generate(
                    input_ids=ids,
                    attention_mask=mask.long(),
                    max_new_tokens=NEW,
                    eos_token_id=sorted(stops),
                    pad_token_id=self.model.tokenizer.pad_token_id,
                    **how,
                )
            for row in out[:, ids.shape[1] :].tolist():
                end = next((k for k, t in enumerate(row) if t in stops), len(row))
                answers.append(tuple(row[:end]))
        return float(sum(len(a) for a in answers)), answers

    def onepass(self) -> list[Comparison]:
        conversations = self.prompts(self.count(128))
        every = range(self.model.n_layers)

        def two() -> None:
            answers = self.model.generate(conversations, max_new_tokens=NEW)
            capture_means(self.model, [read_answer(a.prompt_ids, a.ids) for a in answers if a.ids], every)

        return [
            compare(
                f"{len(conversations)} answers of at most {NEW} tokens with their means at all layers",
                {
                    "generate alone": lambda: self._no(self.model.generate(conversations, max_new_tokens=NEW)),
                    "generate and capture, one pass": lambda: self._no(
                        self.model.generate(conversations, max_new_tokens=NEW, layers=every)
                    ),
                    "generate, then capture": two,
                },
                rounds=self.rounds,
                target="target ≤ 1.05 ×",
            )
        ]

    @staticmethod
    def _no(_answers: Any) -> None:
        return None

    def cap(self) -> list[Comparison]:
        axis = load_precomputed_axis(NAME)
        never = Cap(axis, floor=-1e6, layers=range(16, 24))  # computes what a cap computes, changes no word
        single = Cap(axis, floor=-1e6, layers=[20])
        found = []
        for size, count in ((16, 64), (1, 4)):
            conversations = self.prompts(self.count(count))[:count]

            def run(*steps: Cap, rows: Sequence[Any] = conversations, size: int = size) -> Callable[[], float]:
                def work() -> float:
                    with self.model.steered(*steps):
                        return self._ours(rows, batch_size=size)

                return work

            found.append(
                compare(
                    f"A cap in generation, batch {size}: seconds a token",
                    {"unsteered": run(), "cap on 1 layer": run(single), "cap on 8 layers": run(never)},
                    rounds=2 * self.rounds + 1,
                    target="target ≤ 1.03 ×" if size > 1 else "target ≤ 1.05 ×",
                )
            )
        return found

    def compile(self) -> list[Comparison]:
        never = Cap(load_precomputed_axis(NAME), floor=-1e6, layers=range(16, 24))
        found = []
        for size, count in ((16, 32), (1, 4)):
            conversations = self.prompts(self.count(count))[:count]

            def run(
                *steps: Cap, compile: bool = True, rows: Sequence[Any] = conversations, size: int = size
            ) -> Callable[[], float]:
                def work() -> float:
                    with self.model.steered(*steps):
                        return self._ours(rows, batch_size=size, compile=compile)

                return work

            found.append(
                compare(
                    f"Compiled generation, batch {size}: seconds a token",
                    {"as it is": run(compile=False), "compiled": run(), "compiled, cap on 8 layers": run(never)},
                    rounds=self.rounds,
                    target="the compilation itself is not timed",
                )
            )
        return found

    # -- memory and start ----------------------------------------------------------------------------------------------

    def memory(self) -> list[Comparison]:
        rows = []
        for kind in ("forward", "capture"):
            row = Row(kind)
            for _ in range(self.rounds):
                command = [sys.executable, __file__, "--peak", kind, "--threads", str(torch.get_num_threads())]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                row.seconds.append(float(said.split()[-1]))
            rows.append(row)
        for row in rows:
            row.ratios = [s / rows[0].median for s in row.seconds]
            row.note = f"{row.median - rows[0].median:+.1f} MiB"
        found = Comparison(
            "Peak memory of a process (MiB, in place of seconds), batch 16 × 512, all layers",
            rows,
            "target ≤ 64 MB more",
        )
        found.print()
        return [found]

    def start(self) -> list[Comparison]:
        def command(*words: str) -> Callable[[], None]:
            line = [str(Path(sys.executable).parent / "assistant-axis"), *words]
            return lambda: self._no(subprocess.run(line, check=True, capture_output=True))

        return [
            compare(
                "Start of the command line",
                {
                    "assistant-axis --help": command("--help"),
                    "assistant-axis models list": command("models", "list"),
                    "load_model, cached": lambda: self._no(load_model(NAME)),
                },
                rounds=2 * self.rounds + 1,
                target="targets 0.5 s, 1 s, 5 s",
            )
        ]


def mixed_conversations(count: int) -> list[list[dict[str, str]]]:
    """Role prompts and questions with answers of many lengths, put together from the bundled plain answers."""
    texts = [str(line["text"]) for line in data_lines("neutral.jsonl")]
    asks = plan(load_personas(), prompts_per_role=2, questions_per_prompt=1, model_name="SmolLM2", seed=0)
    asks = [a for a in asks if a.role != "default"]
    made = []
    for k in range(count):
        said = " ".join(texts[(k * 7 + j) % len(texts)] for j in range(1 + k % 4))
        made.append([*asks[k % len(asks)].messages, {"role": "assistant", "content": said}])
    return made


def mixed_readings(model: HookedChatModel, count: int) -> list[Reading]:
    """The answers of `mixed_conversations`."""
    return [locate(model, c, "response") for c in mixed_conversations(count)]


def peak(kind: str) -> float:
    """Peak memory of this process in MiB after one pass over 16 × 512 tokens, without or with capture."""
    model = load_model(NAME, device="cpu", dtype="float32")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(100, 40_000, (16, 512), generator=generator).tolist()
    readings = [Reading(tuple(r), range(256, 512)) for r in rows]
    if kind == "capture":
        capture_means(model, readings, range(model.n_layers), token_budget=16 * 512, share_prefixes=False)
    else:
        with torch.inference_mode():
            model.forward(torch.tensor(rows), torch.ones(16, 512, dtype=torch.bool))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
