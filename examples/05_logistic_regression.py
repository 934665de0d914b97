"""Logistic regression on a DataFrame by Newton's method: the Hessian is all-reduced; checked against scikit-learn.

Run it as: python examples/05_logistic_regression.py [master]
"""

import sys

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import mizzle

PENALTY = 1.0

Rows = tuple[NDArray[np.float64], NDArray[np.float64]]


def rows(table: pa.Table) -> Rows:
    """This rank's rows, made once: a matrix with a column of ones for the intercept, and the labels."""
    flat = table.column("features").combine_chunks().flatten().to_numpy()
    features = flat.reshape(table.num_rows, -1)
    return np.column_stack([features, np.ones(len(features))]), table.column("label").to_numpy().astype(np.float64)


def newton(ctx: mizzle.StepContext, batch: Rows) -> dict[str, float]:
    """One iteration: gradient and Hessian of this rank's rows, their sums over all ranks, one step on every rank.

    Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", 2nd edition, section 4.4.1.
    """
    features, labels = batch
    weights = ctx.state
    score = features @ weights
    chance = 1 / (1 + np.exp(-score))
    loss = float(np.sum(np.logaddexp(0, score) - labels * score))
    gradient = features.T @ (chance - labels)
    hessian = (features * (chance * (1 - chance))[:, None]).T @ features
    total = ctx.all_reduce(np.concatenate([[loss], gradient, hessian.ravel()]))
    size = len(weights)
    penalty = np.append(np.full(size - 1, PENALTY), 0.0)  # the intercept is not penalised
    gradient = total[1 : size + 1] + penalty * weights
    hessian = total[size + 1 :].reshape(size, size) + np.diag(penalty)
    step = np.linalg.solve(hessian, gradient)
    ctx.state = weights - step
    if float(np.abs(step).max()) < 1e-12:
        ctx.stop()
    return {"loss": float(total[0])}


def weights(ctx: mizzle.StepContext, _batch: object) -> object:
    """What comes back at the end."""
    return ctx.state


def main(master: str = "local[2]") -> None:
    """Fit, and compare."""
    data = load_breast_cancer()
    features = StandardScaler().fit_transform(data.data)
    spark = mizzle.session(master, app_name="logistic regression", conf={"spark.ui.showConsoleProgress": "false"})
    pairs = [(row.tolist(), int(label)) for row, label in zip(features, data.target, strict=True)]
    df = spark.createDataFrame(pairs, "features array<double>, label int")
    start = np.zeros(features.shape[1] + 1)
    found = mizzle.iterate(df, newton, iterations=50, state=start, prepare=rows, finish=weights)
    spark.stop()

    peer = LogisticRegression(C=1 / PENALTY, tol=1e-12, max_iter=1000, solver="newton-cholesky")
    peer.fit(features, data.target)
    assert np.allclose(found.values[0], np.append(peer.coef_[0], peer.intercept_), rtol=1e-6), "those of scikit-learn"
    print(f"{found.iterations} iterations, loss {found.metrics['loss'][-1]:.4f}, coefficients equal scikit-learn's")


if __name__ == "__main__":
    main(*sys.argv[1:])
