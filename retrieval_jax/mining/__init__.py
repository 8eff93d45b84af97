"""Hard negatives from search results, chosen before training."""

from retrieval_jax.mining.negatives import choose as choose
from retrieval_jax.mining.negatives import Chosen as Chosen
from retrieval_jax.mining.negatives import Rules as Rules
from retrieval_jax.mining.results import depth as depth
from retrieval_jax.mining.results import Holds as Holds
from retrieval_jax.mining.results import IndexResults as IndexResults
from retrieval_jax.mining.results import Listed as Listed
from retrieval_jax.mining.results import mine as mine
from retrieval_jax.mining.results import Mined as Mined
from retrieval_jax.mining.results import Results as Results
