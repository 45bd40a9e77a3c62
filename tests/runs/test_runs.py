import errno
import json
import multiprocessing
import os
import shutil
import sys
import time
import types

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from assistant_axis.activations.capture import capture_means
from assistant_axis.activations.spans import read_answer
from assistant_axis.activations.store import load_artefact
from assistant_axis.cli.main import app
from assistant_axis.errors import (
    DiskFullError,
    MissingExtraError,
    RunError,
    RunLockedError,
    SettingError,
    UnknownNameError,
    WorkerError,
)
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.judges import LikelihoodJudge
from assistant_axis.judges.base import key_of
from assistant_axis.personas.rollouts import read_rollouts
from assistant_axis.pipeline.extract import extract_persona_vectors
from assistant_axis.runs.config import PRESETS, load_config
from assistant_axis.runs.folder import Folder
from assistant_axis.runs.planning import plan_run
from assistant_axis.runs.run import Run, run
from assistant_axis.runs.worker import Worker

ROLES = ["pirate", "ghost", "doctor", "poet", "judge"]
SMALL = {
    "model": "tiny-llama",
    "roles": ROLES,
    "prompts_per_role": 1,
    "questions_per_prompt": 4,
    "shard": 8,
    "sampling": {"max_new_tokens": 4},
    "judge": {"kind": "likelihood"},
    "min_score": 1,
}


def go(model, out, **changes):
    settings = {**SMALL, **changes}
    return run(settings, out, model=model, progress=False)


@pytest.fixture(scope="module", autouse=True)
def _fluent():
    """Answers of a random model are too unlikely to be judged; here they count as sane."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("assistant_axis.steering.adherence.UNLIKELY", -100.0)
        yield


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """A whole run; tests that change it copy it first."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    go(tiny_model, out)
    return out


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def means(model, rollouts, layers):
    return capture_means(model, [read_answer(r.prompt_ids, r.answer_ids) for r in rollouts], layers)


def tensors_of(out):
    """Every tensor of the vectors as bytes, and what the header says; the order of a header's keys is left to chance."""
    found = Run.open(out).vectors()
    kept = {n: getattr(found, n) for n in ("vectors", "default", "default_conditions", "counts", "resid_norms")}
    kept |= {n: getattr(found.samples, n) for n in ("activations", "role", "question")}
    return {n: x.numpy().tobytes() for n, x in kept.items()}, found.roles, found.layers, found.conditions


# -- what a run is -----------------------------------------------------------------------------------------------------


def test_a_run_is_a_folder(finished, tiny_model):
    names = {p.name for p in finished.iterdir()}
    assert {"manifest.json", "plan.parquet", "rollouts", "scores", "activations", "sums.safetensors"} <= names
    assert {"vectors.safetensors", "axis.safetensors", "rollouts.parquet", "report.html", "figures"} <= names
    found = Run.open(finished, model=tiny_model)
    rollouts = read_rollouts(finished / "rollouts.parquet")
    assert len(rollouts) == len(found.plan.asks) == 5 * 4 + 5 * 4
    assert len({key_of(r) for r in rollouts}) == len(rollouts)
    rows = pq.read_table(finished / "rollouts.parquet").to_pylist()
    assert all(r["prompt_tokens"] == len(r["prompt_ids"]) and r["answer_tokens"] == len(r["answer_ids"]) for r in rows)
    assert {r["judge"] for r in rows} == {None, "likelihood"}
    assert all((r["judge"] is None) == (r["role"] == "default") for r in rows)
    assert AssistantAxis.load(finished / "axis.safetensors").conditions.judge.startswith("likelihood, score ≥ 1")
    assert all(s.state == "done" for s in found.status(check=True))
    schema = set(pq.read_schema(finished / "rollouts.parquet").names)
    assert {"role", "system", "question", "answer", "prompt_tokens", "answer_tokens", "finish_reason", "seed"} <= schema
    assert {"score", "judge", "rubric", "model", "fingerprint", "package"} <= schema
    page = (finished / "report.html").read_text()
    assert "What counts" in page
    assert all(f"<td>{r}" in page for r in ROLES), "a row a role"


def test_sums_and_second_moments_by_hand(finished, tiny_model):
    found = Run.open(finished, model=tiny_model)
    tensors, groups = found.sums()
    vectors = found.vectors()
    scores = found.scores()
    rollouts = {key_of(r): r for r in read_rollouts(finished / "rollouts.parquet")}
    checked = 0
    for place, (name, score) in enumerate(groups):
        if name.startswith("default"):
            continue
        members = [k for k, s in scores.items() if k[0] == name and (-1 if s.score is None else s.score) == score]
        members = [rollouts[k] for k in members if rollouts[k].answer_ids]
        x = torch.stack([means(tiny_model, [r], vectors.layers)[0] for r in members])
        assert int(tensors["counts"][place]) == len(members)
        torch.testing.assert_close(tensors["sums"][place], x.sum(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(tensors["squares"][place], x.square().sum(0), rtol=1e-4, atol=1e-3)
        checked += 1
    assert checked >= 5


def test_the_header_span_agrees_with_extract(tiny_model, tmp_path):
    done = go(tiny_model, tmp_path / "run", span="header", seed=3)
    other = extract_persona_vectors(
        tiny_model, "header", roles=ROLES, prompts_per_role=1, questions_per_prompt=4, seed=3, progress=False
    )
    got = done.vectors()
    assert got.roles == other.roles
    torch.testing.assert_close(got.vectors, other.vectors, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.default, other.default, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.resid_norms, other.resid_norms, rtol=1e-5, atol=1e-5)
    assert (got.counts == other.counts).all()
    assert not (tmp_path / "run" / "rollouts").exists()
    states = {s.name: s.state for s in done.status()}
    assert states["generate"] == states["judge"] == "not needed"


def test_spread_takes_question_effects_out(tiny_model, tmp_path):
    done = go(tiny_model, tmp_path / "a", span="header", spread=True, questions_per_prompt=120).vectors()
    other = extract_persona_vectors(
        tiny_model, "header", roles=ROLES, prompts_per_role=1, questions_per_prompt=120, spread=True, progress=False
    )
    torch.testing.assert_close(done.vectors, other.vectors, rtol=1e-3, atol=1e-3)


# -- stages by themselves ----------------------------------------------------------------------------------------------


def forbid(monkeypatch, *names):
    def never(self, shard):
        raise AssertionError("this stage must not run")

    for name in names:
        monkeypatch.setattr(Worker, name, never)


def test_a_second_start_does_nothing(copied, tiny_model, monkeypatch):
    forbid(monkeypatch, "generate", "judge", "activations")
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*.*") if p.is_file() and p.name != "manifest.json"}
    said = []
    run(SMALL, copied, model=tiny_model, progress=False, say=said.append)
    after = {p: p.stat().st_mtime_ns for p in copied.rglob("*.*") if p.is_file() and p.name != "manifest.json"}
    assert before == after
    assert sum("done before" in line for line in said) == 6


def test_new_thresholds_and_scores_need_no_forward_pass(copied, tiny_model, monkeypatch):
    whole = go(tiny_model, copied).vectors()
    forbid(monkeypatch, "generate", "activations")
    none = go(tiny_model, copied, judge={"kind": "none"}).vectors()
    assert int(none.counts.sum()) >= int(whole.counts.sum())
    found = Run.open(copied, model=tiny_model)
    tensors, groups = found.sums()
    x = torch.stack([tensors["sums"][k] for k, g in enumerate(groups) if g[0] == "ghost"]).sum(0)
    torch.testing.assert_close(none.role("ghost") * none.counts[none.roles.index("ghost")], x, rtol=1e-5, atol=1e-5)
    assert none.conditions.judge == "none"
    back = go(tiny_model, copied).vectors()
    assert torch.equal(back.vectors, whole.vectors)


def test_scores_that_changed_are_regrouped_from_single_vectors(copied, tiny_model, monkeypatch):
    class Kinder(LikelihoodJudge):
        def score(self, rollouts):
            return [
                type(s)(3, s.reason, s.judge, s.rubric) if k % 2 else s for k, s in enumerate(super().score(rollouts))
            ]

    forbid(monkeypatch, "generate", "activations")
    monkeypatch.setattr("assistant_axis.runs.worker.LikelihoodJudge", Kinder)
    done = run({**SMALL, "min_score": 3}, copied, redo=["judge"], model=tiny_model, progress=False)
    scores = {k: s for k, s in done.scores().items() if s.score == 3}
    rollouts = {key_of(r): r for r in read_rollouts(copied / "rollouts.parquet")}
    vectors = done.vectors()
    for name in vectors.roles:
        mine = [rollouts[k] for k in scores if k[0] == name and rollouts[k].answer_ids]
        x = means(tiny_model, mine, vectors.layers)
        torch.testing.assert_close(vectors.role(name), x.mean(0), rtol=5e-3, atol=5e-3)


def test_without_kept_vectors_new_scores_say_what_to_do(tiny_model, tmp_path):
    out = tmp_path / "run"
    go(tiny_model, out, keep="none")
    _, header = load_artefact(out / "activations" / "00003.safetensors", "activations of a shard")
    assert header["kept"] == []
    with pytest.raises(RunError, match="--redo activations"):
        go(tiny_model, out, keep="none", judge={"kind": "model", "model": "tiny-llama"}, min_score=0)


def test_stages_by_name(tiny_model, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RunError, match="--stage generate"):
        run(SMALL, out, stages=["activations"], model=tiny_model, progress=False)
    run(SMALL, out, stages=["plan", "generate"], model=tiny_model, progress=False)
    states = {s.name: s.state for s in Run.open(out).status()}
    assert states == {
        "plan": "done",
        "generate": "done",
        "judge": "missing",
        "activations": "missing",
        "vectors": "missing",
        "axis": "missing",
        "report": "missing",
    }
    with pytest.raises(RunError, match="--stage vectors"):
        run(SMALL, out, stages=["axis"], model=tiny_model, progress=False)
    with pytest.raises(UnknownNameError, match="'generate'"):
        run(SMALL, out, stages=["generat"], model=tiny_model, progress=False)


# -- what can go wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["rollouts", "scores/*", "activations"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "empty"])
def test_damaged_shards_are_made_again(copied, finished, tiny_model, stage, harm):
    victim = sorted(copied.glob(f"{stage}/*[0-9].*"))[1]
    data = bytearray(victim.read_bytes())
    if harm == "truncate":
        victim.write_bytes(data[: len(data) // 2])
    elif harm == "flip":
        data[len(data) // 3] ^= 0x10
        victim.write_bytes(data)
    elif harm == "empty":
        victim.write_bytes(b"")
    else:
        victim.unlink()
    before = Run.open(copied, model=tiny_model).status(check=True)
    assert any(s.state in ("damaged", "partial") for s in before)
    go(tiny_model, copied)
    assert tensors_of(copied) == tensors_of(finished)
    assert read_rollouts(copied / "rollouts.parquet") == read_rollouts(finished / "rollouts.parquet")
    assert all(s.state == "done" for s in Run.open(copied, model=tiny_model).status(check=True))


def test_every_flipped_byte_of_a_shard_is_seen(copied, tiny_model):
    found = Run.open(copied, model=tiny_model)
    path = copied / "rollouts" / "00001.parquet"
    data = path.read_bytes()
    whole = found.worker.rollouts(1)
    for at in range(0, len(data), max(1, len(data) // 150)):
        changed = bytearray(data)
        changed[at] ^= 0x01
        path.write_bytes(changed)
        # A byte that means nothing (padding, a name of the writer) may change; the rollouts may not.
        assert not found.whole("generate", 1) or found.worker.rollouts(1) == whole


def test_a_deleted_or_damaged_manifest_is_made_again(copied, finished, tiny_model):
    for harm in ("remove", "damage"):
        (copied / "manifest.json").unlink() if harm == "remove" else (copied / "manifest.json").write_text("{")
        with pytest.raises(RunError, match=r"manifest\.json"):
            Run.open(copied)
        go(tiny_model, copied)
        assert tensors_of(copied) == tensors_of(finished)
    (copied / "manifest.json").unlink()
    with pytest.raises(RunError, match="other settings"):
        go(tiny_model, copied, seed=5)


def test_another_configuration_is_refused_with_its_differences(copied, tiny_model):
    with pytest.raises(RunError, match=r"sampling\.max_new_tokens: 4 there, 6 now"):
        go(tiny_model, copied, sampling={"max_new_tokens": 6})
    with pytest.raises(RunError, match="seed: 0 there, 1 now"):
        go(tiny_model, copied, seed=1)
    with pytest.raises(RunError, match="layers: None there"):
        go(tiny_model, copied, layers=[1])


def test_another_model_of_the_same_name_is_refused(copied):
    import tiny

    other, _ = tiny.make_pair("llama", seed=1)
    shutil.rmtree(copied / "activations")
    with pytest.raises(RunError, match="fingerprint"):
        go(other, copied)


def hold(out, ready):
    with Folder(out).lock():
        ready.set()
        time.sleep(60)


def test_two_writers(copied, tiny_model):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(str(copied), ready))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RunLockedError, match=f"process {other.pid}"):
            go(tiny_model, copied)
        other.kill()  # a lock does not outlive its process
        other.join()
        go(tiny_model, copied)
    finally:
        other.kill()
        other.join()


def test_a_full_disk_keeps_what_is_finished(tiny_model, finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    wrote = []
    sync = os.fsync

    def full(handle):
        wrote.append(handle)
        if len(wrote) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="start the same run again"):
        go(tiny_model, out)
    monkeypatch.setattr(os, "fsync", sync)
    kept = {p: p.stat().st_mtime_ns for p in out.glob("rollouts/*.parquet")}
    assert kept
    assert not list(out.rglob(".part-*"))
    go(tiny_model, out)
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    assert tensors_of(out) == tensors_of(finished)


def test_too_little_space_is_said_before_anything_is_generated(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(Folder, "free_bytes", lambda self: 1000)
    with pytest.raises(DiskFullError, match="1000 B are free"):
        go(tiny_model, tmp_path / "run")
    assert not (tmp_path / "run" / "rollouts").exists()


def test_a_shard_that_fails_is_tried_again_and_named(tiny_model, finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    generate, tries = Worker.generate, []

    def sometimes(self, shard):
        tries.append(shard)
        if shard == 3 or (shard == 1 and tries.count(1) == 1):
            raise ValueError("a cosmic ray")
        generate(self, shard)

    monkeypatch.setattr(Worker, "generate", sometimes)
    with pytest.raises(WorkerError, match=r"1 of 5 shards failed twice \(3\).*a cosmic ray"):
        go(tiny_model, out)
    assert tries.count(1) == tries.count(3) == 2
    state = next(s for s in Run.open(out).status() if s.name == "generate")
    assert (state.state, state.done, state.note) == ("partial", 4, "failed twice: 3")
    monkeypatch.setattr(Worker, "generate", generate)
    go(tiny_model, out)
    assert tensors_of(out) == tensors_of(finished)


def test_memory_that_runs_out_halves_the_batch(tiny_model, tmp_path, monkeypatch):
    real, sizes = type(tiny_model).generate, []

    def small(self, conversations, **options):
        sizes.append(options["batch_size"])
        if options["batch_size"] > 2:
            raise torch.OutOfMemoryError("too much")
        return real(self, conversations, **options)

    monkeypatch.setattr(type(tiny_model), "generate", small)
    go(tiny_model, tmp_path / "run")
    assert sizes[:3] == [8, 4, 2]


def test_what_is_left_of_a_killed_writer_is_swept(copied, tiny_model):
    (copied / "rollouts" / ".part-abc.parquet").write_bytes(b"half")
    go(tiny_model, copied)
    assert not list(copied.rglob(".part-*"))


# -- configuration -----------------------------------------------------------------------------------------------------


def test_bad_configurations_are_named_before_any_model_is_loaded(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("no model must be loaded")

    monkeypatch.setattr("assistant_axis.runs.worker.load_model", never)
    out = tmp_path / "run"
    with pytest.raises(MissingExtraError, match="vllm"):
        run({"sampling": {"backend": "vllm"}}, out)
    with pytest.raises(Exception, match="nowhere"):
        run({"personas": str(tmp_path / "nowhere")}, out)
    for wrong, words in (
        ({"modle": "x"}, "Did you mean 'model'"),
        ({"sampling": {"max_tokens": 3}}, "max_new_tokens"),
        ({"preset": "laptob"}, "laptop"),
        ({"roles": ["pirat"]}, "pirate"),
    ):
        with pytest.raises(UnknownNameError, match=words):
            run(wrong, out)
    for wrong, words in (
        ({"shard": 0}, "shard"),
        ({"sampling": {"top_p": 2}}, r"sampling\.top_p"),
        ({"judge": {"kind": "api"}}, r"needs judge\.model"),
        ({"prompts_per_role": 9}, "prompts_per_role=9"),
        ({"questions_per_prompt": 9999}, "240"),
        ({"min_score": "high"}, "min_score"),
    ):
        with pytest.raises(SettingError, match=words):
            run(wrong, out)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(Exception, match="OPENAI_API_KEY"):
        run({"judge": {"kind": "api", "model": "m"}}, out)
    with pytest.raises(SettingError, match="kind 'xyz'"):
        run({}, "xyz://somewhere/run")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        run({}, tmp_path / "file" / "run")
    with pytest.raises(FileNotFoundError, match="laptop"):
        run("nowhere.yaml", out)
    (tmp_path / "bad.yaml").write_text("- a\n")
    with pytest.raises(SettingError, match="keys and values"):
        run(tmp_path / "bad.yaml", out)
    with pytest.raises(RunError, match=r"manifest\.json"):
        Run.open(tmp_path)


def test_presets_plan(monkeypatch):
    sizes = {name: len(plan_run(load_config(name)).asks) for name in PRESETS}
    assert sizes == {"instant": 275 * 8 + 20, "laptop": 275 * 4 + 40, "paper": 275 * 1200 + 1200}
    mixed = load_config({"preset": "paper", "sampling": {"max_new_tokens": 7}})
    assert (mixed.sampling.max_new_tokens, mixed.sampling.token_budget) == (7, 262_144)
    assert load_config(mixed) == mixed


def test_planning_imports_no_torch():
    import subprocess
    import sys

    code = "import sys; from assistant_axis.runs.planning import plan_run; from assistant_axis.runs.config import load_config\n"
    code += "import time; t = time.perf_counter(); p = plan_run(load_config('paper'))\n"
    code += "print(len(p.asks), time.perf_counter() - t, open('/proc/self/status').read().split('VmHWM:')[1].split()[0], 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "331200"
    assert float(said[1]) < 10, "a hang, not a benchmark"
    assert int(said[2]) < 200 * 1024
    assert said[3] == "False"


def test_keep(tiny_model, tmp_path):
    done = go(tiny_model, tmp_path / "a", keep=[2], keep_samples=10)
    tensors, header = done.worker.read_activations(0)
    assert tensors["kept"].shape[1:] == (1, tiny_model.d_model)
    assert tensors["kept"].dtype == torch.float16
    assert header["kept"] == [2]
    assert tensors["samples"].shape[1:] == (tiny_model.n_layers, tiny_model.d_model)
    assert 8 <= len(done.vectors().samples.role) <= 10
    with pytest.raises(SettingError, match=r"\[9\]"):
        go(tiny_model, tmp_path / "b", keep=[9])


def test_vllm_is_optional(tiny_model, tmp_path):
    with pytest.raises(MissingExtraError, match="vllm"):
        go(tiny_model, tmp_path / "run", sampling={"max_new_tokens": 4, "backend": "vllm"})


class StandIn:
    """What the generate stage uses of vLLM, by the model's own greedy answers; the ends of answers are given back as vLLM does."""

    def __init__(self, model):
        self.model, self.asked = model, []

    def SamplingParams(self, **said):
        return said

    def LLM(self, **said):
        return self

    def generate(self, prompts, params, use_tqdm):
        assert not use_tqdm
        replies = []
        for prompt, said in zip(prompts, params, strict=True):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            module = self.model.lens.module
            whole = module.generate(ids, max_new_tokens=said["max_tokens"], do_sample=False, pad_token_id=0)
            self.asked.append((tuple(prompt["prompt_token_ids"]), said))
            output = types.SimpleNamespace(token_ids=whole[0, ids.shape[1] :].tolist())
            replies.append(types.SimpleNamespace(outputs=[output]))
        return replies


def test_answers_of_vllm_become_shards_of_ours(tiny_model, tmp_path, monkeypatch):
    library = StandIn(tiny_model)
    monkeypatch.setitem(sys.modules, "vllm", library)
    monkeypatch.setattr("assistant_axis.runs.vllm._ENGINES", {})
    sampling = {"max_new_tokens": 4, "temperature": 0.0}
    done = go(tiny_model, tmp_path / "v", sampling={**sampling, "backend": "vllm"}, judge={"kind": "none"})
    own = go(tiny_model, tmp_path / "o", sampling=sampling, judge={"kind": "none"})
    rollouts = [r for n in range(done.plan.shards) for r in done.worker.rollouts(n)]
    assert rollouts == [r for n in range(own.plan.shards) for r in own.worker.rollouts(n)]
    assert [p for p, _ in library.asked] == [r.prompt_ids for r in rollouts]
    seeds = [s["seed"] for _, s in library.asked]
    assert len(set(seeds)) == len(seeds)
    torch.testing.assert_close(done.vectors().vectors, own.vectors().vectors, rtol=1e-4, atol=1e-4)


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("assistant_axis.runs.folder.tempfile.mkstemp", refused)  # root may write everywhere
    with pytest.raises(RunError, match="cannot be written"):
        run(SMALL, tmp_path / "run")


def test_a_folder_behind_fsspec(tiny_model, finished):
    import fsspec

    url = "memory://runs/one"
    done = go(tiny_model, url)
    assert torch.equal(done.vectors().vectors, Run.open(finished, model=tiny_model).vectors().vectors)
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/runs/one/rollouts/00001.parquet", b"nonsense")
    go(tiny_model, url)
    assert all(s.state == "done" for s in done.status(check=True))
    fs.pipe_file("/runs/one/.lock", b"process 1 elsewhere")
    with pytest.raises(RunLockedError, match="process 1 elsewhere"):
        go(tiny_model, url)
    fs.rm("/runs/one", recursive=True)


# -- the command line --------------------------------------------------------------------------------------------------


def test_commands(copied, tiny_model, tmp_path, monkeypatch):
    import yaml

    monkeypatch.setattr("assistant_axis.runs.worker.load_model", lambda *a, **k: tiny_model)
    settings = tmp_path / "config.yaml"
    settings.write_text(yaml.safe_dump(SMALL))
    runner = CliRunner()
    said = runner.invoke(app, ["run", str(settings), "--out", str(tmp_path / "new")])
    assert said.exit_code == 0, said.output
    assert "size:" in said.output
    assert tensors_of(tmp_path / "new") == tensors_of(copied)
    shown = runner.invoke(app, ["run", "status", str(copied), "--check"])
    assert shown.exit_code == 0, shown.output
    assert "activations" in shown.output
    assert "all" in shown.output
    path = copied / "activations" / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    shown = runner.invoke(app, ["run", "status", str(copied), "--check"])
    assert shown.exit_code == 3
    assert "damaged" in shown.output

    def never(self, shard):
        raise ValueError("oh")

    monkeypatch.setattr(Worker, "activations", never)
    failed = runner.invoke(app, ["run", str(settings), "--out", str(copied)])
    assert failed.exit_code == 3
    assert json.loads((copied / "failed" / "activations.json").read_text())["shards"] == {"1": "ValueError: oh"}


def test_compiling_changes_no_part_and_is_not_for_vllm():
    plain = load_config({**SMALL, "span": "response"})
    compiled = load_config({**SMALL, "span": "response", "sampling": {"max_new_tokens": 4, "compile": True}})
    assert compiled.sampling.compile
    assert compiled.parts() == plain.parts()
    with pytest.raises(SettingError, match="vllm compiles by itself"):
        load_config({**SMALL, "sampling": {"backend": "vllm", "compile": True}})
