"""The training step in PyTorch: two towers, label loss, metric loss, Adam.

As a PyTorch user would write it: layers of `torch.nn`, dropout of `torch.nn.Dropout`, Adam in its
fused version, and a Python loop over batches.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import torch_peers


class Tower(nn.Sequential):
    """Hidden layers of tanh units with dropout, then a linear layer to the classes."""

    def __init__(
        self, features: int, hidden_sizes: Sequence[int], num_classes: int, dropout: float
    ) -> None:
        """Builds the layers."""
        layers = []
        for size in hidden_sizes:
            layers += [nn.Linear(features, size), nn.Tanh(), nn.Dropout(dropout)]
            features = size
        super().__init__(*layers, nn.Linear(features, num_classes))

    def copy_from(self, params: Mapping[str, Mapping[str, np.ndarray]]) -> "Tower":
        """Takes over the parameters of a `LabelSpaceTower`; returns itself."""
        hidden = sorted(name for name in params if name.startswith("hidden"))
        linear = [layer for layer in self if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for name, layer in zip([*hidden, "label_space"], linear, strict=True):
                layer.weight.copy_(torch.tensor(np.asarray(params[name]["kernel"]).T))
                layer.bias.copy_(torch.tensor(np.asarray(params[name]["bias"])))
        return self


@contextlib.contextmanager
def without_dropout(towers: Sequence[Tower]) -> Iterator[None]:
    """Switches dropout and the recording of derivatives off for a while."""
    for tower in towers:
        tower.eval()
    with torch.no_grad():
        yield
    for tower in towers:
        tower.train()


@dataclasses.dataclass(frozen=True)
class Objective:
    """Squared label loss of both modalities plus a metric loss in both directions."""

    loss: torch_peers.PeerLoss
    anchor_aware: bool = False

    def __call__(self, audio: Tensor, visual: Tensor, labels: Tensor) -> Tensor:
        """The objective of outputs [B, C] and labels [B]."""
        pairs = torch_peers.Pairs(labels, labels)
        targets = F.one_hot(labels, audio.shape[1]).to(audio.dtype)
        total = ((audio - targets).square().sum() + (visual - targets).square().sum()) / len(labels)
        for anchors, references in ((audio, visual), (visual, audio)):
            if self.anchor_aware:
                anchors = torch_peers.anchor_aware_proxies(anchors, pairs.same)
            total = total + self.loss.function(anchors, references, pairs)
        return total


def make_steps(
    towers: tuple[Tower, Tower],
    objective: Callable[[Tensor, Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor, Tensor],
    orders: Sequence[Tensor],
    *,
    batch_size: int,
    learning_rate: float,
    is_compiled: bool = False,
) -> Callable[[], None]:
    """A function that trains one epoch.

    Args:
      towers: of audio and visual.
      objective: of their outputs and the labels.
      data: audio [N, Da], visual [N, Dv], labels int64 [N].
      orders: permutations of the rows, one an epoch, taken in turn.
      batch_size: rows per step; what does not fill a batch is left out.
      learning_rate: of Adam.
      is_compiled: whether towers and objective go through `torch.compile`.
    """
    parameters = [parameter for tower in towers for parameter in tower.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    num_steps = len(data[2]) // batch_size
    epoch = 0
    losses: Tensor | float = 0.0

    def forward(audio: Tensor, visual: Tensor, labels: Tensor) -> Tensor:
        return objective(towers[0](audio), towers[1](visual), labels)

    compute_loss = torch.compile(forward) if is_compiled else forward

    def step(rows: Tensor) -> Tensor:
        audio, visual, labels = (array[rows] for array in data)
        optimizer.zero_grad()
        loss = compute_loss(audio, visual, labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def run() -> None:
        nonlocal epoch, losses
        order = orders[epoch % len(orders)]
        epoch += 1
        losses = sum(step(rows) for rows in order[: num_steps * batch_size].split(batch_size))
        if order.is_cuda:
            torch.cuda.synchronize()

    return run
