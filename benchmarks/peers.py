"""Additive steering at one layer and response means beside other libraries, on the embedded model.

    python benchmarks/peers.py [--official DIR] [--only steering|official] [--out benchmarks/results/peers.json]

Libraries that are not installed are left out and said so: repeng, steering-vectors, nnsight. With --official DIR (a clone of
the paper's code) its batch extraction runs on the same conversations. Everything runs in one process, in turns.
"""

import argparse
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from side_by_side import Comparison, compare, save
from speed import NAME, mixed_conversations, plain_hf

from assistant_axis import Add, load_model, load_personas, load_precomputed_axis
from assistant_axis.personas.library import plan

LAYER, NEW, BATCH = 20, 32, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path)
    parser.add_argument("--only", choices=("steering", "official"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--conversations", type=int, default=64, help="for the capture beside the paper's code")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only != "official":
        found = steering(args.rounds)
        if args.out is not None:
            save(args.out, "steering", [found])
    if args.official is not None and args.only != "steering":
        found = official(args.official, args.conversations, args.rounds)
        if args.out is not None:
            save(args.out, "official", [found])


def steering(rounds: int) -> Comparison:
    """Greedy generation of the same number of tokens with one vector added at one layer."""
    model = load_model(NAME, device="cpu", dtype="float32")
    axis = load_precomputed_axis(NAME)
    push = axis.at(LAYER) * 2.0  # activation units; small, so that the text stays text
    asks = [a for a in plan(load_personas(), prompts_per_role=1, questions_per_prompt=1, seed=0) if a.role != "default"]
    rows = [model.chat.encode_prompt(a.messages).ids for a in asks[:BATCH]]
    ids, mask = model.pad(rows, side="left")
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    how["pad_token_id"] = model.tokenizer.pad_token_id
    settings: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), **how}
    expected: list[torch.Tensor] = []

    def steered(generate: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def work() -> None:
            with torch.inference_mode():
                said = generate()
            expected.append(said[:, -NEW:].cpu())

        return work

    def ours() -> torch.Tensor:
        with model.steered(Add({LAYER: push}, 1.0, unit="axis", layers=[LAYER])):
            answers = model.generate([a.messages for a in asks[:BATCH]], max_new_tokens=NEW, batch_size=BATCH)
        if min(len(a.ids) for a in answers) < NEW:
            raise RuntimeError("An answer ended early, so that the work is not the same; choose other prompts.")
        return torch.tensor([a.ids for a in answers])

    plain = plain_hf()
    variants: dict[str, Callable[[], None]] = {
        "unsteered model.generate": steered(lambda: plain.generate(**settings)),
        "assistant-axis": steered(ours),
    }
    for name, make in (
        ("full bridge (TransformerLens)", _full_bridge),
        ("repeng", _repeng),
        ("steering-vectors", _steering_vectors),
        ("nnsight", _nnsight),
    ):
        try:
            variants[name] = steered(make(push, settings))
        except ImportError as error:
            print(f"{name}: left out ({error})")
    for name, work in variants.items():
        work()
        same = bool((expected[-1] == expected[1]).all()) if len(expected) > 1 else False
        print(f"{name}: {'the same tokens as ours' if same else 'other tokens than ours'}")
    return compare(
        f"One vector added at layer {LAYER}, {BATCH} rows × {NEW} tokens, greedy",
        variants,
        rounds=rounds,
        target="target: assistant-axis faster than each of the others",
        warm=False,
    )


def _full_bridge(push: torch.Tensor, settings: dict[str, Any]) -> Callable[[], torch.Tensor]:
    full = load_model(NAME, device="cpu", dtype="float32", hooks="all")
    name = f"blocks.{LAYER}.hook_out"
    bridge = full.lens.bridge  # pyright: ignore[reportAttributeAccessIssue]
    point = name if name in bridge.hook_dict else f"blocks.{LAYER}.hook_resid_post"

    def work() -> torch.Tensor:
        with bridge.hooks(fwd_hooks=[(point, lambda x, hook: x + push)]):
            return bridge.original_model.generate(**settings)

    return work


def _repeng(push: torch.Tensor, settings: dict[str, Any]) -> Callable[[], torch.Tensor]:
    import numpy as np

    if not hasattr(np, "float_"):
        setattr(np, "float_", np.float64)  # noqa: B010  repeng 0.4 names a type of NumPy 1 in an annotation
    from repeng import ControlModel, ControlVector

    hf = plain_hf()
    controlled = ControlModel(hf, [LAYER])
    vector = ControlVector(model_type="llama", directions={LAYER: push.numpy()})

    def work() -> torch.Tensor:
        controlled.set_control(vector, 1.0)
        return controlled.generate(**settings)

    return work


def _steering_vectors(push: torch.Tensor, settings: dict[str, Any]) -> Callable[[], torch.Tensor]:
    from steering_vectors import SteeringVector  # pyright: ignore[reportMissingImports]

    hf = plain_hf()
    vector = SteeringVector({LAYER: push}, "decoder_block")

    def work() -> torch.Tensor:
        with vector.apply(hf):
            return hf.generate(**settings)

    return work


def _nnsight(push: torch.Tensor, settings: dict[str, Any]) -> Callable[[], torch.Tensor]:
    from nnsight import LanguageModel  # pyright: ignore[reportMissingImports]

    from assistant_axis.models.embedded import ensure

    lm = LanguageModel(str(ensure(NAME)), device_map="cpu", dtype=torch.float32, dispatch=True)
    inputs = {"input_ids": settings["input_ids"], "attention_mask": settings["attention_mask"]}
    how = {k: v for k, v in settings.items() if k not in inputs}

    def work() -> torch.Tensor:
        with lm.generate(inputs, **how) as tracer:
            for _ in tracer.iter[0:NEW]:
                lm.model.layers[LAYER].output = lm.model.layers[LAYER].output + push
            said = tracer.result.save()
        return said

    return work


def official(folder: Path, count: int, rounds: int) -> Comparison:
    """Response means of the same conversations by the paper's batch extraction and by ours."""
    extract = official_extract(folder)
    model = load_model(NAME, device="cpu", dtype="float32")
    conversations = mixed_conversations(count)
    layers = list(range(model.n_layers))

    def theirs(dtype: torch.dtype) -> Callable[[], None]:
        hf = plain_hf(dtype)
        holder = SimpleNamespace(
            model=hf,
            tokenizer=OldTemplates(model.tokenizer),
            model_name=NAME,
            get_layers=lambda: hf.model.layers,
            device=hf.device,
        )

        def work() -> None:
            with redirect_stdout(StringIO()):
                extract(holder, conversations, layers, batch_size=16)

        return work

    return compare(
        f"Response means at all layers, {count} conversations, text to means",
        {
            "the paper's code, batches of 16, float32": theirs(torch.float32),
            "the same in bfloat16, as it loads every model": theirs(torch.bfloat16),
            "assistant-axis, as it loads models on a CPU (float32)": lambda: _nothing(model.activations(conversations)),
        },
        rounds=rounds,
        target="target ≥ 3 × as fast, stretch 6 ×",
        warm=False,
        inverse=True,
    )


class OldTemplates:
    """The paper's code was written for Transformers 4, whose chat templates gave a list of ids where 5 gives a dictionary."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def apply_chat_template(self, *args: Any, **options: Any) -> Any:
        return self._tokenizer.apply_chat_template(*args, **{"return_dict": False, **options})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._tokenizer(*args, **options)


def official_extract(folder: Path) -> Callable[..., Any]:
    """`extract_activations_batch` of a clone, whose package has the name of ours."""
    inside = folder / "assistant_axis" / "internals"
    spec = spec_from_file_location(
        "assistant_axis.internals", inside / "__init__.py", submodule_search_locations=[str(inside)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["assistant_axis.internals"] = module
    spec.loader.exec_module(module)
    return runpy.run_path(str(folder / "pipeline" / "2_activations.py"))["extract_activations_batch"]


def _nothing(_found: Any) -> None:
    return None


if __name__ == "__main__":
    main()
