"""Two real processes on loopback train exactly like one."""

import json
import os
import socket
import subprocess
import sys

from absl.testing import absltest
import numpy as np
import pytest

from retrieval_jax import sharding
from tests import helpers
from tests.training import step_test

# One of each kind of memory, corrector and columns; all in one start.
_METHODS = ('stale', 'small_ring', 'mlp', 'linear', 'candidates', 'uniform')

_PROGRAM = """
import json, sys
import jax
index, port = int(sys.argv[1]), sys.argv[2]
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(
    coordinator_address=f'127.0.0.1:{port}', num_processes=2, process_id=index)
from retrieval_jax import sharding
from tests.training import processes_test
mesh = sharding.make_mesh()
assert mesh.shape['data'] == 4 and jax.process_count() == 2
print('RESULT', json.dumps(
    {name: processes_test.course(name, mesh) for name in sys.argv[3:]}))
"""


def course(name, mesh):
  """Returns the losses and the rows drawn in three steps of a method."""
  rows = []
  _, history = helpers.train(
      step_test.many_methods()[name], mesh, num_steps=3,
      table_=step_test.start_table(name, mesh),
      each=lambda state, proposal, probes: rows.append(
          np.asarray(proposal.rows).tolist()))
  return [[float(m['nll']) for m in history], rows]


class ProcessesTest(absltest.TestCase):

  @pytest.mark.slow
  def test_two_processes_draw_the_rows_and_have_the_losses_of_one(self):
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = str(free.getsockname()[1])
    environment = dict(os.environ, NPROC='32', JAX_PLATFORMS='cpu')
    running = [
        subprocess.Popen(
            [sys.executable, '-c', _PROGRAM, str(i), port, *_METHODS],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment) for i in range(2)]
    try:
      outputs = [process.communicate(timeout=300)[0] for process in running]
    finally:
      for process in running:
        process.kill()
    for process, output in zip(running, outputs):
      self.assertEqual(process.returncode, 0, output)
    found = [json.loads(next(
        line for line in output.splitlines() if line.startswith('RESULT')
    )[len('RESULT '):]) for output in outputs]
    self.assertEqual(found[0], found[1])

    for name in _METHODS:
      losses, rows = course(name, sharding.make_mesh(1))
      self.assertEqual(found[0][name][1], rows, name)
      np.testing.assert_allclose(
          found[0][name][0], losses, rtol=1e-5, err_msg=name)


if __name__ == '__main__':
  absltest.main()
