"""The table of speeds in docs/performance.md, from the rows that the benchmarks wrote.

    python -m benchmarks.throughput --checkpoint embedded --compilers --json bench/throughput.jsonl
    python -m benchmarks.training --preset paper --json bench/training.jsonl
    python -m benchmarks.report bench/throughput.jsonl bench/training.jsonl

prints the table, says which targets are met, and puts it between the comments <!-- bench-cpu --> and
<!-- /bench-cpu --> of docs/performance.md (bench-cuda on CUDA). Nothing is measured here, and the table
shows only what the rows hold: all of them must be of one machine, commit and device. Where several rows
measure the same thing, the last one counts.

`history=bench` also keeps the rows in bench/PROCESSOR/COMMIT.jsonl, and `--against` such a file says what has
become slower by more than 10 %; the exit code is then 1.

The epoch is computed from the measured seconds of its parts: what it collects, and 400 steps of each of the
three networks. So is the full game of the published schedule; the time of test games is not in it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from benchmarks import history
from benchmarks.rows import read_rows, short_commit
from diamond_gym import cli
from diamond_gym import files as disk
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError
from trainers.diamond.config import PARTS, TrainerConfig
from trainers.diamond.run import schedule

MACHINE = ("cpu", "gpu", "num_threads", "python", "torch", "gymnasium", "commit")
"""Keys of a row in which all rows must agree."""
EMBEDDED = ("auto", "embedded")
"""Checkpoints that are the embedded Breakout."""
PUBLISHED = "2.9 days on an RTX 4090"
CROPS = 128
"""Crops in a training step of the embedded worlds."""
EPOCH = "DIAMOND epoch: 100 steps collected, 400 updates of each network"
NOT_MEASURED = "not measured"
AUTO = ("eager", "cuda_graph")
"""The backends that are compared with plain PyTorch, on CPUs and on CUDA."""
COMPILERS = ("inductor", "openvino")
"""The backends that are measured besides, with a single game on a CPU."""
SECTIONS = {"cpu": "bench-cpu", "cuda": "bench-cuda"}

Row = dict[str, Any]


@dataclass
class Settings:
    """What is reported, and where."""

    rows: list[Path] = option(MISSING, "files of rows that benchmarks wrote")
    page: Path = option(Path("docs/performance.md"), "page to rewrite")
    print_only: bool = option(False, "print the table and leave the page as it is")
    against: Path | None = option(None, "earlier rows: say what became slower, and leave the page as it is")
    history: Path | None = option(None, "folder to keep the rows in, by processor and commit")


@dataclass(frozen=True)
class Speed:
    """The measurement of a line of the table.

    Attributes:
        value: The number that has a target: a ratio, or steps a second.
        ours: Our measurement, as the table shows it.
        plain: That of plain PyTorch, as the table shows it.
        ratio: Their ratio, as the table shows it.
        how: Precision and settings.
    """

    value: float
    ours: str
    plain: str = ""
    ratio: str = ""
    how: str = ""


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        what: Name of the line.
        speed: The measurement; None when there is none.
        target: The least `speed.value`; None for no target.
        unit: Unit of the target.
    """

    what: str
    speed: Speed | None
    target: float | None = None
    unit: str = "x"

    @property
    def is_met(self) -> bool:
        """Whether there is a target, and it was reached."""
        return self.speed is not None and self.target is not None and self.speed.value >= self.target


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch of the published schedule, and of the whole schedule; with the plain baseline's."""

    seconds: float
    plain_seconds: float
    game_seconds: float
    plain_game_seconds: float
    num_epochs: int
    how: str


def find(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """The last row with these values; a tuple stands for any of its values."""
    choices = {key: value if isinstance(value, tuple) else (value,) for key, value in wanted.items()}
    found = [row for row in rows if all(row.get(key) in accepted for key, accepted in choices.items())]
    return found[-1] if found else None


def find_embedded(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """Call `find` for the embedded Breakout."""
    return find(rows, game="Breakout", checkpoint=EMBEDDED, model=EMBEDDED, **wanted)


def paper_step(rows: Sequence[Row], num_envs: int, backend: str | tuple[str, ...] = AUTO) -> Speed | None:
    """One step of the paper-size world model."""
    ours = find(rows, model="paper size", name="WorldModel", num_envs=num_envs, backend=backend)
    if ours is None or ours["speedup"] is None:
        return None
    latencies = f"{number(ours['p50_ms'])} ms", f"{number(ours['p50_ms'] * ours['speedup'])} ms"
    return Speed(ours["speedup"], *latencies, f"{ours['speedup']:.2f}x", ours["dtype"])


def embedded_env(rows: Sequence[Row], num_envs: int, backend: str | tuple[str, ...] = AUTO) -> Speed | None:
    """The environment of the embedded Breakout; what is compared with plain PyTorch is its world model."""
    about = {"num_envs": num_envs, "backend": backend}
    env = find_embedded(rows, name="DiamondEnv" if num_envs == 1 else "DiamondVectorEnv", **about)
    if env is None:
        return None
    world_model = find_embedded(rows, name="WorldModel", **about)
    speedup = None if world_model is None else world_model["speedup"]
    ratio = "" if speedup is None else f"{speedup:.2f}x, world model alone"
    rate = env["env_steps_per_second"]
    return Speed(rate, f"{number(rate)} env-steps/s", ratio=ratio, how=env["dtype"])


def overhead(rows: Sequence[Row]) -> Speed | None:
    """Time of the embedded Breakout's environment outside the passes through the networks."""
    env = find_embedded(rows, name="DiamondEnv", num_envs=1, backend=AUTO)
    if env is None or env["overhead_ms"] is None:
        return None
    is_measurable = env["overhead_ms"] > 0
    return Speed(env["overhead_ms"], f"{number(env['overhead_ms'])} ms" if is_measurable else "within noise")


def sb3_adapter(rows: Sequence[Row]) -> Speed | None:
    """The embedded Breakout as Stable-Baselines3 steps it, beside the vector environment below."""
    adapter = find_embedded(rows, name="BatchedVecEnv (SB3)", num_envs=32, backend=AUTO)
    bare = find_embedded(rows, name="DiamondVectorEnv", num_envs=32, backend=AUTO)
    if adapter is None or bare is None:
        return None
    ratio = bare["p50_ms"] / adapter["p50_ms"]
    ours = f"{number(adapter['env_steps_per_second'])} env-steps/s"
    return Speed(ratio, ours, ratio=f"{ratio:.2f}x of `DiamondVectorEnv`", how=adapter["dtype"])


def real_game(rows: Sequence[Row], num_envs: int) -> Speed | None:
    """The real Breakout as ale_py steps it fastest."""
    row = find(rows, game="Breakout", model="the real game", name="AtariVectorEnv", num_envs=num_envs)
    rate = 0.0 if row is None else row["env_steps_per_second"]
    return None if row is None else Speed(rate, f"{number(rate)} env-steps/s")


def as_published(rows: Sequence[Row]) -> list[Row]:
    """Rows of the paper preset in which at most its precision (`training.autocast=auto`) was changed."""
    return [
        row
        for row in rows
        if row.get("preset") == "paper" and all(x.startswith("training.") for x in row.get("overrides", []))
    ]


def training_row(rows: Sequence[Row], part: str) -> Row | None:
    """Steps of a network as published."""
    batch_size = getattr(TrainerConfig(), part).training.batch_size
    return find(as_published(rows), part=part, batch_size=batch_size)


def denoiser_step(rows: Sequence[Row]) -> Speed | None:
    """A training step of the paper-size denoiser."""
    return speed_of_step(training_row(rows, "denoiser"))


def crop_step(rows: Sequence[Row]) -> Speed | None:
    """A training step of the embedded worlds' denoiser on crops."""
    return speed_of_step(find(rows, preset="embedded", part="denoiser", batch_size=CROPS))


def speed_of_step(row: Row | None) -> Speed | None:
    """A training step beside the plain baseline's."""
    if row is None:
        return None
    ours, plain = (f"{number(1 / row[key])} s" for key in ("steps_per_second", "baseline_steps_per_second"))
    return Speed(row["ratio"], ours, plain, f"{row['ratio']:.2f}x", ", ".join(row["overrides"]))


def find_epoch(rows: Sequence[Row]) -> Epoch | None:
    """The published epoch and schedule; None when one of their parts was not measured."""
    steps = {part: training_row(rows, part) for part in PARTS}
    parts = {"collection": find(as_published(rows), part="collection"), **steps}
    measured = {name: row for name, row in parts.items() if row is not None}
    if len(measured) < len(parts):
        return None
    settings = {tuple(row["overrides"]) for row in measured.values()}
    if len(settings) > 1:
        raise InvalidInputError(f"the parts of an epoch were measured under different settings: {settings}")
    ours, plain = seconds_of(measured, ""), seconds_of(measured, "baseline_")
    return Epoch(ours[0], plain[0], ours[1], plain[1], ours[2], ", ".join(settings.pop()))


def seconds_of(measured: dict[str, Row], prefix: str) -> tuple[float, float, int]:
    """Seconds of an epoch and of all epochs, and the number of epochs; "baseline_" for the plain ones."""
    config = TrainerConfig(game="Breakout")
    sampling = config.collection.train
    num_epochs = schedule(config).num_epochs(sampling.first_epoch.min)
    assert num_epochs is not None, "a run that collects knows its epochs after the first"
    collection = measured["collection"]
    collect = collection[f"{prefix}seconds"] / collection["num_steps"]
    epoch, game = collect * sampling.steps_per_epoch, collect * sampling.num_steps_total
    for part in PARTS:
        training = getattr(config, part).training
        step = 1 / measured[part][f"{prefix}steps_per_second"]
        epoch += step * training.steps_per_epoch
        game += step * training.num_steps(num_epochs)
    return epoch, game, num_epochs


def epoch_speed(epoch: Epoch | None) -> Speed | None:
    """An epoch beside the plain baseline's."""
    if epoch is None:
        return None
    ratio = epoch.plain_seconds / epoch.seconds
    ours, plain = f"{number(epoch.seconds)} s", f"{number(epoch.plain_seconds)} s"
    return Speed(ratio, ours, plain, f"{ratio:.2f}x", epoch.how)


def lines_on_cpu(rows: Sequence[Row]) -> list[Line]:
    """The table of a CPU; the targets are for 2 cores."""
    return [
        Line("paper-size step, 1 game", paper_step(rows, 1), 2),
        *(
            Line(f'paper-size step, 1 game, `backend="{name}"`', paper_step(rows, 1, name))
            for name in COMPILERS
        ),
        Line("paper-size step, 32 games", paper_step(rows, 32), 2.5),
        Line("embedded Breakout, 1 game", embedded_env(rows, 1), 60, " env-steps/s"),
        *(
            Line(f'embedded Breakout, 1 game, `backend="{name}"`', embedded_env(rows, 1, name))
            for name in COMPILERS
        ),
        Line("embedded Breakout, 32 games", embedded_env(rows, 32), 300, " env-steps/s"),
        Line("embedded Breakout, 32 games for Stable-Baselines3", sb3_adapter(rows), 0.95),
        Line("denoiser training step, batch 32, paper size", denoiser_step(rows), 1.5),
        Line(f"denoiser training step, {CROPS} crops of 32 x 32, embedded size", crop_step(rows)),
        Line(EPOCH, epoch_speed(find_epoch(rows)), 1.5),
        *lines_without_target(rows),
    ]


def lines_on_cuda(rows: Sequence[Row]) -> list[Line]:
    """The table of a GPU."""
    return [
        Line("paper-size step, 1 game", paper_step(rows, 1), 5),
        Line("paper-size step, 32 games", paper_step(rows, 32), 3),
        Line("paper-size step, 256 games", paper_step(rows, 256), 3),
        Line("embedded Breakout, 1 game", embedded_env(rows, 1)),
        Line("embedded Breakout, 32 games", embedded_env(rows, 32)),
        Line("embedded Breakout, 32 games for Stable-Baselines3", sb3_adapter(rows), 0.95),
        Line("embedded Breakout, 256 games", embedded_env(rows, 256)),
        Line("embedded Breakout, 1024 games", embedded_env(rows, 1024)),
        Line("denoiser training step, batch 32, paper size", denoiser_step(rows), 2.5),
        Line(f"denoiser training step, {CROPS} crops of 32 x 32, embedded size", crop_step(rows)),
        Line(EPOCH, epoch_speed(find_epoch(rows)), 2.5),
        *lines_without_target(rows),
    ]


def lines_without_target(rows: Sequence[Row]) -> list[Line]:
    """Lines for comparison, without targets."""
    return [
        Line("embedded Breakout outside its networks, 1 game", overhead(rows)),
        Line("the real Breakout (`AtariVectorEnv`), 1 game", real_game(rows, 1)),
        Line("the real Breakout (`AtariVectorEnv`), 32 games", real_game(rows, 32)),
    ]


def device_of(rows: Sequence[Row]) -> str:
    """Where the networks ran: "cpu" or "cuda".

    Raises:
        InvalidInputError: The rows are of no device, of several, or of one without a table.
    """
    kinds = {row["device"].partition(":")[0] for row in rows if "device" in row and row.get("dtype") != ""}
    if len(kinds) != 1 or not kinds <= set(SECTIONS):
        got = ", ".join(sorted(kinds)) or "none"
        raise InvalidInputError(f"the rows must be of one device, {' or '.join(SECTIONS)}, got {got}")
    return kinds.pop()


def check_same_machine(rows: Sequence[Row]) -> None:
    """Raise `InvalidInputError` unless all rows are of one machine, with one version of everything."""
    for key in MACHINE:
        values = list(dict.fromkeys(str(row.get(key)) for row in rows))
        if len(values) > 1:
            raise InvalidInputError(
                f"the rows are of different runs, {key} is {' and '.join(values)}: measure all of them again"
            )


def table(lines: Sequence[Line]) -> str:
    """The lines in Markdown."""
    text = ["| | ours | plain PyTorch | ratio | target |", "| --- | --- | --- | --- | --- |"]
    for line in lines:
        speed = line.speed or Speed(0, NOT_MEASURED)
        what = f"{line.what} ({speed.how})" if speed.how else line.what
        text.append(f"| {what} | {speed.ours} | {speed.plain} | {speed.ratio} | {verdict(line)} |")
    return "\n".join(text)


def verdict(line: Line) -> str:
    """The target, and whether it was reached."""
    if line.target is None:
        return ""
    judged = NOT_MEASURED if line.speed is None else "met" if line.is_met else "missed"
    return f"{line.target:g}{line.unit}: {judged}"


def count_targets(lines: Sequence[Line]) -> str:
    """How many targets were reached, in a sentence."""
    targets = [line for line in lines if line.target is not None]
    return f"{sum(line.is_met for line in targets)} of {len(targets)} targets are met."


def notes(rows: Sequence[Row], lines: Sequence[Line]) -> str:
    """The notes below the table."""
    about, epoch = rows[0], find_epoch(rows)
    place = f"{about['cpu']}, threads: {about['num_threads']}"
    place += f", {about['gpu']}" if device_of(rows) == "cuda" else ""
    openvino = f"OpenVINO {about.get('openvino')}, " if find(rows, backend="openvino") else ""
    sentences = [
        f"Medians of one run of `make bench` on {place}; Python {about['python']}, PyTorch {about['torch']}, "
        f"Gymnasium {about['gymnasium']}, {openvino}commit {short_commit(about)}.",
        "Plain PyTorch is the same weights in eager float32 NCHW, measured in turns with ours.",
        count_targets(lines),
    ]
    if epoch is not None:
        hours, plain_hours = (number(x / 3600) for x in (epoch.game_seconds, epoch.plain_game_seconds))
        sentences.append(
            "The epoch is computed from the seconds of its parts, measured one by one; so computed, a full "
            f"game ({epoch.num_epochs} epochs, without test games) takes {hours} hours, in plain PyTorch "
            f"{plain_hours}; published: {PUBLISHED}."
        )
    return "\n".join(sentences)


def number(x: float) -> str:
    """Three significant digits, whole numbers whole: 0.0123, 45.9, 1 360."""
    if x >= 1000:
        return f"{round(x):,}".replace(",", " ")
    return f"{x:#.3g}".rstrip(".")


def report(rows: Sequence[Row]) -> tuple[str, str]:
    """Return the device of the rows, and the section about it.

    Raises:
        InvalidInputError: The rows do not belong together, or hold no measurement of the table.
    """
    check_same_machine(rows)
    device = device_of(rows)
    try:
        lines = lines_on_cpu(rows) if device == "cpu" else lines_on_cuda(rows)
        if all(line.speed is None for line in lines):
            raise InvalidInputError("the rows hold no measurement of the table: measure with `make bench`")
        return device, f"{table(lines)}\n\n{notes(rows, lines)}"
    except (KeyError, TypeError) as error:
        raise InvalidInputError(f"a row is incomplete, {error}: measure again with `make bench`") from None


def replace_section(file: Path, name: str, section: str) -> bool:
    """Put a text between the comments <!-- name --> and <!-- /name -->; return whether that changed it.

    Raises:
        InvalidInputError: The file cannot be read, or the comments are not there once each, in this order.
        CacheError: The file cannot be written.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(first)
    _, found, after = rest.partition(last)
    if not found or text.count(first) != 1 or text.count(last) != 1:
        raise InvalidInputError(
            f"{file} needs the comments {first} and {last}, once each and in this order: "
            f"what stands between them is replaced"
        )
    new = f"{before}{first}\n{section.strip()}\n{last}{after}"
    if new != text:
        disk.write_file(file, new.encode())
    return new != text


def run(args: Settings) -> int:
    """Print and write the table, or compare; return the exit code."""
    rows = [row for file in args.rows for row in read_rows(file)]
    if args.against is not None:
        return compare(rows, read_rows(args.against))
    device, section = report(rows)
    print(section)
    if args.history is not None:
        print(f"kept in {history.keep(rows, args.history)}")
    if not args.print_only:
        is_new = replace_section(args.page, SECTIONS[device], section)
        print(f"{args.page}: " + ("the table was rewritten" if is_new else "the table says so already"))
    return 0


def compare(rows: Sequence[Row], before: Sequence[Row]) -> int:
    """Say what became slower; return the exit code, 1 if anything did."""
    try:
        found = history.changes(rows, before)
    except (KeyError, TypeError) as error:
        raise InvalidInputError(f"a row is incomplete, {error}: measure again with `make bench`") from None
    print(*history.say(found), sep="\n")
    return int(found[0].factor > history.WORTH_SAYING)


COMMAND = cli.Command(
    "python -m benchmarks.report",
    __doc__ or "",
    Settings,
    run,
    positional=("rows",),
    usage_of_arguments="FILE... [key=value ...]",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
