"""Answers queries with a trained run: the top passages and their scores.

  python -m experiments.search --workdir=runs/stale --query="bank: a muddy bank"
  python -m experiments.search --workdir=runs/stale            # reads stdin

Passages are shown up to 300 characters, control characters as escapes. The
corpus is embedded once per checkpoint and kept in WORKDIR/targets.
With --config=configs/minilm.py in place of a run, the encoder that it starts
from answers, and embeds the corpus anew each time. With --index=DIR, which
experiments.adapt wrote, that index is searched instead.
"""

from absl import app
from absl import flags

from experiments import process
from retrieval_jax import terminal
from retrieval_jax import trained

# Characters shown of an id, and of a query or passage.
_ID, _TEXT = 60, 300


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  process.DEFINE_path('workdir', None, 'Folder of the run.', flag_values=values)
  process.DEFINE_config(
      'Config file, in place of a run: the encoder it starts '
      'from.', flag_values=values)
  process.DEFINE_path('index', None, 'Folder of an adapted index.',
                      flag_values=values)
  flags.DEFINE_multi_string(
      'query', [], 'A query; may be repeated. Without it, standard input.',
      flag_values=values)
  flags.DEFINE_integer('k', 5, 'Passages per query.', lower_bound=1,
      flag_values=values)
  process.DEFINE_processes(values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script(values):
    retriever = trained.open_either(values.workdir, values.config)
    index = retriever.index(values.index)
    for query in values.query or process.lines('query'):
      print(f'\n{terminal.shown(query, _TEXT)}')
      [ids], [scores], [texts] = retriever.search([query], values.k, index)
      for name, score, text in zip(ids, scores, texts):
        print(f'  {score:7.4f}  {terminal.shown(name, _ID):>16}  '
              f'{terminal.shown(text, _TEXT)}')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
