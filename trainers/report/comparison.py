"""Agents beside each other: which games and runs are compared, and the numbers. Draws and prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate.score import bootstrap_interval
from diamond_gym.registration import game_name
from trainers.report import aggregates, published
from trainers.report.aggregates import Estimate, Scores
from trainers.report.results import RunResult, Sweep, in_words

_MAX_POINTS = 50
"""Points of a sample-efficiency curve."""


@dataclass(frozen=True)
class EfficiencyCurve:
    """IQM against what was learned from.

    Attributes:
        unit: What the steps count.
        steps: Counts.
        iqm: The aggregate at them.
    """

    unit: str
    steps: list[float]
    iqm: list[Estimate]


@dataclass
class Comparison:
    """The numbers of a report.

    Attributes:
        games: Games that the aggregates are over.
        agents: Ours first, then the published ones.
        ours: Those of sweeps.
        num_runs: Runs of each game that an agent's aggregates are over.
        per_game: Mean score of each game and agent over all finished runs, and their number.
        aggregates: Of each agent.
        improvements: Probability that one of ours is better than another agent, by both names.
        profiles: Performance profile of each agent, at `aggregates.THRESHOLDS`.
        curves: Of ours that were scored on the way.
        means_only: Human-normalised means of agents of which no more is known, where all games are compared.
        notes: What a reader has to know: what is missing, which protocols differ.
    """

    games: list[str]
    agents: list[str]
    ours: list[str]
    num_runs: dict[str, int]
    per_game: dict[str, dict[str, tuple[Estimate, int]]]
    aggregates: dict[str, dict[str, Estimate]]
    improvements: dict[tuple[str, str], Estimate]
    profiles: dict[str, list[Estimate]]
    curves: dict[str, EfficiencyCurve]
    means_only: dict[str, float]
    notes: list[str] = field(default_factory=list)


def compare(
    sweeps: Sequence[Sweep],
    beside: Sequence[str],
    *,
    games: Sequence[str] = (),
    resamples: int = 2_000,
    mixed_protocols: bool = False,
) -> Comparison:
    """Compares sweeps with each other and with published agents.

    Args:
        sweeps: Read from disk.
        beside: Names of published agents.
        games: The games compared; empty for all that every sweep has a score of.
        resamples: Bootstrap samples of every interval.
        mixed_protocols: Compare even though the protocols differ.

    Raises:
        InvalidInputError: A game has no reference scores, no game is left, protocols differ, or a name is
            that of a sweep and of a published agent.
    """
    clash = {sweep.name for sweep in sweeps} & set(beside)
    if clash:
        raise InvalidInputError(f"{', '.join(sorted(clash))} is a published agent, too: choose names=[...]")
    chosen = _chosen_games(sweeps, [game_name(game) for game in games])
    notes = [*_missing(sweeps), *_check_protocols(sweeps, beside, mixed_protocols)]
    raw = {sweep.name: {game: sweep.scores(game) for game in chosen} for sweep in sweeps}
    notes += _unequal(raw)
    raw |= {name: {game: published.scores(name, game) for game in chosen} for name in beside}
    scores = {name: _matrix(of_game) for name, of_game in raw.items()}
    ours = [sweep.name for sweep in sweeps]
    pairs = {
        (name, other): (scores[name], scores[other])
        for i, name in enumerate(ours)
        for other in [*ours[i + 1 :], *beside]
    }
    return Comparison(
        games=chosen,
        agents=list(scores),
        ours=ours,
        num_runs={name: len(matrix) for name, matrix in scores.items()},
        per_game={game: {name: _mean(raw[name][game]) for name in raw} for game in chosen},
        aggregates=aggregates.aggregate(scores, resamples),
        improvements=aggregates.improvements(pairs, resamples) if pairs else {},
        profiles=aggregates.profiles(scores, resamples),
        curves=_curves(sweeps, chosen, resamples),
        means_only=published.means() if beside and len(chosen) == len(published.games()) else {},
        notes=notes,
    )


def _chosen_games(sweeps: Sequence[Sweep], asked: Sequence[str]) -> list[str]:
    """The games that are compared."""
    if not sweeps:
        published.check_games(asked)
        return sorted(asked) or list(published.games())
    planned = sorted(set.intersection(*(set(sweep.plan.games) for sweep in sweeps)))
    strange = [game for game in asked if game not in planned]
    if strange:
        raise InvalidInputError(f"games={','.join(strange)}: the games of all results are {planned}")
    published.check_games(asked or planned)
    scored = [game for game in asked or planned if all(sweep.scores(game) for sweep in sweeps)]
    if not scored:
        names = ", ".join(sweep.name for sweep in sweeps)
        raise InvalidInputError(
            f"no game has a finished and scored run of all results ({names}): wait for the sweeps, or choose "
            "other results= or games=; runs that train no actor_critic have no score"
        )
    return sorted(scored)


def _missing(sweeps: Sequence[Sweep]) -> list[str]:
    """What the sweeps still lack, in words."""
    notes = []
    for sweep in sweeps:
        total = len(sweep.plan.games) * len(sweep.plan.seeds)
        if sweep.missing:
            names = [f"{game}-{seed}" for game, seed in sweep.missing]
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            notes.append(f"{sweep.name} is incomplete: {len(names)} of {total} runs are missing ({shown})")
    return notes


def _unequal(raw: dict[str, dict[str, list[float]]]) -> list[str]:
    """Says so where games have more runs than the aggregates can use."""
    notes = []
    for name, of_game in raw.items():
        counts = {game: len(scores) for game, scores in of_game.items()}
        least = min(counts.values())
        if max(counts.values()) > least:
            few = ", ".join(game for game, count in counts.items() if count == least)
            notes.append(
                f"aggregates of {name} use the first {least} run(s) of every game, since {few} has no more; "
                "games=[...] can leave games out"
            )
    return notes


def _check_protocols(sweeps: Sequence[Sweep], beside: Sequence[str], mixed: bool) -> list[str]:
    """Refuses protocols that differ, or says how they do where they may."""
    found = [(sweep.name, sweep.protocol) for sweep in sweeps]
    found += [("the published scores", published.protocol())] if beside else []
    notes = []
    for i, (name, protocol) in enumerate(found):
        for other_name, other in found[i + 1 :]:
            if difference := protocol.differences(other):
                notes.append(f"protocols differ: {in_words(difference)} of {name} and {other_name}")
    if notes and not mixed:
        raise InvalidInputError(
            f"{'; '.join(notes)}. Such scores do not measure the same: leave one out (beside=[] for the "
            "published ones), or set mixed_protocols=true, which writes the difference above the tables"
        )
    return notes


def _matrix(of_game: dict[str, list[float]]) -> Scores:
    """Normalised scores of the first runs of every game, as many as all games have."""
    num_runs = min(map(len, of_game.values()))
    columns = [published.normalised(np.array(raw[:num_runs]), game) for game, raw in of_game.items()]
    return np.stack(columns, axis=1)


def _mean(raw: list[float]) -> tuple[Estimate, int]:
    return Estimate(float(np.mean(raw)), *bootstrap_interval(raw)), len(raw)


def _curves(sweeps: Sequence[Sweep], games: Sequence[str], resamples: int) -> dict[str, EfficiencyCurve]:
    """Curves of the sweeps all of whose compared runs were scored on the way, in the same unit."""
    curves = {}
    for sweep in sweeps:
        runs = [[run for (name, _), run in sorted(sweep.runs.items()) if name == game] for game in games]
        num_runs = min(map(len, runs))
        used = [of_game[:num_runs] for of_game in runs]
        units = {run.curve.unit if run.curve else None for of_game in used for run in of_game}
        grid = _grid([run for of_game in used for run in of_game]) if units != {None} else []
        if len(units) == 1 and len(grid):
            by_game = [_on_grid(game, of_game, grid) for game, of_game in zip(games, used, strict=True)]
            iqm = aggregates.curves(np.stack(by_game, axis=1), resamples)
            curves[sweep.name] = EfficiencyCurve(units.pop() or "", grid, iqm)
    return curves


def _grid(runs: Sequence[RunResult]) -> list[float]:
    """Steps at which every run has been scored before, and none is over."""
    steps = [run.curve.steps for run in runs if run.curve is not None and run.curve.steps]
    if len(steps) < len(runs):
        return []
    first, last = max(s[0] for s in steps), min(s[-1] for s in steps)
    inside = sorted({step for s in steps for step in s if first <= step <= last})
    indices = np.unique(np.linspace(0, len(inside) - 1, min(len(inside), _MAX_POINTS)).round().astype(int))
    return [inside[i] for i in indices] if inside else []


def _on_grid(game: str, runs: Sequence[RunResult], grid: Sequence[float]) -> Float[np.ndarray, "runs steps"]:
    """Normalised scores of each run at each step: those of its latest evaluation by then."""
    rows = []
    for run in runs:
        assert run.curve is not None
        latest = np.searchsorted(run.curve.steps, grid, side="right") - 1
        rows.append(published.normalised(np.array(run.curve.scores)[latest], game))
    return np.stack(rows)
