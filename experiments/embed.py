"""Writes the embeddings of a corpus and of its queries as .npy files.

  python -m experiments.embed --workdir=runs/stale --out=embeddings/stale
  python -m experiments.embed --config=configs/minilm.py --out=embeddings/minilm

By the encoder of a run's last checkpoint, or by the one that a config starts
from, untrained by us. OUT gets targets.npy [N, D], queries.npy [Q, D] (rows in
the order of target_ids.txt and query_ids.txt, one id per line), the judgements
as qrels/SPLIT.tsv and embeddings.json: a folder that experiments.adapt takes.

Texts that describe targets may be embedded as further queries to adapt to: a
field of a JSONL file whose "_id" is the target's, such as titles of the corpus
or generated pseudo-queries:

  --pairs=title=DIR/corpus.jsonl.gz --pairs=text=pseudo_queries.jsonl

gives pairs-title.npy and pairs-title_target_ids.txt; `--pairs=targets` embeds
the targets' whole texts, cut to the length of queries.
"""

from absl import app
from absl import flags

from experiments import process
from retrieval_jax.jobs import embed


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  process.DEFINE_path(
      'workdir', None, 'Folder of the run whose encoder embeds.',
      flag_values=values)
  process.DEFINE_config(
      'Config file, in place of a run: the encoder it starts '
      'from embeds.', flag_values=values)
  process.DEFINE_path(
      'out', None, 'Folder to write; must not exist.', flag_values=values)
  flags.DEFINE_enum(
      'dtype', 'float32', ['float32', 'float16'], 'Type of the stored numbers.',
      flag_values=values)
  flags.DEFINE_integer(
      'dim', None, 'Dimensions to keep, the first of each embedding; all by '
      'default.', flag_values=values)
  flags.DEFINE_multi_string(
      'pairs', [], "'targets' or FIELD=FILE.jsonl[.gz], repeatable: texts to "
      'embed as queries of the targets that "_id" names.', flag_values=values)
  flags.mark_flags_as_required(['out'], flag_values=values)
  process.DEFINE_processes(values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  with process.script(values):
    targets, queries = embed.run(
        values.out, workdir=values.workdir, config=values.config,
        dtype=values.dtype, pairs=values.pairs, dim=values.dim)
  print(f'{values.out}: {len(targets):,} targets and {len(queries):,} queries, '
        f'{targets.shape[1]} dimensions.')


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
