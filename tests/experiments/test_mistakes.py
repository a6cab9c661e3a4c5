"""`mistakes`: each bug does what it says and no more, and the last row is the library's own."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from minirlhf import data, heads, loops, losses, metrics, pooling, score, tokens
from minirlhf import model as models
from minirlhf.approaches import Options
from minirlhf.bundled.arithmetic import generate
from minirlhf.commands import selfcheck
from minirlhf.experiments import mistakes
from minirlhf.experiments.mistakes import BUGS, planted
from minirlhf.runtime.device import pick_device, seed_everything

ROOT = Path(__file__).parents[2]
NAMED = {bug.name: bug for bug in BUGS}


def pairs_and_model(encoder, count=200):
    pairs = data.build_pairs(generate(count))[0]
    seed_everything(0)
    return pairs, models.build("bt-finetune", encoder, max_length=64)


def rewards(model, texts):
    rows, _ = model.encode(*zip(*texts, strict=True))
    with torch.no_grad():
        return model.map(model, rows)


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
    monkeypatch.setattr(loops, "start_head", lambda *_: None)  # it finds no direction: all is one
    found = []
    for bugs in ([NAMED["dropout"]], []):
        pairs, model = pairs_and_model(tiny_encoder, 8)
        _, _, (part,) = data.index_texts(pairs)
        rows, _ = model.encode([pairs[0].prompt] * 2, [pairs[0].chosen] * 2)
        part = data.Part(*(t[:1] for t in part))._replace(
            chosen=torch.tensor([0]), rejected=torch.tensor([1])
        )
        torch.nn.init.normal_(model.head.output.weight)
        with planted(bugs):
            args = SimpleNamespace(**mistakes.SETTINGS, epochs=1, seed=0)
            (row,) = loops.fit_finetune(model, rows, part, part, args)
        # Twice the same text: without dropout a tie, and a loss of ln 2.
        found.append(row["train_loss"] == pytest.approx(0.693147, abs=1e-6))
    assert found == [False, True]


def test_the_end_is_cut_off_and_the_right_cut_keeps_it(tiny_encoder):
    _, model = pairs_and_model(tiny_encoder)
    texts = ["why"] * 2, ["step " * 80 + "yes", "step " * 80 + "no"]
    with planted([NAMED["end cut off"]]):
        rows, cut = model.encode(*texts)
        assert (cut, rows[0]) == (2, rows[1])  # identical: nothing is left to prefer
        assert len(rows[0]) == 64
    rows, cut = model.encode(*texts)
    assert cut == 2 and rows[0] != rows[1]


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
    epochs = [{"best": True, "test_margins": right}, {"best": True, "test_margins": wrong}]
    turned = [epoch | {"test_margins": -epoch["test_margins"]} for epoch in epochs]
    assert [mistakes.best_on_validation(e) is e[1] for e in (epochs, turned)] == [True, True]
    with planted([NAMED["chosen on test"]]):
        assert [mistakes.best_on_validation(e) is e[1] for e in (epochs, turned)] == [False, True]
    # `train` here, and the loop that it calls: turned test pairs change nothing that is learned.
    pool = data.build_pairs(generate(150))[0]
    parts = data.split(pool)
    flipped = [p._replace(chosen=p.rejected, rejected=p.chosen) for p in parts[2]]
    args = SimpleNamespace(model=tiny_encoder, device="cpu", epochs=2, seed=0)
    kept = [
        mistakes.best_on_validation(mistakes.train(p, pool[:4], args)[0]["epochs"])
        for p in (sum(parts, []), [*parts[0], *parts[1], *flipped])
    ]
    assert kept[0]["epoch"] == kept[1]["epoch"]
    assert all(torch.equal(kept[0]["weights"][k], v) for k, v in kept[1]["weights"].items())
    torch.testing.assert_close(kept[0]["test_margins"], -kept[1]["test_margins"])


START_HEAD = loops.start_head  # before anything is planted


def in_place():
    """What is now where the bugs go."""
    places = [(owner, name) for bug in BUGS for owner, name, _ in bug.replaced]
    return [o[name] if isinstance(o, dict) else getattr(o, name) for o, name in places]


def test_nothing_stays_planted_and_the_last_row_is_the_library_s_own(tiny_encoder):
    with pytest.raises(KeyError), planted(BUGS):
        assert in_place() == [wrong for bug in BUGS for _, _, wrong in bug.replaced]
        raise KeyError
    with planted(BUGS[len(BUGS) :]):  # the last row
        after = in_place()
    own = pooling.mean_pool, tokens.map_rows, heads.LinearHead.forward, 0.0
    own += tokens.encode, START_HEAD, data.split, mistakes.accuracy, mistakes.best_on_validation
    assert after == list(own)
    margins = torch.tensor([1.0, 0.0, -1.0, 2.0])
    assert mistakes.accuracy(margins) == metrics.bootstrap(metrics.credit(margins), "abcd").estimate
    # Its settings are those of train.py, but for what the docstring names.
    real = vars(train.settle(train.parse([])))
    changed = {name for name, value in mistakes.SETTINGS.items() if real[name] != value}
    assert changed == {"batch_size", "patience", "max_length"}
    # And its epoch, weights and margins are those of the core's loop, called by hand.
    pool = data.build_pairs(generate(120))[0]
    args = SimpleNamespace(model=tiny_encoder, device="cpu", epochs=2, seed=0)
    about, judge = mistakes.train(pool, pool[:20], args)
    margins = judge(mistakes.best_on_validation(about["epochs"]))
    seed_everything(0)
    _, dtype, attention, _ = pick_device("cpu")
    model = models.build("bt-finetune", tiny_encoder, None, 64, attention)
    prompts, responses, parts = data.index_texts(*data.split(pool), pool[:20])
    rows, _ = model.encode(prompts, responses)
    args = SimpleNamespace(**mistakes.SETTINGS, epochs=2, seed=0)
    options = Options(dtype=dtype)
    list(loops.fit_finetune(model, rows, *parts[:2], args, options))  # restores its best epoch
    expected = loops.evaluate(model.in_precision(dtype), rows, parts[3])[1]
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
            chosen = selfcheck.choose(scorer.model, selfcheck.TRAINED)
            number, limit, _ = check(scorer, *chosen)
            verdicts.append(number <= limit)
    assert verdicts == [False, True]


def test_the_command_yields_all_rows_and_draws_them(tiny_encoder, monkeypatch, capsys):
    monkeypatch.setattr(mistakes, "UNTOUCHED", 40)
    trained = []
    fit = loops.fit_finetune
    monkeypatch.setattr(loops, "fit_finetune", lambda *a: trained.append(1) or fit(*a))
    flags = ["--pairs", "120", "--epochs", "2", "--model", tiny_encoder, "--device", "cpu"]
    mistakes.main([*flags, "--output", "mistakes.json"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    found = json.loads(Path("mistakes.json").read_text())
    rows = found["rows"]
    assert len(table) == len(rows) + 2 == len(BUGS) + 3
    assert {line.count("|") for line in table} == {6}
    assert len(trained) == 1 + sum(bug.in_training for bug in BUGS) == 7
    assert [row["caught_by"] for row in rows] == [None, *(bug.caught_by for bug in BUGS)]
    for row in rows:
        assert row["true_low"] <= row["true"] <= row["true_high"]
        assert 0 <= row["claimed"] <= 1 and row["epoch"] in (1, 2) and row["seconds"] > 0
        assert ("gain" in row) == (row is not rows[0])
    for before, row in zip(rows, rows[1:], strict=False):
        assert row["gain"] == pytest.approx(row["true"] - before["true"])
    assert rows[5]["leaked"] > 0.9 and rows[6]["leaked"] == 0  # the sixth mend is the split
    assert rows[6]["true"] == rows[7]["true"] or rows[6]["epoch"] != rows[7]["epoch"]
    mistakes.draw(Path("pictures/mistakes.png"), rows)
    assert Path("pictures/mistakes.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "flags",
    [["--pairs", "5"], ["--epochs", "0"], ["--pairs", "x"], ["--device", "abacus"]]
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
