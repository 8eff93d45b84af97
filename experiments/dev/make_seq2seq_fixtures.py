"""Writes tiny random T5 models with decoders, and what the reference gives.

For development only; needs CPU torch and transformers, and runs without this
package:

  python experiments/dev/make_seq2seq_fixtures.py tests/models/readers

OUT/NAME is a folder as transformers saves it, with `reference.npz`: `texts`
[n, L] int32, padded with -1, `answers` [n, A] int32, likewise, `log_probs`
[n, A, V] of the next tokens, `greedy` and `beam` [n, T] int32, padded with -1,
without the start, and `beam_scores` [n], their log-probabilities. `t5` has
relu and one table for tokens and output, `t5_gated` neither.
"""

import os
import shutil
import sys

import numpy as np
import torch
import transformers

SIZES = {'vocab_size': 60, 'd_model': 32, 'd_kv': 6, 'd_ff': 40,
         'num_layers': 2, 'num_decoder_layers': 2, 'num_heads': 4,
         'decoder_start_token_id': 0}
CASES = {'t5': {}, 't5_gated': {
    'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}}
LENGTHS, ANSWER_LENGTHS, MAX_TOKENS, BEAMS = (12, 1, 7, 12), (4, 2, 5, 1), 6, 3


def padded(rows):
  made = np.full((len(rows), max(map(len, rows))), -1, np.int32)
  for mine, row in zip(made, rows):
    mine[:len(row)] = row
  return made


def make(folder, options):
  """Writes one case."""
  model = transformers.T5ForConditionalGeneration(
      transformers.T5Config(**SIZES, **options)).eval()
  with torch.no_grad():
    if options:
      model.lm_head.weight = torch.nn.Parameter(
          .3 * torch.randn(SIZES['vocab_size'], SIZES['d_model']))
    for name, parameter in model.named_parameters():
      if parameter.ndim == 1:
        parameter.add_(.2 * torch.randn_like(parameter))
      elif 'decoder' in name and 'Attention' in name:
        parameter.mul_(1.5)  # so that what was read matters
    model.lm_head.weight[1] *= 3  # so that answers end
  shutil.rmtree(folder, ignore_errors=True)
  model.save_pretrained(folder)
  random = np.random.default_rng(0)
  draw = lambda lengths: padded(
      [random.integers(2, SIZES['vocab_size'], length) for length in lengths])
  texts, answers = draw(LENGTHS), draw(ANSWER_LENGTHS)
  mask = torch.tensor(texts >= 0).long()
  inputs = torch.tensor(np.maximum(texts, 0)).long()
  before = np.pad(np.maximum(answers, 0), ((0, 0), (1, 0)))[:, :-1]
  generate = lambda **options: model.generate(
      inputs, attention_mask=mask, max_new_tokens=MAX_TOKENS, do_sample=False,
      return_dict_in_generate=True, output_scores=True, **options)

  def tokens(found):
    rows = found.sequences.numpy()[:, 1:]
    ends = [1 + int(np.argmax(row == 1)) if 1 in row else len(row)
            for row in rows]
    return padded([row[:end] for row, end in zip(rows, ends)])

  with torch.no_grad():
    log_probs = model(
        inputs, attention_mask=mask,
        decoder_input_ids=torch.tensor(before).long()).logits.log_softmax(-1)
    greedy = generate(num_beams=1)
    beam = generate(num_beams=BEAMS, length_penalty=0.)
  np.savez_compressed(
      os.path.join(folder, 'reference.npz'), texts=texts, answers=answers,
      log_probs=log_probs.numpy(), greedy=tokens(greedy), beam=tokens(beam),
      beam_scores=beam.sequences_scores.numpy())
  print(folder, tokens(greedy), tokens(beam), beam.sequences_scores)


def main(out):
  torch.manual_seed(0)
  transformers.logging.set_verbosity_error()
  for name, options in CASES.items():
    make(os.path.join(out, name), options)


if __name__ == '__main__':
  main(*sys.argv[1:])
