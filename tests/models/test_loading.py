import copy
import inspect
import shutil

import pytest
import tiny
import torch

from assistant_axis.errors import FetchError, IntegrityError, ModelError, SettingError, UnknownNameError
from assistant_axis.models import profiles
from assistant_axis.models.loading import load_model

TALK = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am an assistant."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-local"
    tiny.make_hf().save_pretrained(path)
    tiny.make_tokenizer().save_pretrained(path)
    return path


def test_unknown_names_come_with_close_matches():
    with pytest.raises(UnknownNameError, match="Did you mean 'smollm2-135m-instruct'") as e:
        load_model("smollm2-135m")
    assert "smollm2-135m-instruct" in e.value.close_matches
    with pytest.raises(UnknownNameError, match="local folder must exist"):
        load_model("/no/such/folder")


def test_a_sentence_encoder_is_no_language_model():
    with pytest.raises(ModelError, match="sentence encoder"):
        load_model("all-minilm-l6-v2")


def test_a_hub_id_without_network_points_at_local_models():
    with pytest.raises(FetchError, match=r"--model /path/to/folder.*smollm2-135m-instruct") as e:
        load_model("no-such-owner/no-such-model")
    assert "gemma-3-270m" in str(e.value)


def test_a_local_folder(folder):
    model = load_model(folder, device="cpu")
    assert model.name == "tiny-local"
    assert model.dtype == torch.float32
    assert (model.n_layers, model.d_model) == (4, 32)
    assert not model.lens.module.training
    torch.testing.assert_close(model.activations(TALK), tiny.make_pair()[0].activations(TALK), rtol=1e-4, atol=1e-5)
    assert load_model(str(folder), name="other").name == "other"
    assert load_model(folder).fingerprint == model.fingerprint == tiny.make_pair()[0].fingerprint


def test_dtype(folder):
    assert load_model(folder, dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    assert load_model(folder, dtype=torch.float16, device="cpu").activations(TALK).dtype == torch.float32
    for bad in ("float33", "int8", "nn"):
        with pytest.raises(SettingError, match=bad):
            load_model(folder, dtype=bad)


def test_an_incomplete_folder_is_named(tmp_path):
    tiny.make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises((FetchError, ModelError), match=str(tmp_path)):
        load_model(tmp_path)


def test_truncated_weights_are_named(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="broken"):
        load_model(broken)


def test_a_loaded_model_needs_its_tokenizer_and_is_wrapped_once():
    hf = tiny.make_hf()
    with pytest.raises(ModelError, match="needs its tokenizer"):
        load_model(hf)
    tokenizer = tiny.make_tokenizer()
    model = load_model(hf, tokenizer=tokenizer)
    assert model.tokenizer is tokenizer
    with pytest.raises(ModelError, match="wrapped already"):
        load_model(model)
    with pytest.raises(ModelError, match="inside a TransformerLens bridge already"):
        load_model(hf, tokenizer=tokenizer)


def test_things_that_are_no_model():
    for thing in (3, None, torch.nn.Linear(2, 2)):
        with pytest.raises(ModelError, match=type(thing).__name__):
            load_model(thing)
    with pytest.raises(SettingError, match="everything"):
        inspect.unwrap(load_model)("smollm2-135m-instruct", hooks="everything")


def test_an_architecture_without_a_bridge_is_named():
    from transformers import T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=512, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8, decoder_start_token_id=0)
    )
    with pytest.raises(ModelError, match="no bridge for the architecture T5"):
        load_model(t5, tokenizer=tiny.make_tokenizer())


def test_a_transformer_bridge():
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf = tiny.make_hf()
    plain = copy.deepcopy(hf)
    hf.config.architectures = ["LlamaForCausalLM"]
    bridge = build_bridge_from_module(hf, "LlamaForCausalLM", hf_config=hf.config, tokenizer=None)
    with pytest.raises(ModelError, match="no tokenizer"):
        load_model(bridge)
    model = load_model(bridge, tokenizer=tiny.make_tokenizer(), name="mine")
    assert model.lens.hook_set == "all"
    chat = model.chat.encode(TALK)
    slow = tiny.slow_residuals(plain, chat.ids)
    start, stop = chat.turns[1].content
    torch.testing.assert_close(model.activations(TALK), slow[:, start:stop].mean(1), rtol=1e-3, atol=1e-3)
    answer = model.generate(TALK[:1], max_new_tokens=4)
    assert len(answer.ids) <= 4
    assert model.verify().ok


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_a_hooked_transformer():
    try:  # TransformerLens 4 keeps the name only to say that it is gone
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        pytest.skip("this TransformerLens has no HookedTransformer")
    config = HookedTransformerConfig(
        n_layers=4,
        d_model=32,
        n_heads=4,
        d_head=8,
        d_mlp=64,
        d_vocab=512,
        n_ctx=256,
        act_fn="gelu_new",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=8,
        seed=0,
        device="cpu",
    )
    inner = HookedTransformer(config)
    model = load_model(inner, tokenizer=tiny.make_tokenizer(), name="old")
    chat = model.chat.encode(TALK)
    _, cache = inner.run_with_cache(torch.tensor([chat.ids]), return_type=None)
    start, stop = chat.turns[1].content
    slow = torch.stack([cache[f"blocks.{i}.hook_resid_post"][0, start:stop].mean(0) for i in range(4)])
    other = [*TALK, {"role": "user", "content": "Tell me a story about the moon and the sun."}]
    got = model.activations([TALK, other])
    torch.testing.assert_close(got[0], slow.detach(), rtol=1e-4, atol=1e-4)
    batch = model.generate([TALK[:1], other], max_new_tokens=5)
    assert batch[0] == model.generate(TALK[:1], max_new_tokens=5)
    assert model.lens.hook_set == "all"


def test_a_template_of_ones_own(folder):
    model = load_model(folder, template=tiny.LLAMA3)
    assert "<|start_header_id|>" in model.chat.render(TALK)


def test_profiles():
    assert profiles.profile_for("Qwen/Qwen3-32B", 64).layer == 32
    assert profiles.profile_for("Qwen/Qwen3-32B", 64).capping.layers == range(46, 54)
    assert profiles.profile_for("meta-llama/Llama-3.3-70B-Instruct", 80).capping.layers == range(56, 72)
    assert profiles.profile_for("Qwen/Qwen3-32B", 40).layer == 20  # a pruned model is not that model
    assert profiles.profile_for("unknown", 7).layer == 3
