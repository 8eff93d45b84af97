"""Writes what sentence-transformers gives for a few texts, for our tests.

For development only; needs CPU torch and sentence-transformers, and runs
without this package:

  python experiments/dev/make_minilm_fixture.py MODEL_FOLDER \
      tests/models/minilm_fixture.npz

The file holds `texts` [n], `tokens` [n, L] int32, `full` [n, 384] float32 of
all six layers and `two` [n, 384] of the first two, mean pooled, normalised.
"""

import sys

import numpy as np
import sentence_transformers
import torch

TEXTS = (
    'dog',
    'A dog is a domesticated descendant of the wolf.',
    'entity: that which is perceived or known or inferred to have its own '
    'distinct existence (living or nonliving)',
    'The quick brown fox jumps over the lazy dog, again and again!',
    'run: move fast by using one\'s feet, with one foot off the ground at any '
    'given time',
    'Ünïcödé and 日本 and emoji 🙂 are tokens too.',
    'retrieval of passages from a large corpus by dense vectors, trained with '
    'hard negatives that come from remembered, and therefore stale, embeddings '
    'of all targets; the longest text here, so that the others are padded a '
    'good deal when they stand in one batch with it, 1 2 3 4 5 6 7 8 9 10',
    '',
)


def main(folder, out):
  torch.manual_seed(0)
  model = sentence_transformers.SentenceTransformer(folder, device='cpu')
  model.max_seq_length = 128
  encode = lambda: model.encode(
      list(TEXTS), batch_size=len(TEXTS), convert_to_numpy=True,
      normalize_embeddings=True)
  full = encode()
  tokens = np.asarray(model.tokenizer(
      list(TEXTS), padding='longest', truncation=True,
      max_length=128)['input_ids'], np.int32)
  bert = model[0].auto_model
  bert.encoder.layer = bert.encoder.layer[:2]
  two = encode()
  np.savez_compressed(out, texts=np.array(TEXTS), tokens=tokens, full=full,
                      two=two)
  print(f'{out}: {tokens.shape} tokens, {full.shape} and {two.shape}')


if __name__ == '__main__':
  main(*sys.argv[1:])
