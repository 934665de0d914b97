"""Any iterative job, not only deep learning: k-means, whose iterations run inside one Spark job, between peers.

Run it as: python examples/03_run_group.py [master]
"""

import sys

import numpy as np
import numpy.typing as npt

import mizzle

CENTRES = np.array([[0.0, 0.0], [5.0, 5.0], [0.0, 5.0]], dtype=np.float32)


def kmeans(context: mizzle.RankContext) -> npt.NDArray[np.float32]:
    """Each rank has points of its own; after every iteration all ranks hold the same centres."""
    noise = np.random.default_rng(context.rank)
    points = (CENTRES[noise.integers(3, size=3000)] + noise.normal(0, 0.4, (3000, 2))).astype(np.float32)

    # rank 0 chooses where to begin: points far from each other
    start = points[:1]
    for _ in range(2):
        start = np.vstack([start, points[((points[:, None] - start) ** 2).sum(2).min(1).argmax()]])
    centres = np.asarray(context.broadcast(start, root=0))
    for _ in range(20):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        sums = np.zeros((3, 3), dtype=np.float32)  # per centre: sum of x, sum of y, number of points
        np.add.at(sums, nearest, np.column_stack([points, np.ones(len(points), np.float32)]))
        total = np.asarray(context.all_reduce(sums))
        centres = total[:, :2] / np.maximum(total[:, 2:], 1)
    return centres


def main(master: str = "local[2]") -> None:
    """Run it on two ranks."""
    spark = mizzle.session(master, app_name="k-means")
    found = mizzle.run_group(spark, kmeans, ranks=2)

    assert (found[0] == found[1]).all(), "all ranks hold the same bits"
    for x, y in sorted(found[0].tolist()):
        print(f"centre {x:.2f} {y:.2f}")
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
