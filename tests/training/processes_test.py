"""Two real processes on loopback train exactly like one."""

import json
import os
import socket
import subprocess
import sys

from absl.testing import absltest
import numpy as np

from retrieval_jax import sharding
from tests import helpers
from tests.training import step_test

_PROGRAM = """
import json, sys
import jax
index, port, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(
    coordinator_address=f'127.0.0.1:{port}', num_processes=2, process_id=index)
import numpy as np
from retrieval_jax import sharding
from tests import helpers
from tests.training import step_test
mesh = sharding.make_mesh()
assert mesh.shape['data'] == 4 and jax.process_count() == 2
rows = []
_, history = helpers.train(
    step_test.many_methods()[name], mesh, num_steps=3,
    table_=step_test.start_table(name, mesh),
    each=lambda state, proposal, probes: rows.append(
        np.asarray(proposal.rows).tolist()))
print('RESULT', json.dumps([[float(m['nll']) for m in history], rows]))
"""


class ProcessesTest(absltest.TestCase):

  def test_two_processes_draw_the_rows_and_have_the_losses_of_one(self):
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = str(free.getsockname()[1])
    environment = dict(os.environ, NPROC='32', JAX_PLATFORMS='cpu')
    running = [
        subprocess.Popen(
            [sys.executable, '-c', _PROGRAM, str(i), port, 'stale'],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment) for i in range(2)]
    try:
      outputs = [process.communicate(timeout=120)[0] for process in running]
    finally:
      for process in running:
        process.kill()
    for process, output in zip(running, outputs):
      self.assertEqual(process.returncode, 0, output)
    found = [json.loads(next(
        line for line in output.splitlines() if line.startswith('RESULT')
    )[len('RESULT '):]) for output in outputs]
    self.assertEqual(found[0], found[1])

    mesh, rows = sharding.make_mesh(1), []
    _, history = helpers.train(
        step_test.many_methods()['stale'], mesh, num_steps=3,
        table_=step_test.start_table('stale', mesh),
        each=lambda state, proposal, probes: rows.append(
            np.asarray(proposal.rows).tolist()))
    self.assertEqual(found[0][1], rows)
    np.testing.assert_allclose(
        found[0][0], [m['nll'] for m in history], rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
