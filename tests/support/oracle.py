"""The definitions of the paper in NumPy float64, eigenvalues and all."""

import numpy as np


def covariance(points):
    """Unbiased covariance of `(tokens, dim)`; zero for fewer than two."""
    points = np.asarray(points, "float64")
    if len(points) < 2:
        return np.zeros((points.shape[-1],) * 2)
    # Exactly zero for equal tokens, whatever the rounding of their mean.
    points = points - points[0]
    deviations = points - points.mean(axis=0)
    return deviations.T @ deviations / (len(points) - 1)


def score(covariance):
    """IsoScore from the eigenvalues, step by step as published."""
    dim = len(covariance)
    eigenvalues = np.linalg.eigvalsh(covariance)
    norm = np.linalg.norm(eigenvalues)
    if norm == 0:
        return 0.0
    normalized = np.sqrt(dim) * eigenvalues / norm
    defect = np.linalg.norm(normalized - 1) / np.sqrt(2 * (dim - np.sqrt(dim)))
    used = (dim - defect**2 * (dim - np.sqrt(dim))) ** 2 / dim**2
    return (dim * used - 1) / (dim - 1)


def score_gradient(points):
    """Derivative of `score(covariance(points))`, shape of `points`."""
    points = np.asarray(points, "float64")
    cov, dim = covariance(points), points.shape[-1]
    trace, square = np.trace(cov), np.sum(cov**2)
    by_cov = 2 * trace / square * np.eye(dim) - 2 * trace**2 / square**2 * cov
    deviations = points - points.mean(axis=0)
    return 2 / (len(points) - 1) * deviations @ by_cov / (dim - 1)


def shrunk(points, shrinkage, target=None):
    """The paper's Σ_ζ; towards the scaled identity without a target."""
    cov = covariance(points)
    if target is None:
        target = np.trace(cov) / len(cov) * np.eye(len(cov))
    return (1 - shrinkage) * cov + shrinkage * np.asarray(target, "float64")


def penalty(points, strength=-1.0, shrinkage=0.2, target=None):
    """`strength * (1 - IsoScore*)`."""
    return strength * (1 - score(shrunk(points, shrinkage, target)))


def unmasked(states, masks):
    """All unmasked tokens of the states as one cloud `(tokens, dim)`."""
    return np.concatenate(
        [
            np.asarray(state)[np.asarray(mask, bool)]
            for state, mask in zip(states, masks, strict=True)
        ]
    )
