"""`python -m trainers.report`: published aggregates recomputed, sweeps compared, and every refusal."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate.report import write_json
from trainers.report import published
from trainers.report.results import Curve, Plan, Protocol, RunResult, read_sweep, write_result

pytest.importorskip("rliable.library", reason="needs rliable")

from trainers.report import aggregates, comparison
from trainers.report.__main__ import main

PUBLISHED = {  # mean, median, IQM
    "Simulus": (1.645, 0.982, 0.990),
    "DIAMOND": (1.459, 0.373, 0.641),
    "Delta-IRIS": (1.383, 0.594, 0.682),
    "STORM": (1.222, 0.425, 0.561),
    "DreamerV3": (1.124, 0.485, 0.487),
    "IRIS": (1.046, 0.289, 0.501),
}
OURS = Protocol(frames=4_000, episodes=2, max_frames=1_200)
ATARI_100K = Protocol(frames=400_000, episodes=100, max_frames=108_000)
SHORT = "resamples=50"


def matrix(agent):
    """Normalised published scores (runs, games)."""
    games = published.games()
    return np.stack([published.normalised(np.array(published.scores(agent, g)), g) for g in games], axis=1)


def sweep(folder, scores, *, protocol=OURS, seeds=(0, 1, 2), run="diamond"):
    """A sweep's folder: scores by game and seed, None for a run that is not finished."""
    write_json(Plan(run, ["preset=smoke"], list(scores), list(seeds), "/").__dict__, folder / "sweep.json")
    for game, of_game in scores.items():
        for seed, score in zip(seeds, of_game, strict=True):
            if score is not None:
                curve = Curve("steps of the real game", [900.0, 1000.0], [score / 2, score])
                write_result(folder, RunResult(game, seed, score, protocol, curve, 9.0, "here"))
    return folder


@pytest.fixture
def two_games(tmp_path):
    return sweep(tmp_path / "ours", {"Breakout": [1.7, 30.5, 16.1], "Pong": [-20.7, -20.7, 14.6]})


def refused(capsys, *arguments):
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("agent", PUBLISHED)
def test_published_aggregates_are_recomputed(agent):
    assert aggregates.aggregates(matrix(agent))[:3] == pytest.approx(PUBLISHED[agent], abs=5e-4)


def test_the_improvement_of_all_games_at_once_is_that_of_rliable():
    from rliable import metrics

    for x, y in (("DIAMOND", "IRIS"), ("IRIS", "DreamerV3"), ("STORM", "TWM")):
        expected = metrics.probability_of_improvement(matrix(x), matrix(y))
        assert aggregates.improvement(matrix(x), matrix(y)) == pytest.approx(expected)


def test_intervals_are_the_same_every_time_and_leave_numpy_alone():
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    first, second = (aggregates.aggregate({"DIAMOND": matrix("DIAMOND")}, 50) for _ in range(2))
    assert np.random.random() == expected
    assert first == second
    mean = first["DIAMOND"]["mean"]
    assert mean.low < mean.value < mean.high


def test_the_shipped_scores_are_complete_and_small():
    assert published.FILE.stat().st_size < 20_000
    assert len(published.games()) == 26
    for agent in published.agents():
        assert all(len(published.scores(agent, game)) == 5 for game in published.games())
        assert published.source(agent)
    assert all(published.source(name) for name in published.means())


def test_a_report_of_a_finished_sweep(two_games, tmp_path, capsys):
    out = tmp_path / "report"
    given = [f"results={two_games}", "beside=[DIAMOND,IRIS]", f"out={out}", SHORT, "mixed_protocols=true"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "frames 4 000 and 400 000, max_frames 1 200 and 108 000 of ours and the published" in printed
    assert "Breakout  16.1 (1.7 to 30.5, 3)" in printed
    report = json.loads((out / "report.json").read_text())
    # normalised: Breakout 0, 1, 0.5 and Pong 0, 0, 1
    assert report["aggregates"]["ours"]["mean"]["value"] == pytest.approx((0.5 + 1 / 3) / 2)
    assert report["aggregates"]["ours"]["optimality gap"]["value"] == pytest.approx(1 - (0.5 + 1 / 3) / 2)
    assert {(pair["x"], pair["y"]) for pair in report["improvements"]} == {
        ("ours", "DIAMOND"),
        ("ours", "IRIS"),
    }
    assert report["curves"]["ours"]["steps"] == [900.0, 1000.0]
    assert report["means_only"] == {}, "those are means over 26 games"
    page = (out / "report.md").read_text()
    for name in ("aggregates.png", "profiles.png", "improvement.png", "curves.png"):
        assert cv2.imread(str(out / name)).std() > 0
        assert f"]({name})" in page
    assert "eloialonso/diamond" in page and "python -m trainers.report results=" in page
    assert (out / "report.txt").read_text().strip() in printed


def test_published_agents_alone_are_compared_over_all_games(tmp_path, capsys):
    assert main(["beside=[DIAMOND]", f"out={tmp_path}", SHORT]) == 0
    printed = capsys.readouterr().out
    assert "DIAMOND             5            1.459 (" in printed
    assert "BBF *                            2.245" in printed and "as an aggregate only" in printed


def test_an_incomplete_sweep_says_what_is_missing_and_compares_what_it_has(tmp_path):
    folder = sweep(
        tmp_path / "a", {"Breakout": [2.0, 3.0, 4.0], "Pong": [-20.0, None, None], "Boxing": [None] * 3}
    )
    compared = comparison.compare([read_sweep(folder)], [], resamples=20)
    assert compared.games == ["Breakout", "Pong"]
    assert compared.num_runs == {"a": 1}
    assert compared.per_game["Breakout"]["a"][1] == 3
    assert compared.notes == [
        "a is incomplete: 5 of 9 runs are missing (Pong-1, Pong-2, Boxing-0, Boxing-1, Boxing-2)",
        "aggregates of a use the first 1 run(s) of every game, since Pong has no more; games=[...] can leave "
        "games out",
    ]
    alone = comparison.compare([read_sweep(folder)], [], games=["breakout"], resamples=20)
    assert (alone.games, alone.num_runs) == (["Breakout"], {"a": 3})


def test_two_sweeps_are_compared_on_the_games_that_both_have(two_games, tmp_path):
    other = sweep(tmp_path / "other", {"Pong": [-10.0, -9.0], "Boxing": [1.0, 2.0]}, seeds=(0, 1))
    compared = comparison.compare([read_sweep(two_games), read_sweep(other)], [], resamples=20)
    assert (compared.games, compared.num_runs) == (["Pong"], {"ours": 3, "other": 2})
    assert compared.improvements["ours", "other"].value == pytest.approx(1 / 3)


def test_other_protocols_are_refused(two_games, tmp_path, capsys):
    assert "frames 4 000 and 400 000" in refused(capsys, f"results={two_games}", "beside=published")
    more = sweep(tmp_path / "more", {"Breakout": [1.0] * 3}, protocol=replace(OURS, episodes=100))
    error = refused(capsys, f"results=[{two_games},{more}]", f"out={tmp_path / 'out'}")
    assert "episodes 2 and 100 of ours and more" in error and "mixed_protocols=true" in error
    write_result(two_games, RunResult("Pong", 0, 1.0, replace(OURS, sticky_actions=0.25)))
    error = refused(capsys, f"results={two_games}", "mixed_protocols=true", f"out={tmp_path / 'out'}")
    assert "ours mixes protocols: sticky_actions 0.0 and 0.25 in the runs Breakout-0 and Pong-0" in error


def test_the_published_protocol_needs_no_permission(tmp_path):
    folder = sweep(tmp_path / "full", {"Pong": [1.0, 2.0, 3.0]}, protocol=ATARI_100K)
    assert comparison.compare([read_sweep(folder)], ["IRIS"], resamples=10).notes == []
    unknown = replace(ATARI_100K, frames=None)
    assert unknown.differences(ATARI_100K) == {"frames": (None, 400_000)}


def test_bad_input(two_games, tmp_path, capsys):
    out = f"out={tmp_path / 'out'}"
    strange = sweep(tmp_path / "strange", {"Tetris": [1.0] * 3, "Pong": [1.0] * 3})
    empty = sweep(tmp_path / "empty", {"Pong": [None] * 3})
    ours = f"results={two_games}"
    assert "what to compare?" in refused(capsys)
    assert "did you mean IRIS?" in refused(capsys, "beside=[IRISS]")
    assert "are published for Tetris" in refused(capsys, f"results={strange}", out)
    assert main([f"results={strange}", "games=[Pong]", out, SHORT]) == 0
    assert "no run of" in refused(capsys, f"results={empty}", out)
    assert "it has no sweep.json" in refused(capsys, f"results={tmp_path}", out)
    assert "and so every seed in it, twice" in refused(capsys, f"results=[{two_games},{two_games}]", out)
    assert "names= gives 2 names" in refused(capsys, ours, "names=[a,b]", out)
    assert "is a published agent, too" in refused(capsys, ours, "names=[IRIS]", "beside=IRIS", out)
    assert "the games of all results are" in refused(capsys, ours, "games=[Boxing]", out)


def test_a_seed_that_is_there_twice(two_games, capsys):
    (two_games / "results" / "copy.json").write_text((two_games / "results" / "Pong-1.json").read_text())
    assert "seed 1 of Pong is there twice" in refused(capsys, f"results={two_games}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": float("nan")}, "the score is not finite"),
        ({"score": "high"}, "'high'"),
        ({"seed": [1]}, "Integer"),
        ({"curve": {"unit": "epochs", "steps": [1, 2], "scores": [1]}}, "2 steps and 1 scores"),
        ({"curve": {"unit": "epochs", "steps": [1], "scores": [float("inf")]}}, "a curve is not finite"),
        ({"protocol": {"frame": 1}}, "frame"),
        (None, "it holds no mapping"),
    ],
)
def test_a_damaged_result(two_games, capsys, change, message):
    file = two_games / "results" / "Pong-1.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(None if change is None else content | change))
    assert main([f"results={two_games}"]) == 1
    error = capsys.readouterr().err
    assert f"{file} cannot be read (" in error and message in error and "delete it, and run" in error


def test_files_that_are_cut_off(two_games, capsys):
    (two_games / "results" / "Pong-1.json").write_text('{"game": "Po')
    assert main([f"results={two_games}"]) == 1
    assert "Pong-1.json cannot be read" in capsys.readouterr().err
    (two_games / "sweep.json").write_text("")
    assert main([f"results={two_games}"]) == 1
    assert "begin another sweep with another out=" in capsys.readouterr().err


def test_runs_without_a_score(tmp_path):
    folder = sweep(tmp_path / "worlds", {"Pong": [1.0]}, seeds=(0,))
    write_result(folder, RunResult("Pong", 0, None, OURS))
    with pytest.raises(InvalidInputError, match="train no actor_critic have no score"):
        comparison.compare([read_sweep(folder)], [])


def test_a_page_gets_the_report_between_its_markers(two_games, tmp_path, capsys):
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text("# Ours\n\n<!-- report -->\nold\n<!-- /report -->\n\nThe end.\n")
    given = [f"results={two_games}", f"out={tmp_path / 'out'}", SHORT, f"page={page}"]
    for _ in range(2):
        assert main(given) == 0
    text = page.read_text()
    assert text.startswith("# Ours\n\n<!-- report -->\n\nMade by `python -m trainers.report")
    assert text.endswith("(results_curves.png)\n\n<!-- /report -->\n\nThe end.\n") and "old" not in text
    assert cv2.imread(str(page.parent / "results_profiles.png")).std() > 0
    capsys.readouterr()
    page.write_text("# No markers\n")
    assert "needs a page with the lines <!-- report -->" in refused(capsys, *given)
    assert "cannot be read" in refused(capsys, *given[:-1], f"page={tmp_path / 'none.md'}")
