"""Answers are compared as SQuAD and DPR compare them."""

import itertools
import random
import sys
import unicodedata

import numpy as np
import pytest

from retrieval_jax.evaluation import answers
from retrieval_jax.evaluation import runs

_WORDS = ('the', 'a', 'New', 'york', 'York,', 'U.S.', 'us', '"york"', 'x-york',
          'the-new', '-', '.&', 'ÉTÉ', 'été', '12', '1.2', '\n', 'İ', '–')
# Whose lower case, or that of what they are made of, depends on the neighbours.
_ODD = ('ΑΣ.Β', 'ας', 'ασ', 'Σ', '\u2260', '=', 'K\u212a', 'kk', '\u037e', ';',
        'x;y')


def has_answer_by_dpr(text, wanted):
  """`has_answer` as DPR's code computes it, with the package regex."""
  regex = pytest.importorskip('regex')
  pattern = regex.compile(
      r'([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])',
      flags=regex.IGNORECASE + regex.UNICODE + regex.MULTILINE)

  def words(text):
    text = unicodedata.normalize('NFD', text)
    return [found.group().lower() for found in pattern.finditer(text)]

  text = words(text)
  for answer in map(words, wanted):
    for i in range(len(text) - len(answer) + 1):
      if answer == text[i:i + len(answer)]:
        return True
  return False


def spans_one_by_one(wanted, text):
  """`spans` by trying every two word edges."""
  inside = [c.isalnum() for c in text]
  starts = [i for i in range(len(text)) if inside[i] and (
      not i or not inside[i - 1])]
  stops = [i for i in range(1, len(text) + 1) if inside[i - 1] and (
      i == len(text) or not inside[i])]
  wanted = {answers.normalize(one) for one in wanted} - {''}
  article = {'a', 'an', 'the'}

  def counts(words):
    return words[-1] not in article and not set(words[:2]) <= article

  words = lambda part: [word for word in part.lower().split()
                        if any(c.isalnum() for c in word)]
  return [(i, j) for i, j in itertools.product(starts, stops)
          if i < j and answers.normalize(text[i:j]) in wanted
          and counts(words(text[i:j]))]


def test_normalization_is_that_of_squad():
  assert answers.normalize(' The  U.S. "Another"\tan A-team ') == (
      'us another ateam')
  assert answers.normalize('The') == ''
  assert answers.normalize('Theatre “x”') == 'theatre “x”'


def test_tokens_match_as_the_published_measures_have_it():
  """By SQuAD's normalisation not what is written together, by DPR's words."""
  for apart, together in (
      ('Jean - Paul', 'Jean-Paul'), ('U . S .', 'U.S.'), ("men 's", "men's")):
    assert answers.exact_match(together, [apart]) == 0
    assert answers.spans([apart], f'by {together} alone') == []
    assert answers.exact_match(apart, [apart]) == 1
    assert answers.spans([apart], f'by {apart} alone') != []
    assert answers.has_answer(f'by {together} alone', [apart])
    assert answers.has_answer(f'by {apart} alone', [together])
  assert answers.exact_match('Jean Paul', ['Jean - Paul']) == 1
  assert answers.exact_match('8 , 738', ['8,738']) == 0


def test_exact_match_is_of_any_answer():
  assert answers.exact_match('the Beatles!', ['Stones', 'Beatles']) == 1
  assert answers.exact_match('Beatles band', ['Stones', 'Beatles']) == 0
  assert answers.exact_match('x', []) == 0


def test_f1_is_the_highest_over_answers():
  # Two of the words are common, of 3 predicted and of 2 or 4 wanted.
  assert answers.f1('big new york', ['New York']) == pytest.approx(4 / 5)
  assert answers.f1('big new york', ['x', 'new york of old', 'New York']) == (
      pytest.approx(4 / 5))
  assert answers.f1('york york', ['york']) == pytest.approx(2 / 3)
  assert answers.f1('x', ['y']) == 0
  assert answers.f1('the', ['x']) == 0
  assert answers.f1('x', []) == 0


def test_a_passage_has_words_not_parts_of_them():
  assert answers.has_answer('Born in NEW YORK-based', ['new york'])
  assert not answers.has_answer('catalogue', ['cat'])
  assert answers.has_answer('it costs $5 (five)', ['$5', 'x'])
  assert not answers.has_answer('it costs 5', ['$5'])
  assert answers.has_answer('cafe\u0301 au lait', ['caf\u00e9'])
  assert not answers.has_answer('cafe', ['caf\u00e9'])
  assert not answers.has_answer('anything', ['', ' \n'])


def test_has_answer_agrees_with_dpr():
  rng = random.Random(0)
  found = 0
  for words in (_WORDS, _ODD):
    for _ in range(300):
      text = ' '.join(rng.choices(words, k=6))
      wanted = [' '.join(rng.choices(words, k=rng.randint(1, 2)))
                for _ in range(2)]
      expected = has_answer_by_dpr(text, [one for one in wanted if one.strip()])
      assert answers.has_answer(text, wanted) == expected, (text, wanted)
      found += expected
  assert 100 < found < 500


def test_holders_are_found_for_all_results_of_a_batch():
  texts = ['in new  YORK, today', 'New Yorkers', '7th', 'at 7.', '']
  find = answers.holders(
      {4: ['New York', '--'], 2: [], 3: ['7', 'yorkers']}.__getitem__, texts)
  rows = np.array([[0, 1, 2, 3, 4, -1], [3, 0, 1, 1, -1, -1],
                   [3, 3, 1, 0, 2, -1]])
  np.testing.assert_array_equal(find(np.array([4, 2, 3]), rows), [
      [1, 0, 0, 0, 0, 0], [0] * 6, [1, 1, 1, 0, 0, 0]])
  assert find(np.array([], int), np.zeros((0, 3), int)).shape == (0, 3)


def test_words_are_of_the_categories_that_dpr_names():
  letters, signs, blanks = [], [], []
  for code in range(sys.maxunicode + 1):
    kind = unicodedata.category(chr(code))[0]
    if kind in 'LNM':
      letters.append(chr(code))
    else:
      (blanks if kind in 'ZC' else signs).append(chr(code))
  pattern = answers._words_or_signs()
  assert pattern.findall(''.join(letters)) == [''.join(letters)]
  assert pattern.findall(''.join(signs)) == signs
  assert pattern.findall(''.join(blanks)) == []


def test_spans_count_characters_of_the_text():
  text = 'İn the U.S., "New  York" (new-york) is The New\nYork.'
  found = answers.spans(['new york', 'US', 'newyork'], text)
  assert [text[i:j] for i, j in found] == [
      'the U.S', 'U.S', 'New  York', 'new-york', 'The New\nYork', 'New\nYork']
  assert answers.spans(['the', '', '!'], text) == []
  # Occurrences may overlap, and answers may agree on one.
  assert answers.spans(['ha ha', 'Ha, ha'], 'ha ha ha') == [(0, 5), (3, 8)]


def test_spans_are_all_that_equal_an_answer():
  rng = random.Random(0)
  found = 0
  for _ in range(500):
    text = ' '.join(rng.choices(_WORDS, k=12))
    wanted = [' '.join(rng.choices(_WORDS[:-2], k=rng.randint(1, 3)))
              for _ in range(2)]
    expected = spans_one_by_one(wanted, text)
    assert answers.spans(wanted, text) == expected, (text, wanted)
    found += bool(expected)
  assert 50 < found < 500


def make_run(**ids):
  return runs.Run(tuple(ids), np.array(list(ids.values()), object),
                  np.zeros([len(ids), 3]))


def test_answer_at_k_is_the_share_of_answered_questions():
  texts = {'1': 'nothing', '2': 'a Cat', '3': 'cat dog'}
  run = make_run(q1=['1', '2', '3'], q2=['1', '3', ''], q3=['1', '', ''],
                 other=['2', '1', '3'])
  wanted = {'q1': ['cat'], 'q2': ['x', 'dog'], 'q3': ['cat'], 'lost': ['cat']}
  assert answers.first_ranks(run, wanted, texts.get) == {
      'q1': 2, 'q2': 2, 'q3': None}
  names = ('Answer@1', 'Answer@2', 'Answer@3')
  assert answers.evaluate(run, wanted, texts.get, names) == {
      'Answer@1': 0, 'Answer@2': 2 / 4, 'Answer@3': 2 / 4}


def test_what_cannot_be_measured_is_named():
  run = make_run(q1=['1', '2', '3'])
  with pytest.raises(ValueError, match='answers of at least one question'):
    answers.evaluate(run, {}, str)
  with pytest.raises(ValueError, match="got 'Answer@0'"):
    answers.evaluate(run, {'q1': ['x']}, str, ['Answer@0'])
