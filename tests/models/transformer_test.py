import functools

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from retrieval_jax.models import dense
from tests import helpers


class MatmulTest(absltest.TestCase):

  def test_gradient_is_that_of_plain_matmul(self):
    with helpers.float64():
      random = np.random.default_rng(0)
      x, kernel, weights = (random.normal(size=shape) for shape in
                            ((3, 4, 5), (5, 6), (3, 4, 6)))
      loss = lambda f, x, kernel: jnp.sum(weights * jnp.sin(f(x, kernel)))
      ours, plain = (
          jax.jit(jax.value_and_grad(functools.partial(loss, f), (0, 1)))(
              x, kernel) for f in (dense.matmul, jnp.matmul))
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
                   ours, plain)

  def test_bfloat16_accumulates_in_float32(self):
    # 1 + 256 * 2^-8 = 2, but in bfloat16 each addition would be lost.
    x = jnp.array([[1.] + [2.**-8] * 256], jnp.bfloat16)
    kernel = jnp.ones((257, 1), jnp.bfloat16)
    out, pull = jax.vjp(jax.jit(dense.matmul), x, kernel)
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_array_equal(out, [[2.]])
    self.assertEqual([g.dtype for g in pull(out)], [jnp.bfloat16] * 2)


if __name__ == '__main__':
  absltest.main()
