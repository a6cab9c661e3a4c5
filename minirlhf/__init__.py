"""minirlhf: from human preferences to a reward model, in plain PyTorch.

The data's path through the files, which is also the order to read them in:

    train.py       the whole run, top to bottom; run it first, read it second
    data.py        rows -> preference pairs -> train, validation and test, split by prompt
    tokens.py      pairs -> token ids; truncation that keeps the response; batches
    encoders.py    a model's name -> an encoder; frozen features and their cache
    pooling.py     hidden states (N, T, D) -> one vector a text (N, D)
    heads.py       vector -> reward
    losses.py      rewards -> loss: MSE, BCE, Bradley-Terry
    approaches.py  the four training steps, side by side
    model.py       encoder + pooler + head as one model, saved and loaded
    loops.py       the two training loops
    metrics.py     margins -> accuracy with its interval, calibration, length
    figures.py     numbers -> pictures
    score.py       a trained model at work

`device.py`, `checkpoint.py` and `tracking.py` serve them. These three, `metrics.py` and everything
from `data.py` to `losses.py` import no sibling: copy any of them alone. `bundled/arithmetic.py`
makes the data set that comes with the library; `tools/__init__.py` lists the commands beside it.

Stages that the files name: 0 rows, 1 pairs, 2 tokens, 3 hidden states, 4 vectors, 5 rewards,
6 loss, 7 metrics, 8 checkpoint, 9 score. Shapes: B pairs of a batch, N examples, U distinct texts,
T tokens, D hidden size. Words: the margin is the chosen response's reward minus the rejected one's
(the flag `--margin` is another, the gap that the loss asks for). After Bradley and Terry, chosen is
preferred with probability sigmoid(margin). A rating is the data's own number.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # `import minirlhf` answers at once; torch is imported when a model is loaded.
    if name == "load":
        from minirlhf.score import load

        return load
    raise AttributeError(f"module 'minirlhf' has no attribute {name!r}")
