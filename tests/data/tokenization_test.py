"""Tests of tokenizers and token stores."""

import dataclasses
import json
import os
import pickle
import random
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax.data import errors
from retrieval_jax.data import tokenization

TEXTS = ['the quick brown fox', 'The dog!', '', 'quick quick dogs and foxes',
         'ünseen wörds 123'] * 4


def make_tokenizer(vocab_size=90):
  return tokenization.train_tokenizer(TEXTS, vocab_size)


def write_settings(folder, **settings):
  """Writes tokenizer_config.json."""
  with open(os.path.join(folder, 'tokenizer_config.json'), 'w',
            encoding='utf-8') as file:
    json.dump(settings, file)


class TokenizerTest(parameterized.TestCase):

  def test_trained_layout(self):
    tokenizer = make_tokenizer()
    self.assertEqual(tokenizer.pad_id, 0)
    self.assertLessEqual(tokenizer.vocab_size, 90)
    tokens, lengths = tokenizer.encode_batch(['The DOG', 'the dog', ''], 6)
    self.assertEqual((tokens.dtype, tokens.shape), (np.int32, (3, 6)))
    np.testing.assert_array_equal(tokens[0], tokens[1])
    np.testing.assert_array_equal(tokens[2], [2, 3, -1, -1, -1, -1])
    self.assertEqual(lengths[2], 2)
    for row, length in zip(tokens, lengths):
      self.assertEqual((row[0], row[length - 1]), (2, 3))
      self.assertTrue((row[length:] == -1).all())

  def test_long_texts_are_cut_before_the_last_special_token(self):
    tokenizer = make_tokenizer()
    full, _ = tokenizer.encode_batch(['the quick brown fox'], 30)
    cut, lengths = tokenizer.encode_batch(['the quick brown fox'], 4)
    np.testing.assert_array_equal(cut[0], [2, *full[0, 1:3], 3])
    self.assertEqual(lengths[0], 4)

  def test_what_has_no_spaces_is_cut_into_words(self):
    letters = ''.join(random.Random(0).choices('abcde', k=250))
    cut = ' '.join([letters[:100], letters[100:200], letters[200:]])
    # The trainer must see no longer words either: its time grows with their
    # square.
    tokenizer = tokenization.train_tokenizer([letters] * 3, 60)
    self.assertEqual(
        tokenizer, tokenization.train_tokenizer([cut] * 3, 60))
    tokens, lengths = tokenizer.encode_batch([letters, cut, letters[:99]], 200)
    np.testing.assert_array_equal(tokens[0], tokens[1])
    self.assertNotIn(1, tokens)
    self.assertGreater(lengths[0], 2 * lengths[2])

  def test_thai_gives_more_than_the_unknown_token(self):
    texts = ['แมวนอนหลับอยู่บนโซฟาตลอดทั้งวันเพราะอากาศข้างนอกเย็นมาก' * 3,
             'เรือเฟอร์รี่ออกจากท่าเรือเวลาเจ็ดโมงเช้าทุกวันยกเว้นวันอาทิตย์' * 3]
    tokens, _ = tokenization.train_tokenizer(texts, 300).encode_batch(texts, 64)
    self.assertNotIn(1, tokens)
    self.assertFalse((tokens[0] == tokens[1]).all())

  def test_reading_only_the_head_of_long_texts_changes_nothing(self):
    source = random.Random(0)
    words = ['the', 'quick', 'fox', 'ünseen', ' ', '\n', 'x' * 120, 'e\u0301',
             '\u0301', '日本', '[SEP]', '##s', 'dog!']
    texts = [source.choice((' ', '')).join(
        source.choices(words, k=source.randint(0, 60))) for _ in range(300)]
    tokenizer = make_tokenizer()
    for length in (3, 5, 12, 40):
      tokens, _ = tokenizer.encode_batch(texts, length)
      with mock.patch.object(tokenization, '_HEAD', 10**6):
        np.testing.assert_array_equal(
            tokens, make_tokenizer().encode_batch(texts, length)[0])

  def test_no_texts_give_no_rows(self):
    tokens, lengths = make_tokenizer().encode_batch([], 5)
    self.assertEqual((tokens.shape, lengths.shape), ((0, 5), (0,)))

  def test_training_is_deterministic(self):
    self.assertEqual(make_tokenizer().fingerprint,
                     make_tokenizer().fingerprint)
    self.assertNotEqual(make_tokenizer().fingerprint,
                        make_tokenizer(40).fingerprint)
    # Another process has other hash seeds.
    code = ('from tests.data import tokenization_test as t; '
            'print(t.make_tokenizer().fingerprint)')
    other = subprocess.run([sys.executable, '-c', code], check=True,
                           capture_output=True, text=True, timeout=60)
    self.assertEqual(other.stdout.strip(), make_tokenizer().fingerprint)

  def test_rare_characters_and_literal_pieces_are_plain_text(self):
    tokenizer = tokenization.train_tokenizer(['abab ab cd'] * 9 + ['z'], 10)
    unknown, _ = tokenizer.encode_batch(['z', '##a'], 8)
    self.assertEqual(unknown[0, 1], 1)
    self.assertGreater(np.count_nonzero(unknown[1]), 3)  # '#', '#', 'a'
    self.assertLessEqual(tokenizer.vocab_size, 10)

  def test_saving_and_pickling_keep_everything(self):
    tokenizer = make_tokenizer()
    folder = self.create_tempdir().full_path
    tokenizer.save(folder)
    self.assertEqual(os.listdir(folder), ['tokenizer.json'])
    for copy in (tokenization.load_tokenizer(folder),
                 pickle.loads(pickle.dumps(tokenizer))):
      self.assertEqual(copy.fingerprint, tokenizer.fingerprint)
      np.testing.assert_array_equal(copy.encode_batch(TEXTS, 8)[0],
                                    tokenizer.encode_batch(TEXTS, 8)[0])

  def test_baked_in_truncation_and_padding_are_dropped(self):
    import tokenizers
    plain = make_tokenizer()
    baked = tokenizers.Tokenizer.from_str(plain.definition)
    baked.enable_truncation(3)
    baked.enable_padding(pad_id=0, pad_token='[PAD]', length=50)
    path = os.path.join(self.create_tempdir().full_path, 'tokenizer.json')
    baked.save(path)
    loaded = tokenization.load_tokenizer(path)
    self.assertEqual(loaded, plain)
    self.assertGreater(loaded.encode_batch(['the quick brown'], 40)[1][0], 3)

  def test_padding_on_the_left_is_undone(self):
    import tokenizers
    plain = make_tokenizer()
    baked = tokenizers.Tokenizer.from_str(plain.definition)
    baked.enable_padding(direction='left', pad_id=0, pad_token='[PAD]')
    folder = self.create_tempdir().full_path
    baked.save(os.path.join(folder, 'tokenizer.json'))
    write_settings(folder, padding_side='left')
    self.assertEqual(tokenization.load_tokenizer(folder), plain)

  @parameterized.parameters('tokenizer.json', 'tokenizer_config.json')
  def test_texts_that_are_cut_on_the_left_keep_their_end(self, where):
    import tokenizers
    plain = make_tokenizer()
    folder = self.create_tempdir().full_path
    if where == 'tokenizer.json':
      baked = tokenizers.Tokenizer.from_str(plain.definition)
      baked.enable_truncation(5, direction='left')
      baked.save(os.path.join(folder, where))
    else:
      plain.save(folder)
      write_settings(folder, truncation_side='left', pad_token='[PAD]')
    loaded = tokenization.load_tokenizer(folder)
    long = TEXTS[0] + ' dog' * 100
    texts = [*TEXTS, long]
    tokens, lengths = loaded.encode_batch(texts, 6)
    whole, _ = plain.encode_batch(texts, 300)
    for i, text in enumerate(whole):
      text = text[text >= 0]
      wanted = np.append(text[0], text[1:][-5:])
      np.testing.assert_array_equal(tokens[i, :lengths[i]], wanted)
    self.assertTrue((tokens[-1] >= 0).all())
    self.assertNotEqual(loaded.fingerprint, plain.fingerprint)
    again = self.create_tempdir().full_path
    loaded.save(again)
    self.assertEqual(tokenization.load_tokenizer(again), loaded)
    self.assertEqual(loaded.vocab_size, plain.vocab_size)

  def test_the_folder_says_first_on_which_side_texts_are_cut(self):
    import tokenizers
    plain = make_tokenizer()
    baked = tokenizers.Tokenizer.from_str(plain.definition)
    baked.enable_truncation(5, direction='left')
    folder = self.create_tempdir().full_path
    baked.save(os.path.join(folder, 'tokenizer.json'))
    write_settings(folder, truncation_side='right', pad_token='[PAD]')
    self.assertEqual(tokenization.load_tokenizer(folder), plain)
    write_settings(folder, truncation_side='middle')
    with self.assertRaisesRegex(
        ValueError, "truncation_side is 'middle', expected 'left' or 'right'"):
      tokenization.load_tokenizer(folder)

  def test_a_prompt_is_part_of_every_text(self):
    plain = make_tokenizer()
    prompted = dataclasses.replace(plain, prompt='the dog: ')
    for length in (4, 30):
      np.testing.assert_array_equal(
          prompted.encode_batch(TEXTS, length)[0],
          plain.encode_batch(['the dog: ' + text for text in TEXTS], length)[0])
    self.assertNotEqual(prompted.fingerprint, plain.fingerprint)
    self.assertEqual(pickle.loads(pickle.dumps(prompted)), prompted)

  def test_the_folder_says_what_pads(self):
    folder = self.create_tempdir().full_path
    make_tokenizer().save(folder)
    self.assertEqual(tokenization.load_tokenizer(folder).pad_token, '[PAD]')
    for token in ('[SEP]', {'content': '[SEP]'}):
      write_settings(folder, pad_token=token)
      loaded = tokenization.load_tokenizer(folder)
      self.assertEqual((loaded.pad_id, loaded.pad_token), (3, '[SEP]'))

  def test_errors_say_what_to_do(self):
    folder = self.create_tempdir().full_path
    with self.assertRaisesRegex(FileNotFoundError, 'train one on the corpus'):
      tokenization.load_tokenizer(folder)
    path = os.path.join(folder, 'tokenizer.json')
    with open(path, 'w', encoding='utf-8') as file:
      file.write('{}')
    with self.assertRaisesRegex(ValueError, 'expected a tokenizer.json'):
      tokenization.load_tokenizer(path)
    with self.assertRaisesRegex(ValueError, 'must exceed the 2 special'):
      make_tokenizer().encode_batch(['a'], 2)
    with self.assertRaisesRegex(ValueError, 'vocab_size=4 must exceed'):
      tokenization.train_tokenizer(TEXTS, 4)
    with self.assertRaisesRegex(ValueError, 'read twice'):
      tokenization.train_tokenizer(iter(TEXTS), 90)
    make_tokenizer().save(path)
    with self.assertRaisesRegex(ValueError, 'pad_token='):
      tokenization.load_tokenizer(path, pad_token='<none>')


class TokenizeTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.tokenizer = make_tokenizer()
    self.cache = self.create_tempdir().full_path

  def tokenize(self, texts=TEXTS, tokenizer=None, length=8, key='a'):
    return tokenization.tokenize(texts, tokenizer or self.tokenizer, length,
                                 self.cache, key, progress=False)

  def test_chunks_give_what_one_batch_gives(self):
    with mock.patch.object(tokenization, '_CHUNK', 3):
      store = self.tokenize()
    tokens, lengths = self.tokenizer.encode_batch(TEXTS, 8)
    np.testing.assert_array_equal(store[:], tokens)
    np.testing.assert_array_equal(store.lengths, lengths)
    self.assertEqual(store.tokens.dtype, np.uint16)
    self.assertIsInstance(store.tokens, np.memmap)

  def test_is_tokenised_once_per_text_tokenizer_and_length(self):
    self.tokenize()
    with mock.patch.object(tokenization, '_write_tokens') as write:
      self.tokenize()
      write.assert_not_called()
    self.tokenize(key='b')
    self.tokenize(length=9)
    self.tokenize(tokenizer=make_tokenizer(40))
    self.assertLen(os.listdir(self.cache), 4)

  def test_other_texts_under_the_same_key_are_refused(self):
    self.tokenize()
    with self.assertRaisesRegex(errors.DataError, 'key must change'):
      self.tokenize(TEXTS[:-1])

  def test_failing_leaves_nothing(self):
    with mock.patch.object(tokenization.Tokenizer, 'encode_batch',
                           side_effect=OSError('disk full')):
      with self.assertRaisesRegex(OSError, 'disk full'):
        self.tokenize()
    self.assertEmpty(os.listdir(self.cache))

  def test_no_texts(self):
    self.assertEqual(self.tokenize([]).tokens.shape, (0, 8))

  def test_indexing(self):
    store = self.tokenize()
    rows = np.array([[1, -1], [0, 1]])
    tokens = store[rows]
    self.assertEqual((tokens.dtype, tokens.shape), (np.int32, (2, 2, 8)))
    np.testing.assert_array_equal(tokens[0, 0], tokens[1, 1])
    np.testing.assert_array_equal(tokens[0, 1], [-1] * 8)
    np.testing.assert_array_equal(store[2:4], store[np.array([2, 3])])
    np.testing.assert_array_equal(
        store[3], self.tokenizer.encode_batch(TEXTS[3:4], 8)[0][0])
    for row in (-2, len(TEXTS)):
      with self.assertRaisesRegex(IndexError, 'expected -1 to 19'):
        _ = store[row]


if __name__ == '__main__':
  absltest.main()
