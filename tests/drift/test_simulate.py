"""Simulated conversations: resuming, seeds, users, and the statistics."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from assistant_axis.drift import simulate as module
from assistant_axis.drift.simulate import SimulatedTurn, Simulation, simulate
from assistant_axis.drift.summary import contrast, per_turn, slopes
from assistant_axis.drift.users import APIUser, ModelUser, Scenario, exchanged, played_scenarios, scripted_scenarios
from assistant_axis.errors import ArtefactMismatchError, FetchError, IntegrityError, SettingError


def hold(model: Any, axis: Any, scenarios: Any, **options: Any) -> Simulation:
    settings: dict[str, Any] = {"turns": 3, "max_new_tokens": 5, "batch_size": 4, "progress": False, "temperature": 1.0}
    return simulate(model, axis, scenarios, **settings | options)


def same(a: Simulation, b: Simulation) -> bool:
    return [(t.conversation, t.turn, t.answer, f"{t.raw:.6g}") for t in a.turns] == [
        (t.conversation, t.turn, t.answer, f"{t.raw:.6g}") for t in b.turns
    ]


def test_bundled_scenarios() -> None:
    found = scripted_scenarios()
    assert len(found) == 100
    assert all(len(s.turns) >= 6 and s.description for s in found)
    assert [s.domain for s in scripted_scenarios(per_domain=1)] == ["coding", "writing", "therapy", "philosophy"]
    played = played_scenarios(seed=1)
    assert len(played) >= 400
    assert len({s.id for s in played}) == len(played)
    with pytest.raises(SettingError, match="Unknown domain"):
        scripted_scenarios(["cooking"])
    with pytest.raises(SettingError, match="per_domain=26"):
        scripted_scenarios(per_domain=26)


def test_same_seed_same_conversations_and_files_round_trip(
    tiny_model: Any, tiny_axis: Any, scenarios: Any, tmp_path: Path
) -> None:
    first = hold(tiny_model, tiny_axis, scenarios, out=tmp_path / "a")
    assert same(first, hold(tiny_model, tiny_axis, scenarios))
    assert not same(first, hold(tiny_model, tiny_axis, scenarios, seed=5))
    loaded = Simulation.load(tmp_path / "a")
    assert same(first, loaded)
    assert loaded.conditions == first.conditions
    assert not (tmp_path / "a" / "parts").exists()
    talks = first.conversations()
    assert [m["content"] for m in talks["coding-0"]][0::2] == [
        "first 0", "second 0", "third"
    ][: len(talks["coding-0"]) // 2]  # fmt: skip


def test_an_interrupted_run_goes_on(
    tiny_model: Any, tiny_axis: Any, scenarios: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hold(tiny_model, tiny_axis, scenarios)
    generate = module.DriftMonitor.generate
    calls = {"n": 0}

    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 4:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(module.DriftMonitor, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        hold(tiny_model, tiny_axis, scenarios, out=tmp_path)
    parts = sorted((tmp_path / "parts").glob("*.parquet"))
    assert len(parts) == 3
    parts[1].write_bytes(parts[1].read_bytes()[:50])  # a damaged part is made again
    with pytest.raises(ArtefactMismatchError, match="seed: 0 there, 9 now"):
        hold(tiny_model, tiny_axis, scenarios, out=tmp_path, seed=9)
    assert same(whole, hold(tiny_model, tiny_axis, scenarios, out=tmp_path))
    calls["n"] = 10**6
    assert same(whole, hold(tiny_model, tiny_axis, scenarios, out=tmp_path))
    assert calls["n"] == 10**6, "a finished run is read, not made again"
    with pytest.raises(ArtefactMismatchError, match="other settings"):
        hold(tiny_model, tiny_axis, scenarios, out=tmp_path, turns=2)


def test_a_conversation_that_outgrows_the_context_ends_there(tiny_model: Any, tiny_axis: Any) -> None:
    long = "word " * (tiny_model.max_length // 2)
    scenarios = [
        Scenario("long", "coding", "p", "", "", (long, long, long)),
        Scenario("short", "coding", "p", "", "", ("a", "b", "c")),
    ]
    held = hold(tiny_model, tiny_axis, scenarios)
    turns = {name: sum(t.conversation == name for t in held.turns) for name in ("long", "short")}
    assert turns["long"] < 3
    assert turns["long"] <= turns["short"]


def test_files_without_a_system_column_are_read(
    tiny_model: Any, tiny_axis: Any, scenarios: Any, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    held = hold(tiny_model, tiny_axis, scenarios, turns=1)
    path = held.save(tmp_path / "x.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["system"]), path)
    assert [(t.answer, t.system) for t in Simulation.load(path).turns] == [(t.answer, "") for t in held.turns]


def test_a_model_plays_the_user(tiny_model: Any, tiny_axis: Any, scenarios: Any) -> None:
    user = ModelUser(tiny_model, max_new_tokens=4, temperature=1.0)
    held = hold(tiny_model, tiny_axis, scenarios[:2], user=user, turns=2)
    assert held.turns
    assert same(held, hold(tiny_model, tiny_axis, scenarios[:2], user=user, turns=2))
    seen = exchanged(scenarios[0], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert [m["role"] for m in seen] == ["system", "user", "assistant", "user"]
    assert seen[2]["content"] == "a"


def test_a_service_plays_the_user(tiny_model: Any, tiny_axis: Any, scenarios: Any) -> None:
    asked: list[dict[str, Any]] = []

    def create(**kwargs: Any) -> Any:
        asked.append(kwargs)
        message = SimpleNamespace(content=" hello ")
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    held = hold(tiny_model, tiny_axis, scenarios[:2], user=APIUser("m", client=client), turns=1)
    assert {t.user for t in held.turns} == {"hello"}
    assert asked[0]["messages"][0]["role"] == "system"

    def fails(**_kwargs: Any) -> Any:
        raise OSError("no route")

    client.chat.completions.create = fails
    with pytest.raises(FetchError, match="no route"):
        hold(tiny_model, tiny_axis, scenarios[:2], user=APIUser("m", client=client), turns=1)


def test_wrong_settings_and_files(tiny_model: Any, tiny_axis: Any, scenarios: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="1 to 15"):
        hold(tiny_model, tiny_axis, scenarios, turns=16)
    with pytest.raises(SettingError, match="ids that differ"):
        hold(tiny_model, tiny_axis, [scenarios[0], scenarios[0]])
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(IntegrityError):
        Simulation.load(tmp_path / "x.parquet")
    other = replace(tiny_axis, conditions=replace(tiny_axis.conditions, fingerprint="another"))
    with pytest.raises(ArtefactMismatchError):
        hold(tiny_model, other, scenarios)


def made(n: int = 12, turns: int = 4, seed: int = 0) -> Simulation:
    """Conversations whose therapy falls by one unit a turn and whose coding stays."""
    rng = np.random.default_rng(seed)
    rows = []
    for domain, slope in (("therapy", -1.0), ("coding", 0.0)):
        for c in range(n):
            start = rng.normal()
            for t in range(turns if c else turns - 1):
                raw = float(start + slope * t + 0.1 * rng.normal())
                rows.append(
                    SimulatedTurn(
                        f"{domain}-{c}", domain, "p", t, f"{domain} message {c} {t}", "a", (1,), "stop", raw, raw - 2, 0.1, 50.0
                    )
                )  # fmt: skip
    return Simulation(tuple(rows), {"layer": 1, "model": "m", "user": "u"})


def test_means_drop_thin_positions_and_match_scipy() -> None:
    found = per_turn(made(), fewest=12)
    assert {m.turn for m in found} == {0, 1, 2}
    values = [t.centered for t in made().turns if t.domain == "therapy" and t.turn == 1]
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    one = next(m for m in found if m.domain == "therapy" and m.turn == 1)
    assert (one.mean, one.low, one.high) == pytest.approx((np.mean(values), low, high))


def test_slopes_and_contrast() -> None:
    by = {s.domain: s for s in slopes(made())}
    assert by["therapy"].mean == pytest.approx(-1, abs=0.1)
    assert by["therapy"].p < 1e-6
    assert by["coding"].p > 0.01
    c = contrast(made(n=40), ("therapy",), ("coding",))
    assert c.difference < 0
    assert c.p < 0.01
    assert c.low < c.difference < c.high
    with pytest.raises(SettingError, match="two conversations"):
        contrast(made(), ("writing",), ("coding",))
