"""The two loops on tiny encoders: what is trained, when they stop, and what they report."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MINILM, prepare

from minirlhf import loops, metrics
from minirlhf.approaches import STEPS
from minirlhf.heads import MLPHead
from minirlhf.settings import FINETUNE

SETTINGS = replace(FINETUNE, lr=1e-3, weight_decay=0.0, patience=1000, batch_size=8)
NUMBERS = ("loss", "accuracy")


def fit(built, token_rows, part, epochs, **settings):
    """Train and evaluate on the same pairs: the epochs' numbers, and the pairs' margins."""
    chosen = replace(SETTINGS, epochs=epochs, **settings)
    if built.info["approach"] == "bt-finetune":
        history = list(loops.fit_finetune(built, token_rows, part, part, chosen))
        return history, loops.evaluate_texts(built, token_rows, part).margins
    features = built.vectors(token_rows)
    history = list(loops.fit_frozen(built, features, part, part, chosen))
    return history, loops.evaluate(built, features, part).margins


def without_seconds(history):
    """What the epochs were, but for the time they took."""
    return [{name: epoch[name] for name in epoch if name != "seconds"} for epoch in history]


@pytest.mark.parametrize("approach", STEPS)
def test_each_approach_overfits_eight_pairs(approach, tiny_encoder):
    name = tiny_encoder if approach == "bt-finetune" else MINILM
    history, margins = fit(*prepare(approach, name), epochs=60, lr=3e-3)
    assert (margins > 0).all()
    assert history[-1]["train_loss"] < 0.3 * history[0]["train_loss"]


def test_a_decoder_overfits_eight_pairs(tiny_decoder):
    prepared = prepare("bt-finetune", tiny_decoder)
    assert prepared.model.info["pooling"] == "last"
    _, margins = fit(*prepared, epochs=60, lr=3e-3)
    assert (margins > 0).all()


def test_fine_tuning_starts_with_a_head_that_points_to_the_chosen(tiny_encoder):
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    part = part._replace(weight=torch.linspace(0.2, 1.8, 8))
    loops.start_head(built, token_rows, part)
    with torch.no_grad():
        vectors = built.vectors(token_rows).double()
    used = vectors[torch.cat([part.chosen, part.rejected]).unique()]
    gap = vectors[part.chosen] - vectors[part.rejected]
    expected = sum(w * g for w, g in zip(part.weight, gap, strict=True)) / used.var(dim=0)
    weight = built.head.output.weight.detach().double().flatten()
    assert torch.cosine_similarity(weight, expected, dim=0) > 0.9999
    margins = loops.evaluate_texts(built, token_rows, part).margins
    assert margins.square().mean().sqrt().item() == pytest.approx(loops.FIRST_MARGINS, rel=1e-4)


def test_a_head_stays_small_where_all_texts_are_one(tiny_encoder):
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    same = [token_rows[0]] * len(token_rows)  # as after a cut that leaves all texts the same
    loops.start_head(built, same, part)
    assert built.head.output.weight.abs().max() < 1e-2


@pytest.mark.parametrize("approach", STEPS)
def test_same_seed_same_numbers_and_frozen_weights_stay(approach, tiny_encoder):
    histories, margins = [], []
    for _ in range(2):
        prepared = prepare(approach, tiny_encoder)
        encoder = prepared.model.encoder
        before = {name: weight.clone() for name, weight in encoder.named_parameters()}
        history, margins_of_run = fit(*prepared, epochs=2, batch_size=3, dropout=0.1)
        histories.append(without_seconds(history))
        margins.append(margins_of_run)
        after = dict(encoder.named_parameters())
        moved = {name for name in before if not torch.equal(after[name], before[name])}
        assert bool(moved) == (approach == "bt-finetune")
        assert not any("word_embeddings" in name for name in moved)
    assert histories[0] == histories[1]
    assert torch.equal(margins[0], margins[1])


def test_accumulation_gives_the_gradient_of_one_large_batch(tiny_encoder, monkeypatch):
    # Plain SGD at rate 1 in place of AdamW: one step moves the head by minus the gradient, from a
    # start that is the same in both. AdamW would move it by little more than the gradient's signs.
    def plain(weights, **_):
        return torch.optim.SGD(weights, lr=1.0)

    monkeypatch.setattr(torch.optim, "AdamW", plain)
    moves = []
    for batch_size, accumulate in (
        (8, 1),
        (3, 100),
    ):  # batches of 3 and less, of unequal size
        built, token_rows, part = prepare("bt-finetune", tiny_encoder)
        loops.start_head(built, token_rows, part)
        start = built.head.output.weight.clone()
        settings = {"batch_size": batch_size, "accumulate": accumulate, "lr": 1.0}
        fit(built, token_rows, part, 1, warmup=0.0, clip=1e9, **settings)
        moves.append(built.head.output.weight - start)
    assert moves[0].abs().max() > 1e-3
    torch.testing.assert_close(*moves, atol=1e-6, rtol=1e-4)


def test_dropout_is_off_in_training_unless_asked_for(tiny_encoder):
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    torch.nn.init.normal_(built.head.output.weight)
    texts, pairs = loops.distinct_texts(token_rows, part)
    seen = {}
    for dropout in (0.0, 0.3):
        settings = replace(SETTINGS, epochs=1, dropout=dropout)
        next(loops.fit_finetune(built, token_rows, part, part, settings))
        built.train(dropout > 0)
        first, second = (STEPS["bt-finetune"](built, texts, pairs) for _ in range(2))
        seen[dropout] = torch.equal(first.margins, second.margins)
    assert seen == {0.0: True, 0.3: False}


def test_dropout_on_an_encoder_without_dropout_layers_is_refused(tiny_encoder):
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    built.encoder = torch.nn.Identity()
    settings = replace(SETTINGS, epochs=1, dropout=0.3)
    with pytest.raises(ValueError, match="no dropout layers"):
        next(loops.fit_finetune(built, token_rows, part, part, settings))


def test_early_stopping_restores_the_best_epoch(tiny_encoder):
    built, token_rows, part = prepare("bt-frozen", tiny_encoder, pairs=60)
    features = torch.randn(len(token_rows), 32)  # noise: validation can only get worse by luck
    train = part.pick(slice(40))
    validation = part.pick(slice(40, None))
    settings = replace(SETTINGS, epochs=200, patience=3, lr=1e-2)
    history = list(loops.fit_frozen(built, features, train, validation, settings))
    assert len(history) < 200
    best = min(history, key=lambda epoch: epoch["calibrated_loss"])
    judged = loops.evaluate(built, features, validation)
    assert judged.loss == pytest.approx(best["validation_loss"])
    accuracy = (judged.margins > 0).float().mean().item()
    assert accuracy == pytest.approx(best["validation_accuracy"])
    assert [epoch["best"] for epoch in history][-3:] == [False] * 3


@pytest.mark.parametrize("approach", ["bt-frozen", "classification"])
def test_evaluation_in_pieces_keeps_the_order_of_the_pairs(approach, tiny_encoder):
    built, token_rows, part = prepare(approach, tiny_encoder, pairs=40)
    for weight in built.head.parameters():
        torch.nn.init.normal_(weight)
    with torch.no_grad():
        features = built.vectors(token_rows)
    many = part.pick(torch.randint(40, (12_000,)))
    assert len(many.chosen) > 2 * loops.PAIRS_AT_ONCE
    with torch.no_grad():
        expected = STEPS[approach](built, features, many)
    for judged in (
        loops.evaluate(built, features, many),
        loops.evaluate_texts(built, token_rows, many),
    ):
        assert judged.loss == pytest.approx(expected.loss.item(), rel=1e-4)
        torch.testing.assert_close(judged.margins, expected.margins, rtol=1e-3, atol=1e-4)
        assert (judged.rewards is None) == (approach == "classification")
        if judged.rewards is not None:
            chosen, rejected = judged.rewards.unbind(dim=1)
            torch.testing.assert_close(chosen - rejected, judged.margins)


def test_pairs_of_equal_ratings_do_not_count_in_the_accuracy_of_an_epoch(tiny_encoder):
    built, token_rows, part = prepare("regression", MINILM)
    rejected_rating = part.rejected_rating.clone()
    rejected_rating[:5] = part.chosen_rating[:5]
    tied = part._replace(rejected_rating=rejected_rating)
    settings = replace(SETTINGS, epochs=4, batch_size=3, lr=0.0)
    features = built.vectors(token_rows)
    torch.nn.init.normal_(built.head.output.weight)
    history = list(loops.fit_frozen(built, features, tied, tied, settings))
    # With a rate of zero the model stays as it is, so the accuracy is that of the three pairs.
    margins = loops.evaluate(built, features, tied.pick(slice(5, None))).margins
    assert len(margins) == 3
    expected = metrics.credit(margins).mean().item()
    accuracies = [epoch["train_accuracy"] for epoch in history]
    assert accuracies == pytest.approx([expected] * len(history))


def fitted_regression(pairs: int = 60):
    """A regression whose predictions of noise lie far apart from the start, and its parts."""
    built, token_rows, part = prepare("regression", MINILM, pairs=pairs)
    torch.nn.init.normal_(built.head.output.weight, std=0.3)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(token_rows), 384, generator=generator)
    train, validation = part.pick(slice(pairs // 2)), part.pick(slice(pairs // 2, None))
    return built, features, train, validation


def ratings_of(part):
    return torch.cat([part.chosen_rating, part.rejected_rating])


def test_ratings_are_no_worse_than_the_mean_rating_and_the_ranking_stays(monkeypatch):
    before, features, train, validation = fitted_regression()
    settings = replace(SETTINGS, epochs=5, lr=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(loops, "shrink_ratings", lambda *args: None)
        history = list(loops.fit_frozen(before, features, train, validation, settings))
    after, *_ = fitted_regression()
    same = list(loops.fit_frozen(after, features, train, validation, settings))
    assert without_seconds(history) == without_seconds(same)

    wild = loops.evaluate(before, features, validation)
    tame = loops.evaluate(after, features, validation)
    ratings = ratings_of(validation)
    around_the_mean = (ratings - after.head.shift).square().mean().item()
    wild_error = (wild.rewards.T.flatten() - ratings).square().mean().item()
    tame_error = (tame.rewards.T.flatten() - ratings).square().mean().item()
    assert wild_error > 1.2 * around_the_mean
    assert tame_error <= around_the_mean
    # One factor, so no ranking changes; and the temperature has it, so no probability does.
    factor = after.head.scale / before.head.scale
    assert 0 < factor < 1
    torch.testing.assert_close(tame.margins, factor * wild.margins, atol=1e-5, rtol=1e-4)
    ratio = after.info["temperature"] / before.info["temperature"]
    assert ratio == pytest.approx(factor.item(), rel=1e-5)


def test_the_factor_is_the_slope_of_a_least_squares_line_through_the_mean():
    head = MLPHead(4)
    head.fit_output(torch.tensor([1.0, 5.0, 6.0]))
    predicted, ratings = torch.tensor([9.0, 2.0, 7.0]), torch.tensor([6.0, 3.0, 4.0])
    slope = np.linalg.lstsq((predicted - 4)[:, None].numpy(), (ratings - 4).numpy(), rcond=None)
    before = head.scale.item()
    factor = head.shrink_output(predicted, ratings)
    assert factor == pytest.approx(slope[0].item())
    assert head.scale.item() == pytest.approx(factor * before)
    assert head.shrink_output(predicted, 8 - ratings) == pytest.approx(0.01)  # order stays


def test_a_loss_that_is_no_number_stops_the_run(tiny_encoder):
    built, token_rows, part = prepare("regression", tiny_encoder)
    part = part._replace(chosen_rating=part.chosen_rating * torch.inf)
    with pytest.raises(FloatingPointError, match="lower --lr"):
        fit(built, token_rows, part, 1)


def test_every_ten_updates_are_a_record(tiny_encoder):
    """Their losses and right pairs add up to those of the epochs, if nothing is left over."""
    built, token_rows, part = prepare("bt-finetune", tiny_encoder, pairs=40)
    settings = replace(SETTINGS, epochs=5, batch_size=10)
    state = loops.new_state(built, settings)
    steps = []
    history = list(
        loops.fit_finetune(
            built, token_rows, part, part, settings, state=state, log_step=steps.append
        )
    )
    updates = state.step
    assert [record["step"] for record in steps] == list(range(10, updates + 1, 10))
    assert updates >= 20
    assert steps[0]["learning_rate"] > steps[-1]["learning_rate"] > 0
    assert all(record["pairs_per_second"] > 0 for record in steps)
    done = [record["epochs_done"] for record in steps]
    assert done == sorted(done) and done[0] > 0 and done[-1] <= len(history)
    losses = [record["step_loss"] for record in steps]
    assert min(epoch["train_loss"] for epoch in history) > 0.5 * min(losses)
    assert max(epoch["train_loss"] for epoch in history) < 2 * max(losses)


def test_a_record_of_updates_is_the_mean_over_their_pairs(tiny_encoder):
    """With ten updates an epoch, the record of the updates is that of the epoch."""
    built, token_rows, part = prepare("bt-finetune", tiny_encoder, pairs=20)
    part = part._replace(prompt=torch.arange(len(part.prompt)))  # so that batches are full
    settings = replace(SETTINGS, epochs=2, batch_size=2)
    steps = []
    history = list(
        loops.fit_finetune(built, token_rows, part, part, settings, log_step=steps.append)
    )
    assert len(steps) == len(history) == 2
    for step, epoch in zip(steps, history, strict=True):
        assert step["epochs_done"] == epoch["epoch"]
        assert step["step_loss"] == pytest.approx(epoch["train_loss"], rel=1e-6)
        assert step["step_accuracy"] == pytest.approx(epoch["train_accuracy"], rel=1e-6)


def test_a_record_of_updates_goes_on_over_the_end_of_an_epoch(tiny_encoder, monkeypatch):
    """The validation in between is in no record, and its time does not count."""
    clock = [0.0]  # an update takes no time but for the two looks at the clock

    def tick() -> float:
        clock[0] += 0.5
        return clock[0]

    def slow(*args):
        clock[0] += 1000
        return evaluate(*args)

    evaluate = loops.evaluate_texts
    monkeypatch.setattr(loops, "evaluate_texts", slow)
    monkeypatch.setattr(loops, "time", SimpleNamespace(perf_counter=tick))
    built, token_rows, part = prepare("bt-finetune", tiny_encoder, pairs=30)
    part = part._replace(prompt=torch.arange(len(part.prompt)))  # so that batches are full
    settings = replace(SETTINGS, epochs=2, batch_size=2)  # 15 updates an epoch
    steps = []
    history = list(
        loops.fit_finetune(built, token_rows, part, part, settings, log_step=steps.append)
    )
    assert [record["epochs_done"] for record in steps] == pytest.approx([10 / 15, 20 / 15, 2])
    # As many pairs are in each record, and as many in each epoch, so the means agree.
    by_steps = [np.mean([record[f"step_{name}"] for record in steps]) for name in NUMBERS]
    by_epochs = [np.mean([epoch[f"train_{name}"] for epoch in history]) for name in NUMBERS]
    assert by_steps == pytest.approx(by_epochs, rel=1e-6)
    assert [record["pairs_per_second"] for record in steps] == [4.0] * 3
    assert all(epoch["seconds"] > 1000 for epoch in history)


def test_what_the_best_epoch_said_of_validation_is_kept(tiny_encoder):
    """So that nothing has to be read again; the model ends with the weights of that epoch."""
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    settings = replace(SETTINGS, epochs=4)
    state = loops.new_state(built, settings)
    list(loops.fit_finetune(built, token_rows, part, part, settings, state=state))
    again = loops.evaluate_texts(built, token_rows, part)
    kept = loops.Evaluation(**state.validation)
    assert torch.equal(kept.margins, again.margins)
    assert torch.equal(kept.rewards, again.rewards)
    assert kept.loss == again.loss
