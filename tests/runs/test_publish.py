"""What is published, what comes back from the hub's cache, and the official pipeline's folders."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from assistant_axis.activations.store import Conditions
from assistant_axis.cli.main import app
from assistant_axis.errors import FetchError, IntegrityError, RunError, UnsafeFileError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.runs.official import import_rollouts, import_vectors
from assistant_axis.runs.publish import prepare, publish


@pytest.fixture
def run_folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    vectors = PersonaVectors(
        roles=tuple(f"role{k}" for k in range(6)),
        layers=(0, 1, 2),
        vectors=torch.randn(6, 3, 16, generator=generator),
        default=torch.randn(3, 16, generator=generator),
        default_conditions=torch.randn(2, 3, 16, generator=generator),
        counts=torch.full((6,), 8),
        default_count=20,
        resid_norms=torch.full((3,), 5.0),
        conditions=Conditions("o/m", "f", 3, 16, "resid_post", "header", "t", "template", "float32", "p", "h", "d", 0),
    )
    folder = tmp_path / "run"
    vectors.save(folder / "vectors.safetensors")
    vectors.axis().save(folder / "axis.safetensors")
    (folder / "rollouts.parquet").write_bytes(b"private")
    return folder


class Hub:
    """Keeps what is uploaded."""

    def __init__(self, error=None):
        self.error, self.made, self.files = error, [], {}

    def create_repo(self, repo, *, private, exist_ok):
        self.made.append((repo, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        from pathlib import Path

        if self.error:
            raise self.error
        root = Path(folder_path)
        self.files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        return f"commit of {repo_id}"


def test_publish_uploads_artefacts_and_a_card_and_no_answers(run_folder):
    hub = Hub()
    assert publish(run_folder, "me/axis", private=True, api=hub) == "commit of me/axis"
    assert hub.made == [("me/axis", True, True)]
    assert set(hub.files) == {"vectors.safetensors", "axis.safetensors", "README.md"}
    said = hub.files["README.md"].decode()
    for words in ("o/m", "6, 68", "8 to 8", 'AssistantAxis.from_hub("me/axis"', "base_model: o/m", "positive is"):
        assert words in said
    with pytest.raises(FetchError, match="me/axis could not be published"):
        publish(run_folder, "me/axis", api=Hub(OSError("no network")))
    (run_folder / "axis.safetensors").unlink()
    with pytest.raises(RunError, match="axis"):
        publish(run_folder, "me/axis", api=hub)


def test_from_hub_reads_the_cache(run_folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    revision = "0" * 40
    snapshot = cache / "models--me--axis" / "snapshots" / revision
    prepare(run_folder, "me/axis", snapshot)
    (cache / "models--me--axis" / "refs").mkdir()
    (cache / "models--me--axis" / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(cache))
    again = AssistantAxis.from_hub("me/axis")
    assert torch.equal(again.vectors, AssistantAxis.load(run_folder / "axis.safetensors").vectors)
    with pytest.raises(FetchError, match="nothing\\.safetensors"):
        AssistantAxis.from_hub("me/axis", filename="nothing.safetensors")


def test_look_lays_out_without_a_network(run_folder, tmp_path):
    said = CliRunner().invoke(app, ["publish", str(run_folder), "--repo", "me/axis", "--look", str(tmp_path / "look")])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "look" / "README.md").is_file()


# -- official folders --------------------------------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path):
    """Two roles and the default, as the official pipeline writes them; `pirate` has a rollout of score 1."""
    root = tmp_path / "official"
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for name, shift in (("pirate", 1.0), ("ghost", 2.0), ("default", -3.0)):
        each, scores, lines = {}, {}, []
        for prompt in range(2):
            for question in range(3):
                key = f"pos_p{prompt}_q{question}"
                each[key] = (torch.randn(4, 8, generator=generator) + shift).to(torch.bfloat16)
                scores[key] = 1 if (name, prompt, question) == ("pirate", 0, 0) else 3
                turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": f"{name} {key}"}]
                lines.append(
                    {
                        "system_prompt": f"You are {name}.",
                        "prompt_index": prompt,
                        "question_index": question,
                        "question": "Who?",
                        "conversation": turns,
                        "label": "pos",
                    }
                )
        for folder in ("activations", "scores", "responses"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        torch.save(each, root / "activations" / f"{name}.pt")
        (root / "responses" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        if name != "default":
            (root / "scores" / f"{name}.json").write_text(json.dumps(scores))
        kept[name] = {k: x for k, x in each.items() if scores[k] == 3 or name == "default"}
    return root, kept


def test_official_vectors_are_means_of_score_three(official):
    root, kept = official
    found = import_vectors(root, model="o/m", min_rollouts=3)
    assert found.roles == ("ghost", "pirate")
    assert found.counts.tolist() == [6, 5]
    for name in found.roles:
        torch.testing.assert_close(found.role(name), torch.stack([x.float() for x in kept[name].values()]).mean(0))
    default = torch.stack([x.float() for x in kept["default"].values()])
    torch.testing.assert_close(found.default, default.mean(0))
    torch.testing.assert_close(found.default_conditions, default.reshape(2, 3, 4, 8).mean(1))
    assert float(found.axis().integrity().min()) > 0.9999
    assert math.isnan(float(found.resid_norms[0]))
    assert import_vectors(root, model="o/m", min_rollouts=6).roles == ("ghost",)
    assert import_vectors(root, model="o/m", min_score=0).counts.tolist() == [6, 6]


def test_official_answers_come_with_their_scores(official):
    root, _ = official
    said = list(import_rollouts(root))
    assert len(said) == 18
    assert [s.score for r, s in said if r.role == "pirate"] == [1, 3, 3, 3, 3, 3]
    assert all(s is None for r, s in said if r.role == "default")
    assert said[0][0].messages[-1]["content"].startswith("default pos_p0")


def test_bad_official_folders(official, tmp_path):
    root, _ = official
    with pytest.raises(RunError, match="no \\.pt file"):
        import_vectors(tmp_path, model="m")
    with pytest.raises(RunError, match="50 rollouts"):
        import_vectors(root, model="m")
    (root / "scores" / "ghost.json").unlink()
    with pytest.raises(RunError, match="min_score=0"):
        import_vectors(root, model="m", min_rollouts=1)
    torch.save({"pos_p0_q0": torch.zeros(3)}, root / "activations" / "ghost.pt")
    with pytest.raises(IntegrityError, match="no tensor"):
        import_vectors(root, model="m", min_score=0)
    torch.save({"what": torch.zeros(4, 8)}, root / "activations" / "ghost.pt")
    with pytest.raises(IntegrityError, match="pos_p0_q0"):
        import_vectors(root, model="m", min_score=0)
    import pickle

    (root / "activations" / "ghost.pt").write_bytes(pickle.dumps(print))
    with pytest.raises((UnsafeFileError, IntegrityError)):
        import_vectors(root, model="m", min_score=0)
    (root / "responses" / "ghost.jsonl").write_text("{}")
    with pytest.raises(IntegrityError, match=r"ghost\.jsonl:1"):
        list(import_rollouts(root))


def test_import_command(official, tmp_path):
    root, _ = official
    said = CliRunner().invoke(
        app, ["import", str(root), "--model", "o/m", "--min-rollouts", "3", "--out", str(tmp_path / "out")]
    )
    assert said.exit_code == 0, said.output
    assert AssistantAxis.load(tmp_path / "out" / "axis.safetensors").conditions.model == "o/m"
