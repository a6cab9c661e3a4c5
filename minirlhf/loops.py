"""The two training loops, written out.

`fit_frozen` trains a head on a matrix of vectors that sits on the device: an epoch takes
milliseconds. `fit_finetune` trains encoder and head on token rows: an epoch takes minutes. Both are
generators that yield a record of each epoch, a dictionary of its numbers, so that the caller can
print, log and save it. Run to the end, both leave the model with the weights of its best epoch.

The best epoch is the one with the lowest calibrated loss on validation: the negative log-likelihood
of the preferences after the margins were divided by the temperature that suits them best. The plain
loss is no guide. After an epoch or two the mistakes of a fine-tuned model grow more confident,
which raises its loss even where it ranks more pairs right; a temperature can correct the confidence
after training, but it cannot change the ranking. Accuracy is a poor guide, too: it counts a margin
of 0.01 like one of 10, and on a few hundred pairs it jumps by chance.

`train_loss` and `train_accuracy` are summed up during the epoch, each pair before the update that
uses it, so they are behind the numbers that the model would have on the same pairs after the epoch.
The training accuracy in `metrics.json` is another number: it is counted at the end, with the kept
model on a sample of the training pairs. `validation_loss` leaves out margin and label smoothing.
Read next: `metrics.py`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minirlhf.approaches import EVALUATION_STEPS, STEPS, Step, bt_finetune
from minirlhf.data import Part, sample_by_prompt
from minirlhf.metrics import credit, fit_temperature, negative_log_likelihood
from minirlhf.model import RewardModel
from minirlhf.runtime import precision, ranks
from minirlhf.runtime.progress import Progress
from minirlhf.runtime.resume import TrainingState
from minirlhf.settings import Settings
from minirlhf.tokens import shuffled_batches

FIRST_MARGINS = 0.3  # root mean square of the margins with which fine-tuning starts
PAIRS_TO_START = 500  # from which the linear head is pointed
TEXTS_TO_SCALE = 10_000  # from which a head's scale is taken; more would say the same
STEPS_A_RECORD = 10  # updates of a fine-tuning that one record of its steps sums up
PAIRS_AT_ONCE = 5000  # in evaluation, so that memory stays flat


# ---- training a head on frozen vectors


def fit_frozen(
    model: RewardModel,
    features: Tensor,
    train: Part,
    validation: Part,
    settings: Settings,
    state: TrainingState | None = None,
) -> Iterator[dict]:
    """Train a head on frozen vectors (U, D), and yield a record of each epoch.

    train, validation: pairs whose texts are rows of `features`.
    state: `new_state(model, settings)`, for a caller who wants to look at it.
    Raises FloatingPointError if a loss is not finite.
    """
    training_step = STEPS[model.info["approach"]]
    train = train.to(features.device)
    fit_scales(model, features, train)
    state = state or new_state(model, settings)

    for epoch in range(1, settings.epochs + 1):
        start = time.perf_counter()
        sums = Sums(features.device)
        order = torch.randperm(len(train.prompt), generator=state.generator)
        for picked in order.to(features.device).split(settings.batch_size):
            pairs = train.pick(picked)  # B pairs
            result = training_step(model, features, pairs, settings)

            state.optimizer.zero_grad()
            result.loss.backward()
            state.optimizer.step()
            sums.add(result, pairs)

        evaluation = evaluate(model, features, validation)
        record = epoch_record(epoch, sums, evaluation, validation, start)
        keep_if_best(state, record, evaluation)
        yield record
        if state.epochs_waited >= settings.patience:
            break
    model.load_state_dict(state.best_weights, strict=False)
    if model.info["approach"] == "regression":
        shrink_ratings(model, features, validation)


def fit_scales(model: RewardModel, features: Tensor, train: Part) -> None:
    """Set the scale of the head's input, and of a regression's output, from the training pairs."""
    texts = torch.cat([train.chosen, train.rejected])  # (2N,)
    model.head.fit_input(features[evenly(texts, TEXTS_TO_SCALE)])
    if model.info["approach"] == "regression":
        model.head.fit_output(torch.cat([train.chosen_rating, train.rejected_rating]))


@torch.no_grad()
def shrink_ratings(model: RewardModel, features: Tensor, validation: Part) -> None:
    """Bring a regression's predictions nearer to the mean rating, as far as validation says.

    The epoch is chosen for its ranking. The more epochs, the further the predictions lie apart, and
    soon they are worse guesses of the ratings than the mean rating is. One factor mends that and
    changes no ranking, as the temperature mends confidence: the temperature is multiplied by it,
    too, so that probabilities stay as they are. Other ways were tried; see experiments/README.md.
    """
    rewards = evaluate(model, features, validation).rewards  # (N, 2)
    predicted = torch.cat([rewards[:, 0], rewards[:, 1]])  # (2N,)
    ratings = torch.cat([validation.chosen_rating, validation.rejected_rating])  # (2N,)
    factor = model.head.shrink_output(predicted, ratings)
    model.info["temperature"] *= factor


def evenly(items: Tensor, most: int) -> Tensor:
    """All items if there are at most `most`; otherwise every second one, or every third ..."""
    every = math.ceil(len(items) / most)
    return items[::every]


# ---- training encoder and head


def fit_finetune(
    model: RewardModel,
    token_rows: Sequence,
    train: Part,
    validation: Part,
    settings: Settings,
    dtype: torch.dtype = torch.float32,
    state: TrainingState | None = None,
    log_step: Callable[[dict], None] | None = None,
) -> Iterator[dict]:
    """Train encoder and head on U token rows, and yield a record of each epoch.

    train, validation: pairs whose texts are rows of `token_rows`.
    dtype: the precision of the encoder's computations; the weights that learn are float32.
    state: `new_state(model, settings)`, or that of a stopped run which now goes on. Whenever an
        epoch is yielded it is complete, so that it can be saved.
    log_step: is called after every tenth update with a record of the last ten (`step_record`). An
        epoch may end within a record. A run that goes on may begin with a record of fewer.
    Raises FloatingPointError if a gradient or a loss is not finite, and ValueError if dropout is
    asked of an encoder that has none.
    """
    set_dropout(model, settings.dropout)
    state = state or new_state(model, settings)
    model.info["temperature"] = state.temperature  # of the best epoch so far, if there is one
    weights = precision.trained(model)
    # The encoder works in a copy of low precision, under the same head (runtime/precision.py). In
    # float32 the working copy is the model itself.
    working_copy = model.in_precision(dtype)
    if state.epoch == 0:
        start_head(working_copy, token_rows, train)

    first_epoch = state.epoch + 1
    recent = Sums(model.device)  # of the updates since the last record of steps
    for epoch in range(first_epoch, settings.epochs + 1):
        # Asked before the epoch, since a resumed run may be at its end.
        if state.epochs_waited >= settings.patience:
            break
        start = time.perf_counter()
        sums = Sums(model.device)  # of the epoch
        # Without dropout all of the encoder is in evaluation mode, because attention may have a
        # dropout of its own, which `set_dropout` does not reach.
        working_copy.train(settings.dropout > 0)
        updates = draw_updates(train, settings, state.generator)
        # The first epoch says how long all of them will take.
        epochs_left = settings.epochs - epoch + 1 if epoch == first_epoch else None
        progress = epoch_progress(updates, epoch, settings, epochs_left)
        for step, update in enumerate(progress):
            update_start = time.perf_counter()

            # The gradient of all pairs of the update, in batches that fit into memory.
            for batch in batches_of(update, token_rows, train, model.device):
                result = bt_finetune(working_copy, batch.texts, batch.pairs, settings)
                (result.loss * batch.share).backward()
                sums.add(result, batch.pairs)
                recent.add(result, batch.pairs)

            # Added up over all processes, and shortened if it is too long.
            precision.hand_gradients(working_copy, model)
            ranks.sum_gradients(weights)
            norm = clip_grad_norm_(weights, settings.clip)
            check_finite(norm, epoch, step, update)

            # One step of AdamW.
            done = (epoch - 1 + (step + 0.5) / len(updates)) / settings.epochs  # of all steps
            set_learning_rate(state.optimizer, done, settings)
            state.optimizer.step()
            state.optimizer.zero_grad()
            precision.hand_weights(model, working_copy)

            # Show the update, and record every tenth one together with those before it.
            state.step += 1
            progress.note = f"loss {recent.mean_loss():.3f}"
            recent.seconds += time.perf_counter() - update_start
            if state.step % STEPS_A_RECORD == 0:
                recent.add_up_over_processes()
                if log_step:
                    epochs_done = epoch - 1 + (step + 1) / len(updates)
                    log_step(step_record(state, recent, epochs_done))
                recent = Sums(model.device)

        sums.add_up_over_processes()
        evaluation = evaluate_texts(working_copy, token_rows, validation)
        record = epoch_record(epoch, sums, evaluation, validation, start)
        keep_if_best(state, record, evaluation)
        state.epoch = epoch
        yield record
    model.load_state_dict(state.best_weights, strict=False)


@torch.no_grad()
def start_head(model: RewardModel, token_rows: Sequence, train: Part) -> None:
    """Point the linear head from the rejected to the chosen, as the untrained encoder sees them.

    A dimension's weight is the mean difference of the two, over the dimension's variance: a linear
    discriminant in the manner of Fisher, scaled to margins of `FIRST_MARGINS`.

    The encoder learns what to show once the head knows what to look for, and the head learns what
    to look for once the encoder shows it. From a head at zero or at random it is a matter of chance
    how soon they find each other. Kumar et al. (2022, https://arxiv.org/abs/2202.10054) advise to
    fit the head before the encoder moves. Pointing it was better than zero and than random, and no
    worse than fitting it to the end; the trials are in experiments/README.md.
    """
    some = sample_by_prompt(train.prompt.tolist(), PAIRS_TO_START)
    texts, pairs = distinct_texts(token_rows, train.pick(some))
    pairs = pairs.to(model.device)
    # A vector that is not finite is reported in training, with the pairs it belongs to.
    vectors = vectors_by_all(model, texts)  # (U, D)
    vectors = vectors.nan_to_num(posinf=0, neginf=0)
    differences = vectors[pairs.chosen] - vectors[pairs.rejected]  # (B, D)
    direction = (pairs.weight[:, None] * differences).mean(dim=0)  # (D,)
    direction /= vectors.var(dim=0).clamp(min=1e-6)  # some dimensions hardly vary
    margins = differences @ direction  # (B,)
    root_mean_square = margins.square().mean().sqrt()
    direction = FIRST_MARGINS * direction / root_mean_square.clamp(min=1e-9)
    model.head.output.weight.copy_(direction)


def set_dropout(model: RewardModel, share: float) -> None:
    """Set the encoder's dropout. Raises ValueError if it has none and `share` is not 0."""
    layers = [
        module for module in model.encoder.modules() if isinstance(module, torch.nn.Dropout)
    ]
    if share and not layers:
        raise ValueError("this encoder has no dropout layers; leave --dropout out")
    for layer in layers:
        layer.p = share


def set_learning_rate(
    optimizer: torch.optim.Optimizer, done: float, settings: Settings
) -> None:
    """Set the learning rate for a step: it rises from 0 to its peak, and then falls to 0.

    done: the share (0 to 1) of the run that is over in the middle of the step, so that neither the
        first step nor the last one has a rate of 0.
    """
    rising = done / max(settings.warmup, 1e-9)
    falling = (1 - done) / max(1 - settings.warmup, 1e-9)
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * min(rising, falling)


def check_finite(norm: Tensor, epoch: int, step: int, update: Sequence) -> None:
    """Raise FloatingPointError, with step and pairs, if a gradient is NaN or infinite."""
    if norm.isfinite():
        return
    pairs = [pair for picked in update for pair in picked]
    where = f"step {step + 1} of epoch {epoch}, training pairs {pairs}"
    raise FloatingPointError(f"no finite gradient at {where}; try a lower --lr")


# ---- batches


class Batch(NamedTuple):
    """A part of the pairs of one update, as it goes through the encoder."""

    texts: list  # token rows of the U distinct texts
    pairs: Part  # B pairs, in the numbers 0 ... U - 1 of these texts
    share: float  # B over the pairs of the whole update


def draw_updates(
    train: Part, settings: Settings, generator: torch.Generator
) -> list[list[list[int]]]:
    """An epoch of updates, each a list of batches, each a list of the numbers of its pairs."""
    batches = shuffled_batches(train.prompt.tolist(), settings.batch_size, generator)
    size = settings.accumulate  # the last update gets what is left
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def batches_of(
    update: Sequence[Sequence[int]], token_rows: Sequence, train: Part, device: torch.device
) -> Iterator[Batch]:
    """The batches of an update; of each one the part that this process has to read."""
    pairs_in_update = sum(len(picked) for picked in update)
    for picked in update:
        mine = ranks.my_share(picked)
        if mine:  # there may be fewer pairs than processes
            texts, pairs = distinct_texts(token_rows, train.pick(mine))
            yield Batch(texts, pairs.to(device), len(mine) / pairs_in_update)


def distinct_texts(token_rows: Sequence, pairs: Part) -> tuple[list, Part]:
    """The token rows of the distinct texts in some pairs, and the pairs in the numbers of these.

    Two pairs (texts 3 and 7, texts 3 and 9) have three distinct texts, 3, 7 and 9. In their own
    numbers the pairs are (0, 1) and (0, 2), so text 3 is read once and serves both.
    """
    both_sides = torch.cat([pairs.chosen, pairs.rejected])  # 3 3 7 9
    used, number = both_sides.unique(return_inverse=True)  # 3 7 9, and 0 0 1 2
    chosen, rejected = number.chunk(2)  # 0 0 and 1 2
    texts = [token_rows[i] for i in used.tolist()]
    return texts, pairs._replace(chosen=chosen, rejected=rejected)


def epoch_progress(
    updates: Sequence, epoch: int, settings: Settings, epochs_left: int | None
) -> Progress:
    """Goes through the updates of an epoch, and shows how far it is.

    epochs_left: the number of epochs, this one included, whose time is estimated and printed; None
        for no estimate.
    """
    pairs_in_updates = []
    for update in updates:
        pairs_in_updates.append(sum(len(picked) for picked in update))
    return Progress(
        updates,
        pairs_in_updates,
        title=f"epoch {epoch} of {settings.epochs}",
        unit="pairs",
        epochs_left=epochs_left,
        advice="--limit 1000 and --epochs 1 make it shorter",
    )


# ---- what an epoch amounts to


class Sums:
    """Sums over some updates of loss, right pairs, pairs and seconds.

    Pairs of equal ratings count in the loss, since a regression learns from them. They are left out
    of the accuracy, since neither response is preferred.
    """

    def __init__(self, device: torch.device):
        self.pairs = torch.zeros((), device=device)
        self.loss = torch.zeros((), device=device)
        self.right = torch.zeros((), device=device)
        self.untied = torch.zeros((), device=device)  # pairs that can be right or wrong
        self.seconds = 0.0  # that the updates took; the loop that makes them counts it

    def add(self, result: Step, pairs: Part) -> None:
        """Add a batch of pairs."""
        # A rating that is absent is NaN, which equals nothing, so such a pair counts.
        untied = (pairs.chosen_rating != pairs.rejected_rating).float()  # (B,)
        self.pairs += len(result.margins)
        self.loss += result.loss.detach() * len(result.margins)
        self.right += (untied * credit(result.margins.detach())).sum()
        self.untied += untied.sum()

    def add_up_over_processes(self) -> None:
        """Add the sums of torchrun's other processes."""
        ranks.sum_tensors([self.pairs, self.loss, self.right, self.untied])

    def mean_loss(self) -> float:
        """The mean loss of a pair."""
        return self.loss.item() / max(1, self.pairs.item())

    def accuracy(self) -> float:
        """The share of right pairs, among those that can be right or wrong."""
        return self.right.item() / max(1, self.untied.item())


def new_state(model: RewardModel, settings: Settings) -> TrainingState:
    """The state of a training that has not begun."""
    # "Fused" is one kernel for all weights. A head alone does not need it, and mps is not trusted.
    fused = model.info["approach"] == "bt-finetune" and model.device.type != "mps"
    optimizer = torch.optim.AdamW(
        precision.trained(model),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        fused=fused,
    )
    generator = torch.Generator().manual_seed(settings.seed)
    return TrainingState(model, optimizer, generator)


def step_record(state: TrainingState, recent: Sums, epochs_done: float) -> dict:
    """The numbers of the last few updates, as `steps.jsonl` has them.

    recent: the sums of these updates, over all processes.
    epochs_done: how many epochs are over, with a fraction.

    The pairs a second are those of the updates alone, without the validation between two epochs.
    """
    return {
        "step": state.step,
        "epochs_done": epochs_done,
        "step_loss": recent.mean_loss(),
        "step_accuracy": recent.accuracy(),
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "pairs_per_second": recent.pairs.item() / recent.seconds,
    }


def epoch_record(
    epoch: int, sums: Sums, evaluation: "Evaluation", validation: Part, start: float
) -> dict:
    """The numbers of an epoch, as `history.jsonl` has them.

    evaluation: of the validation part; start: when the epoch began.
    Raises FloatingPointError if a loss is NaN or infinite.
    """
    train_loss = sums.mean_loss()
    if not (math.isfinite(train_loss) and math.isfinite(evaluation.loss)):
        raise FloatingPointError(f"the loss of epoch {epoch} is not finite; try a lower --lr")
    margins = evaluation.margins
    temperature = fit_temperature(margins, validation.weight)
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_accuracy": sums.accuracy(),
        "validation_loss": evaluation.loss,
        "validation_accuracy": credit(margins).mean().item(),
        "calibrated_loss": negative_log_likelihood(margins, temperature, validation.weight),
        "seconds": time.perf_counter() - start,
    }


def keep_if_best(state: TrainingState, record: dict, evaluation: "Evaluation") -> None:
    """Mark in the record whether this epoch is the best so far.

    If it is, keep its weights, its validation result and its temperature. If it is not, count it
    for the patience.
    """
    record["best"] = record["calibrated_loss"] < state.lowest_loss
    if not record["best"]:
        state.epochs_waited += 1
        return
    state.epochs_waited = 0
    state.validation = evaluation._asdict()
    state.lowest_loss = record["calibrated_loss"]
    state.best_weights = {}
    for name, weight in state.model.named_parameters():
        if weight.requires_grad:
            state.best_weights[name] = weight.detach().cpu().clone()
    # The temperature of the finished model ignores the pairs' weights (`--balance`): it turns
    # margins into probabilities for pairs as frequent as they are in the data.
    state.temperature = fit_temperature(evaluation.margins)
    state.model.info["temperature"] = state.temperature


# ---- evaluation


class Evaluation(NamedTuple):
    """What a model says of N pairs."""

    loss: float  # the mean over the pairs, weighted; without margin and label smoothing
    margins: Tensor  # (N,)
    rewards: Tensor | None  # (N, 2) of chosen and rejected; None where the model only compares


@torch.no_grad()
def evaluate(model: RewardModel, features: Tensor, part: Part) -> Evaluation:
    """Evaluate all pairs of a part, given the vectors (U, D) of the texts."""
    step = EVALUATION_STEPS[model.info["approach"]]
    order = by_prompt(part)
    results = []
    for picked in order.split(PAIRS_AT_ONCE):
        pairs = part.pick(picked).to(model.device)
        results.append(step(model, features, pairs))
    return put_together(results, order)


@torch.no_grad()
def evaluate_texts(model: RewardModel, token_rows: Sequence, part: Part) -> Evaluation:
    """Evaluate all pairs of a part, given the token rows of the texts; each is read once."""
    step = EVALUATION_STEPS[model.info["approach"]]
    order = by_prompt(part)
    results = []
    for picked in order.split(PAIRS_AT_ONCE):
        texts, pairs = distinct_texts(token_rows, part.pick(picked))
        vectors = vectors_by_all(model, texts)  # (U, D) of these pairs
        results.append(step(model, vectors, pairs.to(model.device)))
    return put_together(results, order)


def by_prompt(part: Part) -> Tensor:
    """The numbers (N,) of the pairs, sorted so that those of one prompt are neighbours."""
    return part.prompt.argsort(stable=True)


def put_together(results: list, order: Tensor) -> Evaluation:
    """The evaluation of N pairs from the steps of its pieces, in the pairs' own order.

    order (N,): the pairs in the order in which the pieces hold them.
    """
    place = order.argsort()  # (N,) where each pair is
    margins = torch.cat([result.margins for result in results]).cpu()
    loss = sum(result.loss.item() * len(result.margins) for result in results)
    rewards = None
    if results[0].rewards is not None:
        rewards = torch.cat([result.rewards for result in results]).cpu()[place]
    return Evaluation(loss / len(margins), margins[place], rewards)


def vectors_by_all(model: RewardModel, token_rows: Sequence) -> Tensor:
    """The vectors (U, D) of token rows; each of torchrun's processes reads its share.

    The model is in evaluation mode afterwards.
    """
    model.eval()
    mine = ranks.every_nth(token_rows)
    vectors = torch.zeros(len(token_rows), model.info["size"], device=model.device)
    if mine:
        ranks.every_nth(vectors)[:] = model.vectors(mine, progress=True)
    ranks.sum_tensors([vectors])
    return vectors
