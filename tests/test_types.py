"""The annotations as a type checker of a user's program reads them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import aadml_jax as aa

RIGHT = """
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np

import aadml_jax as aa

audio = np.random.default_rng(0).normal(size=(4, 3))
visual = jnp.asarray(audio)
classes = np.array([0, 1, 2, 0])


def squared_hinge(
    distances: jax.Array, relevance: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    gaps = jnp.where(relevance, distances, jnp.maximum(0.5 - distances, 0))
    return jnp.mean(jnp.square(gaps), where=where)


relevance = assert_type(aa.same_label(classes, [0, 1, 2, 0]), jax.Array)
scores = assert_type(aa.cosine_similarity(audio, visual), jax.Array)
assert_type(aa.mean_average_precision(np.asarray(scores), np.asarray(relevance)), jax.Array)
assert_type(aa.recall_at(scores, relevance, k=1, where=np.asarray(relevance)), jax.Array)
assert_type(aa.triplet_loss(1 - scores, relevance, margin=np.float32(0.2)), jax.Array)
assert_type(aa.anchor_aware_proxies(audio, classes, rows=np.arange(2)), jax.Array)
assert_type(aa.top_k(audio, visual, 2, similarity="posterior"), aa.TopK)
assert_type(aa.ndcg_at(scores, np.ones((4, 4)), k=2, ties="expected"), jax.Array)
assert_type(
    aa.retrieval_report(audio, visual, query_labels=classes, gallery_labels=[0, 1, 2, 0], ks=[1]),
    dict[str, Any],
)
assert_type(aa.csls(scores, k=2), jax.Array)
assert_type(aa.correlation_graph(audio, classes, num_neighbors=2), aa.CorrelationGraph)
assert_type(aa.update_memory(aa.init_memory(8, 3), audio, classes), aa.Memory)
total, parts = aa.aadml_objective(
    audio, visual, classes, metric_loss=squared_hinge, proxies=aa.AnchorAware(num_neighbors=2)
)
assert_type(total, jax.Array)
assert_type(parts, dict[str, jax.Array])
"""
WRONG = """
import numpy as np

import aadml_jax as aa

relevance = np.eye(2, dtype=bool)
aa.average_precision("scores", relevance)
aa.recall_at(np.eye(2), relevance)
"""


def test_users_program_type_checks_and_a_wrong_one_is_refused_where_it_is_wrong(tmp_path):
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed; it comes with the extra dev")
    root = Path(aa.__file__).parents[1]
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(root)]}))
    options = ["--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pyright", *options], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 2
    found = {"right.py": [], "wrong.py": []}
    for entry in report["generalDiagnostics"]:
        line = entry["range"]["start"]["line"]
        found[Path(entry["file"]).name].append((line, entry.get("rule"), entry["message"]))
    assert found["right.py"] == []
    # Counted from 0, the program's blank first line included.
    assert [(line, rule) for line, rule, _ in found["wrong.py"]] == [
        (6, "reportArgumentType"),
        (7, "reportCallIssue"),
    ], found["wrong.py"]


def test_package_says_that_its_annotations_are_to_be_read():
    assert Path(aa.__file__).with_name("py.typed").is_file()
    setup = Path(aa.__file__).parents[1] / "setup.cfg"
    assert "\naadml_jax = py.typed\n" in setup.read_text()
