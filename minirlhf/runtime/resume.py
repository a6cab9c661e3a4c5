"""How a stopped run goes on: what `train.py --resume FOLDER` does, and the lock on a run folder.

    python train.py --resume runs/bt-finetune

The settings come from the folder's `config.json`. A fine-tuning run goes on after its last whole
epoch, from `state.safetensors`: the weights, the best ones so far, AdamW's moments, the order of
the pairs, the random state and the count of epochs without a better one. The learning rate follows
from the step. In one process on a CPU (same threads and versions) the run ends with the weights,
bit for bit, of one that was never stopped. A frozen run starts over: its features are cached, and
the rest takes seconds. A comparison keeps its finished runs and goes on with the first that is not.
"""

import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from minirlhf.encoders import fingerprint
from minirlhf.loops import Best
from minirlhf.model import RewardModel
from minirlhf.runtime.checkpoint import load_tensors, read_json, read_jsonl, save_tensors
from minirlhf.runtime.device import ranks


def reopen(args: Namespace) -> Namespace:
    """The settings of the run in the folder `args.resume`, as it was started.

    Raises ValueError if no run was started there, or if it is finished.
    """
    folder = Path(args.resume or "no folder")
    try:
        config = read_json(folder / "config.json")
        settings = {key: config["arguments"][key] for key in vars(args) if key != "resume"}
        several = settings["folds"] or settings["approach"] == "all"
        if not several and not {"data", "encoder", "command"} <= config.keys():
            raise ValueError("config.json is not whole")
        if not all(
            row["seconds"] >= 0 < row["epoch"] for row in read_jsonl(folder / "history.jsonl")
        ):
            raise ValueError("history.jsonl is not whole")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no sound run of this version to go on with") from error
    settings = vars(args) | settings
    if any((folder / name).exists() for name in ("metrics.json", "comparison.png")):
        raise ValueError(f"the run in {folder} is finished")
    if "LOCAL_RANK" not in os.environ or not int(os.environ["RANK"]):
        settings["output"] = args.resume
    else:  # torchrun's other processes have folders of their own
        settings |= {"output": args.output, "tracking_uri": "none"}
        Path(args.output).mkdir(parents=True)
    return Namespace(**settings | {"overwrite": False})


def started(args: Namespace, config: dict, model: RewardModel) -> dict:
    """The `config` with which a run began: the one given, or that of the run that is resumed.

    Raises ValueError if a resumed run would go on with other data or another encoder, or if a new
    one has no room on the disk.
    """
    if args.resume:
        before = read_json(Path(args.resume) / "config.json")
        for key in ("data", "encoder"):
            if before[key] != config[key]:
                raise ValueError(f"not the same {key} as when {args.output} was started")
        return before
    # While they are replaced, the model and the state (what learns, its best, two moments) are
    # there twice, at four bytes a number.
    state = 4 * (args.approach == "bt-finetune")
    needed = 2 * 4 * sum(p.numel() * (1 + state * p.requires_grad) for p in model.parameters())
    if shutil.disk_usage(Path(args.output).parent).free < needed:
        raise ValueError(f"{args.output} needs {needed / 1e6:,.0f} MB on this disk, which has less")
    return config


FORMAT = 4  # of the state; raised when what it holds changes


class State:
    """What `loops.fit_finetune` holds after an epoch, in one file; `fit_frozen` has none."""

    def __init__(self, path: Path):
        self.path = path

    def save(self, best: Best, optimizer, generator: torch.Generator, row: dict) -> None:
        """Write it, whole. row: the epoch's numbers."""
        trained = best.model.named_parameters()
        tensors = {f"weight/{name}": p for name, p in trained if p.requires_grad}
        tensors |= {f"best/{name}": weight for name, weight in best.weights.items()}
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"moment/{i}/{name}": moment for name, moment in moments.items()}
        tensors |= {"order": generator.get_state(), "random": torch.get_rng_state()}
        numbers = row, best.lowest, best.waited, best.model.info["temperature"]
        save_tensors(self.path, tensors, (FORMAT, numbers, fingerprint(tensors)))

    def load(self, best: Best, optimizer, generator: torch.Generator) -> dict | None:
        """Put it back, if there is any. Returns the epoch's row, or None."""
        if not self.path.exists():
            return None
        try:
            tensors, (version, numbers, expected) = load_tensors(self.path)
            if version != FORMAT:
                raise ValueError("of another version")
            if fingerprint(tensors) != expected:
                raise ValueError("another checksum")
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            said = f"{self.path} cannot be used ({error}); delete it, and the run starts over"
            raise ValueError(said) from error
        row, best.lowest, best.waited, best.model.info["temperature"] = numbers

        def part(start: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}

        best.model.load_state_dict(part("weight/"), strict=False)
        best.weights = part("best/")
        numbered = {int(name.split("/")[0]) for name in part("moment/")}
        moments = {i: part(f"moment/{i}/") for i in numbered}
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        generator.set_state(tensors["order"])
        torch.set_rng_state(tensors["random"])
        return row

    def remove(self) -> None:
        """When the run is finished; with torchrun only the first process does, which wrote it."""
        if ranks()[0] == 0:
            self.path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder, which need not exist yet.

    Raises ValueError if another process is in it, OSError if nothing can be written there. A killed
    process leaves no lock behind.
    """
    typed, folder = folder, folder.resolve()  # one lock for one folder, whatever it is called
    made = [parent for parent in folder.parents if not parent.exists()]  # the nearest first
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another run is writing to {typed}; give another --output") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
        for parent in made:  # where nothing was written, nothing is left
            if not any(parent.iterdir()):
                parent.rmdir()
