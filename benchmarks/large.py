"""A model of 32 billion parameters on one GPU: capture, capped generation with and without `compile=True`, peak memory.

    python benchmarks/large.py [--shape qwen3-32b|small] [--official DIR] [--out benchmarks/results/large.json]

The weights are random and in the shape of a released model: speed and memory do not depend on what they say.
Variants run in turns in one process on the same weights: the model library's own passes and generation on a plain copy of
the modules, ours on the wrapped ones, and with --official DIR (a clone of the paper's code) its batch extraction.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peers import OldTemplates, official_extract
from side_by_side import Comparison, Row, compare, save
from speed import NAME, mixed_conversations

from assistant_axis import load_model
from assistant_axis.activations.capture import _plain_batches, capture_means
from assistant_axis.activations.spans import Reading, locate
from assistant_axis.models.embedded import ensure
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.steering.interventions import Cap

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-32b": {
        "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    },
    "small": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 50000,
    },
}  # fmt: skip
PARTS = ("exact", "capture", "memory", "decode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="qwen3-32b")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tokenizer", help="folder of a chat tokenizer; default: the embedded model's")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--official", type=Path)
    parser.add_argument("--conversations", type=int, default=128)
    parser.add_argument("--new", type=int, default=128, help="tokens an answer")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64], help="answers at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bench = Bench(args)
    for part in args.parts:
        found = getattr(bench, part)()
        if args.out is not None:
            where = torch.cuda.get_device_name() if bench.cuda else "CPU"
            save(args.out, part, found, shape=args.shape, device=where)


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

        self.args = args
        self.cuda = torch.cuda.is_available()
        device = torch.device("cuda" if self.cuda else "cpu")
        config = Qwen3Config(**SHAPES[args.shape], max_position_embeddings=8192, tie_word_embeddings=False)
        torch.manual_seed(0)
        with device:
            self.hf: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype)).eval()
        held = {id(t): t for t in [*self.hf.parameters(), *self.hf.buffers()]}
        wrapped = copy.deepcopy(self.hf, held)  # modules of its own around the same weights
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or ensure(NAME))
        self.model: HookedChatModel = load_model(wrapped, tokenizer=tokenizer, name=args.shape)
        self.layers = list(range(self.model.n_layers))
        print(f"{self.model}, {sum(p.numel() for p in self.hf.parameters()) / 1e9:.1f} B parameters", flush=True)
        self.talks = mixed_conversations(args.conversations)
        self.readings = [locate(self.model, c, "response") for c in self.talks]
        self.tokens = sum(len(r.ids) for r in self.readings)

    def cap(self) -> Cap:
        """A floor that no token is below: it computes what a cap computes and changes no word."""
        generator = torch.Generator().manual_seed(0)
        window = range(
            int(0.72 * self.model.n_layers), int(0.72 * self.model.n_layers) + min(8, self.model.n_layers // 4)
        )
        axis = {x: torch.randn(self.model.d_model, generator=generator) for x in window}
        return Cap(axis, floor=-1e6, layers=window)

    def done(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    # -- the same results ----------------------------------------------------------------------------------------------

    def exact(self) -> list[Comparison]:
        """Prints: hook points against the blocks, greedy tokens of the loops, means against forward hooks."""
        print(self.model.verify())
        asked = [t[:-1] for t in self.talks[:8]]
        theirs = self.their_tokens(asked, 32)
        for name, options in (("ours", {}), ("ours, compiled", {"compile": True})):
            ours = [a.ids for a in self.model.generate(asked, max_new_tokens=32, batch_size=8, **options)]
            same = sum(x == y for a, b in zip(ours, theirs, strict=True) for x, y in zip(a, b, strict=False))
            print(f"{name}: {same} of {sum(map(len, ours))} greedy tokens are those of model.generate")
        return []

    # -- capture -------------------------------------------------------------------------------------------------------

    def capture(self) -> list[Comparison]:
        variants: dict[str, Callable[[], float | None]] = {
            "plain forward, same batches, no head": self.plainly,
            "capture, same batches": lambda: self.ours(share=False),
            "capture, prefixes shared": lambda: self.ours(share=True),
        }
        if self.args.official is not None:
            variants["the paper's code, batches of 16"] = self.official()
        found = compare(
            f"Response means at all {len(self.layers)} layers, {len(self.talks)} conversations: seconds a token",
            {name: self.a_token(work) for name, work in variants.items()},
            rounds=self.args.rounds,
            target="target ≤ 1.05 × plain forward",
        )
        for row in found.rows:
            print(f"{row.name}: {1 / row.median:,.0f} tokens/s")
        return [found]

    def a_token(self, work: Callable[[], Any]) -> Callable[[], float]:
        def timed() -> float:
            work()
            self.done()
            return float(self.tokens)

        return timed

    def plainly(self) -> None:
        order = sorted(range(len(self.readings)), key=lambda k: len(self.readings[k].ids))
        with torch.inference_mode():
            for rows in _plain_batches(self.readings, order, 32_768 if self.cuda else 4_096):
                ids, mask = self.model.pad([self.readings[k].ids for k in rows])
                device = self.model.device
                self.hf.model(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False)

    def ours(self, *, share: bool, readings: Sequence[Reading] | None = None) -> None:
        capture_means(self.model, readings or self.readings, self.layers, share_prefixes=share)

    def official(self) -> Callable[[], None]:
        extract = official_extract(self.args.official)
        holder = SimpleNamespace(
            model=self.hf,
            tokenizer=OldTemplates(self.model.tokenizer),
            model_name=self.args.shape.replace("qwen", "q"),  # its chat arguments for Qwen are not this template's
            get_layers=lambda: self.hf.model.layers,
            device=self.hf.device,
        )

        def work() -> None:
            with redirect_stdout(StringIO()), torch.inference_mode():
                extract(holder, self.talks, self.layers, batch_size=16)

        return work

    def memory(self) -> list[Comparison]:
        """Peak memory above the weights while reading 16 conversations in one batch."""
        if not self.cuda:
            return []
        self.talks, self.readings = self.talks[:16], self.readings[:16]
        works: dict[str, Callable[[], None]] = {
            "plain forward, same batch, no head": self.plainly,
            "capture": lambda: self.ours(share=False),
        }
        if self.args.official is not None:
            works["the paper's code"] = self.official()
        rows = []
        for name, work in works.items():
            row = Row(name)
            for _ in range(2):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                work()
                row.seconds.append((torch.cuda.max_memory_allocated() - before) / 2**20)
            rows.append(row)
        for row in rows:
            row.ratios = [s / rows[0].median for s in row.seconds]
            row.note = f"{row.median - rows[0].median:+.0f} MiB"
        found = Comparison("Peak memory above the weights (MiB, in place of seconds), 16 conversations", rows)
        found.print()
        print(f"weights {torch.cuda.memory_allocated() / 2**30:.1f} GiB")
        return [found]

    # -- generation ----------------------------------------------------------------------------------------------------

    def decode(self) -> list[Comparison]:
        found = []
        for rows in self.args.rows:
            asked = [t[:-1] for t in mixed_conversations(rows)]
            lengths = [len(self.model.chat.encode_prompt(t).ids) for t in asked]
            cap = self.cap()

            def work(
                *steps: Cap, asked: list[Any] = asked, rows: int = rows, compile: bool = False
            ) -> Callable[[], float]:
                def timed() -> float:
                    with self.model.steered(*steps):
                        answers = self.model.generate(
                            asked, max_new_tokens=self.args.new, batch_size=rows, compile=compile
                        )
                    self.done()
                    return float(sum(len(a.ids) for a in answers))

                return timed

            one = compare(
                f"{rows} answers of {self.args.new} tokens, prompts of {min(lengths)} to {max(lengths)}: seconds a token",
                {
                    "compiled": work(compile=True),
                    "compiled, cap on 8 layers": work(cap, compile=True),
                    "ours": work(),
                    "ours, cap on 8 layers": work(cap),
                    "model.generate": lambda asked=asked: float(sum(map(len, self.their_tokens(asked, self.args.new)))),
                },
                rounds=self.args.rounds,
                target="target: compiled with a cap ≤ 1.03 × compiled",
            )
            for row in one.rows:
                print(f"{row.name}: {1 / row.median:,.1f} tokens/s")
            found.append(one)
        return found

    def their_tokens(self, asked: Sequence[Any], new: int) -> list[tuple[int, ...]]:
        """Greedy answers by the library's own loop on the plain modules."""
        from assistant_axis.models.generation import stop_ids

        stops = set(stop_ids(self.model))
        ids, mask = self.model.pad([self.model.chat.encode_prompt(t).ids for t in asked], side="left")
        device = self.model.device
        with torch.inference_mode():
            out = self.hf.generate(
                input_ids=ids.to(device),
                attention_mask=mask.long().to(device),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=sorted(stops),
                pad_token_id=self.model.tokenizer.pad_token_id,
            )
        said = []
        for row in out[:, ids.shape[1] :].tolist():
            end = next((k for k, t in enumerate(row) if t in stops), len(row))
            said.append(tuple(row[:end]))
        return said


if __name__ == "__main__":
    main()
