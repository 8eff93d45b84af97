"""Which targets are remembered, and where; one file per kind of memory.

A memory is a frozen `types.Memory` whose state is the run's TargetTable.
Without a memory that is a table which stays empty, so that a step works alike
on all kinds.
"""

from retrieval_jax.memories.corpus import Corpus
from retrieval_jax.memories.none import Nothing
from retrieval_jax.memories.ring import Ring
