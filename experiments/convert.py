r"""Writes data of any format that we read as a folder in BEIR layout.

  python -m experiments.convert --source=msmarco --path=msmarco --out=beir
  python -m experiments.convert --source=hf --path=NAME --out=data/mine
  python -m experiments.convert --source=wordnet --out=data/wordnet

The sources are those of --config.data.source; `beir` is one of them. OUT gets
corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv and, where the source has hard
negatives or scores, candidates/SPLIT.tsv (query-id, corpus-id, score; the last
may be empty), and where it has answers, answers/SPLIT.jsonl. A title is part of
the text already.
"""

import os

from absl import app
from absl import flags

from experiments import process
from retrieval_jax import factory
from retrieval_jax.data import beir_folder
from retrieval_jax.data import dropped as dropped_lib


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  flags.DEFINE_enum(
      'source', None, sorted(factory.READERS), 'Format of the data.',
      flag_values=values)
  process.DEFINE_path(
      'path', '', 'Folder, file or name of the data, as --config.data.path.',
      flag_values=values)
  process.DEFINE_path(
      'corpus', '', 'File or folder of passages, as --config.data.corpus.',
      flag_values=values)
  process.DEFINE_path(
      'out', None, 'Folder to write; must not exist.', flag_values=values)
  flags.DEFINE_string(
      'cache', '~/.cache/retrieval_jax', 'Where wordnet keeps its copy.',
      flag_values=values)
  process.DEFINE_lenient(flag_values=values)
  flags.mark_flags_as_required(['source', 'out'], flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script():
    if os.path.exists(values.out):
      raise ValueError(
          f'--out={values.out} exists; name a new folder or remove it.')
    reader = factory.make_reader(
        values.source, values.path, os.path.expanduser(values.cache),
        corpus=values.corpus, lenient=values.lenient)
    counts = beir_folder.write(reader, values.out)
    print(f'{values.out}: ' + ', '.join(
        f'{count:,} {name}' for name, count in counts.items()) + '.')
    for split, dropped in getattr(reader, 'dropped', {}).items():
      print(f'{split}, dropped: {dropped_lib.described(dropped) or "nothing"}.')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
