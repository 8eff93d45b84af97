"""Ways to choose negatives; one file per method.

Every sampler is a frozen `types.Sampler`. Only a sampler may read stale
vectors. One without state of its own inherits `Stateless` and defines `propose`
and `rows_scored`.
"""

from retrieval_jax.ceiling import Ceiling
from retrieval_jax.samplers.exhaustive import Exhaustive
from retrieval_jax.samplers.gumbel import Gumbel
from retrieval_jax.samplers.none import NoNegatives
from retrieval_jax.samplers.pool import Pool
from retrieval_jax.samplers.pool_gumbel import PoolGumbel
from retrieval_jax.samplers.shortlist import BucketedGumbel
from retrieval_jax.samplers.shortlist import ShortlistGumbel
from retrieval_jax.samplers.simans import SimANS
from retrieval_jax.samplers.stateless import Stateless
from retrieval_jax.samplers.stochastic import StochasticNegativeMining
from retrieval_jax.samplers.top_k import TopK
from retrieval_jax.samplers.tree import Tree
from retrieval_jax.samplers.uniform import Uniform
