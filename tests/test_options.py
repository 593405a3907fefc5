"""Options of every type out of words, and one line for each way to get them wrong."""

from dataclasses import dataclass

import pytest

from diamond_gym import options
from diamond_gym.errors import InvalidInputError
from diamond_gym.options import option


@dataclass
class Options:
    name: str = option("x", "a name")
    count: int | None = option(None, "a count", int)
    rate: float = option(0.5, "a rate")
    loud: bool = option(False, "whether it is loud")

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise InvalidInputError("rate must not be negative")


def test_types_and_defaults():
    assert options.parse(Options, []) == Options("x", None, 0.5, False)
    given = ["name=a=b", "count=3", "rate=1e-3", "loud=true"]
    assert options.parse(Options, given) == Options("a=b", 3, 1e-3, True)
    assert options.parse(Options, ["count=null"]).count is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nam=a"], "unknown option 'nam': did you mean 'name'?"),
        (["xyzzy=1"], "unknown option 'xyzzy': known: name, count, rate, loud"),
        (["name"], "options are written key=value, got 'name'"),
        (["name="], "option 'name' needs a value"),
        (["rate=1", "rate=2"], "option 'rate' is given twice"),
        (["count=1.5"], "count must be an integer, got '1.5'"),
        (["rate=fast"], "rate must be a number, got 'fast'"),
        (["rate=null"], "rate must be a number, got 'null'"),
        (["loud=yes"], "loud must be true or false, got 'yes'"),
        (["rate=-1"], "rate must not be negative"),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(InvalidInputError) as error:
        options.parse(Options, arguments)
    assert str(error.value) == message


def test_help_names_every_option_and_its_default():
    assert options.describe(Options).splitlines() == [
        "  name=x                   a name",
        "  count=...                a count",
        "  rate=0.5                 a rate",
        "  loud=false               whether it is loud",
    ]
