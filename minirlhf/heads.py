"""From a vector to a reward: stage 5 of the data's path.

    MLPHead      vector (N, D) -> reward (N,)          regression and bt-frozen
    LinearHead   vector (N, D) -> reward (N,)          bt-finetune: the encoder does the work
    PairHead     two vectors (B, D) -> logit (B,)      classification: it compares, it cannot score

Every output layer starts at zero, so an untrained model prefers nothing: the loss of the first
batch, Bradley-Terry or BCE, is ln 2 = 0.6931 whatever the data. If yours is not, the head is not
new, a margin is in the loss, or the pairs are weighed (`--balance`). Fine-tuning points its
head before the first batch (`loops.start_head`).

Copy this file alone; it needs torch only. Read next: `losses.py`.

>>> a, b = torch.randn(4, 8), torch.randn(4, 8)
>>> head = PairHead(8)
>>> torch.equal(head(a, b), -head(b, a))
True
>>> MLPHead(8)(a).tolist()
[0.0, 0.0, 0.0, 0.0]
"""

import torch
from torch import Tensor, nn


class LinearHead(nn.Module):
    """reward = w . vector: (N, D) -> (N,), in float32.

    No bias: Bradley-Terry sees only differences, so a bias would never receive a gradient (MLPHead
    has one for regression; in bt-frozen it cancels).
    """

    def __init__(self, size: int):
        super().__init__()
        self.output = nn.Linear(size, 1, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, vector: Tensor) -> Tensor:
        return self.output(vector.float()).squeeze(-1)


class MLPHead(nn.Module):
    """reward = shift + scale * MLP((vector - mean) / std): (N, D) -> (N,), in float32.

    Frozen features come as they are: a unit-length embedding of 384 numbers has entries near 0.05,
    far too small for a freshly initialised layer. `fit_input` measures them once on the training
    part. `fit_output` does the same for ratings, so that regression starts at their mean instead of
    walking there from zero. Both are buffers: saved with the head, never trained.
    """

    def __init__(self, size: int, hidden: int = 256):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.hidden = nn.Linear(size, hidden)
        self.output = nn.Linear(hidden, 1)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def fit_input(self, vectors: Tensor) -> None:
        """Set mean and standard deviation from the training vectors (N, D)."""
        self.mean.copy_(vectors.float().mean(dim=0))
        self.std.copy_(vectors.float().std(dim=0, unbiased=False).clamp(min=1e-6))

    def fit_output(self, ratings: Tensor) -> None:
        """Set shift and scale from the training ratings (N,)."""
        self.shift.copy_(ratings.float().mean())
        self.scale.copy_(ratings.float().std(unbiased=False).clamp(min=1e-6))

    def forward(self, vector: Tensor) -> Tensor:
        x = (vector.float() - self.mean) / self.std  # (N, D)
        x = nn.functional.gelu(self.hidden(x))  # (N, hidden)
        return self.shift + self.scale * self.output(x).squeeze(-1)  # (N,)


class PairHead(nn.Module):
    """logit of "a is preferred to b" = g([a; b]) - g([b; a]): (B, D), (B, D) -> (B,), in float32.

    Antisymmetric by construction: swapping the two flips the sign, so no order can be learned, and
    a response ties with itself. g sees both vectors; Bradley-Terry's logit r(a) - r(b) is the
    special case of a g that ignores its second half. The price: there is no reward of one response.
    """

    def __init__(self, size: int, hidden: int = 256):
        super().__init__()
        self.g = MLPHead(2 * size, hidden)

    def fit_input(self, vectors: Tensor) -> None:
        """Set mean and standard deviation, the same for both halves, from vectors (N, D)."""
        self.g.fit_input(vectors.repeat(1, 2))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.g(torch.cat([a, b], dim=-1)) - self.g(torch.cat([b, a], dim=-1))
