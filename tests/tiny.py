"""Tiny random models with in-process tokenizers: every architecture that the tests need, made in milliseconds."""

import copy
from typing import Any

import torch

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's and Qwen 2.5's form, without a default system prompt."""

CHATML_DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Tiny.<|im_end|>\n' }}{% endif %}" + CHATML
)

LLAMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""Llama 3's form: BOS, a system turn that is always there and opens with a date, trimmed contents."""

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Gemma 2's form: no system role, trimmed contents."""

QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% set content = m['content'].split('</think>')[-1].lstrip('\n') if '</think>' in m['content'] else m['content'] %}"
    "{{ '<|im_start|>assistant\n' + ('<think>\n\n</think>\n\n' if loop.index0 > ns.last else '') + content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""Qwen 3's form: earlier answers lose their thinking, the last one gets an empty block, `enable_thinking`."""

MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set system = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% if not loop_messages %}{{ raise_exception('No user turn') }}{% endif %}"
    "{% for m in loop_messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""Mistral's form: the system prompt inside the first user turn, no text opens an answer, refuses a lone system turn."""

SPECIAL = (
    "<pad>", "<bos>", "<eos>",
    "<|im_start|>", "<|im_end|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>",
    "[INST]", "[/INST]", "<think>", "</think>",
)  # fmt: skip

_CORPUS = (
    "You are a helpful assistant. You are the assistant. user system assistant model Who are you? What is the answer? "
    "I am an assistant. The whispers of the wind, the pirate sails the sea. Tell me a story about the moon and the sun. "
    "Is it ever right to break a promise? How does a vaccine protect the body? Today Date: 26 Jul 2024"
)


def make_tokenizer(template: str | None = CHATML, *, eos: str = "<|im_end|>") -> Any:
    """A byte-level BPE tokenizer of about 400 tokens; every text survives encoding and decoding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([_CORPUS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token=eos,
        pad_token="<pad>",
        additional_special_tokens=[t for t in SPECIAL if t not in ("<pad>", "<bos>", eos)],
    )
    tokenizer.chat_template = template
    return tokenizer


_SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 4,
}
_SIZED = _SHAPE | {"head_dim": 8}
_WINDOW = {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 24}


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_SHAPE, tie_word_embeddings=True))


def _qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_SIZED))


def _gemma3() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**_SIZED, **_WINDOW))


def _gemma3_multimodal() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=_SIZED | _WINDOW, vision_config=vision, mm_tokens_per_image=4, eos_token_id=4)
    )


def _mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**_SIZED, sliding_window=None))


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=512, n_embd=32, n_layer=4, n_head=4, n_positions=1024, bos_token_id=1, eos_token_id=4)
    )


ARCHITECTURES: dict[str, tuple[Any, str | None, str]] = {
    "llama": (_llama, CHATML, "<|im_end|>"),
    "qwen3": (_qwen3, QWEN3, "<|im_end|>"),
    "gemma3": (_gemma3, GEMMA, "<end_of_turn>"),
    "gemma3-multimodal": (_gemma3_multimodal, GEMMA, "<end_of_turn>"),
    "mistral": (_mistral, CHATML, "<|im_end|>"),
    "gpt2": (_gpt2, None, "<eos>"),
}
"""name -> (maker of the HF model, its chat template, its end of turn)."""


def make_hf(architecture: str = "llama", seed: int = 0) -> Any:
    """A plain HF model with random weights, large enough for layers to differ plainly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[architecture][0]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(5.0)
    return model.eval()


def make_pair(architecture: str = "llama", seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """(wrapped model, an untouched HF copy of the same weights)."""
    from assistant_axis.models.loading import load_model

    _, template, eos = ARCHITECTURES[architecture]
    plain = make_hf(architecture, seed)
    options = {
        "tokenizer": make_tokenizer(template, eos=eos),
        "name": f"tiny-{architecture}",
        "device": "cpu",
    } | options
    return load_model(copy.deepcopy(plain), **options), plain


def plain_blocks(hf: Any) -> Any:
    """The decoder blocks of an untouched HF model."""
    inner = getattr(hf, "model", None)
    if inner is None:
        return hf.transformer.h
    return getattr(inner, "language_model", inner).layers


def slow_residuals(hf: Any, ids: Any) -> torch.Tensor:
    """Reference `[layer, pos, d_model]`: one unpadded sequence through an untouched HF model, forward hooks on its blocks."""
    seen: list[torch.Tensor] = []
    handles = [
        b.register_forward_hook(lambda _m, _a, out: seen.append((out[0] if isinstance(out, tuple) else out)[0].float()))
        for b in plain_blocks(hf)
    ]
    try:
        with torch.no_grad():
            hf(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        for h in handles:
            h.remove()
    return torch.stack(seen)
