"""Heads: from a text's vector to its reward.

    MLPHead      vector (N, D) -> reward (N,)          regression and bt-frozen
    LinearHead   vector (N, D) -> reward (N,)          bt-finetune, where the encoder is trained too
    PairHead     two vectors (B, D) -> logit (B,)      classification; it can compare, but not score

The output layer of every head starts at zero, so an untrained model prefers nothing. The loss of
the first batch, Bradley-Terry or BCE, is therefore ln 2 = 0.6931 whatever the data. If yours is
different, then the head is not new, or the loss has a margin, or the pairs are weighted
(`--balance`). Fine-tuning is an exception: it gives its head a direction before the first batch
(`loops.start_head`).

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

    It has no bias. Bradley-Terry sees only differences of rewards, in which a bias cancels, so it
    would never receive a gradient. (MLPHead has a bias because regression needs one; in bt-frozen
    it cancels as well.)
    """

    def __init__(self, size: int):
        super().__init__()
        self.output = nn.Linear(size, 1, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, vector: Tensor) -> Tensor:
        return self.output(vector.float()).squeeze(-1)  # (N,)


class MLPHead(nn.Module):
    """reward = shift + scale * MLP((vector - mean) / std): (N, D) -> (N,), in float32.

    Frozen features have whatever scale their encoder gives them. In a unit-length embedding of 384
    numbers, for instance, the entries are near 0.05, which is far too small for a freshly
    initialised layer. `fit_input` measures their mean and standard deviation once, on the training
    part. `fit_output` does the same for the ratings, so that regression starts at the mean rating
    instead of learning it step by step from zero, and `shrink_output` corrects their scale after
    training. All four are buffers: they are saved with the head but never trained.
    """

    def __init__(self, size: int, hidden: int = 256):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.hidden = nn.Linear(size, hidden)
        self.output = nn.Linear(hidden, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def fit_input(self, vectors: Tensor) -> None:
        """Set mean and standard deviation from the training vectors (N, D)."""
        mean = vectors.float().mean(dim=0)  # (D,)
        std = vectors.float().std(dim=0, unbiased=False)  # (D,)
        self.mean.copy_(mean)
        self.std.copy_(
            std.clamp(min=1e-6)
        )  # an entry that never varies must not divide by zero

    def fit_output(self, ratings: Tensor) -> None:
        """Set shift and scale from the training ratings (N,)."""
        mean = ratings.float().mean()
        std = ratings.float().std(unbiased=False)
        self.shift.copy_(mean)
        self.scale.copy_(std.clamp(min=1e-6))

    def shrink_output(self, predicted: Tensor, ratings: Tensor) -> float:
        """Multiply the scale by the factor that brings predictions (N,) nearest to ratings (N,).

        Nearest is meant as least squares: the distance of each prediction from `shift`, the mean
        training rating, is multiplied by a factor that is fitted on validation and returned. It
        stays positive, so the order of the predictions stays as it is.
        """
        distance = predicted.double() - self.shift.item()  # (N,)
        wanted = ratings.double() - self.shift.item()  # (N,)
        squares = distance.square().sum().clamp(min=1e-12)  # 0 if all predictions are the mean
        factor = ((distance * wanted).sum() / squares).clamp(min=0.01).item()
        self.scale.mul_(factor)
        return factor

    def forward(self, vector: Tensor) -> Tensor:
        x = (vector.float() - self.mean) / self.std  # (N, D)
        x = nn.functional.gelu(self.hidden(x))  # (N, hidden)
        x = self.output(x).squeeze(-1)  # (N,)
        return self.shift + self.scale * x  # (N,)


class PairHead(nn.Module):
    """logit of "a is preferred to b" = g([a; b]) - g([b; a]): (B, D), (B, D) -> (B,), in float32.

    The head is antisymmetric by construction: swapping the two responses flips the sign of the
    logit. It therefore cannot learn that the first response tends to be the better one, and a
    response compared with itself gets a logit of zero.

    g sees both vectors. If g ignores the second one, then g([a; b]) is a reward r(a), and the logit
    is r(a) - r(b), as in Bradley-Terry. PairHead is thus the more general model. The price is that
    a single response has no reward.
    """

    def __init__(self, size: int, hidden: int = 256):
        super().__init__()
        self.g = MLPHead(2 * size, hidden)

    def fit_input(self, vectors: Tensor) -> None:
        """Set mean and standard deviation from vectors (N, D), the same for both halves of g."""
        both_halves = vectors.repeat(1, 2)  # (N, 2D)
        self.g.fit_input(both_halves)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        ab = torch.cat([a, b], dim=-1)  # (B, 2D)
        ba = torch.cat([b, a], dim=-1)  # (B, 2D)
        return self.g(ab) - self.g(ba)  # (B,)
