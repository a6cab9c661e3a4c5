"""The supervised start: a seed gives the same weights, the cache gives them back."""

import torch

from minirlhf.policy import start
from minirlhf.policy.policies import Policy, ToyWriter
from minirlhf.policy.questions import held_out_problems
from minirlhf.policy.start import generated_batches, new_model, start_of_the_toy


def weights(policy) -> torch.Tensor:
    """All weights in a row."""
    return torch.cat([weight.flatten() for weight in policy.model.parameters()])


def test_a_seed_gives_the_same_weights_and_the_cache_gives_them_back(monkeypatch):
    trained = start_of_the_toy(seed=0, steps=2)
    again = Policy(new_model(0), ToyWriter())
    start.imitate_generator(again, 0, 2)
    assert torch.equal(weights(trained), weights(again))
    other = Policy(new_model(1), ToyWriter())
    start.imitate_generator(other, 1, 2)
    assert not torch.equal(weights(trained), weights(other))

    def refuse(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr(start, "imitate_generator", refuse)
    assert torch.equal(weights(trained), weights(start_of_the_toy(seed=0, steps=2)))


def test_the_start_learns():
    policy = Policy(new_model(0), ToyWriter())
    batch = next(generated_batches(policy, 99))
    before = start.imitation_loss(policy, batch).item()
    start.imitate_generator(policy, 0, 15)
    after = start.imitation_loss(policy, batch).item()
    assert after < before - 1  # nats a token


def test_the_start_learns_from_no_question_that_is_judged():
    held_out = {problem.prompt for problem in held_out_problems()}
    policy = Policy(new_model(0), ToyWriter())
    batches = generated_batches(policy, 0)
    for _ in range(20):
        assert held_out.isdisjoint(question.text for question in next(batches).questions)
