"""`selfcheck` passes sound models, and each of its checks finds a bug planted for it."""

import copy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import train
from minirlhf import approaches, heads, loops, losses, model, pooling, score, tokens
from minirlhf.commands import selfcheck


class Table(NamedTuple):
    """What the command printed, and how it ended."""

    code: int
    verdicts: list[str]  # of each line of the tables


def table(capsys, *flags) -> Table:
    with pytest.raises(SystemExit) as stopped:
        selfcheck.main(["--device", "cpu", *flags])
    lines = capsys.readouterr().out.splitlines()
    verdicts = [line.split()[0] for line in lines if line.startswith("  ")]
    return Table(stopped.value.code, verdicts)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The scorer of a tiny run of each approach."""
    found = {}
    for approach in approaches.STEPS:
        folder = tmp_path_factory.mktemp(approach)
        selfcheck.make_tiny_run(approach, folder)
        found[approach] = score.load(folder, "cpu")
    return found


# One learns from real ratings, the other changes the encoder.
@pytest.mark.parametrize("approach", ["regression", "bt-finetune"])
def test_a_sound_run_passes_and_is_not_touched(approach, tiny_encoder, pairs_file, capsys):
    flags = ["--approach", approach, "--dataset", pairs_file, "--model", tiny_encoder]
    flags += [
        "--max-length",
        "96",
        "--epochs",
        "1",
        "--tracking-uri",
        "none",
        "--device",
        "cpu",
    ]
    train.main([*flags, "--output", "run"])
    capsys.readouterr()
    files = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    code, verdicts = table(capsys, "run")
    assert code == 0
    assert len(verdicts) == len(selfcheck.CHECKS) == 8
    assert verdicts.count("PASS") == (7 if approach == "regression" else 8)
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == files


def test_a_decoder_passes(tiny_decoder, capsys):
    built = model.build("bt-frozen", tiny_decoder, max_length=96)
    torch.nn.init.normal_(built.head.output.weight)
    model.save(built, Path("run/model"))
    assert table(capsys, "run") == Table(0, ["PASS"] * 8)


def test_without_a_run_tiny_models_of_all_approaches_are_checked(capsys):
    code, verdicts = table(capsys)
    assert code == 0
    assert (verdicts.count("PASS"), verdicts.count("-")) == (31, 1)


def test_pooling_a_pad_position_fails_the_padding_line_and_the_command(monkeypatch, capsys):
    monkeypatch.setitem(pooling.POOLERS, "mean", lambda hidden, mask: hidden[:, -1].float())
    # It is trained with the bug, too, and learns all the same.
    selfcheck.make_tiny_run("bt-frozen", Path("run"))
    code, verdicts = table(capsys, "run")
    assert code == 1
    assert verdicts[0] == "FAIL"


def sigmoid_before_the_loss(patch, scorer):
    def loss(chosen, rejected, *others):
        return losses.bradley_terry_loss(chosen.sigmoid(), rejected.sigmoid(), *others)

    patch.setattr(approaches, "bradley_terry_loss", loss)


def head_with_opinions(patch, scorer):
    patch.setattr(torch.nn.init, "zeros_", lambda parameter: parameter)


def concatenation(patch, scorer):
    patch.setattr(
        heads.PairHead, "forward", lambda self, a, b: self.g(torch.cat([a, b], dim=-1))
    )


def encoder_without_gradient(patch, scorer):
    patch.setattr(model.RewardModel, "embed", torch.no_grad()(model.RewardModel.embed))


def evaluation_on_training_pairs(patch, scorer):
    fit_frozen = loops.fit_frozen

    def leaking(model, features, train, validation, settings):
        return fit_frozen(model, features, train, train, settings)

    patch.setattr(loops, "fit_frozen", leaking)


def dropout_left_on(patch, scorer):
    patch.setattr(scorer, "model", copy.deepcopy(scorer.model).train())


def head_not_loaded(patch, scorer):
    patch.setattr(heads.LinearHead, "load_state_dict", lambda self, weights: None)


def sigmoid_on_the_score(patch, scorer):
    score_many = score.Scorer.score_many

    def squashed(self, prompts, responses):
        return torch.tensor(score_many(self, prompts, responses)).sigmoid().tolist()

    patch.setattr(score.Scorer, "score_many", squashed)


def truncation_from_the_right_in_scoring(patch, scorer):
    encode = tokens.encode
    win_probabilities = score.Scorer.win_probabilities

    def keep_the_left(prompts, responses, tokenizer, limit):
        whole = encode(prompts, responses, tokenizer, 10**6)
        return tokens.Encoded([ids[:limit] for ids in whole.token_rows], cut=0)

    def wrong_in_scoring(self, prompt, responses):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(tokens, "encode", keep_the_left)
            return win_probabilities(self, prompt, responses)

    patch.setattr(score.Scorer, "win_probabilities", wrong_in_scoring)


def broken_weights(patch, scorer):
    broken = copy.deepcopy(scorer.model)
    torch.nn.init.constant_(broken.head.output.weight, torch.nan)
    patch.setattr(scorer, "model", broken)


def same_reward_for_all(patch, scorer):
    patch.setattr(scorer, "model", selfcheck.with_new_head(scorer.model))


@pytest.mark.parametrize(
    ("plant", "approach", "check"),
    [
        (dropout_left_on, "bt-frozen", selfcheck.padding),
        (broken_weights, "bt-finetune", selfcheck.padding),
        (same_reward_for_all, "regression", selfcheck.padding),
        (dropout_left_on, "classification", selfcheck.batch_size),
        (concatenation, "classification", selfcheck.order_of_a_pair),
        (head_with_opinions, "bt-frozen", selfcheck.loss_at_start),
        (head_with_opinions, "bt-finetune", selfcheck.loss_at_start),
        (head_with_opinions, "classification", selfcheck.loss_at_start),
        (sigmoid_before_the_loss, "bt-frozen", selfcheck.one_batch_overfits),
        (encoder_without_gradient, "bt-finetune", selfcheck.one_batch_overfits),
        (concatenation, "classification", selfcheck.shuffled_labels),
        (evaluation_on_training_pairs, "regression", selfcheck.shuffled_labels),
        (evaluation_on_training_pairs, "bt-frozen", selfcheck.shuffled_labels),
        (head_not_loaded, "bt-finetune", selfcheck.save_and_load),
        (sigmoid_on_the_score, "bt-finetune", selfcheck.training_is_scoring),
        (
            truncation_from_the_right_in_scoring,
            "classification",
            selfcheck.training_is_scoring,
        ),
    ],
)
def test_a_planted_bug_is_found(plant, approach, check, sound, monkeypatch):
    scorer = sound[approach]
    sample = selfcheck.choose(scorer.model, selfcheck.TRAINED)
    finding = check(scorer, sample.pairs, sample.token_rows)
    assert finding.number <= finding.limit
    assert finding.verdict == "PASS"

    plant(monkeypatch, scorer)
    finding = check(scorer, sample.pairs, sample.token_rows)
    assert not finding.number <= finding.limit
    assert finding.verdict == "FAIL"


def test_a_check_that_a_broken_model_stops_is_a_failure(sound, capsys, monkeypatch):
    scorer = sound["bt-finetune"]
    sample = selfcheck.choose(scorer.model, selfcheck.TRAINED)
    broken_weights(monkeypatch, scorer)
    torch.nn.init.constant_(next(scorer.model.encoder.parameters()), torch.nan)
    assert selfcheck.print_table(scorer, sample.pairs, sample.token_rows) == 8
    assert "no finite gradient" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["nowhere"], ["."], ["--device", "abacus"], ["--run"]])
def test_bad_input_is_one_sentence_and_exit_code_2(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        selfcheck.main(flags)
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.out == ""
    assert said.err.startswith("python -m minirlhf selfcheck: error: ")
    assert said.err.count("\n") == 1


def test_a_model_that_keeps_too_little_of_the_texts_is_bad_input(tiny_encoder, capsys):
    model.save(model.build("bt-frozen", tiny_encoder, max_length=2), Path("run/model"))
    with pytest.raises(SystemExit) as stopped:
        selfcheck.main(["run"])
    assert stopped.value.code == 2
    assert "too much alike" in capsys.readouterr().err
