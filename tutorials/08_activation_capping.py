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
# # 8 · Activation capping
#
# [![Open in Colab](colab.svg)](https://colab.research.google.com/#upload=true "Opens the upload dialog of Colab: give it 08_activation_capping.ipynb")
#
# **You will learn**
#
# - what a cap does to a token, and what it leaves alone;
# - the sign trap of the released files, in numbers;
# - how a floor is calibrated, and why percentiles of answers are not percentiles of tokens;
# - how to read before and after a cap, and what the cap costs.
#
# Eight minutes of reading, one to two minutes of computing on two CPU cores.

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
import matplotlib.pyplot as plt
import torch

from assistant_axis import Add, Cap, load_model, load_precomputed
from assistant_axis.plots.tokens import values_view
from assistant_axis.steering.adherence import adherence, answer_cases, neutral_perplexity, persona_cases
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.readings import generate_traced

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})
model = load_model("smollm2-135m-instruct")
axis = load_precomputed("smollm2-135m-instruct").axis("pc1")
window = range(16, 24)

# %% [markdown]
# ## A floor under the assistant
#
# Steering pushes every token. A cap looks first: where the raw projection ⟨h, v̂⟩ lies below the floor τ, the token is lifted to τ
# along v̂; all else stays as it is.

# %%
cap = Cap.calibrated(axis, percentile=70, layers=window)
cap.explain(model)

# %%
pirate = [
    {"role": "system", "content": "You are a pirate on the high seas."},
    {"role": "user", "content": "What are vaccines?"},
]
plain, before = generate_traced(model, pirate, axis, layers=window, max_new_tokens=40)
capped, read = generate_traced(model, pirate, axis, cap, layers=window, max_new_tokens=40)
print("plain :", plain.text.strip())
print("capped:", capped.text.strip())

# %% [markdown]
# ## Before and after, at a capped layer
#
# `pre` is what the block would have passed on, `post` what it did pass on. Below the floor the two part.

# %%
layer = 20
floor = axis.percentile(70, layer)
row = read.at(layer)
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
ax.plot(read.pre[row][1:], color="tab:orange", label="before the cap")
ax.plot(read.post[row][1:], color="tab:blue", label="after it")
ax.axhline(floor, color="black", linewidth=0.8, linestyle="--", label="floor, 70th percentile")
ax.set(xlabel="token (the first, an attention sink, is left out)", ylabel=f"raw projection at layer {layer}")
ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
plt.show()
share = read.changed_share()
print(
    "share of tokens changed, layer by layer:",
    ", ".join(f"{x}: {s:.0%}" for x, s in zip(window, share.tolist(), strict=True)),
)

# %% [markdown]
# That the curve stands at the floor is no finding: the cap put it there. What counts is what the model *says*, and what happens at
# layers that were not capped. Here are the answer's tokens, coloured by how far the cap lifted each of them:

# %%
answer = read.turns[-1][1]
pieces = [model.tokenizer.decode([i]) for i in read.ids[answer.start : answer.stop]]
lift = (read.post[row] - read.pre[row])[answer.start : answer.stop]
values_view(pieces, lift.tolist(), caption=f"lift along the axis at layer {layer}, activation units")

# %% [markdown]
# ## The sign trap
#
# The released files hold the *opposite* vector (roles − default) under an *upper* cap. An upper cap at c on −v̂ is a floor at −c on v̂,
# but a percentile turns over with its vector: their "p0.25" is the 25th percentile of the negative projections, which is the
# **75th** of ours. Read literally as a floor at our 25th percentile it would be another, far weaker method.

# %%
x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
theirs = torch.quantile(-x, 0.25)  # of roles − default
print(f"upper cap on −v̂ at their 25th percentile touches {float((-x > theirs).float().mean()):.0%}")
print(f"floor on v̂ at our 75th percentile touches      {float((x < torch.quantile(x, 0.75)).float().mean()):.0%}")
print(f"floor on v̂ at our 25th percentile touches      {float((x < torch.quantile(x, 0.25)).float().mean()):.0%}")

# %% [markdown]
# ## Effect and cost, beside a direction that means nothing
#
# Six questions under three personas. The control is a random direction whose floor lies at the 70th percentile of what it sees
# in one of these very prompts, token by token.

# %%
cases = persona_cases(roles=["pirate", "ghost", "bard"], questions=2, seed=5)
noise = Direction.of(axis).random(1)
_, seen = generate_traced(model, list(cases[0].in_role), noise, layers=window, max_new_tokens=24)
floors = {x: float(torch.quantile(seen.pre[seen.at(x)][1:], 0.7)) for x in window}
control = Cap(noise, floor=floors, layers=window)

for name, steps in (
    ("none", ()),
    ("cap", (cap,)),
    ("random direction", (control,)),
    ("steering, +0.3", (Add(axis, 0.3),)),
):
    answers = answer_cases(model, cases, *steps, max_new_tokens=32)
    with_role = adherence(model, cases, answers)
    cost = neutral_perplexity(model, *steps, count=8)
    print(f"{name:>16}: adherence {with_role.mean:+.2f} nats a token, neutral perplexity {cost:.2f}")

# %% [markdown]
# Adherence near zero: the answer could as well be the assistant's. Six answers are a sketch; the page *Cap a model* has 36, with
# intervals and a held-out half: adherence .30 → −.01 at +2.5 % perplexity, and nothing along random directions.
#
# ## Exercises
#
# 1. Which percentile does the pirate survive? Try 10, 25, 50.
# 2. Cap one layer instead of eight. What changes at the layers above it?
# 3. A cap can have a ceiling too. What would it be for?
#
# <details><summary>Solution 1</summary>
#
# ```python
# for q in (10, 25, 50):
#     with model.steered(Cap.calibrated(axis, q, layers=window)):
#         print(q, model.generate(pirate, max_new_tokens=40).text)
# ```
#
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# one = Cap.calibrated(axis, 70, layers=[16])
# _, single = generate_traced(model, pirate, axis, one, layers=window, max_new_tokens=40)
# print(single.pre[:, 1:].mean(1) - before.pre[:, 1:].mean(1))
# ```
#
# The layers above move back towards where they were: every block adds to the stream again.
#
# </details>
#
# <details><summary>Solution 3</summary>
#
# A ceiling keeps a model from being *more* of an assistant than usual: for keeping a character in a game, or for telling whether an
# effect comes from the direction or from holding activations still. `Cap.calibrated(axis, 5, ceiling_percentile=95)`.
#
# </details>
#
# ## On your own model
#
# Released configurations for Qwen 3 32B and Llama 3.3 70B load with `load_capping_config(path).cap("layers_46:54-p0.25")` and are turned to our
# sign. For any other model: extract with `span="response"`, then `assistant-axis cap sweep` chooses window and percentile on one
# half of the cases and reports the other.
