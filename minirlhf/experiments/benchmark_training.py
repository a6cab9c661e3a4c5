"""The ways of fine-tuning that the benchmark compares: ours, TRL's and a notebook's plain loop.

Each function trains on all pairs of the work for one epoch, and times that alone. Loading,
tokenising, evaluation, logging and saving are not counted. Read next: `benchmark.py`.
"""

import importlib.util
import math
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from minirlhf import encoders, loops, tokens
from minirlhf.experiments.benchmark_work import FEW, Run, Work, new_model, now, without_sharing
from minirlhf.runtime.progress import Progress


def trained(
    work: Work,
    seconds: float,
    dtype: torch.dtype,
    loss: float,
    operations: float | None = None,
) -> Run:
    """What training on all pairs for one epoch comes to.

    operations: of one forward of all that was read; None if each text was read once.
    """
    if operations is None:
        operations = work.operations.sum().item()
    pairs = len(work.part.chosen)
    # Training takes the forward, and a backward that costs as much as two forwards.
    return Run(pairs / seconds, "pairs/s", 3 * operations / seconds, dtype, loss)


# ---- ours


def ours(work: Work, shared: bool = False) -> Run:
    """`loops.fit_finetune` with the defaults of train.py.

    shared: read a response that several pairs of a batch share only once, as train.py does.
    The pass that starts the head is not timed. It is at most a third of an epoch's work.
    """
    if not shared:
        work = without_sharing(work)
    device = work.machine.device
    times = []
    operations = []

    class Clock(Progress):
        """Looks at the clock before and after the updates of the epoch."""

        def __iter__(self) -> Iterator:
            for micro_batches in self.items:
                for picked in micro_batches:
                    operations.append(operations_of_batch(work, picked))
            times.append(now(device))
            yield from self.items
            times.append(now(device))

    model = new_model("bt-finetune", work.settings, work.machine)
    few = work.part.pick(slice(8))  # the loop wants to evaluate; that is not timed
    with mock.patch.object(loops, "Progress", Clock):
        (epoch,) = loops.fit_finetune(
            model,
            work.token_rows,
            work.part,
            few,
            work.settings,
            dtype=work.machine.dtype,
        )
    start, end = times
    return trained(work, end - start, work.machine.dtype, epoch["train_loss"], sum(operations))


def operations_of_batch(work: Work, picked: Sequence[int]) -> float:
    """Operations of one forward of the distinct texts of a batch of pairs."""
    texts = torch.cat([work.part.chosen[picked], work.part.rejected[picked]]).unique()
    return work.operations[texts].sum().item()


# ---- TRL's


def trl(work: Work, tuned: bool = False) -> Run:
    """TRL's RewardTrainer with its defaults, or `tuned` to be as fast as its flags make it.

    Tuned means batches as large as ours, of similar length, no recomputation of activations, and
    the attention that ours has. bfloat16 and no dropout are its defaults already.
    """
    if importlib.util.find_spec("trl") is None:
        return Run(math.nan, "not installed: pip install trl")
    work = without_sharing(work)
    try:
        return train_with_trl(work, tuned)
    except Exception as error:  # another version of TRL must not end the benchmark
        return Run(math.nan, f"failed: {error!r}"[:120])


def train_with_trl(work: Work, tuned: bool) -> Run:
    """Train with TRL's RewardTrainer. Raises whatever it raises."""
    import transformers
    from trl import RewardTrainer

    times = []

    class Clock(transformers.TrainerCallback):
        """Looks at the clock when the epoch begins and when it ends."""

        def on_epoch_begin(self, args, state, control, **more):
            times.append(now(work.machine.device))

        def on_epoch_end(self, args, state, control, **more):
            times.append(now(work.machine.device))

    path = encoders.resolve(work.settings.model).path
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        path,
        num_labels=1,
        attn_implementation=work.machine.attention if tuned else None,
        trust_remote_code=False,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model,
            trl_config(work, folder, tuned),
            train_dataset=trl_dataset(work),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        loss = trainer.train().training_loss
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float32
    start, end = times
    return trained(work, end - start, dtype, loss)


def trl_config(work: Work, folder: str, tuned: bool):
    """TRL's RewardConfig: one epoch that logs, saves and reports nothing."""
    from trl import RewardConfig

    options = {
        "num_train_epochs": 1,
        "max_length": work.settings.max_length,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": work.machine.device.type == "cpu",
    }
    if tuned:
        options["per_device_train_batch_size"] = work.settings.batch_size
        options["gradient_checkpointing"] = False
        options["bf16"] = work.machine.dtype == torch.bfloat16
        # This reads the column `length`, which must therefore not be removed as unused.
        options["train_sampling_strategy"] = "group_by_length"
        options["remove_unused_columns"] = False
    return RewardConfig(folder, **options)


def trl_dataset(work: Work):
    """The pairs as TRL takes them, with the length of the longer side of each."""
    from datasets import Dataset

    chosen = [list(work.token_rows[i]) for i in work.part.chosen.tolist()]
    rejected = [list(work.token_rows[i]) for i in work.part.rejected.tolist()]
    longer = [max(len(a), len(b)) for a, b in zip(chosen, rejected, strict=True)]
    return Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected, "length": longer})


# ---- the notebook's


def notebook(work: Work) -> Run:
    """The loop that most people write first, with the mistakes of the one it was taken from.

    It makes two forwards a batch, padded to the longest length that there may be, in float32 and
    with dropout. It reads the last position as if it were the last token, and puts a sigmoid on the
    rewards.
    """
    work = without_sharing(work)
    device = work.machine.device
    encoder, tokenizer = encoders.load_auto(work.settings.model)
    head = torch.nn.Linear(encoder.config.hidden_size, 1)
    both = torch.nn.ModuleList([encoder, head]).to(device).train()
    optimizer = torch.optim.AdamW(both.parameters(), lr=work.settings.lr)
    pad_id = tokenizer.pad_token_id or 0

    def reward(texts: Tensor) -> Tensor:
        token_rows = [work.token_rows[i] for i in texts.tolist()]
        ids, mask = tokens.pad(token_rows, pad_id, multiple=work.settings.max_length)
        output = encoder(input_ids=ids.to(device), attention_mask=mask.to(device))
        last = output.last_hidden_state[:, -1, :]  # (N, D)
        return torch.sigmoid(head(last)).squeeze(-1)  # (N,)

    pairs = len(work.part.chosen)
    total_loss = 0.0
    start = now(device)
    for picked in torch.randperm(pairs).split(FEW):
        chosen = reward(work.part.chosen[picked])
        rejected = reward(work.part.rejected[picked])
        loss = -torch.log(torch.sigmoid(chosen - rejected)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total_loss += loss.item() * len(picked)
    seconds = now(device) - start
    return trained(work, seconds, torch.float32, total_loss / pairs)


TRAINING = {
    "ours": ours,
    "ours, shared responses read once": partial(ours, shared=True),
    "TRL, its defaults": trl,
    "TRL, tuned": partial(trl, tuned=True),
    "notebook's loop": notebook,
}
