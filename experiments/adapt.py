r"""Fits adapters to frozen embeddings and measures what they gain.

  python -m experiments.embed --config=configs/minilm.py --out=embeddings/minilm
  python -m experiments.adapt --embeddings=embeddings/minilm --out=adapted

No backward pass and no model: --embeddings is a folder of vectors from
anywhere (retrieval_jax/data/embeddings.py says which files). Constants (lambda,
k and w of PEFA, gamma of NUDGE) are chosen on the dev split, in one pass over a
grid; the test split is looked at once, with the chosen ones. Writes

  OUT/METHOD/            an index, for experiments.search and .evaluate --index
  OUT/results.json, results.md, grid.csv, recall_over_lambda.png
"""

import dataclasses
import os

from absl import app
from absl import flags
import rich.console
import rich.markdown

from experiments import process
from retrieval_jax import adapters
from retrieval_jax.jobs import adapt


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  default = {field.name: field.default
             for field in dataclasses.fields(adapt.Options)}
  of = dict(flag_values=values)
  string = lambda name, text: flags.DEFINE_string(
      name, default[name], text, **of)
  listed = lambda name, text: flags.DEFINE_list(
      name, [str(value) for value in default[name]], text, **of)
  number = lambda name, text, least=1: flags.DEFINE_integer(
      name, default[name], text, lower_bound=least, **of)
  process.DEFINE_path('embeddings', None, 'Folder of targets, queries, ids and '
                      'qrels.', **of)
  process.DEFINE_path('out', None, 'Folder to write; must not exist.', **of)
  process.DEFINE_path('qrels', None, 'Folder of SPLIT.tsv; EMBEDDINGS/qrels by '
                      'default.', **of)
  string('train_split', 'Split to fit to.')
  string('dev_split', "Split to choose constants on; '': none.")
  string('test_split', 'Split to report.')
  flags.DEFINE_float(
      'dev_share', default['dev_share'], "Without a dev split "
      "(--dev_split=''): share of the training queries that are used, see "
      '--share, held out to choose on; the chosen adapter is fitted to all '
      'that are used.', **of)
  listed('method', f'Which of {", ".join(adapters.ADAPTERS)}.')
  process.DEFINE_paths(
      'pairs', [], 'Extra pairs to fit to: pairs-NAME.npy of the folder as '
      'experiments.embed --pairs makes them, or FILE.npy (.npz, .safetensors) '
      'beside FILE_target_ids.txt.', **of)
  flags.DEFINE_float('share', default['share'],
                     'Share of the training queries to use, at random; a '
                     'dev split is used whole.', **of)
  flags.DEFINE_bool('normalize', default['normalize'],
                    'Divide all vectors by their norms.', **of)
  listed('lambdas', "Grid of PEFA's lambda.")
  listed('neighbours', "Grid of PEFA-XL's k.")
  listed('normalisations', "Grid of PEFA-XL's w: mean (1/k), sum (1).")
  listed('gammas', "Grid of NUDGE-N's gamma.")
  flags.DEFINE_bool(
      'keep_uncovered', default['keep_uncovered'], 'PEFA-XS: targets without a '
      'training query keep their full row instead of lambda times it.', **of)
  string('missing', "PEFA-XL: the encoder's score of targets that only "
         'training queries found, zero or exact.')
  number('depth', 'PEFA-XL: targets taken from the encoder.')
  string('knn', 'Search of training queries: exact, or hnsw (needs faiss).')
  string('choose_by', 'Measure that constants are chosen by, on dev. R@100, '
         "PEFA's own, may rise at the cost of the first ranks.")
  number('max_dev_queries', 'Most dev queries to choose on, drawn at random.',
         None)
  number('chunk_rows', 'Targets scored at a time on each device.', 64)
  number('num_devices', 'Devices to use; all by default.')
  number('seed', 'Of --share, --dev_share and the choice of dev queries.', None)
  process.DEFINE_lenient(**of)
  flags.mark_flags_as_required(['embeddings', 'out'], **of)
  process.DEFINE_processes(values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script(values):
    given = {field.name: getattr(values, field.name)
             for field in dataclasses.fields(adapt.Options)}
    for option, kind in (('lambdas', float), ('neighbours', int),
                         ('gammas', float)):
      given[option] = _numbers(option, given[option], kind)
    console = rich.console.Console(stderr=True)
    adapt.run(adapt.Options(**given), say=lambda line: console.print(
        line, highlight=False, markup=False))
    with open(os.path.join(values.out, 'results.md'), encoding='utf-8') as f:
      rich.console.Console(width=110).print(rich.markdown.Markdown(f.read()))


def _numbers(option, texts, kind):
  try:
    return tuple(kind(text) for text in texts)
  except ValueError:
    raise ValueError(
        f'--{option}={",".join(texts)}: expected '
        f'{"whole " if kind is int else ""}numbers separated by commas.'
    ) from None


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
