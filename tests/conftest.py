"""What all tests share. The package is imported under jaxtyping's hook: beartype checks every shape and type."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

assert not any(m.startswith("assistant_axis.") for m in sys.modules), "imported before its shapes could be checked"

from jaxtyping import install_import_hook  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))  # `import tiny`, and the checker
install_import_hook("assistant_axis", "typecheck.checked")

import pytest  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402

from assistant_axis.models.hooked import HookedChatModel  # noqa: E402

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_pair() -> "tuple[HookedChatModel, torch.nn.Module]":
    """A four-layer random Llama of width 32 with a ChatML template, and an untouched HF copy of it."""
    return tiny.make_pair("llama")


@pytest.fixture(scope="session")
def tiny_model(tiny_pair: "tuple[HookedChatModel, torch.nn.Module]") -> HookedChatModel:
    """A four-layer random Llama of width 32 with a ChatML template."""
    return tiny_pair[0]


@pytest.fixture(scope="session")
def tiny_hf(tiny_pair: "tuple[HookedChatModel, torch.nn.Module]") -> torch.nn.Module:
    """The untouched HF copy of `tiny_model`."""
    return tiny_pair[1]


@pytest.fixture(scope="session")
def tiny_base_pair() -> "tuple[HookedChatModel, torch.nn.Module]":
    """The same Llama with a tokenizer that has no chat template, and its HF copy."""
    return tiny.make_pair("llama", tokenizer=tiny.make_tokenizer(None, eos="<eos>"), name="tiny-base")


@pytest.fixture(scope="session", params=list(tiny.ARCHITECTURES))
def any_pair(request: pytest.FixtureRequest) -> "tuple[HookedChatModel, torch.nn.Module]":
    """One tiny model of every architecture, with its untouched HF copy."""
    return tiny.make_pair(request.param)


@pytest.fixture(autouse=True)
def _no_hook_left(request: pytest.FixtureRequest):
    """After every test the shared models have no hook left on them."""
    yield
    for name in ("tiny_pair", "tiny_base_pair", "any_pair"):
        if name in request.fixturenames:
            lens = request.getfixturevalue(name)[0].lens
            left = [n for n, point in lens.bridge.hook_dict.items() if point.fwd_hooks or point._forward_hooks]
            assert not left, f"{name} has hooks left at {left}"


@pytest.fixture(scope="session")
def real_model() -> HookedChatModel:
    """The embedded chat model; mark tests that use it with `real`."""
    from assistant_axis.models.loading import load_model

    return load_model("smollm2-135m-instruct", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference data beside the repository; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}")
    return folder
