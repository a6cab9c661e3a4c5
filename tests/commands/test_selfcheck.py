"""`selfcheck` passes sound models, and each of its checks finds a bug planted for it."""

import copy
from pathlib import Path

import pytest
import torch

import train
from minirlhf import approaches, heads, loops, losses, model, pooling, score, tokens
from minirlhf.commands import selfcheck


def table(capsys, *flags):
    """Exit code, and (verdict, number or nothing) of each line of the printed tables."""
    with pytest.raises(SystemExit) as stopped:
        selfcheck.main(["--device", "cpu", *flags])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line[:2] == "  "]
    return stopped.value.code, [line[0] for line in lines]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A scorer of each approach, with the pairs and rows to check it with."""
    found = {}
    for approach in approaches.STEPS:
        folder = tmp_path_factory.mktemp(approach)
        selfcheck.make_tiny_run(approach, folder)
        scorer = score.load(folder, "cpu")
        found[approach] = scorer, *selfcheck.choose(scorer.model, selfcheck.TRAINED)
    return found


# One learns from real ratings, the other changes the encoder.
@pytest.mark.parametrize("approach", ["regression", "bt-finetune"])
def test_a_sound_run_passes_and_is_not_touched(approach, tiny_encoder, pairs_file, capsys):
    flags = ["--approach", approach, "--dataset", pairs_file, "--model", tiny_encoder]
    flags += ["--max-length", "96", "--epochs", "1", "--tracking-uri", "none", "--device", "cpu"]
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
    assert table(capsys, "run") == (0, ["PASS"] * 8)


def test_without_a_run_tiny_models_of_all_approaches_are_checked(capsys):
    code, verdicts = table(capsys)
    assert code == 0
    assert (verdicts.count("PASS"), verdicts.count("-")) == (31, 1)


def test_pooling_a_pad_position_fails_the_padding_line_and_the_command(monkeypatch, capsys):
    monkeypatch.setitem(pooling.POOLERS, "mean", lambda hidden, mask: hidden[:, -1].float())
    selfcheck.make_tiny_run(
        "bt-frozen", Path("run")
    )  # trained with the bug: it learns all the same
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
    patch.setattr(heads.PairHead, "forward", lambda self, a, b: self.g(torch.cat([a, b], dim=-1)))


def encoder_without_gradient(patch, scorer):
    patch.setattr(model.RewardModel, "vectors", torch.no_grad()(model.RewardModel.vectors))


def evaluation_on_training_pairs(patch, scorer):
    fit = loops.fit_frozen
    patch.setattr(loops, "fit_frozen", lambda m, x, pairs, _, args: fit(m, x, pairs, pairs, args))


def dropout_left_on(patch, scorer):
    patch.setattr(scorer, "model", copy.deepcopy(scorer.model).train())


def head_not_loaded(patch, scorer):
    patch.setattr(heads.LinearHead, "load_state_dict", lambda self, weights: None)


def sigmoid_on_the_score(patch, scorer):
    right = score.Scorer.score_many
    logistic = lambda *texts: torch.tensor(right(*texts)).sigmoid().tolist()  # noqa: E731
    patch.setattr(score.Scorer, "score_many", logistic)


def truncation_from_the_right_in_scoring(patch, scorer):
    encode = tokens.encode

    def cut(prompts, responses, tokenizer, limit):
        return [row[:limit] for row in encode(prompts, responses, tokenizer, 10**6)[0]], 0

    def read(self, *texts):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(tokens, "encode", cut)
            return right(self, *texts)

    right = score.Scorer._map
    patch.setattr(score.Scorer, "_map", read)


def broken_weights(patch, scorer):
    broken = copy.deepcopy(scorer.model)
    torch.nn.init.constant_(broken.head.output.weight, torch.nan)
    patch.setattr(scorer, "model", broken)


def same_reward_for_all(patch, scorer):
    patch.setattr(scorer, "model", selfcheck.fresh(scorer.model))


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
        (truncation_from_the_right_in_scoring, "classification", selfcheck.training_is_scoring),
    ],
)
def test_a_planted_bug_is_found(plant, approach, check, sound, monkeypatch):
    number, limit, _ = check(*sound[approach])
    assert number <= limit
    plant(monkeypatch, sound[approach][0])
    number, limit, _ = check(*sound[approach])
    assert not number <= limit


def test_a_check_that_a_broken_model_stops_is_a_failure(sound, capsys, monkeypatch):
    scorer, *texts = sound["bt-finetune"]
    broken_weights(monkeypatch, scorer)
    torch.nn.init.constant_(next(scorer.model.encoder.parameters()), torch.nan)
    assert selfcheck.print_table(scorer, *texts) == 8
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
