"""The one command line: a dataclass becomes `key=value` arguments with types, help, and one-line errors.

Example::

    @dataclass
    class Settings:
        game: str = option("Breakout", "the game")
        out: Path = option(Path("fidelity"), "folder to write")

    command = Command("python -m my.program", "What it does.", Settings, run)
    if __name__ == "__main__":
        sys.exit(main(command))

OmegaConf's structured configs convert the types; `--some-key value` is accepted for `some_key=value`. Text is
taken literally: `${...}` has no meaning, so paths may hold any character. The exit code of every program is 0
after success, 1 after a failure, 2 for a wrong argument, 130 when interrupted and 143 when terminated. Every
program accepts -v and -q.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import math
import os
import re
import select
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diamond_gym import progress, signals
from diamond_gym.errors import DiamondGymError, InvalidInputError, UnknownGameError, first_line
from diamond_gym.signals import Terminated

_T = TypeVar("_T")
_HELP = ("-h", "--help", "help")
_WIDTH, _COLUMN = 110, 28
_KINDS = {int: "an integer", float: "a number", bool: "true or false"}
_NOTHING = "null"
_LEVELS = {
    "-v": logging.DEBUG,
    "--verbose": logging.DEBUG,
    "-q": logging.WARNING,
    "--quiet": logging.WARNING,
}
_HOW_MUCH_IS_SAID = "-v says more while it works, -q less."
_log = logging.getLogger(__name__)


# --- what a key is


def option(
    default: Any,
    text: str,
    *,
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
    is_path: bool = False,
    flag: str | None = None,
    alone: str | None = None,
) -> Any:
    """Define a field of a dataclass of settings.

    Args:
        default: The default value; MISSING where the argument is required.
        text: A line of help.
        choices: The accepted texts, for the value or the items of a list.
        least: The least accepted number.
        above: Accept only finite numbers above this one.
        is_path: Whether the text may be a path, in which `~` is expanded, as in all values of type `Path`.
        flag: A short spelling, such as "-r".
        alone: The value when the key is written as a flag without one.
    """
    known = {"help": text, "choices": tuple(choices), "least": least, "above": above}
    metadata = known | {"is_path": is_path, "flag": flag, "alone": alone}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check(settings: Any) -> None:
    """Raise `InvalidInputError` unless all fields of a dataclass are accepted by their options."""
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            _check_item(f.name, item, f.metadata)


def _check_item(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if metadata.get("choices"):
        check_choice(name, value, metadata["choices"])
    if isinstance(value, int) and value.bit_length() > 63:
        raise InvalidInputError(f"{name} must be an integer below 2^63, got one of {value.bit_length()} bits")
    least, above = metadata.get("least"), metadata.get("above")
    if least is not None and not value >= least:
        raise InvalidInputError(f"{name} must be at least {least}, got {value}")
    if above is not None and not above < value < math.inf:
        raise InvalidInputError(f"{name} must be finite and above {above}, got {value}")


def check_choice(name: str, value: str, accepted: Sequence[str]) -> None:
    """Raise `InvalidInputError` unless a value is one of those accepted."""
    if value not in accepted:
        near = difflib.get_close_matches(str(value), accepted, n=1, cutoff=0.5)
        hint = f": did you mean {near[0]}?" if near else ""
        raise InvalidInputError(f"{name} must be one of {', '.join(accepted)}, got {value!r}{hint}")


def check_seed(seed: int, bits: int) -> None:
    """Raise `InvalidInputError` unless a seed is at least 0 and below 2 ** bits."""
    if not 0 <= seed < 2**bits:
        raise InvalidInputError(f"seed must be at least 0 and below 2^{bits}, got {seed}")


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the end of an error message: the known word that was probably meant, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"accepted are {', '.join(known)}"


@dataclass(frozen=True)
class Key:
    """A key of the command line.

    Attributes:
        name: The dotted name.
        kind: Type of the value, or of the items of a list.
        is_list: Whether the value is a list.
        is_optional: Whether it may be None, written null.
        default: The default; MISSING where the key is required.
        help: What it is for; may be empty.
        metadata: The arguments of `option`.
    """

    name: str
    kind: type
    is_list: bool
    is_optional: bool
    default: Any
    help: str
    metadata: Mapping[str, Any]


def keys(kind: type, prefix: str = "") -> dict[str, Key]:
    """Return the keys of a dataclass and of those inside it, by their dotted names.

    The help of a field is that of its `option`, else its line in the "Attributes" of the docstring.
    """
    found: dict[str, Key] = {}
    hints, told = typing.get_type_hints(kind), attribute_help(kind)
    for f in dataclasses.fields(kind):
        inner, is_list, is_optional = _unwrapped(hints[f.name])
        name = f"{prefix}{f.name}"
        if dataclasses.is_dataclass(inner) and not is_list:
            found |= keys(inner, f"{name}.")
            continue
        text = f.metadata.get("help") or told.get(f.name, "")
        default = f.default if f.default_factory is MISSING else f.default_factory()
        found[name] = Key(name, inner, is_list, is_optional, default, text, f.metadata)
    return found


def attribute_help(kind: type) -> dict[str, str]:
    """Return each field's text in the "Attributes" sections of a dataclass and its bases, on one line."""
    told: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", _own_docstring(cls), re.MULTILINE)
        for entry in re.split(r"\n(?=    \w)", section[1].rstrip() if section else ""):
            name, colon, text = entry.strip().partition(":")
            if colon:
                told[name] = " ".join(text.split())
    return told


def _own_docstring(cls: type) -> str:
    return textwrap.dedent("    " + (cls.__dict__.get("__doc__") or "")) + "\n"


def _unwrapped(hint: Any) -> tuple[type, bool, bool]:
    """Return the type inside `X | None` and `list[X]`, whether it is a list, and whether it may be None."""
    is_optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if is_optional:
        (hint,) = [inner for inner in typing.get_args(hint) if inner is not types.NoneType]
    is_list = typing.get_origin(hint) is list
    return (typing.get_args(hint)[0] if is_list else hint), is_list, is_optional


# --- from text to settings


def parse(
    kind: type[_T], arguments: Sequence[str], *, positional: Sequence[str] = (), rest: str | None = None
) -> _T:
    """Make a dataclass from arguments such as `["game=Breakout", "--horizon", "30"]`.

    Args:
        kind: The dataclass.
        arguments: The command line.
        positional: Keys of arguments that are neither `key=value` nor flags, in their order; the last one
            takes all that follow if it is a list.
        rest: The key of a list of text that takes every `key=value` with an unknown key as it is written.

    Raises:
        InvalidInputError: A key is unknown, missing or given twice, a value is not of the key's type, or the
            dataclass itself refuses a value.
    """
    known = keys(kind)
    values: dict[str, Any] = {}
    is_flag_of: dict[str, bool] = {}
    for name, text, is_flag in _pairs(arguments, known, positional, rest):
        if name == rest:
            values.setdefault(name, []).append(text)
            continue
        if name in values and not (is_flag and is_flag_of[name]):
            raise InvalidInputError(f"key {name} is given twice")
        values[name] = text if isinstance(text, list) else [text]
        is_flag_of[name] = is_flag
    converted = {name: _value(known[name], texts) for name, texts in values.items()}
    required = [name for name, key in known.items() if key.default is MISSING and name not in values]
    for name in (text.partition("=")[0] for text in converted.get(rest or "", [])):
        if difflib.get_close_matches(name, required, n=1):
            raise InvalidInputError(_unknown(name, known))
    return build(kind, _nested(converted))


def build(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """Make a dataclass, with those inside it, from plain values. Text is taken literally.

    Raises:
        InvalidInputError: A value is of another type, a key is unknown or missing, or a dataclass refuses a
            value.
    """
    literals = Literals()
    try:
        config = OmegaConf.merge(OmegaConf.structured(kind), literals.hidden(values))
    except OmegaConfBaseException as error:
        raise InvalidInputError(literals.shown(first_line(error))) from error
    missing = [f"{name}=..." for name in sorted(OmegaConf.missing_keys(config))]
    if missing:
        raise InvalidInputError(f"missing: {' '.join(missing)}")
    return literals.objects(config)


class Literals:
    """Texts that OmegaConf would take for references to other keys; marks replace them meanwhile."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return a mark that replaces a text."""
        self._texts.append(text)
        return f"\ue000{len(self._texts) - 1}\ue000"

    def hidden(self, value: Any) -> Any:
        """Return plain values, with marks for the texts that need them."""
        if isinstance(value, Mapping):
            return {name: self.hidden(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hidden(item) for item in value]
        if isinstance(value, str | Path) and ("${" in str(value) or str(value) == "???"):
            return type(value)(self.mark(str(value)))
        return value

    def shown(self, text: str) -> str:
        """Return a text with its marks resolved."""
        return re.sub("\ue000(\\d+)\ue000", lambda mark: self._texts[int(mark[1])], text)

    def objects(self, config: Any) -> Any:
        """Return the dataclasses of a configuration, with all marks resolved."""
        if isinstance(config, DictConfig):
            values = {str(name): self.objects(config[name]) for name in config}
            kind = OmegaConf.get_type(config)
            return kind(**values) if dataclasses.is_dataclass(kind) else values  # pyright: ignore
        if isinstance(config, ListConfig):
            return [self.objects(item) for item in config]
        return type(config)(self.shown(str(config))) if isinstance(config, str | Path) else config


def _pairs(
    arguments: Sequence[str], known: Mapping[str, Key], positional: Sequence[str], rest: str | None
) -> Iterator[tuple[str, Any, bool]]:
    """Yield each key with its text (or texts, for a list), and whether it was written as a flag."""
    left, places = list(arguments), list(positional)
    while left:
        argument = left.pop(0)
        name, equals, text = argument.partition("=")
        if re.match(r"--?[A-Za-z]", argument):
            yield *_flag(name, text if equals else None, left, known), True
        elif name in known and equals:
            yield name, text, False
        elif equals and name and rest is not None:
            yield rest, argument, False
        elif equals or (not places and re.fullmatch(r"[\w.]+", name) and name in known):
            raise InvalidInputError(_unknown(name, known) if name not in known else _as_pair(argument))
        elif not places:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
            raise InvalidInputError(_as_pair(argument) + (f": did you mean {near[0]}=...?" if near else ""))
        elif known[places[0]].is_list:
            yield places[0], [argument, *_following(left)], False
        else:
            yield places.pop(0), argument, False


def _as_pair(argument: str) -> str:
    return f"arguments are written key=value, got {argument!r}"


def _unknown(name: str, known: Mapping[str, Key]) -> str:
    suffix = [key for key in known if key.endswith(f".{name}")]
    return f"unknown key {name}: {f'did you mean {suffix[0]}?' if suffix else nearest(name, list(known))}"


def _flag(flag: str, text: str | None, left: list[str], known: Mapping[str, Key]) -> tuple[str, Any]:
    """Parse `--some-key TEXT`, `--some-key=TEXT`, `--some-bool`, `--no-some-bool` or `-s` to key and text."""
    short = {key.metadata.get("flag"): name for name, key in known.items()}
    name = short.get(flag) or flag.lstrip("-").replace("-", "_")
    negated = name.removeprefix("no_")
    if name not in known and negated in known and known[negated].kind is bool:
        return negated, "false"
    if name not in known:
        raise InvalidInputError(_unknown(name, known).replace(f"key {name}", f"flag {flag}"))
    key = known[name]
    if text is not None:
        return name, text
    if key.kind is bool and not key.is_list:
        return name, left.pop(0) if left[:1] in (["true"], ["false"]) else "true"
    if key.is_list:
        return name, _following(left) or ["[]"]
    if key.metadata.get("alone") is not None:
        has_value = left and not left[0].startswith("-") and "=" not in left[0]
        return name, left.pop(0) if has_value else key.metadata["alone"]
    if not left:
        raise InvalidInputError(f"{flag} needs a value")
    return name, left.pop(0)


def _following(left: list[str]) -> list[str]:
    """Take the arguments up to the next flag or `key=value`."""
    texts = []
    while left and not left[0].startswith("--") and "=" not in left[0]:
        texts.append(left.pop(0))
    return texts


def _value(key: Key, texts: list[str]) -> Any:
    if key.is_optional and texts == [_NOTHING]:
        return None
    if key.is_list:
        items = [item for text in texts for item in _items(text)] if len(texts) == 1 else texts
        return [_item(key, item) for item in items]
    return _item(key, texts[0])


def _items(text: str) -> list[str]:
    inner = text[1:-1] if text[:1] + text[-1:] == "[]" else text
    return [item.strip() for item in inner.split(",")] if inner.strip() else []


def _item(key: Key, text: str) -> Any:
    wrong = InvalidInputError(f"{key.name} must be {_KINDS.get(key.kind, 'text')}, got {text!r}")
    if key.kind is bool:
        if text not in ("true", "false"):
            raise wrong
        return text == "true"
    if key.kind in (int, float):
        try:
            return whole(text) if key.kind is int else float(text)
        except (ValueError, OverflowError):
            raise wrong from None
    if not text and key.metadata.get("alone") is None:
        raise InvalidInputError(f"key {key.name} needs a value")
    if key.kind is Path or key.metadata.get("is_path"):
        text = expanded(text)
    return key.kind(text)


def whole(text: str) -> int:
    """Parse an integer such as `1000`, `1_000` or `1e3`."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


def expanded(path: str) -> str:
    """Replace `~` or `~user` at the beginning of a path by the home folder; keep the rest."""
    return os.path.expanduser(path) if path.startswith("~") else path


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested dictionaries."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        *outer, last = name.split(".")
        inner = result
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return result


# --- help


def describe(kind: type) -> str:
    """Return the help of all keys, with their defaults and accepted values."""
    return "\n".join(line for key in keys(kind).values() for line in help_lines(key, key.default))


def help_lines(key: Key, value: Any) -> list[str]:
    """Return the lines of help of one key.

    Args:
        key: The key.
        value: The value shown as its default.
    """
    begin = f"  {key.name}={as_text(value)}"
    choices = key.metadata.get("choices")
    notes = [f"one of {', '.join(choices)}"] if choices else []
    notes += [key.metadata["flag"]] if key.metadata.get("flag") else []
    text = key.help + (f" ({'; '.join(notes)})" if notes else "")
    lines = textwrap.wrap(text, _WIDTH - _COLUMN, break_long_words=False) or [""]
    if len(begin) < _COLUMN - 1:
        begin, lines = f"{begin:{_COLUMN}}{lines[0]}".rstrip(), lines[1:]
    return [begin, *(" " * _COLUMN + line for line in lines if line)]


def as_text(value: Any) -> str:
    """Format a value as it is written on the command line."""
    if value is MISSING:
        return "..."
    if value is None:
        return _NOTHING
    if isinstance(value, list):
        return f"[{','.join(map(as_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- programs


@dataclass(frozen=True)
class Command:
    """A program or subcommand, which reads its settings and runs, or prints its help.

    Attributes:
        prog: How it is called, such as "python -m diamond_gym.demo".
        about: What it does, shown by the help.
        settings: A dataclass of options.
        run: Function of the settings; returns the exit code, None for 0.
        positional: See `parse`.
        rest: See `parse`.
        usage_of_arguments: How the help shows the arguments.
    """

    prog: str
    about: str
    settings: type
    run: Callable[[Any], int | None]
    positional: tuple[str, ...] = ()
    rest: str | None = None
    usage_of_arguments: str = "[key=value ...]"

    def __call__(self, arguments: Sequence[str]) -> int | None:
        """Run with these arguments, or print the help."""
        if wants_help(arguments):
            print(self.usage())
            return 0
        return self.run(parse(self.settings, arguments, positional=self.positional, rest=self.rest))

    def usage(self) -> str:
        """The help text."""
        usage = f"usage: {self.prog} {self.usage_of_arguments}".rstrip()
        about = f"{self.about.strip()}\n\n{_HOW_MUCH_IS_SAID}"
        return f"{usage}\n\n{about}\n\nkeys, with their defaults:\n{describe(self.settings)}"


@dataclass(frozen=True)
class Subcommand:
    """A subcommand, whose module is imported when it is called.

    Attributes:
        summary: A line of help.
        load: Returns the function of the arguments that follow.
    """

    summary: str
    load: Callable[[], Callable[[Sequence[str]], int | None]]


@dataclass(frozen=True)
class Commands:
    """A program with subcommands.

    Attributes:
        prog: How it is called.
        commands: The subcommands by name.
    """

    prog: str
    commands: Mapping[str, Subcommand]

    def __call__(self, arguments: Sequence[str]) -> int | None:
        """Run the subcommand that the first argument names, or print the help."""
        if not arguments or arguments[0] in _HELP:
            print(self.usage())
            return 0 if arguments else 2
        name = arguments[0]
        if name not in self.commands:
            raise InvalidInputError(f"unknown command {name}: {nearest(name, list(self.commands))}")
        return self.commands[name].load()(arguments[1:])

    def usage(self) -> str:
        """The help text."""
        width = max(map(len, self.commands))
        lines = [f"  {name:{width}}  {command.summary}" for name, command in self.commands.items()]
        commands = "\n".join(["commands (COMMAND --help tells more):", *lines, "", _HOW_MUCH_IS_SAID])
        return f"usage: {self.prog} COMMAND [key=value ...]\n\n{commands}"


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether any argument asks for help."""
    return any(argument in _HELP for argument in arguments)


def main(
    program: Callable[[Sequence[str]], int | None],
    arguments: Sequence[str] | None = None,
    *,
    process: str = "",
) -> int:
    """Run a program, print errors in one line, and return the exit code.

    Args:
        program: Function of the arguments; returns the exit code, None for 0.
        arguments: None for those of this process.
        process: Which of several processes this is, for error messages.
    """
    given, level = _verbosity(sys.argv[1:] if arguments is None else arguments)
    with _any_text_can_be_printed(), progress.shown(level), signals.handled():
        try:
            code = program(given) or 0
            sys.stdout.flush()
            return code
        except (InvalidInputError, UnknownGameError) as error:
            return _fail(error, 2, process)
        except (DiamondGymError, OSError) as error:  # such as a file that vanished or a failing disk
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                return 1
            return _fail(error, 1, process)
        except Terminated as error:
            return error.exit_code
        except KeyboardInterrupt:
            return 130


def _verbosity(arguments: Sequence[str]) -> tuple[list[str], int]:
    """Return the arguments without -v and -q, and the level of messages that they ask for.

    A lone # and what follows is left out: it is a comment copied with a command, which zsh passes on.
    """
    arguments, level = list(arguments), logging.INFO
    if "#" in arguments:
        arguments = arguments[: arguments.index("#")]
    for argument in arguments:
        level = _LEVELS.get(argument, level)
    return [argument for argument in arguments if argument not in _LEVELS], level


def _fail(error: Exception, code: int, process: str) -> int:
    _log.debug("where it happened:", exc_info=error)
    lines = [line.strip() for line in str(error).splitlines()]
    print(f"error: {process}{' '.join(filter(None, lines)) or type(error).__name__}", file=sys.stderr)
    return code


def _nobody_reads() -> bool:
    """Whether the broken pipe is this process's output; if so, stop writing to it."""
    output = sys.stdout.fileno()
    watch = select.poll()
    watch.register(output, 0)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return False
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), output)
    return True


@contextlib.contextmanager
def _any_text_can_be_printed() -> Iterator[None]:
    """Within the block, escape characters that a terminal or pipe cannot encode."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]  # pyright: ignore[reportAttributeAccessIssue]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with contextlib.suppress(BrokenPipeError):
                stream.reconfigure(errors=errors)  # pyright: ignore[reportAttributeAccessIssue]
