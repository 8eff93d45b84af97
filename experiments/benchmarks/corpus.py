r"""What a large corpus needs: prepared, opened again, embedded and searched.

  python -m experiments.benchmarks.corpus --num_rows=1000000 \
      --num_rows=10000000 --folder=/tmp/corpus

Passages are --words of a vocabulary of 30,000, drawn as Zipf has them, in a
folder in BEIR layout; a thousand of them, cut short, are the queries. Then, in
this process,

  prepare   reads, checks and tokenises them, as the first run over new data
  open      does the same again, as every later run
  evaluate  embeds them by a small random encoder (one layer of width 32),
            searches for the queries and measures

Peak bytes are those of the process at its largest in that phase, less what it
held before all of them; mapped files count as far as they are in memory. Linux
only.
"""

import os
import sys
import tempfile
import time

from absl import app
from absl import flags
import numpy as np

from configs import base
from experiments import process
from experiments.benchmarks import memory
from retrieval_jax import trained
from retrieval_jax.jobs import evaluate

_VOCABULARY, _QUERIES, _AT_ONCE = 30_000, 1000, 100_000


def define_flags(values):
  """Defines the flags of this script."""
  flags.DEFINE_multi_integer(
      'num_rows', [1_000_000], 'Passages; may be repeated.',
      lower_bound=_QUERIES, flag_values=values)
  flags.DEFINE_integer('words', 16, 'Of a passage.', lower_bound=4,
                       flag_values=values)
  process.DEFINE_path(
      'folder', None, 'Folder for the data and what is prepared of it; a '
      'temporary one by default.', flag_values=values)


def write_corpus(folder, num_rows, num_words):
  """Writes a data set in BEIR layout, unless it is there."""
  done = os.path.join(folder, 'qrels', 'test.tsv')
  if os.path.exists(done):
    return
  os.makedirs(os.path.dirname(done), exist_ok=True)
  rng = np.random.default_rng(0)
  letters = np.array(list('abcdefghijklmnopqrstuvwxyz'))
  words = np.array([''.join(rng.choice(letters, rng.integers(3, 9)))
                    for _ in range(_VOCABULARY)])
  shares = 1 / np.arange(1, _VOCABULARY + 1)
  ends = np.cumsum(shares / shares.sum())
  queries = set(rng.choice(num_rows, _QUERIES, replace=False).tolist())
  path = lambda name: os.path.join(folder, name)
  with (open(path('corpus.jsonl'), 'w', encoding='utf-8') as corpus,
        open(path('queries.jsonl'), 'w', encoding='utf-8') as asked):
    for start in range(0, num_rows, _AT_ONCE):
      size = min(_AT_ONCE, num_rows - start)
      drawn = words[np.minimum(
          np.searchsorted(ends, rng.random((size, num_words))),
          _VOCABULARY - 1)]
      for row, text in enumerate(map(' '.join, drawn), start):
        corpus.write(f'{{"_id": "{row}", "text": "{text}"}}\n')
        if row in queries:
          cut = ' '.join(text.split()[:num_words // 2])
          asked.write(f'{{"_id": "q{row}", "text": "{cut}"}}\n')
  with open(done + '.part', 'w', encoding='utf-8') as judged:
    judged.write('query-id\tcorpus-id\tscore\n')
    judged.writelines(f'q{row}\t{row}\t1\n' for row in sorted(queries))
  os.replace(done + '.part', done)


def make_config(folder):
  """Returns the ConfigDict of an untrained encoder over such a folder."""
  config = base.get_config('tiny').unlock()
  config.data.source = 'beir'
  config.data.path = folder
  config.data.cache = os.path.join(folder, 'cache')
  config.data.num_targets = 0
  config.data.train_split = config.data.test_split = 'test'
  config.data.dev_split = ''
  config.data.query_length = config.data.target_length = 32
  config.tokenizer.vocab_size = _VOCABULARY
  config.encoding.buckets = (16, 24, 32)
  config.encoding.batch_tokens = 65536
  return config.lock()


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script(), tempfile.TemporaryDirectory() as temporary:
    print('| passages | phase | s | a second | peak, MB |\n'
          '| --- | --- | --- | --- | --- |', flush=True)
    for num_rows in values.num_rows:
      folder = os.path.join(values.folder or temporary, str(num_rows))
      write_corpus(folder, num_rows, values.words)
      before = memory.resident_bytes('VmRSS')

      def timed(phase, function, num_rows=num_rows, before=before):
        memory.forget_peak()
        started = time.monotonic()
        made = function()
        seconds = time.monotonic() - started
        peak = memory.resident_bytes('VmHWM') - before
        print(f'| {num_rows:,} | {phase} | {seconds:.1f} | '
              f'{num_rows / seconds:,.0f} | {peak / 1e6:,.0f} |', flush=True)
        return made

      open_it = lambda folder=folder: trained.from_config(make_config(folder))
      timed('prepare', open_it)
      retriever = timed('open', open_it)
      measures = timed('evaluate', lambda retriever=retriever: (
          evaluate.of_params(retriever.experiment, retriever.params, None,
                             ['test'])))
      print(f'{measures["test"]}', file=sys.stderr, flush=True)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
