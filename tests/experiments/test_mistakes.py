"""`mistakes`: each bug does what it says and no more, and the last row is the library's own."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from minirlhf import data, heads, loops, losses, metrics, pooling, score, tokens
from minirlhf import model as models
from minirlhf.bundled.arithmetic import generate
from minirlhf.commands import selfcheck
from minirlhf.experiments import mistakes
from minirlhf.experiments.mistakes import BUGS, Epoch, planted
from minirlhf.runtime.device import pick_device, seed_everything
from minirlhf.settings import flag_parser, read_flags

ROOT = Path(__file__).parents[2]
NAMED = {bug.name: bug for bug in BUGS}


def pairs_and_model(encoder, count=200):
    pairs = data.build_pairs(generate(count))[0]
    seed_everything(0)
    return pairs, models.build("bt-finetune", encoder, max_length=64)


def rewards(model, texts):
    prompts, responses = zip(*texts, strict=True)
    token_rows = model.encode(prompts, responses).token_rows
    with torch.no_grad():
        return model.rewards(token_rows)


def test_a_pooled_pad_position_changes_with_the_neighbours(tiny_encoder):
    pairs, model = pairs_and_model(tiny_encoder)
    torch.nn.init.normal_(model.head.output.weight)
    texts = [(pair.prompt, pair.chosen) for pair in pairs[:40]]
    short, long = ("1 + 1?", "2"), texts[0]
    with planted([NAMED["PAD pooled"]]):
        alone, beside = rewards(model, [short]), rewards(model, [short, long])[:1]
        assert not torch.allclose(alone, beside, atol=1e-4)
        hidden, mask = torch.randn(1, 3, 4), torch.tensor([[1, 1, 0]])
        assert torch.equal(pooling.POOLERS["mean"](hidden, mask), hidden[:, 2])
        assert len(rewards(model, texts)) == 40  # two batches
    alone, beside = rewards(model, [short]), rewards(model, [short, long])[:1]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=0)


def test_a_sigmoid_bounds_the_margin_and_the_loss():
    head = heads.LinearHead(4)
    torch.nn.init.constant_(head.output.weight, 100.0)
    good, bad = torch.ones(5, 4), -torch.ones(5, 4)
    with planted([NAMED["sigmoid"]]):
        chosen, rejected = head(good), head(bad)
        assert (chosen - rejected).max() <= 1
        loss = losses.bradley_terry_loss(chosen, rejected)
        assert loss.item() == pytest.approx(0.3133, abs=1e-4)
    assert losses.bradley_terry_loss(head(good), head(bad)).item() == pytest.approx(0, abs=1e-6)


def test_dropout_makes_two_readings_of_a_text_differ(tiny_encoder, monkeypatch):
    def leave_head(model, token_rows, train):
        """The two texts of the pair are the same, so there is no direction to point the head to."""

    monkeypatch.setattr(loops, "start_head", leave_head)
    found = []
    for bugs in ([NAMED["dropout"]], []):
        pairs, model = pairs_and_model(tiny_encoder, 8)
        first = pairs[0]
        token_rows = model.encode([first.prompt] * 2, [first.chosen] * 2).token_rows
        part = data.make_part([first], data.number_texts([first]))
        part = part._replace(chosen=torch.tensor([0]), rejected=torch.tensor([1]))
        torch.nn.init.normal_(model.head.output.weight)
        with planted(bugs):
            settings = replace(mistakes.SETTINGS, epochs=1, seed=0)
            (epoch,) = loops.fit_finetune(model, token_rows, part, part, settings)
        # Twice the same text: without dropout a tie, and a loss of ln 2.
        found.append(epoch["train_loss"] == pytest.approx(0.693147, abs=1e-6))
    assert found == [False, True]


def test_the_end_is_cut_off_and_the_right_cut_keeps_it(tiny_encoder):
    _, model = pairs_and_model(tiny_encoder)
    prompts = ["why", "why"]
    responses = ["step " * 80 + "yes", "step " * 80 + "no"]
    with planted([NAMED["end cut off"]]):
        first, second = model.encode(prompts, responses).token_rows
        assert model.encode(prompts, responses).cut == 2
        assert first == second  # nothing is left to prefer
        assert len(first) == 64
    first, second = model.encode(prompts, responses).token_rows
    assert model.encode(prompts, responses).cut == 2
    assert first != second


def test_a_split_by_row_leaks_prompts_and_the_mended_one_does_not():
    pairs = data.build_pairs(generate(300))[0]

    def leaked():
        parts = data.split(pairs)
        assert sorted(sum(parts, [])) == sorted(pairs)
        assert [len(p) / 300 for p in parts] == pytest.approx([0.7, 0.1, 0.2], abs=0.06)
        learned = {pair.prompt for pair in parts[0]}
        return sum(pair.prompt in learned for pair in parts[2]) / len(parts[2])

    with planted([NAMED["split by row"]]):
        assert leaked() > 0.9
    assert leaked() == 0


def test_batch_means_weigh_a_small_batch_as_a_large_one_and_ties_as_right():
    margins = torch.cat([torch.ones(64), -torch.ones(16)])  # the last batch is all wrong
    assert mistakes.accuracy(margins) == pytest.approx(0.8)
    assert mistakes.accuracy(torch.zeros(5)) == 0.5
    with planted([NAMED["batch means"]]):
        assert mistakes.accuracy(margins) == 0.5
        assert mistakes.accuracy(torch.zeros(5)) == 1


def test_the_test_part_does_not_choose_the_epoch(tiny_encoder):
    """The epoch that is kept is the same whatever the test labels are; the bug's is not."""
    right, wrong = torch.ones(4), -torch.ones(4)
    first = Epoch(epoch=1, best=True, train_accuracy=0.5, test_margins=right, weights={})
    last = Epoch(epoch=2, best=True, train_accuracy=0.5, test_margins=wrong, weights={})
    epochs = [first, last]
    turned = [epoch._replace(test_margins=-epoch.test_margins) for epoch in epochs]
    assert mistakes.best_on_validation(epochs) is epochs[1]
    assert mistakes.best_on_validation(turned) is turned[1]
    with planted([NAMED["chosen on test"]]):
        assert mistakes.best_on_validation(epochs) is epochs[0]
        assert mistakes.best_on_validation(turned) is turned[1]
    # `train` here, and the loop that it calls: turned test pairs change nothing that is learned.
    pool = data.build_pairs(generate(150))[0]
    learned, validation, test = data.split(pool)
    flipped = [pair._replace(chosen=pair.rejected, rejected=pair.chosen) for pair in test]
    settings = replace(mistakes.SETTINGS, model=tiny_encoder, device="cpu", epochs=2, seed=0)
    kept = []
    for tested in (test, flipped):
        training = mistakes.train([*learned, *validation, *tested], pool[:4], settings)
        kept.append(mistakes.best_on_validation(training.epochs))
    one, other = kept
    assert one.epoch == other.epoch
    assert all(torch.equal(one.weights[name], value) for name, value in other.weights.items())
    torch.testing.assert_close(one.test_margins, -other.test_margins)


START_HEAD = loops.start_head  # before anything is planted


def in_place():
    """What is now where the bugs go."""
    found = []
    for bug in BUGS:
        for owner, name, _ in bug.replaced:
            found.append(owner[name] if isinstance(owner, dict) else getattr(owner, name))
    return found


def test_nothing_stays_planted_and_the_last_row_is_the_library_s_own(tiny_encoder):
    with pytest.raises(KeyError), planted(BUGS):
        assert in_place() == [one.wrong for bug in BUGS for one in bug.replaced]
        raise KeyError
    with planted(BUGS[len(BUGS) :]):  # the last row
        after = in_place()
    assert after == [
        pooling.mean_pool,
        tokens.length_batches,
        heads.LinearHead.forward,
        mistakes.SETTINGS,
        tokens.encode,
        START_HEAD,
        data.split,
        mistakes.accuracy,
        mistakes.best_on_validation,
    ]
    assert mistakes.SETTINGS.dropout == 0.0
    margins = torch.tensor([1.0, 0.0, -1.0, 2.0])
    assert (
        mistakes.accuracy(margins)
        == metrics.bootstrap(metrics.credit(margins), "abcd").estimate
    )
    # Its settings are those of train.py, but for what the docstring names.
    real = asdict(read_flags(flag_parser(), []))
    here = asdict(mistakes.SETTINGS)
    assert {name for name in here if real[name] != here[name]} == {
        "depth",
        "patience",
        "max_length",
    }
    # And its epoch, weights and margins are those of the core's loop, called by hand.
    pool = data.build_pairs(generate(120))[0]
    settings = replace(mistakes.SETTINGS, model=tiny_encoder, device="cpu", epochs=2, seed=0)
    training = mistakes.train(pool, pool[:20], settings)
    margins = training.judge(mistakes.best_on_validation(training.epochs))
    seed_everything(0)
    where = pick_device("cpu")
    model = models.build("bt-finetune", tiny_encoder, None, 64, where.attention)
    learned, validation, test = data.split(pool)
    texts = data.number_texts(learned, validation, test, pool[:20])
    token_rows = model.encode(texts.prompts, texts.responses).token_rows
    train_part = data.make_part(learned, texts)
    validation_part = data.make_part(validation, texts)
    for _ in loops.fit_finetune(
        model, token_rows, train_part, validation_part, settings, dtype=where.dtype
    ):
        pass  # at its end the loop restores its best epoch
    worker = model.in_precision(where.dtype)
    expected = loops.evaluate_texts(
        worker, token_rows, data.make_part(pool[:20], texts)
    ).margins
    torch.testing.assert_close(margins, expected, atol=1e-3, rtol=1e-3)


def test_every_line_and_test_that_is_named_exists():
    lines = {check.__name__.replace("_", " ") for check in selfcheck.CHECKS}
    for bug in BUGS:
        place, _, name = re.match(r"([^:]+)(: |::)(.+)", bug.caught_by).groups()
        if place == "selfcheck":
            assert name in lines
        else:
            assert f"\ndef {name}(" in (ROOT / place).read_text()


@pytest.mark.parametrize("name", ["PAD pooled", "sigmoid"])
def test_the_named_line_of_selfcheck_finds_the_bug(name):
    bug = NAMED[name]
    check = getattr(selfcheck, bug.caught_by.removeprefix("selfcheck: ").replace(" ", "_"))
    verdicts = []
    for bugs in ([bug], []):
        with planted(bugs):
            selfcheck.make_tiny_run("bt-finetune", Path(f"run-{len(bugs)}"))
            scorer = score.load(f"run-{len(bugs)}", "cpu")
            sample = selfcheck.choose(scorer.model, selfcheck.TRAINED)
            finding = check(scorer, sample.pairs, sample.token_rows)
            verdicts.append(finding.number <= finding.limit)
    assert verdicts == [False, True]


def outcome(seed, claimed, right, epoch=1):
    """What a recipe gave with one seed, made up: the credits of untouched pairs of two prompts."""
    training = mistakes.Training(None, None, [], None, [], 10, 4, 0.5, 0.9)
    prompts = ["a", "a", "b", "b"]
    return mistakes.Outcome(seed, claimed, torch.tensor(right), prompts, epoch, 0.8, training)


def test_two_seeds_are_pooled_as_by_hand():
    """Means over seeds; a t interval with one degree of freedom reaches 12.706 standard errors."""
    above = [
        outcome(0, 0.80, [1.0, 0.0, 0.0, 1.0]),
        outcome(1, 0.90, [1.0, 0.0, 0.0, 0.0]),
    ]
    here = [
        outcome(0, 0.70, [1.0, 1.0, 0.5, 1.0]),
        outcome(1, 0.75, [1.0, 1.0, 0.0, 0.0]),
    ]
    row = mistakes.summarize(BUGS[0], here, above)
    # By hand: of seed 0 and seed 1, true 0.875 and 0.5 (above 0.5 and 0.25), so gains 0.375 and
    # 0.25; claimed - true -0.175 and 0.25 (above 0.3 and 0.65), so changes -0.475 and -0.4. The
    # standard error of the mean of two numbers is half their distance.
    by_hand = {
        "claimed": (0.725, 0.05),
        "true": (0.6875, 0.375),
        "gain": (0.3125, 0.125),
        "overclaim": (0.0375, 0.425),
        "overclaim_change": (-0.4375, 0.075),
    }
    for name, (mean, distance) in by_hand.items():
        reach = 12.706 * distance / 2
        assert row[name] == pytest.approx(mean), name
        assert row[f"{name}_low"] == pytest.approx(mean - reach), name
        assert row[f"{name}_high"] == pytest.approx(mean + reach), name
    assert row["name"] == BUGS[0].name and row["mended"] == BUGS[0].mend
    assert [one["seed"] for one in row["by_seed"]] == [0, 1]
    assert [one["true"] for one in row["by_seed"]] == [0.875, 0.5]
    assert [one["claimed"] for one in row["by_seed"]] == [0.70, 0.75]


def test_one_seed_has_intervals_over_prompts_and_none_where_no_prompt_can_be_drawn():
    above = [outcome(0, 0.80, [1.0, 0.0, 0.0, 1.0])]
    here = [outcome(0, 0.70, [1.0, 1.0, 0.5, 1.0])]
    row = mistakes.summarize(BUGS[0], here, above)
    right, prompts = here[0].right, here[0].prompts
    assert [row["true"], row["true_low"], row["true_high"]] == list(
        metrics.bootstrap(right, prompts, ends=(0, 1))
    )
    assert [row["gain"], row["gain_low"], row["gain_high"]] == list(
        metrics.bootstrap(right - above[0].right, prompts, ends=(-1, 1))
    )
    assert row["overclaim"] == pytest.approx(0.70 - 0.875) and "overclaim_low" not in row
    assert row["claimed"] == 0.70 and "claimed_low" not in row
    first = mistakes.summarize(None, here, [])
    assert (
        "gain" not in first and "overclaim_change" not in first and first["caught_by"] is None
    )


def test_the_quantiles_are_those_of_student_s_t():
    """The density of t, written down and integrated, leaves 2.5 % above each of them."""
    assert list(mistakes.T_QUANTILES) == list(range(2, max(mistakes.T_QUANTILES) + 1))
    for seeds, quantile in mistakes.T_QUANTILES.items():
        t = torch.distributions.StudentT(torch.tensor(seeds - 1.0, dtype=torch.float64))
        x = torch.linspace(0, quantile, 200_001, dtype=torch.float64)
        below = torch.trapezoid(t.log_prob(x).exp(), x).item()
        assert below == pytest.approx(0.475, abs=2e-5)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_command_yields_all_rows_and_draws_them(seeds, tiny_encoder, monkeypatch, capsys):
    monkeypatch.setattr(mistakes, "UNTOUCHED", 40)
    trained = []
    fit = loops.fit_finetune

    def count_and_fit(*args, **kwargs):
        trained.append(1)
        return fit(*args, **kwargs)

    monkeypatch.setattr(loops, "fit_finetune", count_and_fit)
    flags = [
        "--pairs",
        "120",
        "--epochs",
        "2",
        "--model",
        tiny_encoder,
        "--device",
        "cpu",
    ]
    mistakes.main([*flags, "--seeds", str(seeds), "--output", "mistakes.json"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    found = json.loads(Path("mistakes.json").read_text())
    rows = found["rows"]
    assert len(table) == len(rows) + 2 == len(BUGS) + 3
    assert {line.count("|") for line in table} == {7}
    assert len(trained) == seeds * (1 + sum(bug.in_training for bug in BUGS)) == seeds * 7
    assert [row["caught_by"] for row in rows] == [None, *(bug.caught_by for bug in BUGS)]
    for row in rows:
        assert row["true_low"] <= row["true"] <= row["true_high"]
        assert 0 <= row["claimed"] <= 1 and row["seconds"] > 0
        assert row["overclaim"] == pytest.approx(row["claimed"] - row["true"])
        assert ("gain" in row) == ("overclaim_change" in row) == (row is not rows[0])
        assert ("claimed_low" in row) == ("overclaim_low" in row) == (seeds > 1)
        assert [one["seed"] for one in row["by_seed"]] == list(range(seeds))
        for name in ("claimed", "true"):
            mean = sum(one[name] for one in row["by_seed"]) / seeds
            assert row[name] == pytest.approx(mean)
        for one in row["by_seed"]:
            assert 0 <= one["claimed"] <= 1 and one["epoch"] in (1, 2)
    for before, row in zip(rows, rows[1:], strict=False):
        assert row["gain"] == pytest.approx(row["true"] - before["true"])
        change = row["overclaim"] - before["overclaim"]
        assert row["overclaim_change"] == pytest.approx(change)
    for seed in range(seeds):
        one = [row["by_seed"][seed] for row in rows]
        assert one[5]["leaked"] > 0.9 and one[6]["leaked"] == 0  # the sixth mend is the split
        assert one[6]["true"] == one[7]["true"] or one[6]["epoch"] != one[7]["epoch"]
    if seeds == 2:  # another seed is another set of pairs and another training
        first, second = rows[0]["by_seed"]
        assert first["train_accuracy"] != second["train_accuracy"]
    mistakes.draw(Path("pictures/mistakes.png"), rows)
    assert Path("pictures/mistakes.png").read_bytes()[:4] == b"\x89PNG"


def test_what_does_not_learn_is_not_copied_and_the_rest_is(tiny_encoder):
    _, model = pairs_and_model(tiny_encoder)
    copied = mistakes.learned_weights(model)
    left_out = [name for name, _ in model.named_parameters() if name not in copied]
    assert left_out == [
        "encoder.embeddings.word_embeddings.weight",
        "encoder.pooler.dense.weight",  # a BERT's own pooler, which nothing reads
        "encoder.pooler.dense.bias",
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name not in left_out:  # training moves all others
                weight.add_(1.0)
    model.load_state_dict(copied, strict=False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    "flags",
    [["--pairs", "5"], ["--epochs", "0"], ["--pairs", "x"], ["--device", "abacus"]]
    + [["--seeds", "0"], ["--seeds", "9"], ["--seeds", "-1"]]
    + [["--model", "no/such-model"], ["--output", "nowhere/file.json"]],
)
def test_bad_input_is_one_sentence_and_exit_code_2(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        mistakes.main(flags)
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.out == ""
    assert said.err.startswith("python -m minirlhf mistakes: error: ")
    assert said.err.count("\n") == 1
