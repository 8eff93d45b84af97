"""Writes the token table of all-MiniLM-L6-v2 as static embeddings.

  python -m experiments.results.corrector_claim.token_table --out=DIR

The encoder that is left when all layers are taken off: a text is the mean of
its tokens' vectors, so that a pass over the corpus costs seconds and an oracle
of 80 passes can be run on a CPU. DIR is a folder in the layout of
sentence-transformers, for --config.model.pretrained=DIR
--config.model.num_layers=0.
"""

from absl import app
from absl import flags

from retrieval_jax import processes
from retrieval_jax.data import tokenization
from retrieval_jax.factory import defaults
from retrieval_jax.models import dual_encoder
from retrieval_jax.models import export
from retrieval_jax.models import pretrained
from retrieval_jax.models import static

_OUT = flags.DEFINE_string('out', None, 'Folder to write; must not exist.')
flags.mark_flag_as_required('out')
_LENGTH = 128  # tokens at which texts are cut, if nothing else is said


def main(argv):
  del argv
  folder = pretrained.resolve_folder(defaults.get_config().model.pretrained)
  _, params, _ = pretrained.load_pretrained(folder, num_layers=1)
  table = params['token_table']
  tokenizer = tokenization.load_tokenizer(folder, special_tokens=False)
  model = dual_encoder.DualEncoder(static.StaticConfig(*table.shape))
  with processes.new_folder(_OUT.value) as new:
    export.write(
        new, model, {'tower': {'transformer': {'token_table': table}}},
        tokenizer, lengths=(_LENGTH, _LENGTH), prompts=('', ''))


if __name__ == '__main__':
  app.run(main)
