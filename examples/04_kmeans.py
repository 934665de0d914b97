"""k-means on a DataFrame: Lloyd's iterations, group-scheduled, checked against scikit-learn.

Run it as: python examples/04_kmeans.py [master]
"""

import sys

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

import mizzle

CLUSTERS = 5


def points(table: pa.Table) -> NDArray[np.float64]:
    """This rank's rows as a matrix, made once."""
    return np.column_stack([table.column(name).to_numpy() for name in ("x", "y", "z")])


def lloyd(ctx: mizzle.StepContext, batch: NDArray[np.float64]) -> dict[str, float]:
    """One iteration: assign points to the nearest centre, move every centre to the mean of its points.

    Lloyd, "Least squares quantization in PCM", 1982, https://doi.org/10.1109/TIT.1982.1056489
    """
    centres = ctx.state
    distances = ((batch[:, None] - centres[None]) ** 2).sum(axis=2)
    nearest = distances.argmin(axis=1)
    sums = np.zeros((CLUSTERS, 5))  # per cluster: the sum of its points, how many they are, their squared distances
    np.add.at(sums, nearest, np.column_stack([batch, np.ones(len(batch)), distances.min(axis=1)]))
    sums = ctx.all_reduce(sums)
    moved = sums[:, :3] / np.maximum(sums[:, 3:4], 1)
    shift = float(((moved - centres) ** 2).sum())
    ctx.state = moved
    if shift == 0:
        ctx.stop()  # all ranks have the same sums, so all of them stop
    return {"inertia": float(sums[:, 4].sum()), "shift": shift}


def centres(ctx: mizzle.StepContext, _batch: object) -> object:
    """What comes back at the end."""
    return ctx.state


def main(master: str = "local[2]") -> None:
    """Cluster, and compare."""
    spark = mizzle.session(master, app_name="k-means", conf={"spark.ui.showConsoleProgress": "false"})
    data, _ = make_blobs(6000, n_features=3, centers=CLUSTERS, cluster_std=1.6, random_state=4)
    df = spark.createDataFrame(data.tolist(), "x double, y double, z double")
    start = data[:CLUSTERS]
    found = mizzle.iterate(df, lloyd, iterations=200, state=start, prepare=points, finish=centres)
    spark.stop()

    peer = KMeans(CLUSTERS, init=start, n_init=1, max_iter=200, tol=0, algorithm="lloyd").fit(data)
    assert np.allclose(found.values[0], peer.cluster_centers_, rtol=1e-9), "the centres of scikit-learn"
    sizes = [group.size for group in found.groups]
    print(f"{found.iterations} iterations in groups of {sizes}")
    print(f"inertia {found.metrics['inertia'][-1]:.3f}, scikit-learn {peer.inertia_:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
