"""What a run is told: a validated configuration, presets, and which part of it each stage depends on. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from assistant_axis.errors import SettingError, UnknownNameError

STAGES = ("plan", "generate", "judge", "activations", "vectors", "axis", "report")


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SamplingSettings(_Settings):
    """How answers are generated.

    Attributes:
        max_new_tokens: longest answer in tokens (the paper: 512).
        temperature: 0 is greedy (the paper: 0.7).
        top_p: nucleus mass (the paper: 0.9).
        token_budget: padded tokens of prompt and answer in one batch; halved when memory runs out.
        backend: `"transformers"`, or `"vllm"` on a GPU where vLLM is installed.
        compile: compile the step of one token (`"transformers"` only), which pays on a GPU. It changes answers through
            rounding at most, so a run may go on with the other setting.
    """

    max_new_tokens: int = Field(48, ge=1)
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    token_budget: int = Field(16_384, ge=1)
    backend: Literal["transformers", "vllm"] = "transformers"
    compile: bool = False

    @model_validator(mode="after")
    def _compiled_here(self) -> SamplingSettings:
        if self.compile and self.backend == "vllm":
            raise ValueError("sampling.compile is for the backend transformers; vllm compiles by itself")
        return self


class JudgeSettings(_Settings):
    """Who scores the answers.

    Attributes:
        kind: `"likelihood"`, `"model"`, `"api"` or `"none"` (every answer counts).
        model: the judging model (`model`, `api`).
        base_url: of the endpoint (`api`); default: the environment's.
        concurrency: requests under way (`api`).
        timeout: seconds a request (`api`).
        time_limit: seconds a shard (`api`).
        attempts: tries a rollout (`api`).
        max_tokens: room for a verdict (`model`, `api`).
        prices: of a million tokens in and out (`api`), for the estimate.
    """

    kind: Literal["likelihood", "model", "api", "none"] = "likelihood"
    model: str | None = None
    base_url: str | None = None
    concurrency: int = Field(8, ge=1)
    timeout: float = Field(60.0, gt=0)
    time_limit: float = Field(3600.0, gt=0)
    attempts: int = Field(6, ge=1)
    max_tokens: int = Field(200, ge=1)
    prices: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _named(self) -> JudgeSettings:
        if self.kind in ("model", "api") and not self.model:
            raise ValueError(f"judge.kind {self.kind!r} needs judge.model")
        return self


class EngineSettings(_Settings):
    """Where the work is done; nothing here changes the result.

    Attributes:
        kind: `"local"` (this process) or `"ray"` (an actor pool; needs the extra).
        address: of a Ray cluster; default: one is started here.
        concurrency: actors, each with a replica of the model.
        num_cpus: of each actor.
        num_gpus: of each actor.
        threads: torch threads of each actor.
    """

    kind: Literal["local", "ray"] = "local"
    address: str | None = None
    concurrency: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)


class RunConfig(_Settings):
    """The configuration of a run; see the presets `instant`, `laptop` and `paper`.

    Attributes:
        model: an embedded name, a hub id or a local folder.
        revision: of a hub repository.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; default: as `load_model`.
        device_map: as in transformers, for models larger than one GPU.
        personas: a folder of personas; default: the bundled ones.
        roles: some roles only.
        span: `"header"` generates nothing; `"response"` reads generated answers.
        prompts_per_role: system prompts a role.
        questions_per_prompt: questions under each.
        samples_per_question: sampled answers to each (`response`).
        default_questions: questions under each default condition; default: as a role's prompt.
        spread: roles ask different questions, whose effects are taken out.
        layers: indices or depths; default all.
        seed: of question order and sampling.
        shard: rollouts made together and written as one file; what a kill can cost at most.
        sampling: how answers are generated.
        keep: layers whose single-rollout vectors are kept in half precision: `"auto"` (all, if below 1 GiB, else the
            monitoring layer), `"all"`, `"none"`, or indices.
        keep_samples: single rollouts of all layers in the persona vectors, for calibration and bootstrap.
        judge: who scores.
        min_score: the least score that counts for a role.
        min_rollouts: roles with fewer are left out of the vectors.
        engine: where the work is done.
    """

    model: str = "smollm2-135m-instruct"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device_map: str | None = None
    personas: str | None = None
    roles: tuple[str, ...] | None = None
    span: Literal["response", "header", "header_mean", "prompt"] = "response"
    prompts_per_role: int = Field(2, ge=1)
    questions_per_prompt: int = Field(4, ge=1)
    samples_per_question: int = Field(1, ge=1)
    default_questions: int | None = Field(None, ge=1)
    spread: bool = False
    layers: tuple[int | float, ...] | None = None
    seed: int = 0
    shard: int = Field(32, ge=1)
    sampling: SamplingSettings = SamplingSettings()  # pyright: ignore[reportCallIssue]
    keep: Literal["auto", "all", "none"] | tuple[int, ...] = "auto"
    keep_samples: int = Field(1024, ge=0)
    judge: JudgeSettings = JudgeSettings()  # pyright: ignore[reportCallIssue]
    min_score: int = Field(3, ge=0, le=3)
    min_rollouts: int = Field(1, ge=1)
    engine: EngineSettings = EngineSettings()  # pyright: ignore[reportCallIssue]

    @property
    def generates(self) -> bool:
        """Whether answers are generated at all."""
        return self.span == "response"

    @property
    def judged(self) -> bool:
        """Whether answers are scored."""
        return self.generates and self.judge.kind != "none"

    def parts(self) -> dict[str, dict[str, Any]]:
        """What the files of each stage depend on; a file made under other values is not used."""
        said = self.model_dump(mode="json")
        design = [
            "model",
            "revision",
            "dtype",
            "personas",
            "roles",
            "span",
            "prompts_per_role",
            "questions_per_prompt",
            "samples_per_question",
            "default_questions",
            "spread",
            "seed",
            "shard",
        ]
        generate = {k: said[k] for k in design}
        if self.generates:
            generate["sampling"] = {k: v for k, v in said["sampling"].items() if k != "compile"}
        activations = {k: said[k] for k in ("layers", "keep", "keep_samples")}
        judge = {k: v for k, v in said["judge"].items() if k in ("kind", "model", "base_url", "max_tokens")}
        vectors = {k: said[k] for k in ("min_score", "min_rollouts")}
        return {"generate": generate, "activations": activations, "judge": judge, "vectors": vectors}


PRESETS: dict[str, dict[str, Any]] = {
    "instant": {
        "span": "header",
        "prompts_per_role": 2,
        "questions_per_prompt": 4,
        "shard": 256,
        "judge": {"kind": "none"},
    },
    "laptop": {
        "span": "response",
        "prompts_per_role": 1,
        "questions_per_prompt": 4,
        "default_questions": 8,
        "sampling": {"max_new_tokens": 32},
        "judge": {"kind": "likelihood"},
        "min_score": 2,
        "min_rollouts": 2,
    },
    "paper": {
        "span": "response",
        "prompts_per_role": 5,
        "questions_per_prompt": 240,
        "shard": 256,
        "sampling": {"max_new_tokens": 512, "temperature": 0.7, "top_p": 0.9, "token_budget": 262_144},
        "judge": {"kind": "likelihood"},
        "min_score": 3,
        "min_rollouts": 50,
    },
}
"""`instant`: the header span, nothing generated. `laptop`: some twenty minutes on two cores. `paper`: the published sizes."""


def load_config(source: str | Path | Mapping[str, Any] | RunConfig, **changes: Any) -> RunConfig:
    """A configuration from a preset's name, a YAML file, or a mapping (which may name a `preset` to start from).

    Raises:
        UnknownNameError: an unknown key or preset, with the closest name.
        SettingError: a value that cannot be used, or a file that is no YAML mapping.
        FileNotFoundError: neither a preset nor a file.
    """
    if isinstance(source, RunConfig):
        said: dict[str, Any] = source.model_dump(mode="json")
    elif isinstance(source, Mapping):
        said = dict(source)
    elif str(source) in PRESETS:
        said = {"preset": str(source)}
    else:
        said = _read(Path(source))
    said = {**said, **changes}
    preset = said.pop("preset", None)
    if preset is not None:
        if preset not in PRESETS:
            raise UnknownNameError("preset", str(preset), PRESETS)
        said = _merged(PRESETS[preset], said)
    _check_keys(said, RunConfig, "")
    try:
        return RunConfig.model_validate(said)
    except ValidationError as e:
        lines = "; ".join(
            f"{'.'.join(str(p) for p in x['loc']) or 'run'}: {x['msg']} (got {x['input']!r:.60})" for x in e.errors()
        )
        raise SettingError(f"The configuration cannot be used. {lines}") from e


def key_of(part: Mapping[str, Any], *more: str) -> str:
    """Short SHA-256 of settings, and of the keys of what they build on."""
    said = json.dumps([dict(part), *more], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def differences(there: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """`key: value there, value now` for all that differs, nested keys with dots."""
    found = []
    for key in sorted({*there, *now}):
        a, b = there.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}: {a!r} there, {b!r} now")
    return found


def _read(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"{path} is neither a file nor a preset ({', '.join(PRESETS)}).")
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise SettingError(f"{path} is no readable YAML ({e}).") from e
    if not isinstance(said, dict):
        raise SettingError(
            f"{path} must hold keys and values, as in `model: smollm2-135m-instruct`; got {type(said).__name__}."
        )
    return said


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        held = both.get(key)
        both[key] = _merged(held, value) if isinstance(held, Mapping) and isinstance(value, Mapping) else value
    return both


def _check_keys(said: Mapping[str, Any], model: type[BaseModel], path: str) -> None:
    for key, value in said.items():
        if key not in model.model_fields:
            known = [*model.model_fields, *(["preset"] if not path else [])]
            raise UnknownNameError(f"key in the configuration{f' under {path!r}' if path else ''}", str(key), known)
        inner = model.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            _check_keys(value, inner, str(key))
