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
# # 2 · Persona vectors
#
# [![Open in Colab](colab.svg)](https://colab.research.google.com/#upload=true "Opens the upload dialog of Colab: give it 02_persona_vectors.ipynb")
#
# **You will learn**
#
# - what a role prompt is, and what a *rollout* is;
# - how rollouts become one vector a role, read at the header or over the answer;
# - in what the two spans agree, in what they do not, and why they are never mixed;
# - how many rollouts are enough, and enough for what;
# - what a saved file holds, and what it refuses.
#
# Eight minutes of reading, about two minutes of computing on two CPU cores. Tutorial 1 explains hook points and spans.

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
import json
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from safetensors import safe_open
from scipy.stats import pearsonr, spearmanr

from assistant_axis import (
    PersonaVectors,
    Sampling,
    extract_persona_vectors,
    load_model,
    load_personas,
    load_precomputed,
)
from assistant_axis.errors import ArtefactMismatchError, IntegrityError
from assistant_axis.geometry.compare import compare
from assistant_axis.geometry.stability import stability_curve
from assistant_axis.personas.library import plan
from assistant_axis.personas.rollouts import read_rollouts

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

model = load_model("smollm2-135m-instruct")
library = load_personas()
layer = model.profile.layer
print(len(library.roles), "roles,", len(library.questions), "questions; we look at layer", layer)

# %% [markdown]
# ## What a role prompt is
#
# A system prompt that asks the model to be somebody. Every bundled role has five of them around one description, so that a
# vector is about the role and not about one way of putting it.

# %%
for prompt in library.role("poet").prompts:
    print("·", prompt)

# %% [markdown]
# Two dozen roles are enough for this tutorial, taken at even steps from the alphabet: choosing them by hand, half of them
# clerks and half of them ghosts, would make everything below look better than it is.

# %%
names = [library.role_names[round(k)] for k in np.linspace(0, len(library.roles) - 1, 24)]
print(", ".join(names))

# %% [markdown]
# ## The plan
#
# A **rollout** is one question asked of one persona under one of its prompts. `plan` lays out which: every role is asked
# the same questions under the same prompt numbers, so that what a question adds is the same for all and drops out of the
# differences between roles. The default persona gets its five conditions, each with more questions than a role's prompt: it
# is one against two dozen, and the axis hangs on it.

# %%
asks = plan(library.select(names), prompts_per_role=2, questions_per_prompt=4, default_questions=8)
print(len(asks), "rollouts, of which", sum(a.role == "default" for a in asks), "of the default\n")
for ask in [a for a in asks if a.role == "poet"]:
    print(f"prompt {ask.prompt}: {ask.question.text}")

# %% [markdown]
# ## Two places to look
#
# Here is one rollout as the model reads it, with an answer written for the occasion.

# %%
one = next(a for a in asks if a.role == "poet")
model.show_spans([*one.messages, {"role": "assistant", "content": "Let the night sing back, softly."}])

# %% [markdown]
# - **header**: the last token of the pale stretch that opens the assistant's turn. The prompt and the question have been
#   read, nothing has been said. One forward pass, no words to sample.
# - **response**: the mean over all tokens of the answer's content. This is what the paper reads; the answer has to be
#   generated first.
#
# The same plan, read both ways. Answers are cut after 32 tokens here; the paper allows 512.

# %%
folder = Path(tempfile.mkdtemp())
design = {"roles": names, "prompts_per_role": 2, "questions_per_prompt": 4, "default_questions": 8, "progress": False}

start = time.perf_counter()
header = extract_persona_vectors(model, span="header", **design)
middle = time.perf_counter()
response = extract_persona_vectors(
    model, span="response", sampling=Sampling(max_new_tokens=32), out=folder / "response", **design
)
end = time.perf_counter()
print(header)
print(response)
print(f"header {middle - start:.0f} s, response {end - middle:.0f} s")

# %% [markdown]
# ## What was said
#
# With `out=` the rollouts are kept beside the vectors. **Read some before you believe any number.**

# %%
rollouts = read_rollouts(folder / "response" / "rollouts.parquet")
bees = next(r.question for r in rollouts if "bees" in r.question)
print(bees, "\n")
for role in ("default", "scientist", "poet", "guru", "void"):
    said = next(r for r in rollouts if r.role == role and r.question == bees)
    print(f"{role:>9}: {said.answer.strip()}\n")
cut = sum(r.finish_reason == "length" for r in rollouts)
print(f"{cut} of {len(rollouts)} answers were cut at 32 tokens")

# %% [markdown]
# ## From rollouts to a vector
#
# There is no more to it than a mean of means: over the tokens of each answer, then over the answers of the role. We take the
# poet's eight conversations and do it again by hand, with the text read back.

# %%
poet = model.activations([r.messages for r in rollouts if r.role == "poet"], span="response")
print(tuple(poet.shape), " [rollout, layer, d_model]")
by_hand, kept = poet.mean(0)[layer], response.role("poet")[layer]
print(f"difference from the extracted vector: {float((by_hand - kept).norm() / kept.norm()):.1e} of its length")

# %% [markdown]
# ## Raw cosines say nothing
#
# Any two role vectors are nearly parallel, because they share the language, the layer, the kind of token. Subtract the mean
# over roles, and differences become visible. "Raw" and "centred" are said of every number from here on.


# %%
def centred(vectors, at=layer):
    """Role vectors at a layer minus their mean."""
    k = vectors.layer_index(at)
    return vectors.vectors[:, k] - vectors.role_mean[k]


def cosines(a, b):
    return torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T


upper = np.triu_indices(len(names), 1)
for name, v in (("header", header), ("response", response)):
    raw, own = v.vectors[:, v.layer_index(layer)], centred(v)
    print(
        f"{name:>8}: cosine between two roles, raw {cosines(raw, raw)[upper].mean():.3f} on average; centred from "
        f"{cosines(own, own)[upper].min():+.2f} to {cosines(own, own)[upper].max():+.2f}"
    )

# %%
order = [names.index(n) for n, _ in header.space(layer).ranking(1)]
fig, axes = plt.subplots(1, 2, figsize=(10.5, 5), layout="constrained")
for ax, v, title in ((axes[0], header, "header"), (axes[1], response, "response")):
    x = centred(v)[order]
    image = ax.imshow(cosines(x, x), vmin=-1, vmax=1, cmap="RdBu")
    ax.set_xticks(range(len(names)), [names[k] for k in order], rotation=90, fontsize=7)
    ax.set_yticks(range(len(names)), [names[k] for k in order], fontsize=7)
    ax.set_title(f"{title} span, layer {layer}: centred cosines between roles", fontsize=9)
fig.colorbar(image, ax=axes, shrink=0.8)
plt.show()

# %% [markdown]
# Both panels are in the order of the header's PC1, most Assistant-like first. Moderator, evaluator, specialist, linguist and
# consultant resemble one another in both spans (blue, top left) and lie opposite to poet, trickster and amnesiac (red
# corners). The header's colours are stronger; that no words were sampled for it is one reason, as we shall see.
#
# ## Do the spans agree?
#
# On what? There are at least four questions in that one.

# %%
h, r = centred(header), centred(response)
raw = torch.cosine_similarity(header.vectors[:, layer], response.vectors[:, layer], dim=-1)
across = cosines(h, r)
found = across.argmax(1) == torch.arange(len(names))
print(f"1  same role, header against response, raw cosine:      {raw.mean():.2f} (mean)")
print(f"2  the same, each span centred on its own mean:         {across.diag().mean():.2f} (mean)")
print(f"   another role instead:                                {across[~torch.eye(len(names)).bool()].mean():+.2f}")
print(f"   header vectors whose nearest response is their own:  {int(found.sum())} of {len(names)}; by chance 1")
table = pearsonr(cosines(h, h)[upper], cosines(r, r)[upper]).statistic
print(f"3  correlation of the two tables of cosines above:      {table:.2f}")
a, b = header.axis(), response.axis()
print(f"4  cosine of the two Assistant Axes:                    {float(a.at(layer) @ b.at(layer)):.2f}")

# %% [markdown]
# 1. Two *different* roles of one span have a raw cosine of about .98, the *same* role in two spans .76. The spans lie in different
#    regions of the residual stream. This is why they are never mixed: a zero measured on one is no zero for the other.
# 2. Centred, a role does find itself across spans: .35 against −.01 for another role, and 19 of 24 times it is the
#    nearest. (Random directions in 576 dimensions: about .03.) Related directions, then, but not the same ones.
# 3. Who resembles whom agrees better than the directions do: that comparison needs no shared coordinates.
# 4. The axes have a cosine of .50. Good enough to call them relatives, not to use one for the other.
#
# ## The order along PC1
#
# PC1 is what the roles differ by most, found in each span by itself; the score is the cosine of a role's centred vector with
# it, positive on the side of the default.

# %%
spaces = header.space(layer), response.space(layer)
x, y = (s.scores(1) for s in spaces)
fig, ax = plt.subplots(figsize=(8, 4.8), layout="constrained")
ax.scatter(x, y, s=14, color="tab:blue")
points = torch.stack([x, y], 1)
near = (torch.cdist(points, points) + 9 * torch.eye(len(names))).argmin(1)
for k, name in enumerate(names):  # on the side that its neighbour leaves free
    side = {"ha": "left", "xytext": (5, -2)} if x[k] > x[near[k]] else {"ha": "right", "xytext": (-5, -2)}
    ax.annotate(name, (x[k], y[k]), fontsize=7, textcoords="offset points", **side)
ax.margins(x=0.14)
ax.set(xlabel="header: cosine with its PC1, centred", ylabel="response: cosine with its PC1, centred")
ax.set_title(
    f"{model.name}, layer {layer}: Spearman {spearmanr(x, y).statistic:.2f} over {len(names)} roles", fontsize=9
)
plt.show()

# %% [markdown]
# Up and to the right is toward the Assistant. Two instruments, one of which has not heard a single word of the answers, put the
# roles in nearly the same order.
#
# `compare` does this with intervals, and refuses at first:

# %%
try:
    compare(header, response)
except ArtefactMismatchError as error:
    print(error, "\n")
comparison = compare(header, response, (layer, layer), force=True)
print(comparison)

# %% [markdown]
# The line to read is *halves of the rollouts*. The header's PC1 scores from one half of its rollouts correlate with those from
# the other at .96, the response's at .71: four sampled answers a role are noisy, four headers hardly. Corrected for that noise,
# the correlation of .80 between disjoint halves becomes .97, with an interval that includes 1. So far as this run can tell, the
# two spans order these roles alike on PC1; on PC2 less, and on PC3 the interval includes 0. What 24 roles show is about
# 24 roles.
#
# ## At which layers?

# %%
layers = range(model.n_layers)
pc1 = [abs(spearmanr(header.space(i).scores(1), response.space(i).scores(1)).statistic) for i in layers]
tables = []
for i in layers:
    h, r = centred(header, i), centred(response, i)
    tables.append(pearsonr(cosines(h, h)[upper], cosines(r, r)[upper]).statistic)
fig, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
ax.plot(layers, pc1, marker="o", ms=3, label="|Spearman| of PC1 scores")
ax.plot(layers, tables, marker="s", ms=3, label="correlation of the tables of cosines")
ax.axvline(layer, color="0.7", lw=0.8)
ax.set(xlabel="layer", ylabel="header against response", ylim=(0, 1))
ax.legend(frameon=False, loc="lower right", fontsize=8)
plt.show()

# %% [markdown]
# From layer 15 on they agree; below it the order along PC1 has little to do with it. At the last layer the tables still
# agree while PC1 does not: in one of the spans something else has become the largest difference. A figure without its
# layer is no figure.
#
# ## How many rollouts are enough?
#
# Enough for what? We ask of three things, with 1, 2, 4 … rollouts a role. The first two are held against the vectors that ship
# with the package, which come from 16 other answers a role, of up to 64 tokens, each role with questions of its own:
#
# - **a role's vector**: its cosine with the shipped vector of the same role, both centred;
# - **the order of the roles**: the rank correlation of their scores on PC1, without sign (orders of 24 roles that have nothing
#   to do with each other average .17);
# - **the axis**: the cosine of two axes of this run that share no rollout (`stability_curve`).

# %%
shipped = load_precomputed("smollm2-135m-instruct").select(names)
reference = centred(shipped)
reference_order = shipped.space(layer).scores(1)
rng = np.random.default_rng(0)


def few(vectors, count, draws=20):
    """From `count` rollouts a role: median cosine with the reference, and rank correlation along PC1; mean over draws."""
    x, whose = vectors.samples.activations[:, vectors.layer_index(layer)].float(), vectors.samples.role
    rows = [np.flatnonzero(whose == k) for k in range(len(vectors.roles))]
    out = []
    for _ in range(draws):
        means = torch.stack([x[torch.from_numpy(rng.permutation(own)[:count])].mean(0) for own in rows])
        means = means - means.mean(0)
        first = torch.linalg.svd(means, full_matrices=False)[2][0]  # PC1, of either sign
        order = abs(spearmanr(torch.nn.functional.normalize(means, dim=1) @ first, reference_order).statistic)
        out.append((float(cosines(means, reference).diag().median()), order))
    return np.mean(out, axis=0)


fig, axes = plt.subplots(1, 3, figsize=(11, 3.3), sharey=True, layout="constrained")
for v, colour in ((header, "tab:orange"), (response, "tab:blue")):
    name, sizes = v.conditions.span, (1, 2, 4, 8)
    roles = np.array([few(v, n) for n in sizes])
    curve = stability_curve(v, layer, over="rollouts")
    for ax, values in zip(axes, roles.T, strict=False):
        ax.plot(sizes, values, marker="o", color=colour, label=f"{name} span")
    axes[2].plot(curve.sizes, curve.cosine, marker="o", color=colour)
    axes[2].fill_between(curve.sizes, curve.low, curve.high, color=colour, alpha=0.12, lw=0)
    shown = (*roles.T, curve.cosine)
    for what, values in zip(("a role's vector", "the order", "two axes"), shown, strict=True):
        print(f"{name:>8}, {what:>15}:", " ".join(f"{c:.2f}" for c in values))
axes[0].set(ylabel="cosine or |Spearman|", ylim=(0, 1))
axes[0].set_title("a role's vector with the shipped one, centred", fontsize=9)
axes[1].set_title("order along PC1 with the shipped one", fontsize=9)
axes[2].set_title("two axes without a shared rollout (band: 95 %)", fontsize=9)
for ax in axes:
    ax.set(xlabel="rollouts a role", xticks=sizes, xlim=(0.7, 8.3))
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# - **A role's own vector** needs the most: with eight rollouts it has a cosine of .33 to .37 with its shipped counterpart, and
#   the curves are still rising. (1 is out of reach, since sixteen answers are noisy too.) The header starts ahead, having
#   less noise, and is overtaken at eight: less noise does not help with measuring something else.
# - **The order** along PC1 arrives sooner: eight rollouts put these roles in the shipped order at .84 and .89.
# - **The axis**, a difference of two large means, is steadier at the header: four rollouts a role give .80 there, .59 over
#   answers. More *roles* help it as well; the page *Use the vectors that ship* has the figures for 275 of them.
#
# So: a few headers for a ranking or a first look; many answers for a vector that you mean to steer or to trace with.
#
# ## Saving and loading
#
# One safetensors file holds the vectors, the default and its conditions, the counts, the single rollouts (for bootstraps and
# percentiles) and the conditions of the measurement. Without the single rollouts it is much smaller.

# %%
whole = header.save(folder / "header.safetensors")
small = header.save(folder / "small.safetensors", samples=False)
print(f"{whole.name} {whole.stat().st_size / 1e6:.1f} MB, {small.name} {small.stat().st_size / 1e6:.1f} MB\n")
with safe_open(str(whole), framework="pt") as file:
    for key in sorted(file.keys()):
        print(f"{key:>20} {file.get_slice(key).get_shape()}")
    said = json.loads(file.metadata()["header"])["conditions"]
print()
for key in ("model", "hook_point", "span", "sign", "design", "personas_hash", "template_hash", "seed"):
    print(f"{key:>20} {said[key]}")

# %%
again = PersonaVectors.load(whole)
print("the same:", torch.equal(again.vectors, header.vectors) and again.conditions == header.conditions)

# %% [markdown]
# The file carries a checksum over tensors and header. Change one byte:

# %%
damaged = folder / "damaged.safetensors"
content = bytearray(whole.read_bytes())
content[-1] ^= 1
damaged.write_bytes(content)
try:
    PersonaVectors.load(damaged)
except IntegrityError as error:
    print(str(error).replace(f"{folder}/", ""))

# %% [markdown]
# ## Exercises
#
# 1. Cut the answers after 8 tokens instead of 32. Which span do they agree with better now?
# 2. Spend the same eight rollouts as 4 prompts × 2 questions. Does it make a difference to the axis?
# 3. `span="header_mean"` averages *all* tokens that open the assistant's turn. Is it a better header?
#
# <details><summary>Solution 1</summary>
#
# ```python
# short = extract_persona_vectors(model, span="response", sampling=Sampling(max_new_tokens=8), **design)
# for other in (header, response):
#     print(other.conditions.span, spearmanr(short.space(layer).scores(1), other.space(layer).scores(1)).statistic)
# ```
#
# With both alike: .72 and .71. The tables of cosines and the axis are nearer to the response's, but then the same seed makes
# these the first eight tokens of the very same answers.
#
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# more = extract_persona_vectors(model, **design | {"prompts_per_role": 4, "questions_per_prompt": 2})
# print(float(more.axis().at(layer) @ header.axis().at(layer)))
# print(stability_curve(more, layer, over="rollouts").cosine)
# ```
#
# At the header, hardly: the axes have a cosine of .99, and halves of the rollouts agree as well as before. Different
# questions under one prompt, or different prompts, both average out what is not the role.
#
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# mean = extract_persona_vectors(model, span="header_mean", **design)
# print(spearmanr(mean.space(layer).scores(1), response.space(layer).scores(1)).statistic)
# print(stability_curve(mean, layer, over="rollouts").cosine)
# ```
#
# It makes a steadier axis: .73, .84 and .91 in place of .53, .69 and .80. It agrees less with the response: .78 in place of
# .91. A number that can be repeated is not yet the number you wanted.
#
# </details>
#
# ## On your own model
#
# `load_model("Qwen/Qwen3-0.6B")` and the cells above, without the comparison with the shipped vectors, which are of this model
# alone. Start with `span="header"` and all roles. For `span="response"` give `out="runs/mine"` (an interrupted run goes on),
# longer answers with `Sampling(max_new_tokens=256)`, and `spread=True`, which lets the roles ask all questions between them
# and takes out what the questions add.
#
# Next: [3 · Persona space](03_persona_space.ipynb).
