"""What one process does with one shard: generate, judge, read activations. The model is loaded once, when first needed."""

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from assistant_axis._version import __version__
from assistant_axis.activations.capture import stream_means
from assistant_axis.activations.spans import Reading, locate, read_answer
from assistant_axis.activations.store import Conditions, load_artefact, save_artefact
from assistant_axis.errors import IntegrityError, RunError, SettingError
from assistant_axis.geometry.questions import SPREAD
from assistant_axis.judges import APIJudge, Judge, Judgement, LikelihoodJudge, ModelJudge
from assistant_axis.judges.base import Key, key_of, score_table
from assistant_axis.judges.likelihood import Thresholds, calibrate
from assistant_axis.models.generation import Answer
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.models.loading import load_model
from assistant_axis.models.profiles import profile_for
from assistant_axis.personas.library import DEFAULT, Ask
from assistant_axis.personas.rollouts import Rollout, rollout_of
from assistant_axis.pipeline.extract import label
from assistant_axis.runs import config as settings
from assistant_axis.runs.config import RunConfig
from assistant_axis.runs.folder import Folder
from assistant_axis.runs.planning import RunPlan, bucket, plan_run

KIND = "activations of a shard"
UNSCORED = -1
KEPT_BY_ITSELF = 2**30  # bytes of single-rollout vectors that `keep: auto` keeps without being told


@dataclass(frozen=True)
class Keys:
    """What the files of each stage must have been made under."""

    generate: str
    judge: str
    activations: str
    vectors: str

    @classmethod
    def of(cls, config: RunConfig, plan: RunPlan) -> "Keys":
        parts = config.parts()
        generate = settings.key_of(parts["generate"], plan.personas_hash)
        judge = settings.key_of(parts["judge"], generate)
        activations = settings.key_of(parts["activations"], generate)
        return cls(generate, judge, activations, settings.key_of(parts["vectors"], judge, activations))


class Worker:
    """One replica of the model and the three stages that work shard by shard; every shard is one atomic file.

    Args:
        config: of the run.
        folder: where it lives.
        model: one that is loaded already; else the configuration's is loaded when it is needed.
        plan: if it is known already.
    """

    def __init__(
        self, config: RunConfig, folder: Folder, model: HookedChatModel | None = None, plan: RunPlan | None = None
    ) -> None:
        self.config, self.folder = config, folder
        self.plan = plan or plan_run(config)
        self.keys = Keys.of(config, self.plan)
        self._model, self._checked = model, False
        self._judge: Judge | None = None

    @property
    def model(self) -> HookedChatModel:
        """The model, checked against the one that the run began with.

        Raises:
            RunError: it has other weights or another template.
        """
        if self._model is None:
            c = self.config
            self._model = load_model(c.model, revision=c.revision, dtype=c.dtype, device_map=c.device_map)
        if not self._checked:
            self._check(self._model)
        return self._model

    def _check(self, model: HookedChatModel) -> None:
        now = self.conditions_of(model).as_dict()
        said = {"conditions": now, "layers": list(model.layers(self.config.layers)), "versions": versions()}
        try:
            there = self.folder.get_json("conditions.json")
        except (FileNotFoundError, IntegrityError):
            self.folder.put_json("conditions.json", said)
        else:
            names = ("model", "fingerprint", "n_layers", "d_model", "template_hash", "system_rule", "dtype")
            differ = settings.differences({k: there["conditions"][k] for k in names}, {k: now[k] for k in names})
            if differ:
                raise RunError(
                    f"{self.folder} was begun with another model ({'; '.join(differ)}). Use that model, or another folder."
                )
        self._checked = True

    def conditions_of(self, model: HookedChatModel) -> Conditions:
        """The conditions that the vectors of this run carry."""
        c, s = self.config, self.config.sampling
        design = f"{c.prompts_per_role} prompts × {c.questions_per_prompt} questions a role"
        design += SPREAD if c.spread else ""
        design += f", {c.default_questions} a default condition" if c.default_questions else ""
        if c.generates:
            design += (
                f" × {c.samples_per_question} samples, ≤ {s.max_new_tokens} tokens, temperature {s.temperature:g}, "
                f"top-p {s.top_p:g}, shards of {c.shard}"
            )
        return Conditions.of(
            model,
            span=c.span,
            personas=self.plan.personas,
            personas_hash=self.plan.personas_hash,
            design=design,
            seed=c.seed,
        )

    # -- generate ------------------------------------------------------------------------------------------------------

    def generate(self, shard: int) -> None:
        """Answer the asks of one shard; the seed is the shard's own, so that it does not matter which came before."""
        import pyarrow as pa

        asks = self.plan.of(shard)
        seed = self.config.seed + 7919 * shard
        rows = []
        for ask, answer in zip(asks, self._answers(asks, seed), strict=True):
            row = asdict(Rollout.of(ask, answer))
            row |= {"prompt_tokens": len(answer.prompt_ids), "answer_tokens": len(answer.ids), "seed": seed}
            row |= {"model": self.model.name, "fingerprint": self.model.fingerprint, "package": __version__}
            rows.append(row)
        ids = pa.list_(pa.int32())
        table = pa.Table.from_pylist(rows)
        for name in ("prompt_ids", "answer_ids"):  # a column of empty lists has no type of its own
            table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(ids))
        self.folder.put_table(rollout_file(shard), table, self.keys.generate)

    def _answers(self, asks: Sequence[Ask], seed: int) -> list[Answer]:
        s = self.config.sampling
        if s.backend == "vllm":
            from assistant_axis.runs.vllm import answers

            return answers(self.model, asks, s, seed)
        longest = max(len(self.model.chat.encode_prompt(a.messages).ids) for a in asks) + s.max_new_tokens
        batch = max(1, min(len(asks), s.token_budget // longest))
        while True:
            try:
                return self.model.generate(
                    [a.messages for a in asks],
                    max_new_tokens=s.max_new_tokens,
                    temperature=s.temperature,
                    top_p=s.top_p,
                    batch_size=batch,
                    seed=seed,
                    compile=s.compile,
                )
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
            batch = -(-batch // 2)
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()

    def rollouts(self, shard: int) -> list[Rollout]:
        """The rollouts of one shard, checked.

        Raises:
            IntegrityError: damaged, made under other settings, or not what the plan says.
        """
        rows = self.folder.get_table(rollout_file(shard), self.keys.generate)
        found = [rollout_of(r) for r in rows]
        asks = self.plan.of(shard)
        if [key_of(r) for r in found] != [(a.role, a.prompt, a.question.id, a.sample) for a in asks]:
            raise IntegrityError(f"{self.folder.where(rollout_file(shard))} does not hold the rollouts of its plan.")
        return found

    # -- judge ---------------------------------------------------------------------------------------------------------

    @property
    def slug(self) -> str:
        """Name of the folder of this judge's scores."""
        return f"scores/{self.config.judge.kind}-{self.keys.judge[:8]}"

    def score_file(self, shard: int) -> str:
        return f"{self.slug}/{shard:05d}.parquet"

    def judge(self, shard: int) -> None:
        """Score the answers of one shard; the default's are not scored, for they are as they should be."""
        rollouts = [r for r in self.rollouts(shard) if r.role != DEFAULT]
        said = self.judging.score(rollouts) if rollouts else []
        table = score_table({key_of(r): s for r, s in zip(rollouts, said, strict=True)})
        self.folder.put_table(self.score_file(shard), table, self.keys.judge)

    def scores(self, shard: int) -> dict[Key, Judgement]:
        """The scores of one shard, checked.

        Raises:
            IntegrityError: damaged or made by another judge.
        """
        fields = tuple(Judgement.__dataclass_fields__)
        rows = self.folder.get_table(self.score_file(shard), self.keys.judge)
        return {
            (r["role"], r["prompt"], r["question_id"], r["sample"]): Judgement(**{k: r[k] for k in fields})
            for r in rows
        }

    @property
    def judging(self) -> Judge:
        """The judge of the configuration; the likelihood judge takes its thresholds from the default's answers, once."""
        if self._judge is None:
            j = self.config.judge
            if j.kind == "api":
                self._judge = APIJudge(
                    j.model or "",
                    base_url=j.base_url,
                    concurrency=j.concurrency,
                    timeout=j.timeout,
                    time_limit=j.time_limit,
                    attempts=j.attempts,
                    max_tokens=j.max_tokens,
                    prices=j.prices,
                )
            elif j.kind == "model":
                same = j.model == self.config.model
                self._judge = ModelJudge(self.model if same else load_model(j.model), max_new_tokens=j.max_tokens)
            elif j.kind == "likelihood":
                self._judge = LikelihoodJudge(self.model, self._thresholds())
            else:
                raise SettingError("judge.kind is none: there is nothing to score.")
        return self._judge

    def _thresholds(self) -> Thresholds:
        name = f"{self.slug}/thresholds.json"
        try:
            return Thresholds(**self.folder.get_json(name))
        except (FileNotFoundError, IntegrityError):
            pass
        first = [k for k in range(self.plan.shards) if any(a.role == DEFAULT for a in self.plan.of(k))]
        default = [r for k in first for r in self.rollouts(k) if r.role == DEFAULT]
        systems = {a.system for a in self.plan.asks if a.role != DEFAULT}
        found = calibrate(self.model, default, systems, seed=self.config.seed)
        self.folder.put_json(name, asdict(found))
        return found

    # -- activations ---------------------------------------------------------------------------------------------------

    def activations(self, shard: int) -> None:
        """Sums, counts and sums of squares of one shard, by persona and score; single vectors of the layers that are kept."""
        rows = self.plan.rows(shard)
        asks = self.plan.of(shard)
        readings, at = self._readings(shard, asks)
        scores = self.score_list(shard) if self.config.judged else [UNSCORED] * len(asks)
        owners = [(bucket(asks[k]), scores[k]) for k in at]
        groups = list(dict.fromkeys(owners))
        owner = torch.tensor([groups.index(o) for o in owners], dtype=torch.long)
        layers, width = self.layers, self.model.d_model
        sums, squares = torch.zeros(len(groups), len(layers), width), torch.zeros(len(groups), len(layers), width)
        norms = torch.zeros(len(groups), len(layers))
        each: list[Tensor] = [torch.empty(0)] * len(at)
        lengths = torch.zeros(len(at), len(layers))
        kept = self.kept_layers
        every = self._every
        for part in stream_means(self.model, readings, layers) if readings else ():
            index = owner[list(part.rows)]
            sums.index_add_(0, index, part.means)
            squares.index_add_(0, index, part.means.square())
            norms.index_add_(0, index, part.norms)
            for b, k in enumerate(part.rows):
                lengths[k] = part.norms[b]
                whole = len(kept) == len(layers) or (every and (rows.start + at[k]) % every == 0)
                each[k] = half(part.means[b] if whole else part.means[b][[layers.index(x) for x in kept]])
        sampled = [k for k in range(len(at)) if every and (rows.start + at[k]) % every == 0]
        tensors = {
            "sums": sums,
            "squares": squares,
            "counts": torch.bincount(owner, minlength=len(groups)),
            "norms": norms,
        }
        if kept and at:
            pick = [layers.index(x) for x in kept]
            tensors["kept"] = torch.stack([x if len(x) == len(kept) else x[pick] for x in each])
            tensors["kept_norms"] = lengths
        elif sampled:
            tensors["samples"] = torch.stack([each[k] for k in sampled])
        if kept and sampled and len(kept) < len(layers):
            tensors["samples"] = torch.stack([each[k] for k in sampled])
        header = {
            "key": self.keys.activations,
            "groups": [list(g) for g in groups],
            "rows": [rows.start + k for k in at],
            "sampled": [rows.start + at[k] for k in sampled],
            "kept": list(kept),
            "scores": digest(scores),
        }
        self.folder.put(activation_file(shard), lambda path: save_artefact(path, KIND, tensors, header))

    def read_activations(self, shard: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The sums of one shard, checked.

        Raises:
            IntegrityError: damaged or made under other settings.
        """
        name = activation_file(shard)
        with self.folder.open_local(name) as path:
            tensors, header = load_artefact(path, KIND)
        if header["key"] != self.keys.activations:
            raise IntegrityError(f"{self.folder.where(name)} was made under other settings.")
        return tensors, header

    def score_list(self, shard: int) -> list[int]:
        """The score of every ask of a shard, `UNSCORED` where there is none."""
        said = self.scores(shard)
        found = (said.get((a.role, a.prompt, a.question.id, a.sample)) for a in self.plan.of(shard))
        return [UNSCORED if s is None or s.score is None else s.score for s in found]

    def _readings(self, shard: int, asks: Sequence[Ask]) -> tuple[list[Reading], list[int]]:
        """What to read, and which ask of the shard each is; empty answers have nothing to read."""
        if not self.config.generates:
            return [replace(locate(self.model, a.messages, self.config.span), label=label(a)) for a in asks], list(
                range(len(asks))
            )
        rollouts = self.rollouts(shard)
        at = [k for k, r in enumerate(rollouts) if r.answer_ids]
        found = [replace(read_answer(rollouts[k].prompt_ids, rollouts[k].answer_ids), label=label(asks[k])) for k in at]
        return found, at

    @property
    def layers(self) -> tuple[int, ...]:
        return self.model.layers(self.config.layers)

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Layers whose single-rollout vectors are kept."""
        return kept_layers(self.config, len(self.plan.asks), self.layers, self.model.n_layers, self.model.d_model)

    @property
    def _every(self) -> int:
        """Every which rollout is kept at all layers."""
        if self.config.spread:
            return 1
        return -(-len(self.plan.asks) // self.config.keep_samples) if self.config.keep_samples else 0


def kept_layers(config: RunConfig, count: int, layers: Sequence[int], n_layers: int, d_model: int) -> tuple[int, ...]:
    """Layers whose single-rollout vectors are kept, as `RunConfig.keep` says.

    Raises:
        SettingError: a layer that is not read.
    """
    if config.keep == "none":
        return ()
    if config.keep == "all" or (config.keep == "auto" and count * len(layers) * d_model * 2 <= KEPT_BY_ITSELF):
        return tuple(layers)
    if config.keep == "auto":
        wanted = profile_for(config.model, n_layers).layer
        return (min(layers, key=lambda x: abs(x - wanted)),)
    missing = sorted(set(config.keep) - set(layers))
    if missing:
        raise SettingError(f"keep: the layers {missing} are not read; read are {layers[0]} to {layers[-1]}.")
    return tuple(config.keep)


def half(x: Tensor) -> Tensor:
    """Half precision; refuses to lose numbers that do not fit (some models reach beyond 65,504)."""
    small = x.half()
    if not torch.isfinite(small).all():
        raise SettingError(
            "Activations of this model exceed half precision, in which single rollouts are kept. Set keep: none and "
            "keep_samples: 0, or keep only layers that fit."
        )
    return small


def rollout_file(shard: int) -> str:
    """Where a run keeps the rollouts of a shard."""
    return f"rollouts/{shard:05d}.parquet"


def activation_file(shard: int) -> str:
    """Where a run keeps the activations of a shard."""
    return f"activations/{shard:05d}.safetensors"


def digest(scores: Sequence[int]) -> str:
    """What tells lists of scores apart."""
    return hashlib.sha256(json.dumps(list(scores)).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of what the numbers may depend on."""
    from importlib.metadata import version

    names = ("torch", "transformers", "transformer-lens", "tokenizers")
    return {"python": platform.python_version(), "assistant-axis": __version__, **{n: version(n) for n in names}}


def regroup(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], owners: Mapping[int, tuple[str, int]]
) -> dict[tuple[str, int], dict[str, Tensor]]:
    """Sums of a shard by other scores, from the single vectors that were kept of all layers."""
    rows: dict[tuple[str, int], list[int]] = defaultdict(list)
    for place, row in enumerate(header["rows"]):
        rows[owners[row]].append(place)
    found = {}
    for group, at in rows.items():
        x = tensors["kept"][at].float()
        found[group] = {
            "sums": x.sum(0),
            "squares": x.square().sum(0),
            "counts": torch.tensor(len(at)),
            "norms": tensors["kept_norms"][at].sum(0),
        }
    return found
