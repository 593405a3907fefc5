"""`python -m trainers.report`: sweeps beside each other and beside published agents."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diamond_gym import cli
from diamond_gym.cli import Command, option
from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate.pictures import require_matplotlib
from diamond_gym.evaluate.report import write_json
from diamond_gym.files import prepare_folder, write_file
from trainers.report import aggregates, comparison, pictures, published, tables
from trainers.report.results import read_sweeps

PROG = "python -m trainers.report"
ABOUT = """\
Compares agents over games and seeds: scores by game, human-normalised mean, median, interquartile mean (IQM)
and optimality gap with stratified bootstrap intervals, probability of improvement, performance profiles and
sample-efficiency curves, by rliable. The folder gets report.txt, report.md, report.json and pictures.

  results=outputs/sweeps/diamond beside=published
  results=[outputs/sweeps/diamond,outputs/sweeps/ppo] names=[DIAMOND here,PPO] beside=[DIAMOND,IRIS]
  beside=published                                   (the published agents alone)

A sweep under way can be reported, too: the report says what is missing and compares the games with scores."""
_ALL = "published"


@dataclass
class ReportSettings:
    """What is compared.

    Raises:
        InvalidInputError: Nothing is, or a published agent is unknown.
    """

    results: list[str] = option([], "folders of sweeps, each an agent of the tables", is_path=True)
    beside: list[str] = option([], "published agents: published for all, or some of their names")
    out: Path = option(Path("report"), "the folder to write")
    games: list[str] = option([], "the games compared; without it all that every sweep has a score of")
    names: list[str] = option([], "what the sweeps are called, instead of their folders' names")
    page: Path | None = option(
        None,
        "a Markdown page that gets the report, too, between <!-- report --> and <!-- /report -->",
    )
    resamples: int = option(2_000, "bootstrap samples of every interval", least=1)
    mixed_protocols: bool = option(
        False, "compare although frames, sticky actions or games a score differ; the report says how"
    )

    def __post_init__(self) -> None:
        cli.check(self)
        if not self.results and not self.beside:
            raise InvalidInputError("what to compare? give results=SWEEP, beside=published, or both")
        for name in self.beside:
            cli.check_choice("beside", name, (_ALL, *published.agents()))

    @property
    def published_agents(self) -> list[str]:
        """Those to compare with."""
        return [name for name in published.agents() if _ALL in self.beside or name in self.beside]


def report(settings: ReportSettings, command: str = PROG) -> comparison.Comparison:
    """Writes a report; returns its numbers.

    Raises:
        InvalidInputError: See `comparison.compare` and `results.read_sweeps`.
        DatasetError: A result is damaged.
        MissingDependencyError: rliable or matplotlib is not installed.
        CacheError: The folder cannot be written.
    """
    aggregates.require_rliable()
    require_matplotlib()
    sweeps = read_sweeps(settings.results, settings.names)
    page = None if settings.page is None else _read(settings.page)
    prepare_folder(settings.out)
    compared = comparison.compare(
        sweeps,
        settings.published_agents,
        games=settings.games,
        resamples=settings.resamples,
        mixed_protocols=settings.mixed_protocols,
    )
    drawn = pictures.write(compared, settings.out)
    write_file(settings.out / "report.txt", f"{tables.text(compared)}\n".encode())
    body = tables.markdown(compared, drawn, command)
    write_file(settings.out / "report.md", f"# Results\n\n{body}".encode())
    write_json(tables.as_json(compared, command), settings.out / "report.json")
    if settings.page is not None and page is not None:
        beside_it = pictures.write(compared, settings.page.parent, f"{settings.page.stem}_")
        body = tables.markdown(compared, beside_it, command)
        write_file(settings.page, tables.replace_between_markers(page, body).encode())
    return compared


def _read(page: Path) -> str:
    """A page that has markers."""
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise InvalidInputError(f"page={page} cannot be read: {error}") from error
    tables.replace_between_markers(text, "")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the arguments say and returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)

    def run(settings: ReportSettings) -> None:
        print(tables.text(report(settings, shlex.join([*PROG.split(), *given]))))
        print(f"wrote {settings.out}/")

    return cli.main(Command(PROG, ABOUT, ReportSettings, run), given)


if __name__ == "__main__":
    sys.exit(main())
