"""What `import aadml_jax` brings: the names of the contract, and no heavy package."""

import functools
import inspect
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import aadml_jax as aa

HEAVY = ("flax", "optax", "orbax", "absl", "h5py", "tensorflow_datasets", "tensorflow", "sklearn")
LOSS = {"where": None, "reduce_fn": jnp.mean}
METRIC = {"where": None, "ties": "stable", "reduce_fn": None}
REQUIRED = inspect.Parameter.empty
OBJECTIVE = {
    "label_loss": aa.cross_entropy_label_loss,
    "proxies": aa.AnchorAware(num_neighbors=3, attention="neighbor", same_class=True),
    "label_weight": 1.0,
    "metric_weight": 1.0,
    "axis_name": None,
    "stacked": False,
    "block_size": None,
}
# name: the positional arguments, then the keyword-only parameters with their defaults
CONTRACT = {
    "cosine_similarity": (("a", "b"), {}),
    "cosine_distance": (("a", "b"), {}),
    "squared_euclidean_distance": (("a", "b"), {}),
    "euclidean_distance": (("a", "b"), {}),
    "posterior_similarity": (("a", "b"), {}),
    "same_label": (("a", "b"), {}),
    "correlation_graph": (
        ("embeddings", "labels"),
        {"num_neighbors": REQUIRED, "same_class": True, "rows": None, "references": None},
    ),
    "anchor_aware_proxies": (
        ("embeddings", "labels"),
        {
            "num_neighbors": 3,
            "attention": "neighbor",
            "same_class": True,
            "rows": None,
            "references": None,
            "temperature": 1.0,
            "neighbor_gradient": True,
            "max_neighbors": None,
        },
    ),
    "in_row_blocks": (("fn", "anchors"), {"block_size": REQUIRED}),
    "mean_in_row_blocks": (("fn", "anchors"), {"block_size": REQUIRED}),
    "contrastive_loss": (("distances", "relevance"), {"margin": 1.0} | LOSS),
    "triplet_loss": (("distances", "relevance"), {"margin": 1.0} | LOSS),
    "semihard_triplet_loss": (("distances", "relevance"), {"margin": 1.0} | LOSS),
    "hard_triplet_loss": (("distances", "relevance"), {"margin": 1.0} | LOSS),
    "lifted_structure_loss": (("distances", "relevance"), {"margin": 1.0} | LOSS),
    "margin_loss": (("distances", "relevance"), {"margin": 0.2, "beta": 1.2} | LOSS),
    "ntxent_loss": (("similarities", "relevance"), {"temperature": 0.07} | LOSS),
    "supcon_loss": (("similarities", "relevance"), {"temperature": 0.1} | LOSS),
    "multi_similarity_loss": (
        ("similarities", "relevance"),
        {"alpha": 2.0, "beta": 50.0, "base": 0.5} | LOSS,
    ),
    "circle_loss": (("similarities", "relevance"), {"margin": 0.4, "gamma": 80.0} | LOSS),
    "proxy_anchor_loss": (("similarities", "relevance"), {"margin": 0.1, "alpha": 32.0} | LOSS),
    "smooth_ap_loss": (("similarities", "relevance"), {"temperature": 0.01} | LOSS),
    "sigmoid_loss": (("similarities", "relevance"), {"temperature": 0.1, "bias": -10.0} | LOSS),
    "arcface_loss": (("similarities", "relevance"), {"margin": 0.5, "scale": 64.0} | LOSS),
    "cosface_loss": (("similarities", "relevance"), {"margin": 0.35, "scale": 64.0} | LOSS),
    "mine_multi_similarity": (("similarities", "relevance"), {"epsilon": 0.1, "where": None}),
    "mine_hard_negatives": (("similarities", "relevance"), {"k": 1, "where": None}),
    "symmetric": (("loss",), {}),
    "checked": (("loss",), {}),
    "squared_label_loss": (("outputs", "targets"), {"reduce_fn": jnp.mean}),
    "cross_entropy_label_loss": (("outputs", "targets"), {"reduce_fn": jnp.mean}),
    "aadml_objective": (
        ("audio", "visual", "labels"),
        OBJECTIVE
        | {
            "metric_loss": functools.partial(aa.triplet_loss, margin=0.3),
            "compare": aa.cosine_distance,
            "intra_modal": False,
        },
    ),
    "class_proxy_objective": (
        ("audio", "visual", "labels"),
        OBJECTIVE
        | {
            "metric_loss": functools.partial(aa.proxy_anchor_loss, margin=0.1, alpha=4.0),
            "compare": aa.cosine_similarity,
            "class_proxies": None,
        },
    ),
    "init_memory": (("size", "dim"), {}),
    "update_memory": (("memory", "embeddings", "labels"), {}),
    "average_precision": (("scores", "relevance"), METRIC),
    "mean_average_precision": (("scores", "relevance"), {"where": None, "ties": "stable"}),
    "prefix_average_precision": (("scores", "relevance"), {"where": None, "reduce_fn": None}),
    "precision_at": (("scores", "relevance"), {"k": REQUIRED} | METRIC),
    "recall_at": (("scores", "relevance"), {"k": REQUIRED} | METRIC),
    "fraction_recall_at": (("scores", "relevance"), {"k": REQUIRED} | METRIC),
    "r_precision": (("scores", "relevance"), METRIC),
    "average_precision_at_r": (("scores", "relevance"), METRIC),
    "reciprocal_rank": (("scores", "relevance"), METRIC),
    "first_hit_rank": (("scores", "relevance"), METRIC),
    "ndcg_at": (("scores", "relevance"), {"k": REQUIRED} | METRIC),
    "top_k": (
        ("queries", "gallery", "k"),
        {"similarity": "cosine", "where": None, "block_size": 128},
    ),
    "csls": (("scores",), {"k": 10, "where": None}),
    "inverted_softmax": (("scores",), {"temperature": 0.05, "where": None}),
    "dual_softmax": (("scores",), {"temperature": 0.05, "where": None}),
    "retrieval_report": (
        ("queries", "gallery"),
        {
            "relevance": None,
            "query_labels": None,
            "gallery_labels": None,
            "threshold": None,
            "similarity": "cosine",
            "ks": (1, 5, 10),
            "exclude_self": False,
            "where": None,
            "ties": "expected",
            "per_query": False,
            "per_class": False,
            "block_size": 1024,
        },
    ),
    "cross_modal_report": (
        ("audio", "visual", "labels"),
        {"similarity": "cosine", "ks": (1, 5, 10), "ties": "expected", "block_size": 1024},
    ),
    "load_run": (("folder",), {"which": "latest"}),
}


def test_import_brings_no_heavy_package():
    program = (
        "import json, sys, aadml_jax;"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    root = Path(aa.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("name", CONTRACT)
def test_public_name_has_the_signature_of_the_contract(name):
    assert name in aa.__all__
    arrays, options = CONTRACT[name]
    parameters = inspect.signature(getattr(aa, name)).parameters
    positional = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert tuple(p.name for p in positional) == arrays
    assert all(p.default is REQUIRED for p in positional)
    keywords = {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert {n: _compared(v) for n, v in keywords.items()} == {
        n: _compared(v) for n, v in options.items()
    }


def _compared(default):
    """Of a `functools.partial`, which equals itself alone, what it is made of."""
    if isinstance(default, functools.partial):
        return default.func, default.args, default.keywords
    return default


def test_every_public_name_exists_once_and_says_what_it_is():
    assert len(set(aa.__all__)) == len(aa.__all__)
    functions = [getattr(aa, name) for name in aa.__all__]
    assert all(inspect.getdoc(f) for f in functions if callable(f))
