"""The two training loops, written out.

`fit_frozen` slices a matrix of features that sits on the device: an epoch takes milliseconds.
`fit_finetune` points the head, then trains encoder and head: an epoch takes minutes.
Both are generators that yield a row of numbers after each epoch, so the caller prints, logs and
saves as it likes. Run to the end, both leave the model with its best weights: those of the epoch
with the lowest calibrated loss on validation.

Calibrated: the negative log-likelihood of the preferences after the margins were divided by their
best temperature. The plain loss is no guide: after an epoch or two a fine-tuned model's mistakes
grow more confident, which raises its loss even where it gets more pairs right, and confidence can
be mended afterwards, a wrong order cannot. Accuracy is a poor guide too: it counts a margin of 0.01
as it counts one of 10, and on a few hundred pairs it jumps by chance.

`train_loss` and `train_accuracy` are taken in passing, each pair before the update it belongs to.
`validation_loss` leaves out margin and label smoothing, so compare the two only where both are 0
and dropout is off.
Read next: `metrics.py`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from minirlhf.approaches import PLAIN, STEPS, bt_frozen
from minirlhf.data import Part
from minirlhf.metrics import credit, fit_temperature, negative_log_likelihood
from minirlhf.model import RewardModel
from minirlhf.runtime.device import ranks, sum_over_ranks
from minirlhf.tokens import shuffled_batches

# The root mean square of the margins on the training pairs with which fine-tuning starts.
FIRST_MARGINS = 0.3


def fit_frozen(
    model: RewardModel, features: Tensor, train: Part, validation: Part, args, options=PLAIN
) -> Iterator[dict]:
    """Train a head on frozen features (U, D); a row of numbers after each epoch.

    args: holds `epochs`, `batch_size` (pairs), `lr`, `weight_decay`, `seed` and `patience`
        (stop after so many epochs in a row without a better one).
    """
    step, device = STEPS[model.info["approach"]], features.device
    train = Part(*(t.to(device) for t in train))
    used = torch.cat([train.chosen, train.rejected])
    # At most 10,000 texts: they say as much as all, and all might be copied into much memory.
    model.head.fit_input(features[used[:: len(used) // 10_000 + 1]])
    if model.info["approach"] == "regression":
        model.head.fit_output(torch.cat([train.chosen_rating, train.rejected_rating]))
    optimizer = torch.optim.AdamW(model.head.parameters(), args.lr, weight_decay=args.weight_decay)
    generator = torch.Generator().manual_seed(args.seed)
    count = len(train.chosen)
    best = Best(model, count)
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        total_loss, total_right = torch.zeros((), device=device), torch.zeros((), device=device)
        for picked in torch.randperm(count, generator=generator).to(device).split(args.batch_size):
            loss, margins = step(model, features, Part(*(t[picked] for t in train)), options)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += loss.detach() * len(picked)
            total_right += credit(margins.detach()).sum()
        result = evaluate(model, features, validation)
        row = best.update(epoch, total_loss, total_right, validation, result, start)
        yield row
        if best.waited >= args.patience:
            break
    model.load_state_dict(best.weights, strict=False)


def fit_finetune(
    model: RewardModel, rows: Sequence, train: Part, validation: Part, args, options=PLAIN
) -> Iterator[dict]:
    """Train encoder and head on token rows (U of them); a row of numbers after each epoch.

    args: holds what `fit_frozen` reads, and
        accumulate: batches in one optimiser step.
        warmup: share of all steps over which the learning rate rises from 0 to `lr`; from there it
            falls in a line to 0 at the last step.
        clip: largest norm of the gradient.
        dropout: 0 turns it off, also where the encoder was pretrained with it. The two sides of a
            pair would see two masks, and that noise is as large as the margins to be learned.

    With `options.state` (`runtime/resume.py`) all that the loop holds is saved after each epoch. If
    a state is found, its epoch's row is yielded once more, and training goes on from there.
    """
    step, device = STEPS[model.info["approach"]], model.device
    dropouts = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Dropout)]
    if args.dropout and not dropouts:
        raise ValueError("this encoder has no dropout layers; leave --dropout out")
    for module in dropouts:
        module.p = args.dropout
    weights = [p for p in model.parameters() if p.requires_grad]
    # The rate is set at each step. `fused` is one kernel for all weights, not trusted on mps.
    how = {"weight_decay": args.weight_decay, "fused": device.type != "mps"}
    optimizer = torch.optim.AdamW(weights, **how)
    generator = torch.Generator().manual_seed(args.seed)
    best = Best(model, len(train.prompt))
    row = options.state.load(best, optimizer, generator) if options.state else None
    if row:
        yield row
    # Where the hardware multiplies bfloat16, a copy of the encoder in bfloat16 does the work. The
    # float32 weights learn: most steps are smaller than the gaps between bfloat16 numbers.
    worker = model.in_precision(options.dtype)
    if not row:
        start_head(worker, rows, train, options.progress)
    copies = [p for p in worker.parameters() if p.requires_grad]
    rank, processes = ranks()
    sizes = torch.tensor([len(ids) for ids in rows])
    lengths = torch.maximum(sizes[train.chosen], sizes[train.rejected]).tolist()  # the longer side
    for epoch in range(row["epoch"] + 1 if row else 1, args.epochs + 1):
        if best.waited >= args.patience:
            break
        start = time.perf_counter()
        # Off by eval(), not by p = 0: attention may keep its dropout outside of nn.Dropout.
        worker.train(args.dropout > 0)
        batches = shuffled_batches(train.prompt.tolist(), lengths, args.batch_size, generator)
        each = args.accumulate
        updates = [batches[i : i + each] for i in range(0, len(batches), each)]
        total_loss, total_right = torch.zeros((), device=device), torch.zeros((), device=device)
        norms = []  # of the gradients since the last look
        for i, micro_batches in enumerate(options.progress(updates, f"epoch {epoch}")):
            pairs_in_update = sum(len(picked) for picked in micro_batches)
            for picked in micro_batches:
                # torchrun's processes share a batch. Neighbours stay together, as they share texts.
                cuts = [len(picked) * r // processes for r in (rank, rank + 1)]
                if not (picked := picked[slice(*cuts)]):
                    continue
                loss, margins = step(worker, *batch(rows, train, picked, device), options)
                # Weighted by size, so that all parts together give the gradient of one large batch.
                (loss * len(picked) / pairs_in_update).backward()
                total_loss += loss.detach() * len(picked)
                total_right += credit(margins.detach()).sum()
            for weight, copy in zip(weights, copies, strict=True):  # the same where no copy works
                grad = torch.zeros_like(weight) if copy.grad is None else copy.grad.float()
                copy.grad, weight.grad = None, grad
            sum_over_ranks(weight.grad for weight in weights)
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip))
            # Looked at now and then only: to read a number off a GPU is to wait for it.
            if len(norms) == 50 or i == len(updates) - 1:
                if not (finite := torch.stack(norms).isfinite()).all():
                    at = i + 1 - len(norms) + int(finite.int().argmin())  # the first
                    where = f"step {at + 1} of epoch {epoch}, training pairs {sum(updates[at], [])}"
                    raise FloatingPointError(f"no finite gradient at {where}; try a lower --lr")
                norms = []
            done = (epoch - 1 + (i + 0.5) / len(updates)) / args.epochs  # this step's middle
            optimizer.param_groups[0]["lr"] = args.lr * learning_rate_share(done, args.warmup)
            optimizer.step()
            optimizer.zero_grad()
            for weight, copy in zip(weights, copies, strict=True):
                copy.data.copy_(weight)
        sum_over_ranks([total_loss, total_right])
        result = evaluate(worker, rows, validation)
        row = best.update(epoch, total_loss, total_right, validation, result, start)
        if options.state and rank == 0:
            options.state.save(best, optimizer, generator, row)
        yield row
    model.load_state_dict(best.weights, strict=False)


@torch.no_grad()
def start_head(model: RewardModel, rows: Sequence, train: Part, progress=PLAIN.progress) -> None:
    """Point the linear head from the rejected to the chosen, as the untrained encoder sees them.

    A dimension's weight is the mean difference of the two over the dimension's variance: a linear
    discriminant in the manner of Fisher, scaled to margins of `FIRST_MARGINS`. Of many pairs at
    most 10,000 are read, evenly picked.

    The encoder learns what to show once the head knows what to look for, and the head the other way
    round; where the head starts at zero or at random, how soon they find each other is chance. To
    fit it before the encoder moves is the advice of Kumar et al. (2022, linear probing, then
    fine-tuning, https://arxiv.org/abs/2202.10054).

    Tried on validation, when the word embeddings learned, too (calibrated loss after three epochs,
    bundled folds 2 and 0; -: not run). With ten times the rate for the head: zero 0.560, 0.534;
    random 0.541, -; pointed 0.426, -; a Bradley-Terry head fitted to the end (ridge 0.03)
    0.432, 0.504, at twice the rate for all 0.498, -, in batches of 16 0.468, -. With one rate
    for all: fitted to the end 0.427, -; pointed, as it is now, 0.418, 0.448; with margins of 1
    0.437, 0.496; at half the rate 0.438, -.
    """
    picked = slice(None, None, -(-len(train.prompt) // 10_000))
    texts, pairs = batch(rows, train, picked, model.device)
    # A vector that is not finite is found in training, with the pairs it belongs to.
    vectors = _vectors(model, texts, progress).nan_to_num(posinf=0, neginf=0)  # (U, D)
    differences = vectors[pairs.chosen] - vectors[pairs.rejected]  # (B, D)
    direction = (pairs.weight[:, None] * differences).mean(dim=0)
    direction /= vectors.var(dim=0).clamp(min=1e-6)  # some dimensions hardly vary
    size = (differences @ direction).square().mean().sqrt()
    model.head.output.weight.copy_(FIRST_MARGINS * direction / size.clamp(min=1e-9))


def _vectors(model: RewardModel, rows: Sequence, progress: Callable) -> Tensor:
    """The vectors (U, D) of token rows; each of torchrun's processes reads its share."""
    model.eval()
    rank, processes = ranks()
    vectors = torch.zeros(len(rows), model.info["size"], device=model.device)
    if mine := rows[rank::processes]:
        vectors[rank::processes] = model.map(model.vectors, mine, progress=progress)
    sum_over_ranks([vectors])
    return vectors


def learning_rate_share(done: float, warmup: float) -> float:
    """Share of the peak learning rate when `done` (0 to 1) of the run is done: up, then down."""
    return min(done / max(warmup, 1e-9), (1 - done) / max(1 - warmup, 1e-9))


class Best:
    """The best weights so far and the epochs since; makes an epoch's row of numbers, too."""

    def __init__(self, model: RewardModel, count: int):
        self.model, self.count = model, count  # `count` training pairs
        self.lowest, self.weights, self.waited = math.inf, {}, 0

    def update(self, epoch, total_loss, total_right, validation: Part, result, start) -> dict:
        """The epoch's row of numbers. Keeps the weights if it is the best so far.

        result: what `evaluate` returned for `validation`; start: when the epoch began.
        Raises FloatingPointError if a loss is NaN or infinite.
        """
        validation_loss, margins, _ = result
        temperature = fit_temperature(margins, validation.weight)
        row = {
            "epoch": epoch,
            "train_loss": total_loss.item() / self.count,
            "train_accuracy": total_right.item() / self.count,
            "validation_loss": validation_loss,
            "validation_accuracy": credit(margins).mean().item(),
            "calibrated_loss": negative_log_likelihood(margins, temperature, validation.weight),
            "seconds": time.perf_counter() - start,
        }
        if not math.isfinite(row["train_loss"] + row["validation_loss"]):
            raise FloatingPointError(f"the loss of epoch {epoch} is not finite; try a lower --lr")
        row["best"] = row["calibrated_loss"] < self.lowest
        self.waited = 0 if row["best"] else self.waited + 1
        if row["best"]:
            trained = self.model.named_parameters()
            self.weights = {n: p.detach().cpu().clone() for n, p in trained if p.requires_grad}
            self.lowest = row["calibrated_loss"]
            # Without weights: the temperature is about the data as they are.
            self.model.info["temperature"] = fit_temperature(margins)
        return row


def batch(
    rows: Sequence, part: Part, picked: Sequence[int] | slice, device: torch.device | str = "cpu"
) -> tuple[list, Part]:
    """The rows of the distinct texts in the picked pairs, and these pairs in their numbers."""
    pairs = Part(*(t[picked] for t in part))
    used, number = torch.cat([pairs.chosen, pairs.rejected]).unique(return_inverse=True)
    chosen, rejected = number.chunk(2)
    pairs = Part(*(t.to(device) for t in pairs._replace(chosen=chosen, rejected=rejected)))
    return [rows[i] for i in used.tolist()], pairs


@torch.no_grad()
def evaluate(
    model: RewardModel, inputs, part: Part, progress: Callable = PLAIN.progress
) -> tuple[float, Tensor, Tensor | None]:
    """Loss, margins (N,) and rewards (N, 2) of a whole part, each distinct text once.

    inputs: token rows, or features (U, D), which a frozen encoder makes once.
    The loss leaves out margin and label smoothing; the pairs' weights stay in. A classification has
    no rewards: None.
    """
    approach = model.info["approach"]
    step = bt_frozen if approach == "bt-finetune" else STEPS[approach]  # nothing is trained here
    total, margins, rewards = 0.0, [], []
    order = part.prompt.argsort(stable=True)  # what shares a response shares a prompt
    for picked in order.split(5000):  # in pieces, so that memory stays flat
        pairs, vectors = Part(*(t[picked].to(model.device) for t in part)), inputs
        if not isinstance(inputs, Tensor):
            texts, pairs = batch(inputs, part, picked, model.device)
            vectors = _vectors(model, texts, progress)
        loss, margin = step(model, vectors, pairs)
        total += loss.item() * len(picked)
        margins.append(margin.cpu())
        if approach != "classification":
            sides = model.head(vectors[pairs.chosen]), model.head(vectors[pairs.rejected])
            rewards.append(torch.stack(sides, dim=1).cpu())
    place = order.argsort()
    rewards = torch.cat(rewards)[place] if rewards else None
    return total / len(part.chosen), torch.cat(margins)[place], rewards
