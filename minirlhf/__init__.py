"""minirlhf: from human preferences to a reward model, in plain PyTorch.

Run `train.py` first. Then read it, and follow the data through the files of the book:

    settings.py    every setting of a run, with its default and the reason for it
    train.py       one run from start to end (it is beside this folder)
    data.py        rows -> preference pairs -> train, validation and test, split by prompt
    layouts.py     the many forms in which public data write a row (skip it at first)
    tokens.py      pairs -> token ids; truncation that keeps the response; batches
    encoders.py    a model's name -> an encoder with its tokenizer
    pooling.py     hidden states (N, T, D) -> one vector for each text (N, D)
    heads.py       vector -> reward
    losses.py      rewards -> loss: MSE, BCE, Bradley-Terry
    approaches.py  the four training steps, side by side
    model.py       encoder, pooler and head as one model, saved and loaded
    loops.py       the two training loops
    metrics.py     margins -> accuracy with its interval, calibration, length
    score.py       a trained model at work

The other folders serve the book, and you can read it without them:

    runtime/       what makes a run safe and fast, and teaches nothing about reward models
    report/        numbers -> words and pictures
    commands/      what users type: `python -m minirlhf` lists them
    experiments/   what readers reproduce; its README.md is the lab notebook
    bundled/       the data set that comes along, and the grader that knows the truth
    policy/        the second half: what a reward does to a policy; its README.md is a chapter

Imports go down only: commands, experiments and policies use the report, the report uses the book,
and the book uses the runtime.

Shapes: B pairs of a batch, N examples, U distinct texts (of the data, or of a batch where only a
batch is at hand), T tokens, D hidden size. A margin is the chosen response's reward minus the
rejected one's; after Bradley and Terry, chosen is preferred with probability sigmoid(margin). (The
setting `margin` is something else, the gap that the loss asks for.) A rating is the data's number.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # `import minirlhf` answers at once; torch is imported when a model is loaded.
    if name == "load":
        from minirlhf.score import load

        return load
    raise AttributeError(f"module 'minirlhf' has no attribute {name!r}")
