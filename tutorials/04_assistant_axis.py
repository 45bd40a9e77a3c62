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
# # 4 · The Assistant Axis
#
# [![Open in Colab](colab.svg)](https://colab.research.google.com/#upload=true "Opens the upload dialog of Colab: give it 04_assistant_axis.ipynb")
#
# **You will learn**
#
# - how one subtraction gives the axis, and how it differs from the first principal component;
# - at which layers to read it, by its own stability and not by a result you hope for;
# - where single answers lie along it, raw and centred, and what a percentile says;
# - what the axis *means*, in traits;
# - how a file of an axis proves that it is what it says.
#
# Eight minutes of reading, under two minutes of computing on two CPU cores. Tutorial 3 explains the persona space.

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
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from assistant_axis import (
    AssistantAxis,
    ResidPost,
    extract_persona_vectors,
    load_model,
    load_personas,
    load_precomputed,
    load_precomputed_axis,
)
from assistant_axis.geometry.controls import control_axis
from assistant_axis.pipeline.traits import extract_trait_vectors
from assistant_axis.plots import circuitsvis_view

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

vectors = load_precomputed("smollm2-135m-instruct")
print(vectors)
print(vectors.conditions.design)

# %% [markdown]
# These vectors come with the package: the model's own answers to 275 roles, averaged over their tokens. Nothing has to be
# measured before we can look.
#
# ## One subtraction
#
# The axis is the mean of the default persona minus the mean of the roles, at every layer. Positive is Assistant-like.

# %%
by_hand = vectors.default - vectors.vectors.mean(0)  # [layer, d_model]
axis = vectors.axis()
print("the same:", torch.equal(axis.vectors, by_hand))
print(
    f"at layer 21 it is {axis.norms[axis.layer_index(21)]:.1f} long, in a residual stream of about "
    f"{axis.resid_norms[axis.layer_index(21)]:.0f}"
)

# %% [markdown]
# It is short: a few per cent of what flows there. Most of a residual stream is about the words at hand, not about who says
# them.
#
# **PC1 knows nothing of the default.** It is the direction along which the roles themselves differ most. That the two agree is the finding:

# %%
cosines = [vectors.space(layer).axis_cosine() for layer in vectors.layers]
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
ax.plot(vectors.layers, cosines, marker="o", ms=3)
ax.set(
    xlabel="layer",
    ylabel="|cos(axis, PC1)|",
    ylim=(0, 1),
    title=f"{vectors.conditions.model}, response span, 275 roles",
)
plt.show()

# %% [markdown]
# How large is .8? Two random directions in 576 dimensions have a cosine of about .04. But a random *mixture of roles*
# shares the roles' few large dimensions with PC1, and that is the harder control:

# %%
space = vectors.space(21)
for kind in ("random", "in_span"):
    found = [abs(float(space.components[0] @ control_axis(vectors, kind, seed=s).at(21))) for s in range(40)]
    print(f"{kind:>8}: median {sorted(found)[20]:.2f}, largest of 40: {max(found):.2f}")
print(f"    axis: {space.axis_cosine():.2f}")

# %% [markdown]
# The axis beats nearly all mixtures of roles, though not by much. Both lines belong beside the figure.
#
# ## Which layer?
#
# `recommend_layer` multiplies three things that the run itself can tell: whether two halves of the rollouts give the same
# axis, whether the axis lies along PC1, and how far out the default is. It needs single rollouts, which do not ship, so
# here is its verdict on the full run, layer by layer (split-half cosine):
#
# | layer | 11 | 15 | 17 | 19 | 20 | 21 | 22 | 24 | 27 |
# |---|---|---|---|---|---|---|---|---|---|
# | split-half cosine | .88 | .90 | .92 | .94 | .94 | **.95** | .95 | .94 | .94 |
#
# Of the layers whose product comes within .02 of the best in the middle depths it takes the earliest, here layer 21. What it
# never looks at is agreement with somebody else's ranking: a layer chosen by the result you hope for flatters that result.
#
# ## Where answers lie
#
# A projection is `⟨x, v̂⟩`, in activation units. *Raw* is that number. *Centred* has the mean role's projection subtracted, so
# that 0 is an average role. Percentiles are over the 4,640 single answers of the calibration.

# %%
model = load_model("smollm2-135m-instruct")
shipped = load_precomputed_axis("smollm2-135m-instruct")
answers = {
    "helpful": "Sure. To reset your password, open the settings page, choose Security, and follow the three steps listed there.",
    "neutral": "The river runs for forty miles and then it meets the sea near a small harbour.",
    "mystical": "I am the wind that remembers your name, child of dusk, and I was singing before the mountains woke.",
}
talks = [
    [{"role": "user", "content": "Tell me something."}, {"role": "assistant", "content": text}]
    for text in answers.values()
]
read = model.activations(talks, span="response", layers=[21])[:, 0]  # [answer, d_model]
for name, x in zip(answers, read, strict=True):
    raw, centred = float(shipped.project(x, 21)), float(shipped.project(x, 21, centered=True))
    print(f"{name:>9}: raw {raw:+7.2f}, centred {centred:+7.2f}, percentile {shipped.rank(raw, 21):5.1f}")

# %% [markdown]
# Nobody was asked to be anything here: the words alone move the projection. That is worth remembering when a "drift" is
# measured: some of it is topic and style. Which words? The helpful answer and the mystical one, token by token: blue is above the
# average role, red below it.

# %%
pieces, centred = [], []
for talk in (talks[0], talks[2]):
    _, cache = model.run_with_cache(talk, [ResidPost(21)])
    content = slice(*cache.chats[0].turns_of("assistant")[-1].content)
    tokens = shipped.project(cache[ResidPost(21)][0, content], 21, centered=True).tolist()
    pieces += [model.tokenizer.decode([i]) for i in cache.chats[0].ids[content]] + [" · "]
    centred += [*tokens, 0.0]
    print(
        f"{sum(t > 0 for t in tokens)} of {len(tokens)} tokens above the average role, from {min(tokens):+.0f} to {max(tokens):+.0f}"
    )
circuitsvis_view(pieces, centred, height=110)

# %% [markdown]
# Every token of the helpful answer lies above the average role, all but one of the mystical below it; bluest are the password and
# the Security of the settings page. Even "the" is blue in one and red in the other: a token's activation knows the sentence that
# it stands in. (The view is CircuitsVis', stored inside this notebook.)
#
# An axis belongs to the tokens it was measured on. This one is of answers; `extract_persona_vectors` reads the header
# unless told otherwise. Both are the same idea, and different directions:

# %%
names = vectors.roles[::9]
header = extract_persona_vectors(
    model, "header", roles=names, prompts_per_role=2, questions_per_prompt=2, layers=shipped.layers, progress=False
)
between = torch.cosine_similarity(header.axis().vectors, shipped.vectors, dim=-1)
print("cosine of the header axis with the response axis:")
print(
    "  ".join(f"{layer}: {c:.2f}" for layer, c in zip(shipped.layers, between.tolist(), strict=True) if layer % 3 == 0)
)

# %% [markdown]
# ## What it means: traits
#
# A trait vector is the same subtraction for a description and its opposite ("You are precise …", "You are vague …"). The
# cosine of a trait with the axis says how far being more of that trait is being more of an assistant. The package has 240
# traits; twenty-four are enough to see the idea. Axis and traits are both read at the header here.

# %%
names_of_traits = [t.name for t in load_personas().traits]
traits = extract_trait_vectors(
    model, "header", traits=names_of_traits[::10], pairs=2, questions_per_pair=2, layers=shipped.layers, progress=False
)
ranking = traits.ranking(header.axis(), 21)
fig, ax = plt.subplots(figsize=(6, 4.6), layout="constrained")
ax.barh(
    [n for n, _ in ranking[::-1]],
    [c for _, c in ranking[::-1]],
    color=["tab:blue" if c > 0 else "tab:orange" for _, c in ranking[::-1]],
)
ax.axvline(0, color="0.4", lw=0.8)
ax.set(xlabel="cosine with the Assistant Axis", title=f"{model.name}, layer 21, header span, 24 of 240 traits")
ax.tick_params(axis="y", labelsize=8)
plt.show()

# %% [markdown]
# Read the extremes, not the middle: each trait rests on few prompts. `traits.reliability` has the cosine of every trait
# between two halves of its rollouts, and a trait whose halves disagree says nothing.
#
# ## A file that proves itself
#
# A saved axis carries its default, its mean role, its percentiles and its conditions, under a checksum. Loading it checks
# that the axis *is* default minus roles, and refuses another model.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = shipped.save(Path(folder) / "axis.safetensors")
    again = AssistantAxis.load(file, model)
    print(again)
    print("integrity, lowest over layers:", f"{float(again.integrity().min()):.6f}")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1  # one bit
    file.write_bytes(bytes(data))
    try:
        AssistantAxis.load(file)
    except Exception as e:
        print(type(e).__name__ + ":", str(e).split(file.name)[-1].strip())

# %% [markdown]
# ## Exercises
#
# 1. Make the axis from the 100 roles that are most Assistant-like alone, and from the 100 least. Which is nearer the axis of all?
# 2. Write three answers of your own about one topic, as an assistant, as a pirate, as an oracle, and read them at layers 15, 21
#    and 27. Do the layers agree on the order?
# 3. `load_precomputed_axis(method="pc1")` is PC1 with the default's sign. Read the three answers above with it.
#
# <details><summary>Solution 1</summary>
#
# ```python
# order = [n for n, _ in vectors.space(21).ranking(1)]
# for part in (order[:100], order[-100:]):
#     some = vectors.select(part).axis()
#     print(torch.cosine_similarity(some.at(21), axis.at(21), dim=0))
# ```
#
# The far roles: the mean of all roles lies on their side of the default.
#
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# read = model.activations(talks, span="response", layers=[15, 21, 27])
# for k, layer in enumerate((15, 21, 27)):
#     print(layer, [round(float(shipped.project(x[k], layer, centered=True)), 1) for x in read])
# ```
#
# Compare orders, or percentiles, never raw numbers between layers: the residual stream grows with depth.
#
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# pc1 = load_precomputed_axis(method="pc1")
# print([round(pc1.rank(float(pc1.project(x, 21)), 21)) for x in read])
# ```
#
# </details>
#
# ## On your own model
#
# `vectors = extract_persona_vectors(load_model("Qwen/Qwen3-0.6B"), "response", out="runs/qwen", spread=True)`, then
# `recommend_layer(vectors)`, `vectors.axis().save("axis.safetensors")`. Large models have the axis in the middle of their depth;
# say with every figure which span, which layer, and whether the projection is raw or centred.
