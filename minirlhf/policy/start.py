"""The supervised start of the toy policy: a tiny transformer imitates the bundled answers.

The model is transformers' own Llama, with 0.36 million parameters. It reads 38,400 answers of the
generator, good ones and bad ones as they come, so its answers are about as good as the generator's:
this is the policy that a reward has to improve. It takes about a minute on two cores, once: the
weights are kept in the cache, under a digest of all that they depend on.
"""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minirlhf.bundled import arithmetic
from minirlhf.bundled.arithmetic import draw_answer
from minirlhf.policy import language, objectives, policies, questions
from minirlhf.policy.objectives import sequence_log_probabilities
from minirlhf.policy.policies import Draws, Policy, ToyWriter
from minirlhf.policy.questions import Question, distinct_problems, held_out_problems
from minirlhf.runtime.checkpoint import whole_folder
from minirlhf.runtime.device import seed_everything
from minirlhf.runtime.features import cache_folder
from minirlhf.runtime.progress import Progress

ANSWERS_A_STEP = 64
BATCHES_AT_ONCE = 16  # are drawn together, then sorted by length
USUAL_TOKENS = 33  # of an answer
LR = 5e-3  # the highest at which the loss does not jump; it falls to zero
WARM_UP = 20  # steps
SIZE = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def start_of_the_toy(seed: int, steps: int) -> Policy:
    """The policy after its supervised start, trained now or read from the cache."""
    from transformers import LlamaForCausalLM

    folder = cache_folder().parent / "policy" / digest(seed, steps)
    if not folder.is_dir():
        policy = Policy(new_model(seed), ToyWriter())
        imitate_generator(policy, seed, steps)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as unfinished:
            policy.save(unfinished)
    return Policy(
        LlamaForCausalLM.from_pretrained(folder, trust_remote_code=False), ToyWriter()
    )


def digest(seed: int, steps: int) -> str:
    """A name for all that the weights depend on: the code of data, language and training."""
    import transformers

    found = hashlib.sha256(Path(__file__).read_bytes())
    for module in (arithmetic, language, objectives, policies, questions):
        found.update(Path(module.__file__).read_bytes())
    found.update(f"{seed} {steps} {torch.__version__} {transformers.__version__}".encode())
    return found.hexdigest()[:32]


def new_model(seed: int):
    """A tiny Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    seed_everything(seed)
    writer = ToyWriter()
    config = LlamaConfig(
        vocab_size=len(language.vocabulary()),
        tie_word_embeddings=True,
        pad_token_id=writer.pad_id,
        bos_token_id=None,
        eos_token_id=writer.end_ids[0],
        **SIZE,
    )
    return LlamaForCausalLM(config)


def imitate_generator(policy: Policy, seed: int, steps: int) -> None:
    """Train the policy on the generator's answers by cross-entropy."""
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=0.01
    )
    progress = Progress(range(steps), [ANSWERS_A_STEP] * steps, "supervised start", "answers")
    batches = generated_batches(policy, seed)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / WARM_UP) * (1 - step / steps)
        loss = imitation_loss(policy, next(batches))
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(policy.model.parameters(), max_norm=1.0)
        optimizer.step()
        progress.note = f"loss {loss.item():.3f}"


def imitation_loss(policy: Policy, draws: Draws) -> Tensor:
    """Negative log-likelihood of B answers, in nats a token of an answer of usual length.

    The sum is divided by a constant. A mean over the tokens of a batch would weigh them the more,
    the shorter the answers of the batch are, and short answers would become too likely.
    """
    log_p = policy.log_probabilities(draws)  # (B, A)
    of_answers = sequence_log_probabilities(log_p, draws.mask)  # (B,)
    return -of_answers.mean() / USUAL_TOKENS


class Example(NamedTuple):
    """An answer of the generator to imitate."""

    question: Question
    text: str
    tokens: int  # its length


def generated_batches(policy: Policy, seed: int) -> Iterator[Draws]:
    """Batches of answers that the generator draws, each to a problem of its own, without end.

    Answers of similar length share a batch, so that little of it is padding.
    """
    rng = random.Random(f"supervised start {seed}")
    held_out = {problem.prompt for problem in held_out_problems()}
    while True:
        pool = []
        count = BATCHES_AT_ONCE * ANSWERS_A_STEP
        for problem in distinct_problems(rng, count, avoid=held_out):
            text = draw_answer(problem, rng).text
            question = Question(problem.prompt, problem)
            tokens = len(policy.writer.answer_ids(question, text))
            pool.append(Example(question, text, tokens))
        pool.sort(key=lambda example: example.tokens)
        starts = range(0, len(pool), ANSWERS_A_STEP)
        batches = [pool[start : start + ANSWERS_A_STEP] for start in starts]
        rng.shuffle(batches)
        for batch in batches:
            asked = [example.question for example in batch]
            yield policy.draws_of(asked, [[example.text] for example in batch])
