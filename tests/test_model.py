"""Models, loops and steps on tiny encoders: what is trained, what is not, and what is saved."""

from types import SimpleNamespace

import pytest
import torch
from conftest import MINILM

from minirlhf import data, loops, model, score, tokens
from minirlhf.approaches import STEPS, Options
from minirlhf.bundled.arithmetic import generate
from minirlhf.runtime import checkpoint
from minirlhf.runtime.device import seed_everything

ARGS = {"lr": 1e-3, "weight_decay": 0.0, "patience": 1000, "seed": 0, "batch_size": 8}
ARGS |= {"accumulate": 1, "warmup": 0.1, "clip": 1.0, "dropout": 0.0}


def prepare(approach, name, pairs=8, **build):
    """A seeded model and `pairs` pairs as one part."""
    seed_everything(0)
    built = model.build(approach, name, max_length=build.pop("max_length", 96), **build)
    rows, _ = data.build_pairs(generate(pairs))
    prompts, responses, (part,) = data.index_texts(rows)
    token_rows, _ = tokens.encode(prompts, responses, built.tokenizer, 96)
    return built, token_rows, part


def fit(built, token_rows, part, epochs, **settings):
    args = SimpleNamespace(**(ARGS | {"epochs": epochs} | settings))
    if built.info["approach"] == "bt-finetune":
        history = list(loops.fit_finetune(built, token_rows, part, part, args))
        return history, loops.evaluate(built, token_rows, part)[1]
    features = built.map(built.vectors, token_rows)
    history = list(loops.fit_frozen(built, features, part, part, args))
    return history, loops.evaluate(built, features, part)[1]


@pytest.mark.parametrize("approach", STEPS)
def test_each_approach_overfits_eight_pairs(approach, tiny_encoder):
    name = tiny_encoder if approach == "bt-finetune" else MINILM
    built, token_rows, part = prepare(approach, name)
    history, margins = fit(built, token_rows, part, 60, lr=3e-3)
    assert (margins > 0).all()
    assert history[-1]["train_loss"] < 0.3 * history[0]["train_loss"]


def test_a_decoder_overfits_eight_pairs(tiny_decoder):
    built, token_rows, part = prepare("bt-finetune", tiny_decoder)
    assert built.info["pooling"] == "last"
    assert (fit(built, token_rows, part, 60, lr=3e-3)[1] > 0).all()


@pytest.mark.parametrize("approach", ["classification", "bt-frozen", "bt-finetune"])
def test_the_first_loss_is_ln_2(approach, tiny_encoder):
    built, token_rows, part = prepare(approach, tiny_encoder)
    if approach == "bt-finetune":
        loss, _ = STEPS[approach](built, *loops.batch(token_rows, part, slice(8)))
    else:
        features = built.map(built.vectors, token_rows)
        loss, _ = STEPS[approach](built, features, part)
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)


def test_fine_tuning_starts_with_a_head_that_points_to_the_chosen(tiny_encoder):
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    part = part._replace(weight=torch.linspace(0.2, 1.8, 8))
    loops.start_head(built, token_rows, part)
    with torch.no_grad():
        vectors = built.map(built.vectors, token_rows).double()
    used = vectors[torch.cat([part.chosen, part.rejected]).unique()]
    gap = vectors[part.chosen] - vectors[part.rejected]
    expected = sum(w * g for w, g in zip(part.weight, gap, strict=True)) / used.var(dim=0)
    weight = built.head.output.weight.detach().double().flatten()
    assert torch.cosine_similarity(weight, expected, dim=0) > 0.9999
    _, margins, _ = loops.evaluate(built, token_rows, part)
    assert margins.square().mean().sqrt().item() == pytest.approx(loops.FIRST_MARGINS, rel=1e-4)


def test_a_head_stays_small_where_all_texts_are_one(tiny_encoder):
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    same = [token_rows[0]] * len(token_rows)  # as after a cut that leaves all texts the same
    loops.start_head(built, same, part)
    assert built.head.output.weight.abs().max() < 1e-2


@pytest.mark.parametrize("approach", STEPS)
def test_same_seed_same_numbers_and_frozen_weights_stay(approach, tiny_encoder):
    runs = []
    for _ in range(2):
        built, token_rows, part = prepare(approach, tiny_encoder)
        before = {name: p.clone() for name, p in built.encoder.named_parameters()}
        history, margins = fit(built, token_rows, part, 2, batch_size=3, dropout=0.1)
        runs.append(
            ([{k: v for k, v in row.items() if k != "seconds"} for row in history], margins)
        )
        after = dict(built.encoder.named_parameters())
        moved = {name for name in before if not torch.equal(after[name], before[name])}
        assert bool(moved) == (approach == "bt-finetune")
        assert not any("word_embeddings" in name for name in moved)
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_accumulation_gives_the_gradient_of_one_large_batch(tiny_encoder, monkeypatch):
    # Plain SGD at rate 1 in place of AdamW: one step moves the head by minus the gradient, from a
    # start that is the same in both. AdamW would move it by little more than the gradient's signs.
    plain = lambda groups, **_: torch.optim.SGD(groups, lr=1.0)  # noqa: E731
    monkeypatch.setattr(torch.optim, "AdamW", plain)
    moves = []
    for batch_size, accumulate in ((8, 1), (3, 100)):  # batches of 3 and less, of unequal size
        built, token_rows, part = prepare("bt-finetune", tiny_encoder)
        loops.start_head(built, token_rows, part)
        start = built.head.output.weight.clone()
        settings = {"batch_size": batch_size, "accumulate": accumulate, "lr": 1.0}
        fit(built, token_rows, part, 1, warmup=0.0, clip=1e9, **settings)
        moves.append(built.head.output.weight - start)
    assert moves[0].abs().max() > 1e-3
    torch.testing.assert_close(*moves, atol=1e-6, rtol=1e-4)


def test_a_bfloat16_copy_works_and_float32_weights_learn(monkeypatch):
    plain = lambda groups, **_: torch.optim.SGD(groups, lr=1.0)  # noqa: E731
    monkeypatch.setattr(torch.optim, "AdamW", plain)
    # Both start with the same head; measured by the copy, its own would be a little different.
    monkeypatch.setattr(loops, "start_head", lambda *_: None)
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        built, token_rows, part = prepare("bt-finetune", MINILM)
        torch.nn.init.normal_(built.head.output.weight)
        before = {n: p.detach().clone() for n, p in built.encoder.named_parameters()}
        args = SimpleNamespace(**(ARGS | {"epochs": 1, "lr": 1e-6, "clip": 1e9, "warmup": 0}))
        list(loops.fit_finetune(built, token_rows, part, part, args, Options(dtype=dtype)))
        assert {p.dtype for p in built.parameters()} == {torch.float32}
        after = dict(built.encoder.named_parameters())
        moved[dtype] = torch.cat([(after[n] - before[n]).flatten().detach() for n in before])
    exact, rough = moved.values()
    # In bfloat16 weights steps as small as these would be lost.
    assert not torch.equal(exact, rough)
    assert torch.cosine_similarity(exact.double(), rough.double(), dim=0) > 0.99
    assert 0.9 < rough.norm() / exact.norm() < 1.1


def test_a_copy_in_another_precision_leaves_the_buffers_alone(tiny_decoder):
    built, token_rows, _ = prepare("bt-finetune", tiny_decoder)
    worker = built.in_precision(torch.bfloat16)
    assert {p.dtype for p in worker.encoder.parameters()} == {torch.bfloat16}
    assert all(b.dtype != torch.bfloat16 for b in worker.encoder.buffers())
    assert worker.head is built.head
    assert built.in_precision(torch.float32) is built
    whole, rough = (m.map(m.vectors, token_rows) for m in (built, worker))
    assert rough.dtype == torch.float32
    assert 0 < (whole - rough).norm() / whole.norm() < 0.02


def test_dropout_is_off_in_training_unless_asked_for(tiny_encoder):
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    torch.nn.init.normal_(built.head.output.weight)
    batch = loops.batch(token_rows, part, slice(8))
    seen = {}
    for dropout in (0.0, 0.3):
        args = SimpleNamespace(**(ARGS | {"epochs": 1, "dropout": dropout}))
        next(loops.fit_finetune(built, token_rows, part, part, args))
        built.train(dropout > 0)
        seen[dropout] = torch.equal(*(STEPS["bt-finetune"](built, *batch)[1] for _ in range(2)))
    assert seen == {0.0: True, 0.3: False}


def test_dropout_on_an_encoder_without_dropout_layers_is_refused(tiny_encoder):
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    built.encoder = torch.nn.Identity()
    args = SimpleNamespace(**(ARGS | {"epochs": 1, "dropout": 0.3}))
    with pytest.raises(ValueError, match="no dropout layers"):
        next(loops.fit_finetune(built, token_rows, part, part, args))


def test_margin_and_label_smoothing_reach_the_loss(tiny_encoder):
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    batch = loops.batch(token_rows, part, slice(8))
    step = STEPS["bt-finetune"]
    gap = part.chosen_rating - part.rejected_rating
    expected = torch.nn.functional.softplus(0.5 * gap).mean()
    torch.testing.assert_close(step(built, *batch, Options(margin=0.5))[0], expected)
    torch.nn.init.normal_(built.head.output.weight)
    plain, smooth = step(built, *batch)[0], step(built, *batch, Options(label_smoothing=0.3))[0]
    assert not torch.isclose(plain, smooth)


def test_early_stopping_restores_the_best_epoch(tiny_encoder):
    built, token_rows, part = prepare("bt-frozen", tiny_encoder, pairs=60)
    features = torch.randn(len(token_rows), 32)  # noise: validation can only get worse by luck
    train = data.Part(*(t[:40] for t in part))
    validation = data.Part(*(t[40:] for t in part))
    args = SimpleNamespace(**(ARGS | {"epochs": 200, "patience": 3, "lr": 1e-2}))
    history = list(loops.fit_frozen(built, features, train, validation, args))
    assert len(history) < 200
    best = min(history, key=lambda row: row["calibrated_loss"])
    loss, margins, _ = loops.evaluate(built, features, validation)
    assert loss == pytest.approx(best["validation_loss"])
    assert (margins > 0).float().mean().item() == pytest.approx(best["validation_accuracy"])
    assert [row["best"] for row in history][-3:] == [False] * 3


@pytest.mark.parametrize("approach", ["bt-frozen", "classification"])
def test_evaluation_in_pieces_keeps_the_order_of_the_pairs(approach, tiny_encoder):
    built, token_rows, part = prepare(approach, tiny_encoder, pairs=40)
    for weight in built.head.parameters():
        torch.nn.init.normal_(weight)
    with torch.no_grad():
        features = built.map(built.vectors, token_rows)
    many = data.Part(*(t[torch.randint(40, (12_000,))] for t in part))
    step = STEPS[approach]
    with torch.no_grad():
        loss, expected = step(built, features, many)
    for inputs in (features, token_rows):
        found, margins, rewards = loops.evaluate(built, inputs, many)
        assert found == pytest.approx(loss.item(), rel=1e-4)
        torch.testing.assert_close(margins, expected, rtol=1e-3, atol=1e-4)
        if rewards is not None:
            torch.testing.assert_close(rewards[:, 0] - rewards[:, 1], margins)


def test_a_loss_that_is_no_number_stops_the_run(tiny_encoder):
    built, token_rows, part = prepare("regression", tiny_encoder)
    with pytest.raises(FloatingPointError, match="lower --lr"):
        fit(built, token_rows, part._replace(chosen_rating=part.chosen_rating * torch.inf), 1)


@pytest.mark.parametrize("approach", STEPS)
def test_save_and_load_give_bit_equal_rewards(approach, tiny_encoder, tmp_path):
    built, token_rows, part = prepare(approach, tiny_encoder)
    _, before = fit(built, token_rows, part, 3)
    model.save(built, tmp_path / "run" / "model")
    loaded = model.load(tmp_path / "run" / "model")
    for name, value in built.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    scorer = score.load(tmp_path / "run", "cpu")
    row = generate(8)[0]
    if approach == "classification":
        with pytest.raises(TypeError, match="cannot score one"):
            scorer.score(row["prompt"], row["chosen"])
    else:
        scores = scorer.score_many([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        # The reward of scoring is the reward of training.
        assert scores[0] - scores[1] == pytest.approx(before[0].item(), abs=1e-4)
    assert scorer.rank(row["prompt"], [row["rejected"], row["chosen"]])[0][1] == row["chosen"]
    if approach == "classification":
        assert scorer.rank("q", ["alone"]) == [(0.5, "alone")]
        assert scorer.rank("q", []) == []
        (low, _), (middle, _), (high, _) = sorted(scorer.rank("q", ["a", "b", "why not"]))
        assert low + middle + high == pytest.approx(1.5)  # each win is another's loss


def test_scores_do_not_depend_on_company_or_order(tiny_encoder, tmp_path):
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    fit(built, token_rows, part, 3)
    model.save(built, tmp_path / "model")
    scorer = score.load(tmp_path, "cpu")
    rows = generate(40)
    prompts, responses = [row["prompt"] for row in rows], [row["chosen"] for row in rows]
    together = scorer.score_many(prompts, responses)
    assert together == pytest.approx(
        [scorer.score(*t) for t in zip(prompts, responses, strict=True)], abs=1e-5
    )
    assert scorer.score_many(prompts[::-1], responses[::-1])[::-1] == pytest.approx(
        together, abs=1e-5
    )
    assert scorer.score_many([], []) == []
    assert scorer.rank("q", []) == []


def test_a_model_folder_of_a_newer_format_or_without_a_model_is_refused(tiny_encoder, tmp_path):
    built, *_ = prepare("bt-frozen", tiny_encoder)
    model.save(built, tmp_path / "model")
    info = checkpoint.read_json(tmp_path / "model" / "reward.json")
    checkpoint.write_json(tmp_path / "model" / "reward.json", info | {"format": 99})
    with pytest.raises(ValueError, match="format 99"):
        model.load(tmp_path / "model")
    checkpoint.write_json(tmp_path / "model" / "reward.json", info | {"size": 16})
    with pytest.raises(ValueError, match="no readable reward model"):
        model.load(tmp_path / "model")
    with pytest.raises(ValueError, match="no trained model"):
        model.load(tmp_path)


def test_more_tokens_than_the_encoder_can_read_are_refused(tiny_encoder):
    with pytest.raises(ValueError, match="max-length 129 is more than .* 128 tokens"):
        model.build("bt-finetune", tiny_encoder, max_length=129)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    def write(text, fail=False):
        with checkpoint.whole_folder(tmp_path / "model") as folder:
            (folder / "a.txt").write_text(text)
            if fail:
                raise KeyboardInterrupt

    write("old")
    with pytest.raises(KeyboardInterrupt):
        write("half", fail=True)
    assert (tmp_path / "model" / "a.txt").read_text() == "old"
    write("new")
    assert (tmp_path / "model" / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir() if "model" in p.name] == ["model"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")  # which is not there yet
    for text in ("first", "second", "third"):
        with checkpoint.whole_folder(tmp_path / "link") as folder:
            (folder / "a.txt").write_text(text)
        assert (tmp_path / "real" / "a.txt").read_text() == text
    assert (tmp_path / "link").is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_weights_reach_the_loss_of_every_approach(tiny_encoder):
    for approach, step in STEPS.items():
        built, token_rows, part = prepare(approach, tiny_encoder)
        for parameter in built.head.parameters():
            torch.nn.init.normal_(parameter)
        only_first = part._replace(weight=torch.tensor([8.0] + [0.0] * 7))
        first = data.Part(*(t[:1] for t in part))
        losses = []
        for chosen in (only_first, first):
            if approach == "bt-finetune":
                texts, chosen = loops.batch(token_rows, chosen, slice(None))
            else:
                texts = built.map(built.vectors, token_rows)
            losses.append(step(built, texts, chosen)[0].detach())
        torch.testing.assert_close(*losses)
