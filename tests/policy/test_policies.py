"""Policies: padding changes nothing, and what is drawn is what is trained."""

import random

import pytest
import torch
from conftest import _tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from minirlhf.bundled.arithmetic import draw_answer, make_problem
from minirlhf.policy import language
from minirlhf.policy.loop import Answers
from minirlhf.policy.policies import Policy, ToyWriter, load_policy, pad_left, pad_right
from minirlhf.policy.questions import Question


def tiny_policy(seed: int = 0) -> Policy:
    """An untrained toy policy."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(language.vocabulary()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=2,
    )
    return Policy(LlamaForCausalLM(config), ToyWriter())


def questions(count: int) -> list[Question]:
    """Bundled questions."""
    rng = random.Random(7)
    problems = [make_problem(rng) for _ in range(count)]
    return [Question(problem.prompt, problem) for problem in problems]


def answers_to(asked: list[Question], each: int) -> list[list[str]]:
    """Answers of the generator."""
    rng = random.Random(8)
    return [[draw_answer(q.problem, rng).text for _ in range(each)] for q in asked]


def test_an_answer_in_a_batch_is_as_likely_as_alone():
    policy = tiny_policy()
    asked = questions(4)
    texts = answers_to(asked, 3)
    together = policy.draws_of(asked, texts)
    log_p = policy.log_probabilities(together) * together.mask
    row = 0
    for question, of_question in zip(asked, texts, strict=True):
        for text in of_question:
            alone = policy.draws_of([question], [[text]])
            own = policy.log_probabilities(alone)[0]
            torch.testing.assert_close(log_p[row, : len(own)], own, atol=1e-5, rtol=1e-5)
            assert together.mask[row].sum() == len(own)
            row += 1


def test_the_log_probability_is_that_of_the_model_token_by_token():
    policy = tiny_policy()
    asked = questions(1)
    draws = policy.draws_of(asked, answers_to(asked, 1))
    prompt = policy.writer.question_ids(asked[0])
    ids = draws.ids[0].tolist()
    logits = policy.model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    expected = [logits[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))]
    found = policy.log_probabilities(draws)[0].tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    assert ids[-1] == policy.writer.end_ids[0]  # the end of an answer is a part of it


def test_answers_are_drawn_as_often_as_the_policy_says():
    """The first word of 4,000 draws against the probabilities of the policy."""
    policy = tiny_policy()
    asked = questions(1)
    torch.manual_seed(0)
    draws = policy.sample(asked, 4000, max_tokens=1)
    first = draws.ids[:, -1]
    prompt = torch.tensor([policy.writer.question_ids(asked[0])])
    expected = policy.model(prompt).logits[0, -1].softmax(dim=-1)
    counted = torch.bincount(first, minlength=len(expected)) / 4000
    deviation = (expected * (1 - expected) / 4000).sqrt()
    assert ((counted - expected).abs() < 5 * deviation + 1e-3).all()
    assert (counted > 0).sum() > 100  # nothing was cut off from the distribution


def test_answers_to_one_question_are_neighbours_and_end_once():
    policy = tiny_policy()
    asked = questions(3)
    torch.manual_seed(1)
    draws = policy.sample(asked, 4, max_tokens=30)
    assert [len(texts) for texts in draws.texts] == [4, 4, 4]
    answer_ids = draws.ids[:, -draws.mask.shape[1] :]
    for row in range(12):
        question = asked[row // 4]
        ids = answer_ids[row][draws.mask[row].bool()].tolist()
        assert 2 not in ids[:-1]
        words = language.to_words([i for i in ids if i != 2])
        assert draws.texts[row // 4][row % 4] == language.render(question.problem, words)


def test_one_answer_of_each_question_is_picked_with_all_that_belongs_to_it():
    policy = tiny_policy()
    asked = questions(3)
    draws = policy.draws_of(asked, answers_to(asked, 4))
    picked = draws.one_of_each(torch.tensor([2, 0, 3]))
    assert [texts[0] for texts in picked.texts] == [
        draws.texts[0][2],
        draws.texts[1][0],
        draws.texts[2][3],
    ]
    rows = [2, 4, 11]
    assert torch.equal(picked.ids, draws.ids[rows])
    assert torch.equal(picked.mask, draws.mask[rows])


def test_padding():
    ids, attention = pad_left([[5, 6], [7]], 0)
    assert ids.tolist() == [[5, 6], [0, 7]] and attention.tolist() == [[1, 1], [0, 1]]
    ids, mask = pad_right([[5, 6], [7]], 0)
    assert ids.tolist() == [[5, 6], [7, 0]] and mask.tolist() == [[1, 1], [1, 0]]


def test_a_model_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot load the causal language model"):
        load_policy(str(tmp_path), torch.device("cpu"), torch.float32)


def test_a_policy_that_says_the_same_to_everybody_has_few_distinct_answers():
    policy = tiny_policy()
    asked = questions(8)
    texts = [[f"Answer: {question.problem.answer} dollars."] for question in asked]
    assert len({of_question[0] for of_question in texts}) > 4  # as texts they differ
    draws = policy.draws_of(asked, texts)
    same = Answers(draws, torch.zeros(8), torch.zeros(8), None)
    assert same.distinct == 1 / 8


def test_a_models_own_way_of_sampling_is_not_used_and_not_lost(tmp_path):
    policy = tiny_policy()
    policy.model.generation_config.min_p = 0.9
    policy.model.generation_config.suppress_tokens = [5, 6, 7]
    policy.model.generation_config.do_sample = True
    policy.model.save_pretrained(tmp_path / "model")
    _tokenizer(cls=False).save_pretrained(tmp_path / "model")
    loaded = load_policy(str(tmp_path / "model"), torch.device("cpu"), torch.float32)
    torch.manual_seed(0)
    prompts = [[20, 21, 22]] * 2000
    drawn = [ids[0] for ids in loaded.continue_all(prompts, max_tokens=1)]
    assert len(set(drawn)) > 100 and {5, 6, 7} & set(drawn)
    loaded.save(tmp_path / "again")
    kept = GenerationConfig.from_pretrained(tmp_path / "again")
    assert kept.min_p == 0.9 and kept.suppress_tokens == [5, 6, 7]


def test_a_question_that_does_not_fit_is_one_sentence():
    with pytest.raises(ValueError, match="do not fit into the 256 positions"):
        tiny_policy().continue_all([[20] * 250], max_tokens=7)
    assert len(tiny_policy().continue_all([[20] * 250], max_tokens=6)) == 1
