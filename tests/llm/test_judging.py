import json
import math

import numpy as np
import pytest

from nlrewrite.llm.judging import Answered, auc, interval, judge


def test_auc_counts_pairs_by_weight_and_ties_half() -> None:
    score = np.array([0.1, 0.4, 0.4, 0.9])
    positive = np.array([False, True, False, True])
    assert auc(score, positive, np.ones(4)) == (1 + 0.5 + 1 + 1) / 4
    weight = np.array([3.0, 1, 1, 2])
    assert auc(score, positive, weight) == (1 * 3 + 0.5 * 1 * 1 + 2 * 3 + 2 * 1) / (3 * 4)
    assert math.isnan(auc(score, np.ones(4, dtype=bool), weight))


def test_auc_is_that_of_the_text_however_questions_were_drawn() -> None:
    """Half of the negatives asked about twice as often, at half the weight: nothing changes."""
    draws = np.random.default_rng(0)
    score, positive = draws.normal(size=400), draws.random(400) < 0.3
    again = np.concatenate([np.arange(400), np.arange(200)])
    weight = np.concatenate([np.full(200, 0.5), np.ones(200), np.full(200, 0.5)])
    assert auc(score[again], positive[again], weight) == pytest.approx(auc(score, positive, np.ones(400)))


def test_a_reader_that_knows_explains_all_and_one_that_knows_the_rate_explains_nothing() -> None:
    digit = np.array([0, 0, 0, 4, 9])
    weight = np.array([10.0, 10, 10, 1, 1]) / 32
    named = np.array([False, True, False, True, True])
    knows = judge([Answered(np.eye(10)[digit], digit, weight, named)] * 3)
    assert (knows.auc, knows.auc_named, knows.explained) == (1, 1, 1)
    assert knows.said_active == pytest.approx(2 / 32) and knows.truly_active == pytest.approx(2 / 32)
    flat = np.tile(np.bincount(digit, weight, minlength=10), (5, 1))
    rate = judge([Answered(flat, digit, weight, named)] * 3)
    assert rate.auc == 0.5 and abs(rate.explained) < 1e-12 and rate.said_active == pytest.approx(2 / 32)
    assert knows.auc_interval == (1, 1)


def test_the_interval_is_over_sentences_and_leaves_out_what_is_no_number() -> None:
    low, high = interval(np.array([0.6, np.nan, 0.8]), 0)
    assert low == pytest.approx(0.6) and high == pytest.approx(0.8)
    values = np.random.default_rng(1).normal(0.7, 0.1, 100)
    low, high = interval(values, 0)
    assert abs((high - low) - 2 * 1.96 * 0.01) < 0.01 and low < values.mean() < high
    assert all(math.isnan(each) for each in interval(np.array([np.nan]), 0))


def test_what_is_no_number_is_nothing_in_a_file() -> None:
    silent = judge([Answered(np.eye(10)[[0, 0]], np.zeros(2, int), np.full(2, 0.5), np.zeros(2, bool))])
    told = silent.fields()
    assert told["auc"] is None and told["auc_interval"] == [None, None] and told["sentences"] == 1
    assert json.loads(json.dumps(told, allow_nan=False)) == told
