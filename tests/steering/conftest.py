"""A small random Llama with a byte-level tokenizer, made in memory: steering must hold for any weights."""

from typing import Any

import pytest
import torch

from assistant_axis.activations.store import Conditions
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.models.loading import load_model

D_MODEL, N_LAYERS = 32, 4

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> Any:
    """Bytes as tokens, with ChatML's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: k for k, token in enumerate([*specials, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<|pad|>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def make_model(
    hooks: str = "residual", dtype: torch.dtype = torch.float32, seed: int = 0, *, n_layers: int = N_LAYERS
) -> HookedChatModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=64,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.5,  # large enough that a change of the residual stream changes what is said
    )
    hf = LlamaForCausalLM(config).to(dtype).eval()
    return load_model(hf, tokenizer=tokenizer, hooks=hooks, name=f"tiny-{seed}")  # type: ignore[arg-type]


def make_axis(model: HookedChatModel, seed: int = 1) -> AssistantAxis:
    """A random axis with plausible norms and calibration, measured on `model` as far as its header says."""
    generator = torch.Generator().manual_seed(seed)
    shape = (model.n_layers, model.d_model)
    default, role_mean = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    conditions = Conditions.of(model, span="header", personas="test", personas_hash="", design="test", seed=seed)
    grid = torch.linspace(-3, 3, 101)[:, None].repeat(1, model.n_layers)
    return AssistantAxis(
        layers=tuple(range(model.n_layers)),
        vectors=default - role_mean,
        default=default,
        role_mean=role_mean,
        resid_norms=torch.linspace(2, 5, model.n_layers),
        quantiles=grid,
        default_quantiles=grid + 1,
        calibration="rollouts",
        method="contrast",
        conditions=conditions,
    )


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> HookedChatModel:
    return make_model()


@pytest.fixture(scope="session")
def tiny_full() -> HookedChatModel:
    return make_model("all")


@pytest.fixture(scope="session", params=["residual", "all"])
def either(request: pytest.FixtureRequest, tiny: HookedChatModel, tiny_full: HookedChatModel) -> HookedChatModel:
    """The same weights under both hook sets."""
    return tiny if request.param == "residual" else tiny_full


@pytest.fixture(scope="session")
def axis(tiny: HookedChatModel) -> AssistantAxis:
    return make_axis(tiny)
