"""Which targets are remembered, and where; one file per kind of memory.

A memory is a frozen `types.Memory` whose state is the run's TargetTable. That
of targets that are not remembered is a table that stays empty, so a step works
alike on all of them.
"""

from retrieval_jax.memories.corpus import Corpus
from retrieval_jax.memories.none import Nothing
from retrieval_jax.memories.ring import Ring
