"""What a policy's training holds between two steps, saved so that a stopped run can go on.

The file holds the weights, the best ones so far, AdamW's moments and how far the run is. No state
of chance is needed, since each step draws from a seed of its own. On a CPU in float32 the run ends
with the weights of one that was never stopped. The start, to which the policy is compared, is made
again or read from the cache; a checksum tells whether it is still the same.
"""

from pathlib import Path

from safetensors import SafetensorError

from minirlhf.policy.loop import PolicyState
from minirlhf.policy.policies import Policy
from minirlhf.runtime.checkpoint import load_tensors, save_tensors
from minirlhf.runtime.precision import hand_weights
from minirlhf.runtime.resume import checksum, moments_of, put_moments_back, starting_with

FORMAT = 2  # of the file; raised when what it holds changes


def save_state(path: Path, policy: Policy, start: Policy, state: PolicyState) -> None:
    """Write the state after a step, whole. start: the policy before its first step."""
    tensors = {}
    for name, weight in policy.model.named_parameters():
        tensors[f"weight/{name}"] = weight
    for name, weight in state.best_weights.items():
        tensors[f"best/{name}"] = weight
    tensors |= moments_of(state.optimizer)
    numbers = {
        "format": FORMAT,
        "step": state.step,
        "best_step": state.best_step,
        "best_rating": state.best_rating,
        "seconds": state.seconds,
        "start": checksum(dict(start.model.named_parameters())),
    }
    # Weights that are tied share their memory, which a file of tensors cannot.
    save_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, numbers)


def load_state(path: Path, policy: Policy, state: PolicyState) -> None:
    """Put back into policy and state what was saved at `path`, if there is any.

    policy: as it is at its start.
    Raises ValueError if the file is damaged or of another version, or if the start is another one.
    """
    if not path.exists():
        return
    try:
        saved = load_tensors(path)
        tensors = saved.tensors
        numbers = saved.numbers
        if numbers["format"] != FORMAT:
            raise ValueError("it is of another version")
        if numbers["start"] != checksum(dict(policy.worker.named_parameters())):
            raise ValueError("the policy does not start where it started")
        # named_parameters() lists tied weights once, so one of their two names is missing here.
        weights = starting_with("weight/", tensors)
        policy.model.load_state_dict(weights, strict=False)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be used ({error}); start the run again") from error

    if numbers["step"] == 0:
        return  # nothing has been learned yet, so the run begins again
    hand_weights(policy.model, policy.worker)
    state.step = numbers["step"]
    state.best_step = numbers["best_step"]
    state.best_rating = numbers["best_rating"]
    state.seconds = numbers["seconds"]
    state.best_weights = starting_with("best/", tensors)
    put_moments_back(state.optimizer, tensors)
