# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · Your model at scale
#
# [![Open in Colab](colab.svg)](https://colab.research.google.com/#upload=true "Opens the upload dialog of Colab: give it 11_your_model_at_scale.ipynb")
#
# **You will learn**
#
# - which models can be loaded, in which precision, and how to check one before you spend a night on it;
# - how to know the size of a run before any model is loaded;
# - that a run is a folder: we kill one, look at what is left, and go on;
# - what may change afterwards without another forward pass, and what is refused;
# - how the same configuration goes to several GPUs or machines, and how results are published.
#
# Eight minutes of reading, one to two minutes of computing on two CPU cores. What needs a GPU, a cluster or a network is shown
# as code and not executed; everything else is. Tutorial 2 explains roles and rollouts, tutorial 4 the axis.

# %%
# Where the package is missing (on Colab, say), this installs it: from a clone of the repository in or above this folder,
# from a wheel in it, else by its name.
import importlib
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

if importlib.util.find_spec("assistant_axis") is None:
    near = (Path.cwd(), *Path.cwd().parents, *sorted(Path.cwd().iterdir()))
    found = (p for p in near if (p / "assistant_axis" / "__init__.py").is_file() or p.match("assistant_axis-*.whl"))
    source = next(found, "assistant-axis")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", str(source)], check=True)
    importlib.invalidate_caches()
if importlib.util.find_spec("ipywidgets") is None:
    warnings.filterwarnings("ignore", message="IProgress")

# %%
import subprocess
import tempfile
import time

import matplotlib.pyplot as plt
import torch
import yaml

from assistant_axis import AssistantAxis, Run, load_model, load_precomputed_axis, run
from assistant_axis.errors import RunError
from assistant_axis.judges.base import key_of
from assistant_axis.personas.rollouts import read_rollouts
from assistant_axis.runs.config import PRESETS, load_config
from assistant_axis.runs.planning import plan_run
from assistant_axis.runs.publish import prepare

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Which models
#
# Whatever transformers loads as a causal language model:
#
# ```python
# load_model("Qwen/Qwen3-0.6B")                                     # from the hub
# load_model("Qwen/Qwen3-0.6B", revision="…")                       # one commit of it, which a paper should name
# load_model("/models/my-finetune")                                 # a folder
# load_model(hf_model, tokenizer=tokenizer)                         # loaded already: quantised, with adapters, …
# load_model("Qwen/Qwen3-32B", dtype="bfloat16", device_map="auto") # over all GPUs of this machine
# ```
#
# On a CPU weights are read as float32, on a GPU in the checkpoint's own precision. Means, axes and thresholds are float32 in any
# case. What does half precision change? We load the embedded model twice.

# %%
model = load_model("smollm2-135m-instruct")
half = load_model("smollm2-135m-instruct", dtype="bfloat16")
layer = model.profile.layer
axis = load_precomputed_axis("smollm2-135m-instruct")
answer = {"role": "assistant", "content": "I was born at sea, and the sea is where I shall die."}
talks = [
    [{"role": "system", "content": f"You are {who}."}, {"role": "user", "content": "Who are you?"}, answer]
    for who in ("a pirate", "an analyst", "a ghost", "a helpful assistant")
]
whole, halved = (m.activations(talks, span="response", layers=[layer])[:, 0] for m in (model, half))
print(half)
print("means are kept in", halved.dtype)
for talk, a, b in zip(talks, whole, halved, strict=True):
    off = float((a - b).norm() / a.norm())
    print(
        f"{talk[0]['content']:>30}  raw {axis.project(a, layer):+.2f} and {axis.project(b, layer):+.2f}, vectors {off:.1%} apart"
    )

# %% [markdown]
# The vectors differ by less than one per cent of their length, the projections by less than 0.2, where the four prompts lie up to
# five units apart. The precision is written into the conditions of everything that is measured.
#
# ## Three checks before a long night
#
# `print(model)`, `model.show_spans(talk)` (tutorial 1), and `verify()`, which holds every hook point against a forward
# hook of its own on the model's blocks:

# %%
print(model.verify())

# %% [markdown]
# A template whose turns cannot be told apart, or that drops the system prompt, is refused by name before anything is measured.
#
# ## How large will it be?
#
# A run is told by a configuration. Three come along as presets; no model is needed to say what they will ask.

# %%
print(f"{'preset':>8} {'span':>9} {'rollouts':>9} {'of up to':>12}  judge")
for name in PRESETS:
    config = load_config(name)
    tokens = f"{config.sampling.max_new_tokens} tokens" if config.generates else "nothing"
    print(f"{name:>8} {config.span:>9} {len(plan_run(config).asks):>9,} {tokens:>12}  {config.judge.kind}")

chats = [talk[:2] for talk in talks] * 4
start = time.perf_counter()
said = model.generate(chats, max_new_tokens=24, temperature=0.7, seed=0, batch_size=16)
rate = sum(len(a.ids) for a in said) / (time.perf_counter() - start)
days = len(plan_run(load_config("paper")).asks) * 512 / rate / 86_400
print(
    f"\nthis machine writes about {rate:.0f} tokens a second with 135M parameters: the paper's size in {days:.0f} days, or less"
)
print("weights in bfloat16:", ", ".join(f"{b}B: {2 * b:g} GB" for b in (0.6, 8, 32, 70)))

# %% [markdown]
# Weights are the smaller part of the truth: batches, their key-value cache and the vocabulary's logits come on top. A batch that
# does not fit is halved and tried again.
#
# ## A run is a folder
#
# The same program makes ten minutes on a laptop and 330,000 rollouts on a cluster. Ours has six roles. On the command line it
# would be `assistant-axis run config.yaml --out RUN`, and that is what we start here, as a process of its own.

# %%
config = {
    "preset": "laptop",
    "model": "smollm2-135m-instruct",
    "roles": ["analyst", "librarian", "consultant", "pirate", "ghost", "oracle"],
    "questions_per_prompt": 3,
    "default_questions": 2,
    "sampling": {"max_new_tokens": 16},
    "shard": 4,
    "min_rollouts": 1,
}
(folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
line = ["run", str(folder / "config.yaml"), "--out", str(folder / "RUN")]
process = subprocess.Popen(
    [sys.executable, "-c", "from assistant_axis.cli.main import main; main()", *line],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
while process.poll() is None and len(list((folder / "RUN" / "rollouts").glob("[0-9]*"))) < 3:
    time.sleep(0.02)
process.kill()  # signal 9: it cannot tidy up
print("ended with", process.wait())

# %% [markdown]
# Three shards were whole when the process was killed. What is left?

# %%
for path in sorted(p for p in (folder / "RUN").rglob("*") if p.is_file() and not p.name.startswith(".")):
    print(path.relative_to(folder))
print()


def look(**options):
    for stage in Run.open(folder / "RUN").status(**options):
        print(f"{stage.name:>12} {stage.state:>8} {stage.done:>3} of {stage.total:>2} {stage.note}")


look(check=True)

# %% [markdown]
# `status` is `assistant-axis run status RUN --check`: it compares every checksum. A file appears in one step when it is whole,
# so that a kill costs one shard of each kind at most. To go on, start the same thing again, from the shell or from Python:


# %%
def tell(line):
    print(line.replace(f"{folder}/", ""))


done = run(config, folder / "RUN", model=model, progress=False, say=tell)

# %% [markdown]
# What was there was kept. The result is that of a run that nobody touched: plan and seeds are fixed by the
# configuration, shard by shard. (The package's tests kill a run at random moments and compare its vectors with those of an unbroken
# one: they are equal.)
#
# ## What came of it: read, then count
#
# Read some answers first. Each has a score from 0 (refuses) over 1 (answers as itself) and 2 (something of the role) to 3 (in
# role).

# %%
rollouts = read_rollouts(folder / "RUN" / "rollouts.parquet")
scores = done.scores()
for r in [r for r in rollouts if r.role != "default"][::3]:
    print(f"{r.role:>10}, score {scores[key_of(r)].score}: {' '.join(r.answer.split())}")

# %%
print(f"{'role':>10}  score 0  1  2  3   counts")
for row in done.yields():
    print(
        f"{row.role:>10}       "
        + "  ".join(str(n) for n in row.scores)
        + f"   {row.kept(done.config.min_score)} of {row.total}"
    )

# %% [markdown]
# The judge here is `likelihood`, which needs no other model: how much better does the role prompt explain the answer than no
# system prompt does? It is cheap and rough, and cannot see refusals: the analyst's words above could be anybody's and have a 3. **Look
# at the yield before you look at any vector:** of the consultant's three answers one counts, and that one is its vector.
#
# ## What may change
#
# Thresholds may: nothing is generated, judged or read again.

# %%
strict = done.vectors()
milder = run({**config, "min_score": 1}, folder / "RUN", model=model, progress=False, say=tell)
vectors = milder.vectors()
print(
    f"\nrollouts of roles that count: {int(strict.counts.sum())} with min_score 2, {int(vectors.counts.sum())} with 1"
)

# %% [markdown]
# So may the judge and the engine. What would need other answers is refused, with the difference, so that a folder never holds
# two experiments:

# %%
try:
    run({**config, "sampling": {"max_new_tokens": 64}}, folder / "RUN", model=model, progress=False)
except RunError as error:
    print(str(error).replace(f"{folder}/", ""))

# %% [markdown]
# ## The axis of this run
#
# Twenty-eight answers of sixteen tokens at most, beside the axis that ships, which comes from thousands of longer ones:

# %%
own = vectors.axis()
alike = [float(torch.cosine_similarity(own.at(x), axis.at(x), dim=0)) for x in axis.layers]
places = {n: float(axis.project(vectors.role(n)[layer], layer, centered=True)) for n in vectors.roles}
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", width_ratios=[1.2, 1])
axes[0].plot(axis.layers, alike, marker="o", ms=3)
axes[0].axvline(layer, color="0.7", lw=0.8)
axes[0].set(xlabel="layer", ylabel="cosine of the two axes", ylim=(None, 1))
axes[0].axhline(0, color="0.4", lw=0.8)
axes[0].set_title("the axis of this run and the one that ships", fontsize=9)
for name, x in sorted(places.items(), key=lambda p: p[1]):
    axes[1].barh(name, x, color="tab:blue" if x > 0 else "tab:orange")
axes[1].axvline(0, color="0.4", lw=0.8)
axes[1].set(xlabel="centred projection (0: the average of 275 roles)")
axes[1].set_title(f"roles of this run on the axis that ships, layer {layer}", fontsize=9)
plt.show()
print(
    f"layer {layer}: cosine {alike[axis.layers.index(layer)]:.2f}; two random directions in {model.d_model} dimensions: about .04"
)

# %% [markdown]
# A direction one can recognise from layer 11 on, far from the same one; at layer 2 the two even point apart. The three who
# work at a desk stand above the average role, the three of theatre below it. How many rollouts a vector needs is the subject
# of tutorial 2; `stability_curve` answers it for a run of yours.
#
# ## From here to many GPUs
#
# The configuration is all that changes. A `config.yaml` for a model of 32 billion parameters on eight GPUs:
#
# ```yaml
# preset: paper
# model: Qwen/Qwen3-32B
# dtype: bfloat16
# device_map: auto                  # each actor spreads its replica over its own GPUs
# engine: {kind: ray, concurrency: 4, num_gpus: 2}
# judge: {kind: api, model: NAME-OF-A-JUDGE, concurrency: 32}
# keep: auto                        # single vectors of all layers if below 1 GiB, else of the monitoring layer
# ```
#
# - **Ray** (`pip install 'assistant-axis[ray]'`): shards become the work of a pool of actors; files, checks and results are the
#   same. On a cluster add `address: auto`, and give a folder that every node reaches, such as `s3://bucket/run`. The page *Run at
#   scale* has files for Kubernetes and Slurm. A job that ran out of time is submitted again as it was.
# - **Judges**: `likelihood` (used above), `model` (a local chat model with our rubric), `api` (any OpenAI-compatible endpoint: key
#   from `OPENAI_API_KEY`, address from `OPENAI_BASE_URL`). What an API would be asked is estimated before you agree.
#   `assistant-axis judge score RUN --judge api --model NAME --out other.parquet` scores the same answers again, and
#   `assistant-axis judge agree other.parquet labels.csv` sets a judge against labels of yours. Do that before you trust one.
# - **vLLM** (`sampling: {backend: vllm}`, optional) writes the answers on a GPU; activations are then read by our own hooks from the
#   same token ids. The page *Run at scale* says how far it has been tried.
#
# ## Publishing
#
# `assistant-axis publish RUN --repo owner/name --look card` lays out what would go up: vectors, axis, manifest, figures and a
# card written from the conditions. Answers stay at home. Here it is, without any network:

# %%
for name in prepare(folder / "RUN", "owner/name", folder / "card"):
    print(f"{(folder / 'card' / name).stat().st_size / 1000:>8.0f} kB  {name}")
card = (folder / "card" / "README.md").read_text()
print("\n" + card[card.index("| model") : card.index("```python")].strip())

# %% [markdown]
# Without `--look` it is uploaded, and others load it with `AssistantAxis.from_hub("owner/name", model=model)`. Loading compares
# the conditions of the measurement with the model at hand, and refuses another model by name. Here is the file by itself:

# %%
print(AssistantAxis.load(folder / "card" / "axis.safetensors", model))

# %% [markdown]
# ## Exercises
#
# 1. The disk was full, and a shard is cut short. What do `status` and the next start make of it?
# 2. Start the same run twice at once. What happens to the second?
# 3. How large is a run of all roles with one prompt and one question each, read at the header? Plan it, then make it.
#
# <details><summary>Solution 1</summary>
#
# ```python
# shard = folder / "RUN" / "rollouts" / "00004.parquet"
# shard.write_bytes(shard.read_bytes()[:2000])
# look(check=True)
# run({**config, "min_score": 1}, folder / "RUN", model=model, progress=False, say=tell)
# look(check=True)
# ```
#
# `status(check=True)` names shard 4 as damaged, and the next start makes that one shard again. Its answers are the same as before,
# since its seed is; so the scores and activations that were made from them still hold, and are kept.
#
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# from assistant_axis.runs.folder import Folder
#
# with Folder(folder / "RUN").lock():
#     run({**config, "min_score": 1}, folder / "RUN", model=model)  # RunLockedError: … is being written by process …
# ```
#
# One writer at a time. On a local disk the lock goes when its process ends, however it ends: that is why the killed run
# above could be started again.
#
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# small = {"preset": "instant", "prompts_per_role": 1, "questions_per_prompt": 1, "default_questions": 4}
# print(len(plan_run(load_config(small)).asks))
# header = run(small, folder / "header", model=model)
# print(header.vectors().space().ranking(1)[:5])
# ```
#
# 295 readings: one of each of 275 roles, and four under each of the five default conditions.
#
# </details>
#
# ## On your own model
#
# In this order: `load_model` and the three checks; the preset `instant`, which generates nothing, to see whether there is a persona
# space at all; twenty roles of `laptop` with longer answers, of which you **read** fifty; the judge against your own labels; then
# the size that you can pay for. Each step is the same program with another configuration.
