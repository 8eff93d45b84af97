"""FLOPs of encoders: by hand, and as many as their programs multiply."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from retrieval_jax.models import dual_encoder
from retrieval_jax.models import t5
from retrieval_jax.models import transformer

BERT = transformer.TransformerConfig(
    vocab_size=30, hidden_size=8, num_layers=2, num_heads=2,
    intermediate_size=12, max_positions=10, type_vocab_size=2)
T5 = t5.T5Config(vocab_size=30, hidden_size=8, num_layers=2, num_heads=2,
                 head_size=3, intermediate_size=12)
GATED = t5.T5Config(vocab_size=30, hidden_size=8, num_layers=1, num_heads=2,
                    head_size=3, intermediate_size=12, gated=True)


def multiplied(jaxpr):
  """Returns the FLOPs of all matmuls of a program, two per product."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      size = equation.invars[0].aval.shape
      total += 2 * equation.outvars[0].aval.size * math.prod(
          size[axis] for axis in contracted)
    total += sum(map(multiplied, programs_in(equation.params)))
  return total


def programs_in(params):
  """Yields the programs among the parameters of an equation."""
  for value in jax.tree.leaves(dict(params)):
    if hasattr(value, 'eqns'):
      yield value


class FlopsTest(parameterized.TestCase):

  def test_by_hand(self):
    """One layer, H = 4, F = 8, one text of 3 tokens."""
    config = transformer.TransformerConfig(
        vocab_size=9, hidden_size=4, num_layers=1, num_heads=1,
        intermediate_size=8, max_positions=3)
    # Products: queries, keys, values and output 4 * (3 * 4 * 4) = 192; scores
    # 3 * 3 * 4 and their weighted sum again, 72; up and down 2 * (3 * 4 * 8).
    self.assertEqual(config.flops(3), 2 * (192 + 72 + 192))
    # And a head of 4 x 5 on one vector.
    model = dual_encoder.DualEncoder(config, projection=5)
    self.assertEqual(model.flops(3), 2 * (192 + 72 + 192 + 20))

  @parameterized.product(
      config=(BERT, T5, GATED), projection=(None, 5), length=(1, 6))
  def test_the_program_multiplies_as_much(self, config, projection, length):
    """For 3 texts; pooling by the mean multiplies none of these matrices."""
    model = dual_encoder.DualEncoder(config, projection=projection)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((3, length), jnp.int32)
    program = jax.make_jaxpr(model.encode_targets)(params, tokens)
    self.assertEqual(multiplied(program.jaxpr), 3 * model.flops(length))


if __name__ == '__main__':
  absltest.main()
