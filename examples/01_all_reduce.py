"""All-reduce of an RDD of arrays: what ``rdd.treeReduce(np.add)`` gives, from peer to peer and without a shuffle.

Run it as: python examples/01_all_reduce.py [master]
"""

import sys

import numpy as np

import mizzle


def main(master: str = "local[2]") -> None:
    """Sum and average eight arrays that lie in four partitions."""
    spark = mizzle.session(master, app_name="all-reduce")
    rdd = spark.sparkContext.parallelize(range(8), 4).map(lambda k: np.full(1_000_000, k, dtype=np.float32))

    total = mizzle.all_reduce(rdd)
    mean = mizzle.all_reduce(rdd, op="mean")

    assert (total == sum(range(8))).all()
    print(f"sum {total[0]}, mean {mean[0]}, {total.dtype}, {len(total):,} elements")
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
