"""A policy: a causal language model that writes answers to questions.

`Policy.sample` draws answers, and `Policy.log_probabilities` says how likely the policy is to write
answers that are there already. The methods need `log_probabilities` only; the loop also draws with
`sample`, reads other people's answers, and moves the weights of `model`. Which tokens stand for a
question and which text stands for tokens is known to its writer: `ToyWriter` for the bundled
language, `ChatWriter` for every other model.

The shapes: P questions, G answers to each of them, N = P * G answers in all, those to one question
side by side; A tokens of an answer; T tokens of question and answer together. Questions are padded
on the left and answers on the right, so that all answers begin in the same column. The functions of
`objectives.py` are called with answers only: what they call B and T is N and A here.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minirlhf.policy import language
from minirlhf.policy.objectives import token_log_probabilities
from minirlhf.policy.questions import Question
from minirlhf.runtime import precision
from minirlhf.tokens import fill_template

SAMPLED_AT_ONCE = 256  # answers, so that memory stays flat


# ---- answers


@dataclass(frozen=True)
class Draws:
    """Answers to P questions, G to each, and what is known about them."""

    questions: list[Question]  # P of them
    ids: Tensor  # (N, T) of question and answer
    attention: Tensor  # (N, T) 0 at PAD tokens
    mask: Tensor  # (N, A) 1 at the tokens of the answers, with the one that ends them
    texts: list[list[str]]  # P lists of G
    rewards: Tensor | None = None  # (P, G)
    old_log_p: Tensor | None = None  # (N, A) by the policy that drew the answers
    reference_log_p: Tensor | None = None  # (N, A) by the policy at the start

    @property
    def group(self) -> int:
        """G, the number of answers to a question."""
        return len(self.texts[0])

    def one_of_each(self, picked: Tensor) -> "Draws":
        """The answer of number `picked` (P,) to each question."""
        rows = torch.arange(len(picked)) * self.group + picked.cpu()  # (P,) among the N answers
        chosen = zip(self.texts, picked.tolist(), strict=True)
        return replace(
            self,
            ids=self.ids[rows],
            attention=self.attention[rows],
            mask=self.mask[rows],
            texts=[[texts[i]] for texts, i in chosen],
            rewards=None,
            old_log_p=None if self.old_log_p is None else self.old_log_p[rows],
            reference_log_p=None
            if self.reference_log_p is None
            else self.reference_log_p[rows],
        )


# ---- writers: questions -> tokens -> texts


class ToyWriter:
    """Writes in the bundled language; see `language.py`."""

    pad_id = language.to_ids([language.PAD])[0]
    end_ids = language.to_ids([language.END])

    def question_ids(self, question: Question) -> list[int]:
        """The tokens after which an answer begins."""
        return language.to_ids(language.read_question(question.problem))

    def answer_ids(self, question: Question, text: str) -> list[int]:
        """The tokens of an answer of the generator, with the one that ends it."""
        words = language.read_answer(question.problem, text)
        return language.to_ids([*words, language.END])

    def text(self, question: Question, ids: list[int]) -> str:
        """The text of an answer's tokens, without the one that ends it."""
        return language.render(question.problem, language.to_words(ids))


class ChatWriter:
    """Writes with a tokenizer of transformers, and with its chat template if it has one."""

    def __init__(self, tokenizer, end_ids: Sequence[int], generation_config=None):
        """generation_config: that of the model as it came; it is saved with it again."""
        self.tokenizer = tokenizer
        self.generation_config = generation_config
        self.end_ids = list(end_ids)
        self.pad_id = (
            self.end_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )

    def question_ids(self, question: Question) -> list[int]:
        """The tokens after which an answer begins."""
        if not self.tokenizer.chat_template:
            return self.tokenizer(question.text + "\n").input_ids
        turns = [{"role": "user", "content": question.text}]
        text = fill_template(turns, self.tokenizer, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def answer_ids(self, question: Question, text: str) -> list[int]:
        """The tokens of an answer, with the one that ends it."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return [*ids, self.end_ids[0]]

    def text(self, question: Question, ids: list[int]) -> str:
        """The text of an answer's tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


# ---- the policy


class Policy:
    """A causal language model at work."""

    def __init__(self, model: nn.Module, writer, dtype: torch.dtype = torch.float32):
        """model: of transformers; its float32 weights learn, and a copy in `dtype` computes."""
        # No dropout: a policy must give an answer the same probability when it writes and reads.
        self.model = model.eval()
        self.writer = writer
        # What computes: a copy in `dtype`, or for float32 the model itself.
        self.worker = precision.copy_in(model, dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def frozen_copy(self) -> "Policy":
        """The policy as it is now, in the precision it computes in; it does not learn."""
        model = copy.deepcopy(self.worker).requires_grad_(False)
        return Policy(model, self.writer)

    @torch.no_grad()
    def sample(self, questions: Sequence[Question], group: int, max_tokens: int) -> Draws:
        """Draw `group` answers to each question, from the policy's own distribution.

        An answer ends with an end token, or after `max_tokens` tokens.
        """
        repeated = [question for question in questions for _ in range(group)]  # N
        prompts = [self.writer.question_ids(question) for question in repeated]
        answers: list[list[int]] = []
        for start in range(0, len(prompts), SAMPLED_AT_ONCE):
            answers += self.continue_all(prompts[start : start + SAMPLED_AT_ONCE], max_tokens)
        return self.as_draws(questions, prompts, answers)

    def continue_all(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """An answer to each prompt, as token ids with the end token, if there is one."""
        self.check_length(prompts, max_tokens)
        ids, attention = pad_left(prompts, self.writer.pad_id)
        generated = self.worker.generate(
            input_ids=ids.to(self.device),
            attention_mask=attention.to(self.device),
            max_new_tokens=max_tokens,
            do_sample=True,
            temperature=1.0,  # and no other change: what is drawn must be what is trained
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            pad_token_id=self.writer.pad_id,
            eos_token_id=self.writer.end_ids,
        )
        return [self.up_to_end(row) for row in generated[:, ids.shape[1] :].tolist()]

    def check_length(self, prompts: list[list[int]], max_tokens: int) -> None:
        """Raise ValueError if the model has no positions for the longest prompt and its answer."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(len(prompt) for prompt in prompts)
        if positions is not None and longest + max_tokens > positions:
            raise ValueError(
                f"a question of {longest:,} tokens and an answer of {max_tokens:,} do not fit into "
                f"the {positions:,} positions of the policy; lower --max-tokens or leave out long "
                "questions"
            )

    def up_to_end(self, ids: list[int]) -> list[int]:
        """The ids up to the first end token."""
        for i, number in enumerate(ids):
            if number in self.writer.end_ids:
                return ids[: i + 1]
        return ids

    def draws_of(self, questions: Sequence[Question], texts: list[list[str]]) -> Draws:
        """Answers that somebody else wrote, P lists of G, as if they had been drawn.

        Their `texts` are rendered from the tokens, so in the toy a wrong number may be another one.
        """
        prompts = []
        answers = []
        for question, of_question in zip(questions, texts, strict=True):
            for text in of_question:
                prompts.append(self.writer.question_ids(question))
                answers.append(self.writer.answer_ids(question, text))
        return self.as_draws(questions, prompts, answers)

    def as_draws(
        self, questions: Sequence[Question], prompts: list[list[int]], answers: list[list[int]]
    ) -> Draws:
        """N prompts and their answers as tensors on the policy's device."""
        left, left_attention = pad_left(prompts, self.writer.pad_id)
        right, mask = pad_right(answers, self.writer.pad_id)
        group = len(answers) // len(questions)
        texts = []
        for i, question in enumerate(questions):
            of_question = answers[i * group : (i + 1) * group]
            texts.append([self.text(question, ids) for ids in of_question])
        return Draws(
            questions=list(questions),
            ids=torch.cat([left, right], dim=1).to(self.device),
            attention=torch.cat([left_attention, mask], dim=1).to(self.device),
            mask=mask.to(self.device),
            texts=texts,
        )

    def text(self, question: Question, ids: list[int]) -> str:
        """The text of an answer, without its end token."""
        has_end = bool(ids) and ids[-1] in self.writer.end_ids
        return self.writer.text(question, ids[:-1] if has_end else ids)

    def log_probabilities(self, draws: Draws) -> Tensor:
        """Log-probability of each token of the answers: (N, A), in nats.

        Gradients flow if they are enabled.
        """
        answer_length = draws.mask.shape[1]  # A
        # PAD tokens do not count.
        positions = (draws.attention.cumsum(dim=1) - 1).clamp(min=0)  # (N, T)
        logits = self.worker(
            input_ids=draws.ids, attention_mask=draws.attention, position_ids=positions
        ).logits  # (N, T, V)
        # The token in column t is predicted in column t - 1.
        predictions = logits[:, -answer_length - 1 : -1]  # (N, A, V)
        return token_log_probabilities(predictions, draws.ids[:, -answer_length:])

    def save(self, folder: Path) -> None:
        """Write the weights, and the tokenizer if there is one, as a folder of transformers."""
        self.model.save_pretrained(folder)
        if isinstance(self.writer, ChatWriter):
            self.writer.tokenizer.save_pretrained(folder)
            if self.writer.generation_config is not None:
                self.writer.generation_config.save_pretrained(folder)


def load_policy(name: str, device: torch.device, dtype: torch.dtype) -> Policy:
    """A causal language model of transformers, by its name on the hub or its folder.

    Raises ValueError if there is none, or if it has no token that ends an answer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # of many kinds, by the library
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"cannot load the causal language model {name!r}: {reason}") from error
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    if ends is None:
        raise ValueError(f"{name} has no token that ends an answer")
    end_ids = ends if isinstance(ends, list) else [ends]
    writer = ChatWriter(tokenizer, end_ids, model.generation_config)
    # A model may come with its own way of sampling, such as min_p or forbidden tokens. But what is
    # trained are the probabilities of the model itself, so these must be what is drawn from.
    model.generation_config = GenerationConfig(eos_token_id=end_ids, pad_token_id=writer.pad_id)
    return Policy(model.to(device), writer, dtype)


# ---- padding


def pad_left(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """N rows as ids (N, T) and attention (N, T), padded on the left."""
    longest = max(len(row) for row in rows)
    ids = [[pad_id] * (longest - len(row)) + row for row in rows]
    attention = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(attention)


def pad_right(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """N rows as ids (N, A) and mask (N, A), padded on the right."""
    longest = max(len(row) for row in rows)
    ids = [row + [pad_id] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
