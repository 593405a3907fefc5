"""Settings of every type from arguments, a line for each kind of error, and every exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import MISSING, dataclass, field
from pathlib import Path

import pytest

from diamond_gym import cli
from diamond_gym.cli import option
from diamond_gym.errors import CacheError, InvalidInputError, UnknownGameError


@dataclass
class Inner:
    """An inner dataclass.

    Attributes:
        depth: How deep it is,
            in steps.
        tags: Names.
    """

    depth: int = 3
    tags: list[str] | None = None


@dataclass
class Settings:
    name: str = option("x", "a name")
    count: int | None = option(None, "a count", least=0)
    rate: float = option(0.5, "a rate", least=0)
    loud: bool = option(False, "whether it is loud", flag="-l")
    kind: str = option("red", "a colour", choices=("red", "green"))
    out: Path = option(Path("here"), "a folder")
    checkpoint: str = option("auto", "a word or a path", is_path=True)
    sizes: list[int] = option([1, 2], "sizes", least=1)
    look: str | None = option(None, "a folder", flag="-d", alone="")
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        cli.check(self)


def test_types_and_defaults():
    assert cli.parse(Settings, []) == Settings()
    given = ["name=a=b", "count=3", "rate=1e-3", "loud=true", "inner.depth=4", "inner.tags=[a,b]"]
    expected = Settings("a=b", 3, 1e-3, True, inner=Inner(4, ["a", "b"]))
    assert cli.parse(Settings, given) == expected
    assert cli.parse(Settings, ["count=null"]).count is None


@pytest.mark.parametrize(("text", "number"), [("1e3", 1000), ("1_000", 1000), ("0", 0), ("1.0", 1)])
def test_integers_in_every_spelling(text, number):
    count = cli.parse(Settings, [f"count={text}"]).count
    assert count == number and isinstance(count, int)


@pytest.mark.parametrize(
    ("text", "sizes"), [("[3,4]", [3, 4]), ("3,4", [3, 4]), ("[1e3]", [1000]), ("5", [5]), ("[]", [])]
)
def test_lists(text, sizes):
    assert cli.parse(Settings, [f"sizes={text}"]).sizes == sizes


@pytest.mark.parametrize("text", ["a${game}b", "D:\\data\\", "${oc.env:HOME}", "a${b", "???", "a'b\"c,[d]"])
def test_text_is_literal(text):
    settings = cli.parse(Settings, [f"name={text}", f"checkpoint={text}", f"out={text}"])
    assert (settings.name, settings.checkpoint, settings.out) == (text, text, Path(text))


def test_home_is_expanded_in_paths_only(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = cli.parse(Settings, ["out=~/a", "checkpoint=~/b", "name=~/c"])
    assert (settings.out, settings.checkpoint, settings.name) == (Path("/home/me/a"), "/home/me/b", "~/c")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--count", "3", "--rate=2", "--loud"], Settings(count=3, rate=2.0, loud=True)),
        (["-l", "--no-loud"], Settings()),
        (["--sizes", "3", "4", "name=b"], Settings("b", sizes=[3, 4])),
        (["--sizes", "--loud"], Settings(sizes=[], loud=True)),
        (["-d", "data"], Settings(look="data")),
        (["-d", "name=b"], Settings("b", look="")),
        (["--count", "3", "--count", "4"], Settings(count=4)),
        (["--inner.depth", "4"], Settings(inner=Inner(4))),
    ],
)
def test_flags(arguments, expected):
    assert cli.parse(Settings, arguments) == expected


def test_arguments_without_a_key():
    assert cli.parse(Settings, ["b", "count=1", "c"], positional=["name", "out"]).out == Path("c")
    assert cli.parse(Settings, ["3", "4"], positional=["sizes"]).sizes == [3, 4]
    inner = cli.parse(Inner, ["depth=1", "some.thing=2", "b=3"], rest="tags")
    assert inner == Inner(1, ["some.thing=2", "b=3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nam=a"], "unknown key nam: did you mean name?"),
        (["depth=1"], "unknown key depth: did you mean inner.depth?"),
        (["--cuont", "1"], "unknown flag --cuont: did you mean count?"),
        (["xyzzy=1"], "unknown key xyzzy: accepted are name, count, rate, loud, "),
        (["name"], "arguments are written key=value, got 'name'"),
        (["name="], "key name needs a value"),
        (["--name"], "--name needs a value"),
        (["rate=1", "rate=2"], "key rate is given twice"),
        (["count=1.5"], "count must be an integer, got '1.5'"),
        (["count=inf"], "count must be an integer, got 'inf'"),
        (["rate=fast"], "rate must be a number, got 'fast'"),
        (["rate=null"], "rate must be a number, got 'null'"),
        (["loud=yes"], "loud must be true or false, got 'yes'"),
        (["rate=-1"], "rate must be at least 0, got -1.0"),
        (["sizes=[1,0]"], "sizes must be at least 1, got 0"),
        (["kind=gren"], "kind must be one of red, green, got 'gren': did you mean green?"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InvalidInputError) as error:
        cli.parse(Settings, arguments)
    assert str(error.value).startswith(message)


@dataclass
class Required:
    run: str = option(MISSING, "the run")
    out: str = option(MISSING, "the folder")


def test_missing_keys_are_named():
    with pytest.raises(InvalidInputError, match=r"^missing: out=\.\.\. run=\.\.\.$"):
        cli.parse(Required, [])
    assert cli.parse(Required, ["run=a", "out=b"]) == Required("a", "b")


def test_help_names_every_key_its_default_and_choices():
    lines = cli.describe(Settings).splitlines()
    assert lines[0] == "  name=x                    a name"
    assert "  loud=false                whether it is loud (-l)" in lines
    assert "  kind=red                  a colour (one of red, green)" in lines
    assert "  inner.depth=3             How deep it is, in steps." in lines
    assert "  sizes=[1,2]               sizes" in lines
    assert cli.describe(Required).splitlines()[0] == "  run=...                   the run"


def test_plain_values_are_literal_too():
    assert cli.build(Settings, {"name": "${oc.env:HOME}", "inner": {"tags": ["${x}"]}}) == Settings(
        "${oc.env:HOME}", inner=Inner(tags=["${x}"])
    )
    with pytest.raises(InvalidInputError, match="Value 'many'"):
        cli.build(Settings, {"inner": {"depth": "many"}})


# --- programs


def fails(error):
    def run(_):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (InvalidInputError("no"), 2, "error: no\n"),
        (UnknownGameError("no"), 2, "error: no\n"),
        (CacheError("no\n  longer"), 1, "error: no longer\n"),
        (FileNotFoundError(2, "gone", "x"), 1, "error: [Errno 2] gone: 'x'\n"),
        (KeyboardInterrupt(), 130, ""),
        (cli.Terminated(), 143, ""),
    ],
)
def test_exit_codes(error, code, printed, capsys):
    assert cli.main(cli.Command("prog", "It fails.", Settings, fails(error)), []) == code
    assert capsys.readouterr() == ("", printed)


def test_subcommands(capsys):
    ran = []
    command = cli.Command("prog a", "Does a.", Settings, lambda settings: ran.append(settings.name))
    program = cli.Commands("prog", {"alpha": cli.Subcommand("the first", lambda: command)})
    assert cli.main(program, ["alpha", "name=b"]) == 0 and ran == ["b"]
    assert cli.main(program, ["alpha", "--help"]) == 0 and ran == ["b"]
    assert capsys.readouterr().out.startswith("usage: prog a [key=value ...]\n\nDoes a.\n")
    assert cli.main(program, []) == 2 and cli.main(program, ["--help"]) == 0
    assert "  alpha  the first\n" in capsys.readouterr().out
    assert cli.main(program, ["alhpa"]) == 2
    assert capsys.readouterr().err == "error: unknown command alhpa: did you mean alpha?\n"


PROGRAM = """
import signal, sys, time
from dataclasses import dataclass
from diamond_gym import cli

@dataclass
class Settings:
    lines: int = cli.option(1, "lines to print; a policy is called π")

def run(settings):
    for _ in range(settings.lines):
        print("line " * 20)
    print("ready", flush=True)
    time.sleep(30 if settings.lines == 1 else 0)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.exit(cli.main(cli.Command("prog", "Prints π.", Settings, run)))
"""


def started(*arguments, **environment):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    env = {**os.environ, "PYTHONPATH": os.getcwd(), **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, preexec_fn=_heed_hang_ups, **pipes)


def _heed_hang_ups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore them, as nohup does


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_help_under_any_encoding(encoding):
    process = started("--help", PYTHONIOENCODING=encoding)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"") and b"called " in output


def test_a_broken_pipe_is_quiet():
    process = started("lines=50000")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_signals(number, code):
    process = started()
    assert process.stdout.readline() and process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert process.wait(60) == code and process.stderr.read() == b""
    process.stdout.close()
