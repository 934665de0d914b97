"""Any function in N tasks at once, with collectives between them: power iteration on a matrix cut into rows.

Run it as: python examples/03_run_group.py [master]
"""

import sys

import numpy as np

import mizzle

SIZE, RANKS = 300, 2


def largest_eigenvalue(context: mizzle.RankContext) -> float:
    """Every rank makes its own rows of a symmetric matrix; a product with a vector needs one all-gather."""
    everything = np.random.default_rng(7).normal(loc=1, size=(SIZE, SIZE))
    mine = np.array_split(everything @ everything.T, context.size)[context.rank]
    vector = np.full(SIZE, SIZE**-0.5)
    for _ in range(50):
        product = np.concatenate(context.all_gather(mine @ vector))
        vector = product / np.linalg.norm(product)
    return float(np.linalg.norm(product))


def main(master: str = "local[2]") -> None:
    """Run it on two ranks."""
    spark = mizzle.session(master, app_name="power iteration")
    found = mizzle.run_group(spark, largest_eigenvalue, ranks=RANKS)
    spark.stop()

    matrix = np.random.default_rng(7).normal(loc=1, size=(SIZE, SIZE))
    exact = float(np.linalg.eigvalsh(matrix @ matrix.T)[-1])
    assert found[0] == found[1], "all ranks hold the same bits"
    print(f"largest eigenvalue {found[0]:.4f}, numpy {exact:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
