"""Every setting of a policy's training, with its default and the reason for it.

`PolicySettings` is one frozen dataclass; `python -m minirlhf policy` makes a flag of each field.
Most defaults were compared with others by the true rating on validation prompts; what was tried is
in `minirlhf/experiments/README.md`. Read next: `objectives.py`, then `methods.py`.
"""

from dataclasses import dataclass

from minirlhf.settings import real, setting, switch, whole

TRAINED = ("rejection-sampling", "dpo-data", "dpo", "grpo")
METHODS = ("best-of-n", *TRAINED)
TRUTH = "truth"
TOY = "toy"

# Learning rates of AdamW, for the toy policy. They are such that one sees a policy rise and turn
# within 50 steps. Half as fast it hardly turns in these, and twice as fast it hardly rises.
RATES = {"rejection-sampling": 2e-4, "dpo-data": 1e-4, "dpo": 2e-4, "grpo": 2e-4}


@dataclass(frozen=True)
class PolicySettings:
    """Everything that the training of a policy can be told. Each field is a flag."""

    # ---- what to do
    reward: tuple[str, ...] = setting(
        (TRUTH,),
        "run folders of train.py whose average reward is used, or truth: the grader of the bundled "
        "data itself (default: truth)",
        nargs="+",
        metavar="RUN",
    )
    method: str = setting(
        "grpo",
        "best-of-n: train nothing. rejection-sampling: imitate the best draws. dpo: prefer the "
        "best draw to the worst. dpo-data: prefer as the data do, without a reward. grpo: policy "
        "gradient. all: each of them in turn",
        choices=(*METHODS, "all"),
    )
    policy: str = setting(
        TOY, "toy (the bundled language), or the name or folder of a causal language model"
    )

    # ---- the questions of another policy
    dataset: str | None = setting(
        None,
        "a file, a folder or a hub id with a column of prompts; only for a --policy other than toy",
    )
    config: str | None = setting(None, "which one of the hub's configurations", metavar="NAME")
    split: str = setting("train", "which of the hub's splits", metavar="NAME")
    prompt_column: str | None = setting(
        None, "name of the column with the prompts, if unusual", metavar="NAME"
    )

    # ---- how to train
    steps: int = whole(50, 1, 10**6, "how often answers are drawn")
    questions: int = whole(8, 1, 10**4, "questions a step")
    group: int = whole(8, 2, 10**3, "answers drawn for each question")
    updates: int = whole(2, 1, 100, "updates of the weights with the answers of a step")
    lr: float | None = real(
        None, 0, 1, "learning rate (default: depends on the method, see policy/settings.py)"
    )
    kl_weight: float = real(0.05, 0, 1e6, "grpo: price of a nat of divergence from the start")
    clip: float = real(
        0.2,
        0,
        1e6,
        "grpo: a token whose probability has changed by more than this share since it was drawn is "
        "pushed no further",
    )
    beta: float = real(0.1, 0, 1e6, "dpo: what a nat of log-ratio is worth as reward")
    max_gradient: float = real(1.0, 1e-9, 1e9, "longer gradients are cut to this norm")
    max_tokens: int = whole(96, 1, 10**5, "an answer is cut after so many tokens")

    # ---- how to judge
    evaluate_every: int = whole(
        5, 1, 10**6, "steps between two looks at the validation questions"
    )
    validation: int = whole(128, 4, 10**6, "questions to look at while training")
    test: int = whole(256, 8, 10**6, "questions to judge the result on")
    draws: int = whole(16, 2, 10**4, "best-of-n: the largest n")

    # ---- where
    seed: int = whole(0, 0, 10**6, "seed of the draws and of the training questions")
    start_seed: int = whole(0, 0, 10**6, "toy: seed of the supervised start")
    start_steps: int = whole(
        600, 1, 10**6, "toy: steps of the supervised start; fewer make a worse start"
    )
    device: str = setting("auto", "auto, cpu, cuda or mps")
    output: str | None = setting(
        None, "the run folder (default: runs/policy-METHOD)", metavar="FOLDER"
    )
    overwrite: bool = switch("replace the run in --output")
    resume: str | None = setting(None, "go on with the run in this folder", metavar="FOLDER")
    tracking_uri: str | None = setting(
        None, "where MLflow keeps the run; none: nowhere (default: MLflow's own)", metavar="URI"
    )
    experiment: str = setting("minirlhf-policy", "MLflow's experiment", metavar="NAME")

    def rate(self, method: str) -> float:
        """The learning rate of a method."""
        return RATES[method] if self.lr is None else self.lr
