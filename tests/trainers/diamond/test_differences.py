"""The page on differences from the published code: its table has the current values."""

import pytest

from diamond_gym.errors import InvalidInputError
from tests import published
from trainers.diamond.config import TrainerConfig, flat, parse


def test_every_published_key_is_the_same_or_says_why_not():
    rows = published.rows()
    assert len(rows) == 121
    assert [row.key for row in rows if not row.verdict] == []


def test_no_reason_is_given_for_what_is_the_same():
    ours = flat(TrainerConfig())
    needless = [
        key
        for key, (our_key, why) in published.OTHERWISE.items()
        if our_key is not None and why and ours[our_key] == published.published()[key]
    ]
    assert needless == []
    unknown = published.OTHERWISE.keys() - published.published().keys()
    assert not unknown


def test_the_page_has_the_table_of_now():
    page = published.PAGE.read_text()
    assert page == published.written(page), "python -m tests.published writes it again"


@pytest.mark.parametrize("key", sorted(published.published().keys() - flat(TrainerConfig()).keys()))
def test_every_published_key_is_understood_or_refused_with_a_reason(key):
    value = published.published()[key]
    try:
        parse([f"{key}={'null' if value is None else value}"])
    except InvalidInputError as error:
        assert f"{key} has no meaning here: " in str(error)
