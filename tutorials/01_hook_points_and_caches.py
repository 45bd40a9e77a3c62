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
# # 1 · Hook points and caches
#
# [![Open in Colab](colab.svg)](https://colab.research.google.com/#upload=true "Opens the upload dialog of Colab: give it 01_hook_points_and_caches.ipynb")
#
# **You will learn**
#
# - what a *residual stream* is and at which *hook points* this package reads it;
# - how a conversation becomes tokens, and which *span* of tokens belongs to which turn;
# - how to make a first activation cache, and why the first token has to be treated with suspicion;
# - why this package likes to read one particular token: the last one that **opens** the assistant's turn.
#
# Seven minutes of reading, half a minute of computing on two CPU cores. The model is SmolLM2 135M Instruct, which comes
# as a package and is converted once.

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

from assistant_axis import ResidPost, ResidPre, load_model
from assistant_axis.plots import circuitsvis_view

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

model = load_model("smollm2-135m-instruct")
print(model)

# %% [markdown]
# ## The residual stream
#
# A decoder is a column of *blocks*. Between them runs one vector per token, the **residual stream**: each block reads it
# and adds something to it. Whatever the model knows about the text so far has to pass through these vectors, so this is
# where we look.
#
# A **hook point** is a named place on that stream. Two matter most:
#
# | hook point | TransformerLens name | what it holds |
# |---|---|---|
# | `ResidPre(i)` | `blocks.i.hook_resid_pre` | the stream as it enters block `i` |
# | `ResidPost(i)` | `blocks.i.hook_resid_post` | the stream as it leaves block `i`; the paper measures here |
#
# Layers are zero-based block indices. A depth between 0 and 1 is accepted wherever a layer is.

# %%
print(ResidPost(18))
print(model.n_layers, "layers of width", model.d_model)
print("layer 0.7 of the depth is block", model.layer(0.7), "and the last one is block", model.layer(-1))

# %% [markdown]
# ## A conversation as the model reads it
#
# Chat models are trained on text with markers around every turn. The *chat template* of the model writes them.

# %%
messages = [
    {"role": "system", "content": "You are a pirate."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "Arr, I sail the seven seas."},
]
print(model.chat.render(messages))

# %% [markdown]
# Each turn has a **header** (`<|im_start|>`, the role, a line break) and a **content**. To average "the answer" we must
# know exactly which tokens are its content. Searching for the text would fail as soon as an answer repeats something said
# earlier, so the package finds spans through the template itself, and checks them by decoding.


# %%
def pieces(ids):
    return [model.tokenizer.decode([i]) for i in ids]


chat = model.chat.encode(messages)
for turn in chat.turns:
    print(f"{turn.role:>9}  header {pieces(chat.ids[slice(*turn.header)])}")
    print(f"{'':>9}  content {pieces(chat.ids[slice(*turn.content)])}")

# %% [markdown]
# In colour it is easier to see. (This view is plain HTML: no script, nothing loaded from elsewhere.)

# %%
model.show_spans(messages)

# %% [markdown]
# **A surprise worth knowing.** Leave the system prompt out and look again:

# %%
print(model.chat.render([{"role": "user", "content": "Who are you?"}]))

# %% [markdown]
# The template wrote a system prompt of its own. "No system prompt" means something different for each model, and what it
# means is part of the conditions of every measurement. That is why an artefact of this package keeps a hash of the
# chat template.
#
# ## A first cache
#
# `run_with_cache` runs the model once and keeps the hook points you ask for (all `ResidPost` if you ask for none).

# %%
out, cache = model.run_with_cache(messages)
print("one hook point:", tuple(cache[ResidPost(18)].shape), " [batch, pos, d_model]")
print("all of them:   ", tuple(cache.stack().shape), " [layer, batch, pos, d_model]")

# %% [markdown]
# The output of block 17 and the input of block 18 are the same vector; that is what "stream" means.

# %%
_, both = model.run_with_cache(messages, [ResidPost(17), ResidPre(18)])
torch.equal(both[ResidPost(17)], both[ResidPre(18)])

# %% [markdown]
# How large are these vectors? Let us draw the norm of every token at every layer.

# %%
norms = cache.stack()[:, 0].norm(dim=-1)  # [layer, pos]

fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=[1.5, 1], layout="constrained")
image = axes[0].imshow(norms.log10(), aspect="auto", origin="lower", cmap="viridis")
axes[0].set(xlabel="token", ylabel="layer", title="log₁₀ of the residual norm, ResidPost")
axes[0].set_xticks(range(len(chat.ids)), [p.replace("\n", "⏎") for p in pieces(chat.ids)], rotation=90, fontsize=7)
fig.colorbar(image, ax=axes[0])
axes[1].plot(norms[:, 0], label="first token", color="tab:red")
axes[1].plot(norms[:, 1:].mean(1), label="mean of the others", color="tab:blue")
axes[1].set(xlabel="layer", ylabel="norm", yscale="log", title="One token is not like the others")
axes[1].legend(frameon=False)
plt.show()

# %%
print(f"layer 18: first token {norms[18, 0]:.0f}, mean of the others {norms[18, 1:].mean():.0f}")

# %% [markdown]
# The first token is more than a hundred times longer than the rest in the middle of the network. It serves as an
# *attention sink*, a place to look at when there is nothing to look at, and it says nothing about personas. Averages over
# a whole prompt would be averages of this one vector. The spans of this package never include it: they are contents and
# headers of single turns.
#
# The second thing to see: the other tokens grow steadily too, about tenfold from the first layer to the last. A vector of
# length 40 is a big push at layer 5 and a small one at layer 27. Hence a rule of this package: **doses are fractions of the
# residual norm** at their layer.
#
# ## From tokens to one vector a conversation
#
# `activations` averages over a span and gives one float32 vector a layer. It never keeps the whole cache.

# %%
answer = model.activations(messages, span="response")
print(tuple(answer.shape), " [layer, d_model]")

# %%
_, cache = model.run_with_cache(messages)
content = slice(*cache.chats[0].turns_of("assistant")[-1].content)
by_hand = cache[ResidPost(18)][0, content].mean(0)
print("largest difference from the mean taken by hand:", float((answer[18] - by_hand).abs().max()))

# %% [markdown]
# ## The header: just before it speaks
#
# The paper averages the content of generated answers. That needs generation, which is slow. There is a cheaper place to
# look: the **last token of the header that opens the assistant's turn**. At this token the model has read the system
# prompt and the question and is about to say its first word. Which character will speak is decided already, and nothing
# has been generated.

# %%
question = [{"role": "user", "content": "Who are you?"}]
personas = {
    "default": question,
    "assistant": [{"role": "system", "content": "You are an AI assistant."}, *question],
    "teacher": [{"role": "system", "content": "You are a patient school teacher."}, *question],
    "pirate": [{"role": "system", "content": "You are a pirate who speaks of the sea."}, *question],
    "ghost": [{"role": "system", "content": "You are a ghost haunting an old house."}, *question],
    "oracle": [{"role": "system", "content": "You are an oracle who speaks in riddles."}, *question],
}
headers = model.activations(list(personas.values()), span="header")
print(tuple(headers.shape), " [conversation, layer, d_model]")

# %% [markdown]
# Raw cosines between such vectors are all close to 1, because they share most of what they are: the same position, the
# same marker, the same language. Subtract the mean first.


# %%
def cosines(x):
    x = x / x.norm(dim=-1, keepdim=True)
    return x @ x.T


layer = model.profile.layer
at = headers[:, layer]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for ax, x, title in ((axes[0], at, "raw"), (axes[1], at - at.mean(0), "centred")):
    shown = ax.imshow(cosines(x), vmin=-1, vmax=1, cmap="RdBu")
    ax.set_xticks(range(len(personas)), personas, rotation=60, ha="right")
    ax.set_yticks(range(len(personas)), personas)
    ax.set_title(f"Cosines at layer {layer}, {title}")
fig.colorbar(shown, ax=axes)
plt.show()

# %% [markdown]
# On the right there is structure: the plain conditions resemble one another, and the characters stand on the other side.
# Six personas and one question are an illustration, not evidence. Tutorial 3 does it with sixty.
#
# ## A first direction
#
# Default minus pirate, at the header: one subtraction gives a direction. Do the *words* of an answer lie along it too? Here is an
# answer that begins as an assistant and ends as a pirate. Each token is coloured by how far it lies along the direction, measured
# from the mean of this answer: blue toward the default, red toward the pirate. (This view is CircuitsVis'; its script is
# stored inside this notebook and runs in a closed frame, so that nothing is loaded from elsewhere.)

# %%
direction = headers[0, layer] - headers[3, layer]
mixed = (
    "I am an AI assistant. How can I help you today? Arr, hand me the rum, ye scurvy dogs, and hoist the black flag!"
)
_, cache = model.run_with_cache([*question, {"role": "assistant", "content": mixed}])
content = slice(*cache.chats[0].turns_of("assistant")[-1].content)
along = cache[ResidPost(layer)][0, content] @ (direction / direction.norm())
circuitsvis_view(pieces(cache.chats[0].ids[content]), (along - along.mean()).tolist(), height=70)

# %% [markdown]
# Bluest is "AI assistant", reddest "ye", and the colour turns where the speaker does. The direction was found at one token, before
# any word was said, and yet the words lie along it. That is one sentence made up for the purpose; tutorial 4 does it with a
# direction that many answers went into.
#
# ## Do we read what we say we read?
#
# `verify` compares every `ResidPost` with an independent forward hook on the Hugging Face blocks.

# %%
print(model.verify())

# %% [markdown]
# ## Exercises
#
# 1. Ask the same question under `"You are an AI assistant."` and under `"You are a pirate."` and print the norm of the
#    *difference* of the header vectors at each layer, divided by the mean norm. Where does the difference become large?
# 2. Take the header span of a conversation that **ends with an answer**. What does the package read?
# 3. `reading="pre"` and `reading="post"` differ only under interventions. Attach a hook that doubles the stream at
#    layer 10 and check both.
#
# <details><summary>Solution 1</summary>
#
# ```python
# a, b = headers[1], headers[3]
# ratio = (a - b).norm(dim=-1) / ((a.norm(dim=-1) + b.norm(dim=-1)) / 2)
# plt.plot(ratio)
# ```
#
# </details>
#
# <details><summary>Solution 2</summary>
#
# The last answer is left out: the header in front of it is read, as if it were still to be written. So
# `model.activations(messages, span="header")` equals `model.activations(messages[:-1], span="header")`.
#
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# with model.hooks([(ResidPost(10), lambda x: 2 * x)]):
#     _, pre = model.run_with_cache(messages, [ResidPost(10)], reading="pre")
#     _, post = model.run_with_cache(messages, [ResidPost(10)], reading="post")
# torch.allclose(2 * pre[ResidPost(10)], post[ResidPost(10)])   # True
# ```
#
# </details>
#
# ## On your own model
#
# Change one line: `load_model("Qwen/Qwen3-0.6B")`, a local folder, a loaded Hugging Face model with its tokenizer, or a
# TransformerLens `TransformerBridge`. Then run `print(model.verify())` and `model.show_spans(messages)` once: if both look
# right, everything else in this package will read the right place. Attention and MLP outputs (`AttnOut`, `MlpOut`) exist
# with `load_model(..., hooks="all")`, at some cost in speed.
#
# Next: [3 · Persona space](03_persona_space.ipynb).
