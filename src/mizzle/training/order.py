"""Which rows belong to which iteration: exact epochs for any number of rows, shards and batch size. Pure.

Row g of the DataFrame lies in shard g % V at position g // V. Iteration t of an epoch covers the global positions
t*B .. min((t+1)*B, n)-1; position p is entry p // V of the permutation of shard p % V. So every row comes once per
epoch, and no shard needs to know another's rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mizzle.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The order of rows in every epoch.

    Attributes:
        num_rows_total: n, rows of all shards together, >= 1.
        num_shards: V, >= 1.
        global_batch_size: B, rows per iteration over all shards, >= 1; the last iteration of an epoch may have fewer.
        seed: of the permutations, >= 0.
    """

    num_rows_total: int
    num_shards: int
    global_batch_size: int
    seed: int
    _last: dict[int, tuple[int, npt.NDArray[np.int64]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("num_rows_total", "num_shards", "global_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; give 0 or more")

    @property
    def iterations_per_epoch(self) -> int:
        """How many iterations see every row once."""
        return -(-self.num_rows_total // self.global_batch_size)

    def shard_rows(self, shard: int) -> int:
        """Number of rows of a shard."""
        return self._below(self.num_rows_total, shard)

    def count(self, iteration_in_epoch: int, shard: int) -> int:
        """How many rows of ``shard`` an iteration has; 0 is possible when B < V or at the end of an epoch."""
        start, stop = self._range(iteration_in_epoch, shard)
        return stop - start

    def total(self, iteration_in_epoch: int) -> int:
        """How many rows an iteration has over all shards: B, or what is left for the last one."""
        return min(self.global_batch_size, self.num_rows_total - iteration_in_epoch * self.global_batch_size)

    def rows(self, epoch: int, iteration_in_epoch: int, shard: int) -> npt.NDArray[np.int64]:
        """Positions within the shard of the rows of an iteration.

        Args:
            epoch: 0-based.
            iteration_in_epoch: 0-based.
            shard: 0..V-1.

        Returns:
            (count,) int64, the caller's own.
        """
        start, stop = self._range(iteration_in_epoch, shard)
        return self._permutation(epoch, shard)[start:stop].copy()

    def _range(self, iteration_in_epoch: int, shard: int) -> tuple[int, int]:
        if not 0 <= iteration_in_epoch < self.iterations_per_epoch or not 0 <= shard < self.num_shards:
            raise ConfigError(
                f"iteration {iteration_in_epoch} of shard {shard} does not exist: an epoch has "
                f"{self.iterations_per_epoch} iterations and {self.num_shards} shards"
            )
        first = iteration_in_epoch * self.global_batch_size
        return self._below(first, shard), self._below(first + self.total(iteration_in_epoch), shard)

    def _below(self, position: int, shard: int) -> int:
        """How many entries of a shard lie before a global position: ceil((position - shard) / V), never below 0."""
        return -((shard - position) // self.num_shards)

    def _permutation(self, epoch: int, shard: int) -> npt.NDArray[np.int64]:
        """The permutation of a shard in an epoch; the last one of every shard asked for is kept."""
        kept = self._last.get(shard)
        if kept is not None and kept[0] == epoch:
            return kept[1]
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, epoch, shard))))
        permutation = stream.permutation(self.shard_rows(shard)).astype(np.int64, copy=False)
        self._last[shard] = epoch, permutation
        return permutation
