"""Predictions are written, read and measured."""

import json

import numpy as np
import pytest

from retrieval_jax import data
from retrieval_jax import reading
from retrieval_jax.evaluation import predictions

READING = reading.Reading(
    answer='ünï', prior=np.float32([.25, .75, 0]),
    posterior=np.float32([0, 1, 0]), spans=[None, (3, 6), None],
    texts=['', 'ünï', ''], log_probs=np.float32([-np.inf, -1, -np.inf]))


def test_measures_are_means_over_all_questions():
  answers = {'q1': ['the cat'], 'q2': ['x', 'big dog'], 'q3': ['y'],
             'q4': ['z']}
  found = predictions.evaluate(
      {'q1': 'Cat', 'q2': 'dog', 'q3': '', 'other': 'z'}, answers)
  # The F1 of 1 word of 1 with 1 word of 2.
  assert found == pytest.approx({'EM': 1 / 4, 'F1': (1 + 2 / 3) / 4})
  assert predictions.evaluate({'q1': 'cat'}, answers, ['EM']) == {'EM': 1 / 4}


def test_predictions_of_other_questions_are_refused():
  for answers in ({}, {'q1': ['x']}):
    with pytest.raises(ValueError, match='1 of others; are they of the same'):
      predictions.evaluate({'q2': 'x'}, answers)


def test_what_is_written_is_read_again(tmp_path):
  path = str(tmp_path / 'dev.predictions.jsonl')
  predictions.write(path, [
      predictions.record('q"1"', 'who?', ['d1', 'd2', ''], READING),
      predictions.record('q2', 'what?', [], READING)])
  with open(path, encoding='utf-8') as f:
    first, second = map(json.loads, f)
  assert first == {
      'id': 'q"1"', 'question': 'who?', 'prediction': 'ünï', 'passages': [
          {'id': 'd1', 'prior': .25, 'posterior': 0., 'answer': '',
           'span': None},
          {'id': 'd2', 'prior': .75, 'posterior': 1., 'answer': 'ünï',
           'span': [3, 6]}]}
  assert second['passages'] == []
  assert predictions.read(path) == {'q"1"': 'ünï', 'q2': 'ünï'}


@pytest.mark.parametrize('line, message', [
    ('{"id": "a", "prediction": "y"}', ":2: question 'a' is answered further"),
    ('{"id": "b"}', ':2: field "prediction" is missing'),
    ('{"prediction": "b"}', ':2: field "id" or "_id"')])
def test_a_malformed_file_is_named(line, message, tmp_path):
  path = tmp_path / 'predictions.jsonl'
  path.write_text('{"id": "a", "prediction": "x"}\n' + line, encoding='utf-8')
  with pytest.raises(data.DataError, match=f'{path}{message}'):
    predictions.read(str(path))
