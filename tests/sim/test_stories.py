"""Each story ends badly with the stock class, and well with ours."""

import logging

import pytest

from tests.sim.stages import OurStage, StockStage
from tests.sim.stories import EVERY, OF_FIVE, Broken, a_log_that_is_being_truncated_survives_a_kill


def told_on(kind, story, tmp_path, monkeypatch):
    names = "ABCDE" if story in OF_FIVE else "ABC"
    stage = kind(names, tmp_path, monkeypatch, batch_bytes=100,
                 journal=story is a_log_that_is_being_truncated_survives_a_kill)
    story(stage)


@pytest.mark.parametrize("story", EVERY, ids=lambda story: story.__name__)
def test_the_stock_class_breaks_the_promise(story, tmp_path, monkeypatch):
    logging.getLogger("pysyncobj").setLevel(logging.CRITICAL + 1)
    with pytest.raises(Broken):
        told_on(StockStage, story, tmp_path, monkeypatch)


@pytest.mark.parametrize("story", EVERY, ids=lambda story: story.__name__)
def test_ours_keeps_it(story, tmp_path, monkeypatch):
    told_on(OurStage, story, tmp_path, monkeypatch)
