"""Anchor-aware deep metric learning: pure functions of N×M matrices for JAX.

Rows are anchors (queries), columns are references (gallery). Similarities, graph, proxies, losses
and metrics are separate functions that compose by calling them:

    import aadml_jax as aa

    relevance = aa.same_label(labels, labels)                            # bool [N, M]
    proxies = aa.anchor_aware_proxies(audio, labels, num_neighbors=3)    # [N, D]
    distances = aa.cosine_distance(proxies, visual)                      # [N, M]
    loss = aa.triplet_loss(distances, relevance, margin=0.2)             # scalar
    score = aa.mean_average_precision(aa.cosine_similarity(audio, visual), relevance)

`aadml_objective` puts them together, with a loss of the library or one of your own.

`load_run` gives the towers of a trained run, to embed features with them.

This package imports jax and numpy alone. Models, data and training live in `aadml_jax.models`,
`aadml_jax.data` and `aadml_jax.training`, to be imported by name; `load_run` brings them when it is
first asked for.
"""

from typing import TYPE_CHECKING, Any

from aadml_jax._version import __version__
from aadml_jax.anchor_aware import anchor_aware_proxies
from aadml_jax.cross_modal import cross_modal_report
from aadml_jax.graphs import CorrelationGraph, correlation_graph
from aadml_jax.hubness import csls, dual_softmax, inverted_softmax
from aadml_jax.label_losses import cross_entropy_label_loss, squared_label_loss
from aadml_jax.losses import (
    arcface_loss,
    checked,
    circle_loss,
    contrastive_loss,
    cosface_loss,
    hard_triplet_loss,
    lifted_structure_loss,
    margin_loss,
    mine_hard_negatives,
    mine_multi_similarity,
    multi_similarity_loss,
    ntxent_loss,
    proxy_anchor_loss,
    semihard_triplet_loss,
    sigmoid_loss,
    smooth_ap_loss,
    supcon_loss,
    symmetric,
    triplet_loss,
)
from aadml_jax.memory_bank import Memory, init_memory, update_memory
from aadml_jax.metrics import (
    average_precision,
    average_precision_at_r,
    first_hit_rank,
    fraction_recall_at,
    mean_average_precision,
    ndcg_at,
    precision_at,
    prefix_average_precision,
    r_precision,
    recall_at,
    reciprocal_rank,
)
from aadml_jax.objective import AnchorAware, aadml_objective, class_proxy_objective
from aadml_jax.retrieval import retrieval_report
from aadml_jax.row_blocks import in_row_blocks, mean_in_row_blocks
from aadml_jax.search import TopK, top_k
from aadml_jax.similarity import (
    cosine_distance,
    cosine_similarity,
    euclidean_distance,
    posterior_similarity,
    same_label,
    squared_euclidean_distance,
)

if TYPE_CHECKING:
    from aadml_jax.training.loaded_runs import load_run

__all__ = [
    "AnchorAware",
    "CorrelationGraph",
    "Memory",
    "TopK",
    "__version__",
    "aadml_objective",
    "anchor_aware_proxies",
    "arcface_loss",
    "average_precision",
    "average_precision_at_r",
    "checked",
    "circle_loss",
    "class_proxy_objective",
    "contrastive_loss",
    "correlation_graph",
    "cosface_loss",
    "cosine_distance",
    "cosine_similarity",
    "cross_entropy_label_loss",
    "cross_modal_report",
    "csls",
    "dual_softmax",
    "euclidean_distance",
    "first_hit_rank",
    "fraction_recall_at",
    "hard_triplet_loss",
    "in_row_blocks",
    "init_memory",
    "inverted_softmax",
    "lifted_structure_loss",
    "load_run",
    "margin_loss",
    "mean_average_precision",
    "mean_in_row_blocks",
    "mine_hard_negatives",
    "mine_multi_similarity",
    "multi_similarity_loss",
    "ndcg_at",
    "ntxent_loss",
    "posterior_similarity",
    "precision_at",
    "prefix_average_precision",
    "proxy_anchor_loss",
    "r_precision",
    "recall_at",
    "reciprocal_rank",
    "retrieval_report",
    "same_label",
    "semihard_triplet_loss",
    "sigmoid_loss",
    "smooth_ap_loss",
    "squared_euclidean_distance",
    "squared_label_loss",
    "supcon_loss",
    "symmetric",
    "top_k",
    "triplet_loss",
    "update_memory",
]


def __getattr__(name: str) -> Any:
    """Imports what needs more than jax and numpy when it is asked for."""
    if name == "load_run":
        from aadml_jax.training.loaded_runs import load_run

        globals()[name] = load_run
        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
