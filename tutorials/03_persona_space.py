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
# # 3 · Persona space
#
# [![Open in Colab](colab.svg)](https://colab.research.google.com/#upload=true "Opens the upload dialog of Colab: give it 03_persona_space.ipynb")
#
# **You will learn**
#
# - how sixty characters become sixty vectors;
# - what their principal components are, and how many of them matter;
# - what the first one means, and where the model's own default sits on it;
# - which checks belong to such a picture before you believe it: another half of the roles, another model, shuffled labels.
#
# Eight minutes of reading, about a minute of computing on two CPU cores. Tutorial 1 explains hook points and the
# header span, which are used here.

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
import numpy as np
import torch

from assistant_axis import extract_persona_vectors, load_model, load_personas
from assistant_axis.geometry.published import compare_published
from assistant_axis.plots import role_map

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

model = load_model("smollm2-135m-instruct")
library = load_personas()
print(len(library.roles), "roles,", len(library.questions), "questions")

# %% [markdown]
# ## From a role to a vector
#
# A role is a name and a few system prompts that ask the model to be it. Every role is asked the same questions under the
# same prompt numbers, so that whatever differs between roles is theirs.

# %%
for prompt in library.role("ghost").prompts[:2]:
    print("·", prompt)
print()
for condition in library.role("default").prompts:
    print("·", condition or "(no system prompt)")

# %% [markdown]
# The second list holds the five *default* conditions: nobody else is named in them, so they show the model as itself.
#
# We take every fourth or fifth role of the alphabet, sixty in all, with two prompts and two questions each, and read the
# token at which the assistant is about to speak. That is 4 readings a role, very few; the full run of the demo uses all
# 275 roles and twice as many questions.

# %%
names = [library.role_names[round(k)] for k in np.linspace(0, len(library.roles) - 1, 60)]
vectors = extract_persona_vectors(
    model, span="header", roles=names, prompts_per_role=2, questions_per_prompt=2, progress=False
)
print(vectors)

# %% [markdown]
# `vectors.vectors` is `[role, layer, d_model]`: for each role the mean over its readings, in float32. `vectors.default` is
# the same for the default. The conditions of the measurement travel along, in the object and in any file it is saved to:

# %%
for name, value in vectors.conditions.as_dict().items():
    print(f"{name:>14}: {value}")

# %% [markdown]
# ## Principal components
#
# Sixty points in 576 dimensions. PCA asks: along which directions do the *roles* differ most? Rows are role vectors,
# centred, not scaled. The default takes no part in the fit; it is only placed afterwards.

# %%
space = vectors.space()  # the model's monitoring layer
print(space)

# %%
share = space.variance.cumsum(0)
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.bar(range(1, 16), space.variance[:15], color="0.75", label="each")
ax.plot(range(1, 16), share[:15], marker="o", ms=3, color="tab:blue", label="together")
ax.axhline(0.7, lw=0.8, ls=":", color="0.3")
ax.set(xlabel="component", ylabel="share of variance", ylim=(0, 1))
ax.set_title(f"{model.name}, layer {space.layer}, {len(space.roles)} roles, centred, not scaled", fontsize=9)
ax.legend(frameon=False)
plt.show()
print("components for 70 / 80 / 90 %:", [space.dimensions(s) for s in (0.7, 0.8, 0.9)])

# %% [markdown]
# Few components carry most of the differences. Two cautions. The number depends on how many roles there are and how noisy
# each vector is (four readings), so compare it only between runs of the same size. And some models have a few huge
# coordinates that make any centred PCA look low-dimensional; `vectors.space(zscore=True)` is the check for that, and the
# title of the figure says which one was used.
#
# ## What is PC1?
#
# Order the roles along it. A role's score is the cosine between its centred vector and the component.

# %%
ranking = space.ranking(1)
print("most Assistant-like:  ", ", ".join(f"{n} {s:+.2f}" for n, s in ranking[:10]))
print("least Assistant-like: ", ", ".join(f"{n} {s:+.2f}" for n, s in ranking[-10:]))

# %% [markdown]
# At one end sit people with a job that resembles an assistant's; at the other end, characters of theatre and
# myth. Nobody told the PCA about either. The **sign** of a principal component is arbitrary; this package turns every
# component so that the default lies on its positive side.

# %%
role_map(space, names=45)

# %% [markdown]
# ## Where does the default sit?
#
# `default_position` is 0 where the default is as far out as the most extreme role on its side, 1 at the opposite end, and
# below 0 where it lies beyond all roles.

# %%
positions = [space.default_position(k) for k in range(1, 11)]
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
ax.axhspan(0, 1, color="0.95")
ax.plot(range(1, 11), positions, "o", color="tab:red")
ax.set(xlabel="component", ylabel="position", title="The default within the range of the roles (0 = its own extreme)")
ax.invert_yaxis()
plt.show()

# %% [markdown]
# In the paper's large models the default is extreme on PC1 (0.03 from the end of the range) and unremarkable on the
# others (0.27 to 0.50). In this picture it is on the Assistant's side of PC1 but well inside the range, and other components
# look alike: with a small model, sixty roles and one token a reading, that part of the finding is not to be had.
#
# ## PC1 and the Assistant Axis
#
# PC1 is found without the default. The **Assistant Axis** is defined with it: mean of the default minus mean of the roles.
# If PC1 really is about being the Assistant, the two must point the same way.

# %%
axis = vectors.axis()
by_layer = [vectors.space(layer).axis_cosine() for layer in vectors.layers]
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
ax.plot(vectors.layers, by_layer, marker="o", ms=3)
ax.axvline(space.layer, color="0.7", lw=0.8)
ax.set(xlabel="layer", ylabel="|cos(axis, PC1)|", ylim=(0, 1), title=f"{model.name}, {len(space.roles)} roles")
plt.show()
chance = 1 / np.sqrt(model.d_model)
print(
    f"layer {space.layer}: {space.axis_cosine():.2f}; two random directions in {model.d_model} dimensions: about {chance:.2f}"
)

# %% [markdown]
# In the lower half of the network PC1 is about something else; later the two directions meet. This is why a layer has to be
# chosen, and stated beside every figure.
#
# ## Three checks before believing it
#
# **1 · Another model.** The package ships the order in which a model more than two hundred times as large, Qwen 3 32B,
# puts the same roles along its own axis. `compare_published` correlates; it gives an interval over roles, a permutation
# p-value, and the same figure for two halves of the roles with PC1 fitted again in each.

# %%
comparison = compare_published(space, "qwen3-32b")
print(comparison)

# %%
fig, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
ax.scatter(comparison.scores, comparison.figures, s=12)
for name, gap in comparison.outliers(6):
    k = comparison.roles.index(name)
    place = (comparison.scores[k], comparison.figures[k])
    ax.annotate(f"{name} ({gap:+.2f})", place, fontsize=7, xytext=(5, -7), textcoords="offset points")
ax.margins(x=0.12)
ax.set(xlabel=f"{model.name}: cosine with PC1", ylabel="Qwen 3 32B: raw projection on its axis")
ax.set_title(
    f"Spearman {comparison.pc1.spearman:.2f} over {len(comparison.roles)} roles; named: largest differences", fontsize=9
)
plt.show()

# %% [markdown]
# **2 · A stable component.** Fit PC1 on one half of the roles and on the other half; compare the directions.

# %%
rng = np.random.default_rng(0)
shuffled = rng.permutation(names)
halves = [vectors.select(sorted(shuffled[k::2])).space(space.layer) for k in (0, 1)]
print(
    f"|cos| of PC1 between two halves of {len(names) // 2} roles: {float((halves[0].components[0] @ halves[1].components[0]).abs()):.2f}"
)

# %% [markdown]
# **3 · Labels that mean nothing.** If we deal the single readings out to roles at random, does a "PC1" still explain much
# variance? Every PCA finds *some* first component; the question is how much larger the real one is.

# %%
samples = vectors.samples
k = vectors.layer_index(space.layer)
mine = samples.role >= 0
x, label = samples.activations[mine][:, k].float(), samples.role[mine]


def spread(labels):
    """Variance of the role means along their own first component."""
    means = torch.stack([x[labels == r].mean(0) for r in range(len(names))])
    return float(torch.linalg.svdvals(means - means.mean(0))[0] ** 2 / len(names))


null = [spread(label[torch.from_numpy(rng.permutation(len(label)))]) for _ in range(20)]
print(
    f"variance along PC1: {spread(label):.0f}; with shuffled labels: {np.mean(null):.0f} (largest of 20: {max(null):.0f})"
)

# %% [markdown]
# ## Exercises
#
# 1. Repeat the ranking at layer 5. What does PC1 order there, and what does the published comparison say?
# 2. Look at PC2: what do the two ends have in common? Do the names convince you before you have made up a story?
# 3. Add a role of your own, for instance a lighthouse keeper, and find its place.
#
# <details><summary>Solution 1</summary>
#
# ```python
# early = vectors.space(5)
# print(early.ranking(1)[:8], early.ranking(1)[-8:])
# print(compare_published(early, "qwen3-32b").pc1)
# ```
#
# Do not pick the best layer by this figure and then report it: choose on one half of the roles, report on the other.
#
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# print(space.ranking(2)[:8], space.ranking(2)[-8:])
# ```
#
# In the paper PC1 agrees between models (r above 0.9), PC2 less, PC3 hardly. A story about PC3 of one model is a story.
#
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# from assistant_axis import PersonaLibrary, Role
#
# keeper = Role("lighthouse_keeper", ("You are a lighthouse keeper, alone on a rock for thirty winters.",
#                                     "Speak only as the lighthouse keeper you have been for thirty winters."))
# mine = PersonaLibrary((*library.select(names).roles, keeper), library.default, library.questions)
# more = extract_persona_vectors(model, personas=mine, prompts_per_role=2, questions_per_prompt=2)
# print([n for n, _ in more.space().ranking(1)].index("lighthouse_keeper"))
# ```
#
# In a file of your own the same role is one line; see "Add a role" in the documentation.
#
# </details>
#
# ## On your own model
#
# `load_model("Qwen/Qwen3-0.6B")` and the cells above. For a result rather than an exercise, drop `roles=names` (all 275),
# use `prompts_per_role=2, questions_per_prompt=4` or more, and pass `out="runs/mine"`: finished parts are kept, so an
# interrupted run goes on. `span="response"` generates answers and averages their content, as the paper does; it takes
# longer. Never compare a header run with a response run: the vectors of the two spans are different objects.
