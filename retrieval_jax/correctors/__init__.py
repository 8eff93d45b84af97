"""Functions that move stale rows to the present; one file per method."""

from retrieval_jax.correctors.identity import Identity
from retrieval_jax.correctors.linear import Linear
from retrieval_jax.correctors.mlp import MLP
from retrieval_jax.correctors.nystrom import Nystrom
from retrieval_jax.correctors.ridge import least_ridge
