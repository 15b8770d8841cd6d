"""Both modalities' embeddings as points of one plane."""

from typing import NamedTuple

import numpy as np

from aadml_jax.data import representative_classes
from aadml_jax.errors import require_extra


class Projection(NamedTuple):
    """Clips as points of a plane.

    Attributes:
      audio: float64 [n, 2], the audio side of each drawn clip.
      visual: float64 [n, 2], the visual side of the same clips.
      rows: int64 [n], which clips are drawn, rising.
    """

    audio: np.ndarray
    visual: np.ndarray
    rows: np.ndarray


def joint_projection(
    audio: np.ndarray,
    visual: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    seed: int = 0,
    similarity: str = "cosine",
    method: str = "tsne",
    max_rows: int = 2000,
) -> Projection:
    """Both modalities in one plane, so that a clip's two sides can be compared.

    Rows become what retrieval compares by inner products: scaled to length 1 where it is by cosine,
    posteriors softmax(row) where it is by posterior. Audio and visual rows are then projected
    together. t-SNE has perplexity min(30, (2n − 1) / 3), starts from the principal
    components and runs in one thread, so that the same input gives the same points. Rows that
    become all the same are all at the origin.

    Args:
      audio: embeddings [N, D], N ≥ 1, D ≥ 2.
      visual: embeddings [N, D] of the same clips.
      labels: the clips' classes; needed only to choose among more than `max_rows` clips.
      seed: of the search for the principal components that t-SNE starts from, 0 … 2³² − 1; among
        few dimensions they are found whatever it is.
      similarity: by which retrieval ranks, "cosine" or "posterior".
      method: "tsne", or "pca" for the first two principal components.
      max_rows: most clips to draw. Of more, every (N / max_rows)-th is taken from the list of clips
        that is ordered by class (of several, the rarest), then by row: classes keep their shares.

    Raises:
      UserError: if t-SNE is asked for and scikit-learn is missing.
      ValueError: for shapes that do not fit, values that are not finite, an unknown method or an
        unknown similarity.
    """
    audio, visual = np.asarray(audio, np.float64), np.asarray(visual, np.float64)
    if audio.ndim != 2 or audio.shape != visual.shape or len(audio) < 1 or audio.shape[1] < 2:
        raise ValueError(
            "audio and visual [N, D] of the same N ≥ 1 clips and D ≥ 2 are needed; "
            f"got {audio.shape} and {visual.shape}"
        )
    if method not in ("tsne", "pca"):
        raise ValueError(f"method must be 'tsne' or 'pca'; got {method!r}")
    if similarity not in _COMPARED:
        raise ValueError(f"similarity must be one of {sorted(_COMPARED)}; got {similarity!r}")
    if not (np.isfinite(audio).all() and np.isfinite(visual).all()):
        raise ValueError(f"embeddings of shape {audio.shape} hold NaN or infinity")
    rows = _evenly_by_class(labels, len(audio), max_rows)
    points = _COMPARED[similarity](np.concatenate([audio[rows], visual[rows]]))
    if not np.ptp(points, axis=0).any():
        plane = np.zeros((len(points), 2))
    elif method == "tsne":
        plane = _tsne(points, seed)
    else:
        plane = _principal_components(points)
    return Projection(plane[: len(rows)], plane[len(rows) :], rows)


def _evenly_by_class(labels: np.ndarray | None, num_rows: int, max_rows: int) -> np.ndarray:
    if max_rows < 1:
        raise ValueError(f"max_rows must be at least 1; got {max_rows}")
    if num_rows <= max_rows:
        return np.arange(num_rows)
    classes = np.zeros(num_rows) if labels is None else representative_classes(np.asarray(labels))
    if len(classes) != num_rows:
        raise ValueError(f"labels of {len(classes)} clips do not fit {num_rows} embeddings")
    by_class = np.argsort(classes, kind="stable")
    return np.sort(by_class[np.arange(max_rows) * num_rows // max_rows])


def _unit_rows(x: np.ndarray) -> np.ndarray:
    scale = np.abs(x).max(axis=1, keepdims=True)
    scaled = x / np.where(scale == 0, 1, scale)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(lengths == 0, 1, lengths)


def _posteriors(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


_COMPARED = {"cosine": _unit_rows, "posterior": _posteriors}


def _tsne(points: np.ndarray, seed: int) -> np.ndarray:
    require_extra(
        "sklearn",
        "t-SNE needs the package scikit-learn, which is not installed; "
        "run pip install -e '.[plots]'",
    )
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    tsne = TSNE(perplexity=min(30, (len(points) - 1) / 3), init="pca", random_state=seed, n_jobs=1)
    # Threads would add up the forces in an order that changes from run to run.
    with threadpool_limits(1):
        return tsne.fit_transform(points).astype(np.float64)


def _principal_components(points: np.ndarray) -> np.ndarray:
    centred = points - points.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:2]
    # A direction and its opposite are equally right: the largest entry is made positive.
    largest = np.argmax(np.abs(directions), axis=1)
    directions *= np.sign(directions[np.arange(len(directions)), largest])[:, None]
    return centred @ directions.T
