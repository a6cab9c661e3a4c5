import math

import pytest
import torch

from minirlhf.policy.objectives import (
    cross_entropy,
    dpo_loss,
    group_advantages,
    grpo_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    sequence_log_probabilities,
    token_log_probabilities,
)

GARBAGE = [1e30, -1e30, math.inf, -math.inf, math.nan]


def random(*shape, seed=0):
    """Normal numbers in float64, the same ones on every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def log_probabilities(*shape, seed=0):
    """Negative numbers in float64, as log-probabilities are."""
    return random(*shape, seed=seed).abs().neg()


# Five tokens at most; one answer has all of them, one has three, and one is padded on the left.
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]])


# ---- log-probabilities


def test_token_log_probabilities_are_logarithms_of_the_softmax():
    logits = torch.tensor([[[0.0, math.log(3.0)], [5.0, 5.0]]])
    token_ids = torch.tensor([[1, 0]])
    log_p = token_log_probabilities(logits, token_ids)
    torch.testing.assert_close(log_p, torch.tensor([[math.log(0.75), math.log(0.5)]]))

    logits = random(3, 4, 7)
    token_ids = torch.arange(12).view(3, 4) % 7
    log_p = token_log_probabilities(logits, token_ids)
    for b in range(3):
        for t in range(4):
            expected = logits[b, t].softmax(0)[token_ids[b, t]].log().item()
            assert log_p[b, t].item() == pytest.approx(expected, abs=1e-5)


def test_the_gradient_of_a_log_probability_is_one_hot_less_softmax():
    logits = random(2, 3, 5).float().requires_grad_()
    token_ids = torch.tensor([[0, 4, 2], [1, 1, 3]])
    token_log_probabilities(logits, token_ids).sum().backward()
    one_hot = torch.nn.functional.one_hot(token_ids, 5)
    torch.testing.assert_close(logits.grad, one_hot - logits.detach().softmax(2))


def test_token_log_probabilities_of_bfloat16_logits_are_computed_in_float32():
    logits = random(2, 3, 50).bfloat16()
    token_ids = torch.zeros(2, 3, dtype=torch.long)
    log_p = token_log_probabilities(logits, token_ids)
    assert log_p.dtype == torch.float32
    expected = logits.double().log_softmax(2)[..., 0].float()
    torch.testing.assert_close(log_p, expected, rtol=0, atol=1e-5)  # bfloat16: about 1e-2 off


def test_token_log_probabilities_stay_finite_for_huge_logits():
    logits = torch.tensor([[[3e4, -3e4]]])
    assert token_log_probabilities(logits, torch.tensor([[1]])).item() == -6e4
    assert token_log_probabilities(logits, torch.tensor([[0]])).item() == 0


def test_sequence_log_probabilities_add_up_the_real_tokens():
    log_p = -torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]])
    assert sequence_log_probabilities(log_p, mask).tolist() == [-3, -48, 0]
    assert sequence_log_probabilities(log_p, mask.bool()).tolist() == [-3, -48, 0]


# ---- imitation


def test_cross_entropy_is_a_mean_over_tokens():
    log_p = -torch.tensor([[1.0, 2.0, 3.0], [7.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    # The mean of the two answers' means would be (2 + 7) / 2.
    assert cross_entropy(log_p, mask).item() == (1 + 2 + 3 + 7) / 4


def test_cross_entropy_is_that_of_pytorch():
    logits = random(3, 5, 7).float()
    token_ids = torch.arange(15).view(3, 5) % 7
    labels = token_ids.masked_fill(MASK == 0, -100)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss = cross_entropy(token_log_probabilities(logits, token_ids), MASK)
    torch.testing.assert_close(loss, expected)


def test_cross_entropy_of_no_token_is_zero():
    assert cross_entropy(torch.full((2, 3), -1.0), torch.zeros(2, 3)).item() == 0


# ---- preferences


def test_dpo_closed_forms():
    same = log_probabilities(4)
    other = log_probabilities(4, seed=1)
    assert dpo_loss(same, other, same, other, beta=0.1).item() == pytest.approx(math.log(2))

    # Log-ratios of 3 and -2 for one pair, and of -1 and 1 for the other one.
    chosen, reference_chosen = torch.tensor([-10.0, -6.0]), torch.tensor([-13.0, -5.0])
    rejected, reference_rejected = torch.tensor([-12.0, -8.0]), torch.tensor([-10.0, -9.0])
    loss = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.5)
    right, wrong = math.log(1 + math.exp(-2.5)), math.log(1 + math.exp(1.0))
    assert loss.item() == pytest.approx((right + wrong) / 2)


def test_the_gradient_of_dpo_is_beta_times_the_probability_of_being_wrong():
    chosen = log_probabilities(5).requires_grad_()
    rejected = log_probabilities(5, seed=1).requires_grad_()
    references = log_probabilities(5, seed=2), log_probabilities(5, seed=3)
    dpo_loss(chosen, rejected, *references, beta=0.3).backward()
    with torch.no_grad():
        margin = 0.3 * ((chosen - references[0]) - (rejected - references[1]))
    expected = -0.3 * torch.sigmoid(-margin) / 5
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)


def test_dpo_agrees_with_finite_differences_and_stays_finite():
    vectors = [log_probabilities(3, seed=seed).requires_grad_() for seed in range(4)]
    assert torch.autograd.gradcheck(lambda *v: dpo_loss(*v, beta=0.7), vectors)
    sure_and_wrong = torch.tensor([-1000.0]), torch.tensor([0.0])
    references = torch.zeros(1), torch.zeros(1)
    # log(sigmoid(-1000)) would be -inf
    assert dpo_loss(*sure_and_wrong, *references, beta=1.0).item() == 1000


# ---- advantages


def test_group_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 7.0, 5.0, 5.0]])
    without = group_advantages(rewards, divide=False)
    assert without.tolist() == [[0.5, -0.5, -0.5, 0.5], [-2, 2, 0, 0]]
    # Squared differences of 1 and of 8 in all, divided by 3: the unbiased variance.
    deviation = torch.tensor([[math.sqrt(1 / 3)], [math.sqrt(8 / 3)]])
    torch.testing.assert_close(group_advantages(rewards), without / (deviation + 1e-4))


def test_groups_do_not_see_each_other():
    rewards = random(3, 6)
    changed = rewards.clone()
    changed[1] = 100 * random(6, seed=1)
    before, after = group_advantages(rewards), group_advantages(changed)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_a_constant_and_a_scale_change_little():
    rewards = random(4, 8)
    torch.testing.assert_close(group_advantages(rewards + 3), group_advantages(rewards))
    # Not exactly the same after scaling, because of the 1e-4 in the denominator.
    scaled = group_advantages(10 * rewards)
    torch.testing.assert_close(scaled, group_advantages(rewards), rtol=1e-3, atol=0)


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("reward", [0.0, 0.1, -0.7, 1000.1])
def test_equal_rewards_give_zeros(reward, divide):
    # The mean of eight times 1,000.1 is not 1,000.1 in float32, and (r - mean) / std is -0.37.
    rewards = torch.full((2, 8), reward)
    assert group_advantages(rewards, divide).abs().max().item() == 0


@pytest.mark.parametrize("divide", [True, False])
def test_rounding_is_not_blown_up_but_small_differences_count(divide):
    rewards = torch.full((1, 4), 1000.0)
    rewards[0, 0] = torch.nextafter(rewards[0, 0], torch.tensor(2000.0))
    assert group_advantages(rewards, divide).abs().max().item() == 0
    rewards[0, 0] = 1000.01  # ten times the limit
    assert group_advantages(rewards, divide)[0, 0].item() > 0.005
    # Only the group with equal rewards is set to zero.
    both = group_advantages(torch.tensor([[5.0, 5.0], [5.0, 6.0]]), divide)
    assert (both != 0).tolist() == [[False, False], [True, True]]


# ---- GRPO


def test_grpo_by_hand_on_both_clip_sides_with_both_signs():
    """One token an answer, so the loss of each answer can be written down."""
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1, 0.9])
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0, 2.0, -2.0])
    log_p = ratios.log().unsqueeze(1).requires_grad_()
    old = torch.zeros(6, 1)
    loss = grpo_loss(log_p, old, log_p.detach(), advantages, old + 1, clip=0.2, kl_weight=0.1)
    # min(ratio * A, clip(ratio) * A):
    gains = [
        1.2 * 2,  # up far enough already: clipped
        0.5 * 2,  # went down although it was good: not clipped
        -1.5 * 2,  # went up although it was bad: not clipped
        -0.8 * 2,  # down far enough already: clipped
        1.1 * 2,
        -0.9 * 2,
    ]
    assert loss.item() == pytest.approx(-sum(gains) / 6)
    # The derivative of ratio * A by log_p is ratio * A again; it is zero where clipped.
    loss.backward()
    expected = -torch.tensor([0.0, 1.0, -3.0, 0.0, 2.2, -1.8]).unsqueeze(1) / 6
    torch.testing.assert_close(log_p.grad, expected)


def test_grpo_divides_by_an_answers_own_length_and_dr_grpo_by_a_constant():
    """With a ratio of 1 and no divergence, each real token is worth its answer's advantage."""
    log_p = log_probabilities(3, 5)
    ratio = torch.tensor([[1.1], [0.9], [1.0]])
    old = log_p - ratio.log()
    advantages = torch.tensor([1.0, -2.0, 5.0])
    arguments = (log_p, old, log_p, advantages, MASK, 0.2, 0.0)
    # MASK has 5, 3 and 2 tokens.
    assert grpo_loss(*arguments).item() == pytest.approx(-(1.1 - 1.8 + 5.0) / 3)
    dr_grpo = -(5 * 1.1 - 3 * 1.8 + 2 * 5.0) / 10 / 3
    assert grpo_loss(*arguments, length=10).item() == pytest.approx(dr_grpo)


def test_the_price_of_divergence_is_k3_averaged_like_the_rest():
    log_p, reference = log_probabilities(3, 5), log_probabilities(3, 5, seed=1)
    zero = torch.zeros(3)
    loss = grpo_loss(log_p, log_p, reference, zero, MASK, clip=0.2, kl_weight=0.5)
    k3 = (reference - log_p).exp() - (reference - log_p) - 1
    answers = [k3[0].mean(), k3[1, :3].mean(), k3[2, 3:].mean()]
    assert loss.item() == pytest.approx(0.5 * sum(answers).item() / 3)
    dr_grpo = grpo_loss(log_p, log_p, reference, zero, MASK, 0.2, 0.5, length=4)
    total = (k3 * MASK).sum()
    assert dr_grpo.item() == pytest.approx(0.5 * total.item() / 4 / 3)


def test_at_a_ratio_of_one_the_gradient_is_that_of_the_policy_gradient():
    logits = random(3, 5, 4).float().requires_grad_()
    token_ids = torch.arange(15).view(3, 5) % 4
    advantages = torch.tensor([1.0, -2.0, 0.5])
    log_p = token_log_probabilities(logits, token_ids)
    # The policy's own log-probabilities, not detached: they are a constant all the same.
    loss = grpo_loss(log_p, log_p, log_p.detach(), advantages, MASK, clip=0.2, kl_weight=0.0)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    means = sequence_log_probabilities(log_p, MASK) / MASK.sum(dim=1)
    (expected,) = torch.autograd.grad(-(advantages * means).mean(), logits)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("length", [None, 7])
def test_grpo_agrees_with_finite_differences(length):
    log_p = log_probabilities(3, 5).requires_grad_()
    # Some ratios are far outside of the clip range and none is near its ends.
    shift = torch.tensor([0.0, 0.1, -0.1, 0.6, -0.6])
    old = log_p.detach() - shift
    reference = log_p.detach() + 0.3 * random(3, 5, seed=1)
    advantages = torch.tensor([1.3, -0.7, 0.4]).double()

    def loss(values):
        return grpo_loss(values, old, reference, advantages, MASK, 0.2, 0.3, length)

    assert torch.autograd.gradcheck(loss, log_p)


def test_an_answer_without_tokens_adds_nothing_but_counts():
    log_p = torch.full((2, 3), -1.0)
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    loss = grpo_loss(log_p, log_p, log_p, torch.tensor([2.0, 9.0]), mask, 0.2, 0.1)
    assert loss.item() == -2 / 2


# ---- padding


def losses_of(log_p, old, reference, mask):
    """Every loss that takes a mask, from three tensors of log-probabilities (4, T)."""
    sums = [sequence_log_probabilities(x, mask) for x in (log_p, reference)]
    pairs = [half for x in sums for half in x.chunk(2)]
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
    return {
        "cross entropy": cross_entropy(log_p, mask),
        "DPO": dpo_loss(*pairs, beta=0.5),
        "GRPO": grpo_loss(log_p, old, reference, advantages, mask, 0.2, 0.1),
        "Dr. GRPO": grpo_loss(log_p, old, reference, advantages, mask, 0.2, 0.1, length=5),
    }


@pytest.mark.parametrize("name", ["cross entropy", "DPO", "GRPO", "Dr. GRPO"])
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("spoilt", [{0}, {1}, {2}, {0, 1, 2}])
def test_padding_changes_neither_a_loss_nor_its_gradient(name, garbage, spoilt):
    """Whatever stands at PAD tokens: of the policy (0), the old policy (1), the reference (2)."""
    mask = torch.cat([MASK, MASK[:1]])
    clean = [log_probabilities(4, 5, seed=seed) for seed in range(3)]
    dirty = [x.clone() for x in clean]
    for i in spoilt:
        dirty[i][mask == 0] = garbage
    results = []
    for log_p, old, reference in (clean, dirty):
        log_p = log_p.clone().requires_grad_()
        # It raises if any step of the backward pass meets a nan, even one that is masked later.
        with torch.autograd.set_detect_anomaly(True):
            loss = losses_of(log_p, old, reference, mask)[name]
            loss.backward()
        results.append((loss.detach(), log_p.grad))
    (loss, gradient), (dirty_loss, dirty_gradient) = results
    assert torch.equal(loss, dirty_loss)
    assert torch.equal(gradient, dirty_gradient)
    assert (gradient[mask == 0] == 0).all()
    assert (gradient[mask == 1] != 0).any()


@pytest.mark.parametrize("name", ["cross entropy", "DPO", "GRPO", "Dr. GRPO"])
def test_more_padding_on_either_side_changes_no_loss(name):
    mask = torch.cat([MASK, MASK[:1]])
    tensors = [log_probabilities(4, 5, seed=seed) for seed in range(3)]
    padded = [torch.nn.functional.pad(x, (2, 3), value=-9.0) for x in tensors]
    wide = torch.nn.functional.pad(mask, (2, 3))
    torch.testing.assert_close(losses_of(*padded, wide)[name], losses_of(*tensors, mask)[name])


# ---- divergence


def distributions(distance):
    """Logits of a policy and log-probabilities of a reference, over six tokens: (6,), (6,)."""
    logits = random(6)
    reference = (logits + distance * random(6, seed=1)).log_softmax(0)
    return logits, reference


def divergence(first, second):
    """KL(first || second) of two distributions, given as log-probabilities (V,)."""
    return (first.exp() * (first - second)).sum()


@pytest.mark.parametrize("distance", [0.1, 1.0, 3.0])
def test_k1_and_k3_are_unbiased(distance):
    logits, reference = distributions(distance)
    policy = logits.log_softmax(0)
    exact = divergence(policy, reference)
    for estimate in (kl_k1, kl_k3):
        mean = (policy.exp() * estimate(policy, reference)).sum()
        torch.testing.assert_close(mean, exact)


def test_the_bias_of_k2_grows_with_the_third_power_of_the_difference():
    def bias(distance):
        logits, reference = distributions(distance)
        policy = logits.log_softmax(0)
        mean = (policy.exp() * kl_k2(policy, reference)).sum()
        return (mean - divergence(policy, reference)).item()

    assert abs(bias(3.0)) > 0.05
    assert bias(0.02) / bias(0.01) == pytest.approx(2**3, rel=0.05)


def test_signs_and_values():
    log_p = torch.tensor([0.5, 0.25, 0.5]).log()
    reference = torch.tensor([0.25, 0.5, 0.5]).log()
    two = math.log(2)
    torch.testing.assert_close(kl_k1(log_p, reference), torch.tensor([two, -two, 0]))
    half = two**2 / 2
    torch.testing.assert_close(kl_k2(log_p, reference), torch.tensor([half, half, 0]))
    k3 = torch.tensor([0.5 - 1 + two, 2 - 1 - two, 0])
    torch.testing.assert_close(kl_k3(log_p, reference), k3)


def test_k3_is_never_negative_and_keeps_its_digits_in_float32():
    size = torch.logspace(-12, 1, 10_001)
    difference = torch.cat([size, -size])
    k3 = kl_k3(difference, torch.zeros_like(difference))
    assert (k3 >= 0).all()
    # exp(-k1) - 1 + k1 would be a multiple of 6e-8 here, and negative for some.
    small = kl_k3(torch.tensor([1e-3, -1e-3]), torch.zeros(2))
    torch.testing.assert_close(small, torch.full((2,), 5e-7), rtol=1e-3, atol=0)


def variance(estimate, policy, reference):
    """The variance of an estimate of the divergence from one token that the policy draws."""
    p = policy.exp()
    values = estimate(policy, reference)
    mean = (p * values).sum()
    return (p * (values - mean) ** 2).sum().item()


def test_variances_of_similar_distributions():
    logits, reference = distributions(0.1)
    policy = logits.log_softmax(0)
    k1, k2, k3 = (variance(k, policy, reference) for k in (kl_k1, kl_k2, kl_k3))
    assert k3 < k1 / 100
    assert k2 == pytest.approx(k3, rel=0.3)


def test_k3_varies_most_where_the_policy_hardly_draws_what_the_reference_likes():
    policy = torch.tensor([0.999, 0.001]).log()
    reference = torch.tensor([0.1, 0.9]).log()
    assert variance(kl_k3, policy, reference) > 100 * variance(kl_k1, policy, reference)


def test_which_gradient_each_estimate_has_on_average():
    """Each entry of the table in objectives.py, and k3 times the ratio of DeepSeek-V3.2."""
    logits, reference = distributions(3.0)
    logits.requires_grad_()
    policy = logits.log_softmax(0)

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    def average_gradient(estimate):
        # The draw is not differentiated, as in training, where the tokens are already drawn.
        return gradient((policy.exp().detach() * estimate(policy, reference)).sum())

    def k3_times_ratio(policy, reference):
        ratio = torch.exp(policy - policy.detach())  # 1, but with a gradient
        return ratio * kl_k3(policy, reference)

    forward = gradient(divergence(policy, reference))
    reverse = gradient(divergence(reference, policy))
    assert (forward - reverse).abs().max() > 0.1
    torch.testing.assert_close(average_gradient(kl_k1), torch.zeros(6).double())
    torch.testing.assert_close(average_gradient(kl_k2), forward)
    torch.testing.assert_close(average_gradient(kl_k3), reverse)
    torch.testing.assert_close(average_gradient(k3_times_ratio), forward)


# ---- wrong shapes


def test_shapes_that_would_broadcast_are_refused():
    tokens, answers = torch.full((4, 4), -1.0), torch.zeros(4)
    column = tokens[:, :1]
    one_shape, one_value = "tensors of one shape", "one value for each of 4 answers"
    with pytest.raises(ValueError, match=one_shape):
        token_log_probabilities(torch.zeros(4, 5, 2), torch.zeros(4, 1, dtype=torch.long))
    for function in (sequence_log_probabilities, cross_entropy, kl_k1, kl_k2, kl_k3):
        with pytest.raises(ValueError, match=one_shape):
            function(tokens, column)
    for position in range(4):
        vectors = [answers] * 4
        vectors[position] = answers.unsqueeze(1)
        with pytest.raises(ValueError, match=one_shape):
            dpo_loss(*vectors, beta=0.1)
    with pytest.raises(ValueError, match=one_value):
        dpo_loss(tokens, tokens, tokens, tokens, beta=0.1)  # the log-probabilities of tokens
    for position in range(3):
        three = [tokens] * 3
        three[position] = column
        with pytest.raises(ValueError, match=one_shape):
            grpo_loss(*three, answers, tokens, 0.2, 0.1)
    with pytest.raises(ValueError, match=one_shape):
        grpo_loss(tokens, tokens, tokens, answers, column, 0.2, 0.1)
    for advantages in (answers.view(2, 2), answers.unsqueeze(1), answers[:1]):
        with pytest.raises(ValueError, match=one_value):
            grpo_loss(tokens, tokens, tokens, advantages, tokens, 0.2, 0.1)


@pytest.mark.parametrize("shape", [(8,), (8, 1), (2, 2, 2)])
def test_rewards_that_are_not_groups_are_refused(shape):
    with pytest.raises(ValueError, match=r"rewards \(P, G\)"):
        group_advantages(torch.zeros(shape))
