"""Tests of prepared datasets."""

import os

from absl.testing import absltest
import numpy as np

from retrieval_jax.data import copies
from retrieval_jax.data import dataset
from retrieval_jax.data import errors
from retrieval_jax.data import subset
from retrieval_jax.data.readers import beir
from tests.data import fakes


class QrelsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.qrels = dataset.Qrels.from_triples(
        [[5, 1, 1], [2, 9, 3], [2, 0, 1], [2, 4, 0], [2, 3, -1], [7, 7, 0]])

  def test_is_sorted_by_query_then_target(self):
    np.testing.assert_array_equal(self.qrels.query_rows, [2, 2, 2, 2, 5, 7])
    np.testing.assert_array_equal(self.qrels.corpus_rows, [0, 3, 4, 9, 1, 7])
    np.testing.assert_array_equal(self.qrels.grades, [1, -1, 0, 3, 1, 0])

  def test_only_grades_above_zero_are_positive(self):
    np.testing.assert_array_equal(self.qrels.queries(), [2, 5])
    np.testing.assert_array_equal(self.qrels.positives(2), [0, 9])
    np.testing.assert_array_equal(self.qrels.positives(5), [1])
    for absent in (0, 3, 7, 100):
      self.assertEmpty(self.qrels.positives(absent))

  def test_padding_is_as_wide_as_the_split_needs(self):
    np.testing.assert_array_equal(
        self.qrels.padded_positives(np.array([5, 7, 2, 100])),
        [[1, -1], [-1, -1], [0, 9], [-1, -1]])
    self.assertEqual(self.qrels.padded_positives(np.array([5])).shape, (1, 2))
    self.assertEqual(self.qrels.padded_positives(np.array([5])).dtype,
                     np.int32)

  def test_known_adds_negative_grades_but_not_zero(self):
    np.testing.assert_array_equal(
        self.qrels.padded_known(np.array([2, 5])), [[0, 3, 9], [1, -1, -1]])

  def test_no_judgements_at_all_pad_to_one_column(self):
    empty = dataset.Qrels.from_triples([])
    np.testing.assert_array_equal(empty.padded_positives(np.array([0])),
                                  [[-1]])


  def test_of_a_text_a_positive_counts_before_junk_and_that_before_nothing(
      self):
    grades = [[0, 0, 0], [0, 2, -1], [0, 5, 0],  # of one text: junk
              [1, 2, 1], [1, 0, -1], [1, 5, 3], [1, 6, 2],  # and positive
              [2, 4, 0], [2, 1, 1], [2, 6, 1]]
    found = dataset.Qrels.from_triples(grades).by_text(COPIES)
    np.testing.assert_array_equal(
        np.stack([found.query_rows, found.corpus_rows, found.grades], axis=1),
        [[0, 0, -1], [1, 0, 3], [1, 1, 2], [2, 1, 1], [2, 4, 0]])
    self.assertIs(self.qrels.by_text(copies.NONE), self.qrels)


COPIES = copies.Copies(np.int32([2, 5, 6]), np.int32([0, 0, 1]))


class CandidatesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    nan = np.float32(np.nan)
    self.candidates = dataset.CandidatePairs(
        np.array([2, 2, 2, 5, 5]), np.array([0, 3, 8, 1, 2]),
        np.array([4, 3, nan, nan, -1], np.float32))
    self.qrels = dataset.Qrels.from_triples(
        [[5, 1, 1], [2, 9, 3], [2, 0, 1], [2, 8, 0], [2, 3, -1], [7, 2, 1]])

  def test_relevant_and_junk_targets_are_no_negatives(self):
    negatives = self.candidates.negatives(self.qrels)
    np.testing.assert_array_equal(negatives.query_rows, [2, 5])
    np.testing.assert_array_equal(negatives.corpus_rows, [8, 2])
    np.testing.assert_array_equal(negatives.scores, [np.nan, -1])
    positives = self.candidates.positives(self.qrels)
    np.testing.assert_array_equal(positives.query_rows, [2, 5])
    np.testing.assert_array_equal(positives.corpus_rows, [0, 1])

  def test_of_a_text_the_first_candidate_with_a_score_counts(self):
    nan = np.float32(np.nan)
    found = dataset.CandidatePairs(
        np.array([0, 0, 0, 0, 1, 1]), np.array([0, 2, 4, 5, 2, 6]),
        np.array([nan, 4, 3, 5, nan, 1], np.float32)).by_text(COPIES)
    np.testing.assert_array_equal(found.query_rows, [0, 0, 1, 1])
    np.testing.assert_array_equal(found.corpus_rows, [0, 4, 0, 1])
    np.testing.assert_array_equal(found.scores, [4, 3, nan, 1])
    self.assertIs(self.candidates.by_text(copies.NONE), self.candidates)

  def test_places_are_padded(self):
    np.testing.assert_array_equal(
        self.candidates.padded_places(np.array([5, 3, 2])),
        [[3, 4, -1], [-1, -1, -1], [0, 1, 2]])

  def test_scores_are_those_of_the_pair(self):
    np.testing.assert_array_equal(
        self.candidates.scores_of(np.array([2, 5, 2, 5, 9]),
                                  np.array([3, 2, 1, 1, 0])),
        [3, -1, np.nan, np.nan, np.nan])
    none = self.candidates.positives(dataset.Qrels.from_triples([]))
    np.testing.assert_array_equal(
        none.scores_of(np.array([2]), np.array([3])), [np.nan])


class PrepareTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.source = fakes.write_beir(self.create_tempdir().full_path)
    self.cache = self.create_tempdir().full_path

  def prepare(self):
    return dataset.prepare(beir.BeirReader(self.source), self.cache,
                           progress=False)

  def test_holds_what_the_reader_yields(self):
    data = self.prepare()
    reader = beir.BeirReader(self.source)
    self.assertEqual(list(zip(data.corpus_ids, data.corpus_texts)),
                     list(reader.corpus()))
    self.assertEqual(list(zip(data.query_ids, data.query_texts)),
                     list(reader.queries()))
    for split in reader.splits:
      qrels = data.qrels[split]
      self.assertCountEqual(
          [(data.query_ids[q], data.corpus_ids[c], g) for q, c, g in zip(
              qrels.query_rows, qrels.corpus_rows, qrels.grades)],
          [line[:3] for line in reader.qrels(split)])

  def test_holds_the_candidates_sorted_and_once(self):
    self.assertEmpty(self.prepare().candidates)
    fakes.write_candidates(self.source)
    path = os.path.join(self.source, 'candidates', 'train.tsv')
    with open(path, 'a', encoding='utf-8') as file:
      # What stood there before, and a pair that stood there with its score.
      file.write('q1\td1\t7\nq 2\td1\t\nq1\td4\t\n')
    data = self.prepare()
    self.assertEqual(list(data.candidates), ['train'])
    candidates = data.candidates['train']
    self.assertCountEqual(
        [(data.query_ids[q], data.corpus_ids[c], None if np.isnan(s) else s)
         for q, c, s in zip(candidates.query_rows, candidates.corpus_rows,
                            candidates.scores)], fakes.CANDIDATES)
    order = np.lexsort((candidates.corpus_rows, candidates.query_rows))
    np.testing.assert_array_equal(order, np.arange(4))

  def test_the_fingerprint_covers_candidates(self):
    fingerprints = [self.prepare().fingerprint]
    fakes.write_candidates(self.source)
    fingerprints.append(self.prepare().fingerprint)
    path = os.path.join(self.source, 'candidates', 'train.tsv')
    fakes.write(path, 'q1\td4\t1\n')
    fingerprints.append(self.prepare().fingerprint)
    self.assertLen(set(fingerprints), 3)

  def test_a_subset_keeps_the_candidates_of_what_it_keeps(self):
    fakes.write_candidates(self.source)
    reader = subset.Subset(beir.BeirReader(self.source), 3)
    targets = {name for name, _ in reader.corpus()}
    queries = {name for name, _ in reader.queries()}
    wanted = [line for line in fakes.CANDIDATES
              if line[0] in queries and line[1] in targets]
    self.assertNotEmpty(wanted)
    self.assertLess(len(wanted), len(fakes.CANDIDATES))
    self.assertEqual(
        [line[:3] for line in reader.candidates('train')], wanted)

  def test_a_subset_knows_the_lines_of_what_it_keeps(self):
    path = os.path.join(self.source, 'corpus.jsonl')
    reader = subset.Subset(beir.BeirReader(self.source), 2)
    kept = [name for name, _ in reader.corpus()]
    names = [name for name, *_ in fakes.CORPUS]
    self.assertBetween(len(kept), 1, len(names) - 1)
    self.assertEqual(
        [reader.where('corpus', row) for row in range(len(kept))],
        [f'{path}:{names.index(name) + 1}' for name in kept])
    line = fakes.jsonl([{'_id': kept[-1], 'text': 'again'}])
    with open(path, 'a', encoding='utf-8') as file:
      file.write(line)
    with self.assertRaisesRegex(
        ValueError, f'corpus.jsonl:5: id {kept[-1]!r}'):
      dataset.prepare(subset.Subset(beir.BeirReader(self.source), 3),
                      self.cache, progress=False)

  def test_a_subset_is_refused_for_what_it_does_not_keep(self):
    make = lambda: subset.Subset(beir.BeirReader(self.source), 1)
    kept = {name for name, _ in make().corpus()}
    gone = next(i for i, (name, *_) in enumerate(fakes.CORPUS)
                if name not in kept)
    whole = {}
    for name in ('corpus.jsonl', 'queries.jsonl', 'qrels/train.tsv'):
      with open(os.path.join(self.source, name), encoding='utf-8') as file:
        whole[name] = file.read()
    for name, line, message in (
        ('corpus.jsonl', fakes.jsonl([
            {'_id': fakes.CORPUS[gone][0], 'text': 'again'}]),
         f'corpus.jsonl:5: id .* occurs again .*corpus.jsonl:{gone + 1}'),
        ('queries.jsonl', '{"_id": "q1", "text": "again"}\n',
         "queries.jsonl:4: id 'q1' occurs again .*queries.jsonl:1"),
        ('qrels/train.tsv', '\nq1\tgone\t1\n',
         "train.tsv:7: id 'gone' is not in the corpus"),
        ('qrels/train.tsv', f'\ngone\t{fakes.CORPUS[gone][0]}\t1\n',
         "train.tsv:7: id 'gone' is not in the queries")):
      fakes.write(os.path.join(self.source, name), whole[name] + line)
      with self.assertRaisesRegex(errors.DataError, message):
        dataset.prepare(make(), self.cache, progress=False)
      fakes.write(os.path.join(self.source, name), whole[name])
    fakes.write(os.path.join(self.source, 'candidates', 'train.tsv'),
                f'{fakes.QUERIES[0][0]}\tgone\t1\n')
    with self.assertRaisesRegex(
        errors.DataError, "candidates/train.tsv:1: id 'gone' is not in the c"):
      list(make().candidates('train'))

  def test_ids_that_look_the_same_stay_apart_with_a_warning(self):
    names = ['é', 'e\u0301', 'a b', 'ab', 'd1']
    fakes.write(os.path.join(self.source, 'corpus.jsonl'), fakes.jsonl(
        {'_id': name, 'text': ascii(name)} for name in names))
    for split in ('train', 'test'):
      fakes.write(os.path.join(self.source, 'qrels', f'{split}.tsv'),
                  'q1\te\u0301\t1\n')
    with self.assertWarnsRegex(
        UserWarning, r"two ids of the corpus look the same .*: '\\xe9' and "
        r"'e\\u0301'"):
      prepared = self.prepare()
    self.assertEqual(list(prepared.corpus_ids), names)
    self.assertEqual(prepared.qrels['train'].corpus_rows.tolist(), [1])
    other = fakes.jsonl({'_id': name, 'text': 'x'}
                        for name in ('a', 'ab', 'b\u200b', 'b'))
    fakes.write(os.path.join(self.source, 'queries.jsonl'), other)
    for split in ('train', 'test'):
      fakes.write(os.path.join(self.source, 'qrels', f'{split}.tsv'),
                  'ab\te\u0301\t1\n')
    with self.assertWarnsRegex(
        UserWarning, r"of the queries look the same .*: 'b' and 'b\\u200b'"):
      self.prepare()

  def test_is_prepared_once(self):
    first = self.prepare()
    mark = os.path.join(first.folder, 'dataset.json')
    before = os.stat(mark).st_mtime_ns
    self.assertEqual(self.prepare().folder, first.folder)
    self.assertEqual(os.stat(mark).st_mtime_ns, before)
    [folder] = os.listdir(self.cache)
    self.assertStartsWith(folder, first.fingerprint)

  def test_the_fingerprint_of_the_corpus_follows_its_order_and_no_more(self):
    first = self.prepare()
    path = os.path.join(self.source, 'queries.jsonl')
    with open(path, encoding='utf-8') as file:
      text = file.read()
    fakes.write(path, text + '\n')  # a blank line
    second = self.prepare()
    self.assertNotEqual(first.fingerprint, second.fingerprint)
    self.assertEqual(first.corpus_fingerprint, second.corpus_fingerprint)
    path = os.path.join(self.source, 'corpus.jsonl')
    with open(path, encoding='utf-8') as file:
      lines = file.read().splitlines(keepends=True)
    fakes.write(path, ''.join(lines[::-1]))
    self.assertNotEqual(
        self.prepare().corpus_fingerprint, first.corpus_fingerprint)

  def test_equal_size_and_time_do_not_hide_a_change(self):
    path = os.path.join(self.source, 'corpus.jsonl')
    before, first = os.stat(path), self.prepare()
    with open(path, encoding='utf-8') as file:
      text = file.read()
    fakes.write(path, text.replace('first', 'FIRST'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    self.assertEqual(os.stat(path).st_size, before.st_size)
    second = self.prepare()
    self.assertNotEqual(first.fingerprint, second.fingerprint)
    self.assertEqual(second.corpus_texts[0], 'A title the FIRST text')

  def test_a_new_split_is_a_new_dataset(self):
    first = self.prepare()
    fakes.write(os.path.join(self.source, 'qrels', 'dev.tsv'), 'q1\td1\t1\n')
    self.assertNotEqual(self.prepare().fingerprint, first.fingerprint)


if __name__ == '__main__':
  absltest.main()
