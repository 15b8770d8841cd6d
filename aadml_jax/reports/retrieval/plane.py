"""The section of a report that shows both modalities in one plane."""

from collections.abc import Sequence

import numpy as np

from aadml_jax.data import representative_classes
from aadml_jax.reports.figures import Embedding, draw_scatter
from aadml_jax.reports.page import Report
from aadml_jax.reports.retrieval.projection import joint_projection

_MOST_COLOURS = 16  # more could not be told apart
_APART_FROM_RETRIEVAL = {
    "cosine": "",
    "posterior": " Retrieval ranks posteriors by inner products, which are larger for surer ones; "
    "distances in the plane do not show that.",
}
_AS_COMPARED = {"cosine": "scaled to length 1", "posterior": "as posteriors of the classes"}


def add_plane_section(
    report: Report,
    audio: np.ndarray,
    visual: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    similarity: str,
    max_rows: int,
    seed: int,
) -> None:
    """Adds the section of t-SNE and principal components.

    Args:
      report: what to add to.
      audio: audio embeddings [N, D], D ≥ 2.
      visual: visual embeddings [N, D] of the same clips.
      labels: class numbers [N] or multi-hot, bool [N, C].
      class_names: C names; of more than 16 classes those with the most clips are drawn.
      similarity: see `joint_projection`.
      max_rows: most clips to draw as points.
      seed: see `joint_projection`.

    Raises:
      UserError: if scikit-learn or Matplotlib is missing.
      ValueError: see `joint_projection`.
    """
    classes = representative_classes(labels)
    counts = np.bincount(classes, minlength=len(class_names))
    shown = np.sort(np.argsort(-counts, kind="stable")[:_MOST_COLOURS])
    shown = shown[counts[shown] > 0]
    rows = np.flatnonzero(np.isin(classes, shown))
    planes = {
        title: joint_projection(
            audio[rows],
            visual[rows],
            labels=classes[rows],
            seed=seed,
            similarity=similarity,
            method=method,
            max_rows=max_rows,
        )
        for method, title in (("tsne", "t-SNE"), ("pca", "principal components"))
    }
    drawn = planes["t-SNE"].rows
    section = report.section(
        "Both modalities in one plane",
        f"The audio and the visual embeddings, {_AS_COMPARED[similarity]}, projected together. "
        "Clips of one class should be together whatever their modality, and classes apart. t-SNE "
        "shows who is near whom; how far apart groups are, and how large, it does not tell. The "
        "first two principal components keep distances, as far as two dimensions can."
        f"{_APART_FROM_RETRIEVAL[similarity]}",
    )
    if len(shown) < np.count_nonzero(counts):
        section.text(f"Only the {len(shown)} classes with the most clips are drawn.")
    if len(drawn) < len(rows):
        section.text(f"{len(drawn)} of {len(rows)} clips are drawn, each class in its share.")
    if labels.ndim == 2:
        section.text("A clip of several classes has the colour of the rarest of them.")
    numbers = np.searchsorted(shown, classes[rows[drawn]])
    panels = [
        Embedding(title, plane.audio, plane.visual, numbers) for title, plane in planes.items()
    ]
    section.figure(
        "embeddings",
        draw_scatter(panels, class_names=[class_names[int(number)] for number in shown]),
        f"Embeddings of {len(drawn)} clips by t-SNE and by principal components, audio as circles, "
        "visual as triangles, classes by colour.",
    )
