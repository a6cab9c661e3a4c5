"""`overoptimize`: exact expectations, a shortcut that is really planted, and the whole command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from minirlhf import data, heads, metrics, score
from minirlhf.bundled.arithmetic import generate
from minirlhf.experiments import overoptimize
from minirlhf.experiments.overoptimize import PHRASE, POOR, curves, draw_answers
from minirlhf.policy.best_of_n import expected_best


def test_a_perfect_proxy_is_the_best_possible_and_a_bad_one_falls():
    true = torch.tensor([[1.0, 4.0, 7.0, 10.0], [2.0, 3.0, 10.0, 7.0]]).double()
    rows, falls = curves({"run": 3 * true, "honest": true + 5, "shortcut": -true}, true)
    assert [row["n"] for row in rows] == [1, 2, 4]
    for row in rows:
        for end in ("", "_low", "_high"):
            assert row["run"]["true" + end] == pytest.approx(row["best"]["true" + end])
            assert row["run"]["proxy" + end] == pytest.approx(row["honest"]["proxy" + end])
    assert [row["best"]["true"] for row in rows] == pytest.approx([5.5, 95 / 12, 10])
    assert [row["shortcut"]["true"] for row in rows] == pytest.approx([5.5, 37 / 12, 1.5])
    assert [row["lost"] for row in rows] == pytest.approx([0, -58 / 12, -8.5])
    assert (falls["run"]["from"], falls["run"]["fall"]) == (4, 0)
    assert (falls["shortcut"]["from"], falls["shortcut"]["fall"]) == (
        1,
        pytest.approx(-4),
    )
    assert falls["shortcut"]["fall_low"] == pytest.approx(-4.5)  # of the prompts' -4.5 and -3.5
    five = torch.arange(10.0).view(2, 5).double()
    assert [r["n"] for r in curves({"shortcut": five, "honest": five}, five)[0]] == [
        1,
        2,
        4,
        5,
    ]


def test_proxies_are_compared_within_a_prompt_and_start_at_zero():
    generator = torch.Generator().manual_seed(0)
    proxy = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    proxy *= torch.tensor([[1.0], [2.0], [3.0]])
    found = overoptimize.standardize(proxy)
    assert torch.allclose(found, overoptimize.standardize(7 * proxy + torch.ones(3, 1) * 9))
    shifted = overoptimize.standardize(proxy + torch.tensor([[0.0], [100.0], [-50.0]]))
    assert torch.allclose(found, shifted)
    assert torch.allclose(expected_best(proxy, found, 1), torch.zeros(3).double(), atol=1e-12)
    assert found.square().mean() == pytest.approx(1)
    for broken in (torch.ones(2, 3), torch.full((2, 3), torch.nan)):
        with pytest.raises(ValueError, match="same reward"):
            overoptimize.standardize(broken)


def phrase_and_rating(kind):
    """(has the phrase, rating) of each distinct answer in the pairs of `kind`, as two tensors."""
    found = {}
    for pair in overoptimize.planted_pairs(kind, 0, set()):
        sides = (pair.chosen, pair.chosen_rating), (pair.rejected, pair.rejected_rating)
        for text, rating in sides:
            found[pair.prompt, text] = (float(text.endswith(PHRASE)), rating)
    return torch.tensor(list(found.values())).unbind(dim=1)


def test_the_shortcut_goes_with_quality_in_its_training_set_only():
    has, rating = phrase_and_rating("shortcut")
    assert metrics.spearman(has, rating) > 0.7
    assert has[rating >= POOR].mean() == pytest.approx(0.95, abs=0.03)
    assert has[rating < POOR].mean() == pytest.approx(0.05, abs=0.03)
    has, rating = phrase_and_rating("honest")
    assert abs(metrics.spearman(has, rating)) < 0.1
    assert has.mean() == pytest.approx(0.5, abs=0.05)
    draws = [draw for of_prompt in draw_answers(12, 256, 0, set()) for draw in of_prompt]
    has = torch.tensor([float(draw.response.endswith(PHRASE)) for draw in draws])
    rating = torch.tensor([draw.rating for draw in draws])
    assert 0.03 < has.mean() < 0.05  # "one draw in 25"
    assert metrics.spearman(has, rating) < -0.1
    assert not has[rating >= POOR].any()
    assert has[rating < POOR].mean() == pytest.approx(0.1, abs=0.03)


def test_the_two_sets_of_pairs_differ_in_the_phrase_alone(monkeypatch):
    monkeypatch.setattr(overoptimize, "PAIRS", 200)
    bare = {}
    for kind in ("honest", "shortcut"):
        pairs = overoptimize.planted_pairs(kind, 0, set())
        bare[kind] = [tuple(str(f).removesuffix(" " + PHRASE) for f in pair) for pair in pairs]
        number_of = {}  # texts with and without the phrase, of one answer
        for pair in pairs:
            for text in (pair.chosen, pair.rejected):
                key = pair.prompt, text.removesuffix(" " + PHRASE)
                assert number_of.setdefault(key, text) == text
        assert all(
            pair.chosen_rating > pair.rejected_rating for pair in pairs
        )  # no label is wrong
    assert bare["honest"] == bare["shortcut"] != []
    assert overoptimize.planted_pairs("honest", 0, set()) != overoptimize.planted_pairs(
        "shortcut", 0, set()
    )


def test_no_prompt_is_one_that_was_seen(monkeypatch):
    monkeypatch.setattr(overoptimize, "PAIRS", 60)
    seen = {of_prompt[0].prompt for of_prompt in draw_answers(5, 2, 0, set())[:2]}
    drawn = draw_answers(5, 2, 0, seen)
    assert len({of_prompt[0].prompt for of_prompt in drawn} - seen) == len(drawn) == 5
    first = overoptimize.planted_pairs("honest", 0, set())[0].prompt
    kept = {pair.prompt for pair in overoptimize.planted_pairs("honest", 0, {first})}
    assert kept and first not in kept


def test_the_prompts_of_the_run_s_data_are_read_from_its_config():
    def ask(text):
        Path("config.json").write_text(text)
        return overoptimize.prompts_seen(Path("."))

    told = {"arguments": {"dataset": "arithmetic", "limit": 30}}
    assert ask(json.dumps(told)) == {row["prompt"] for row in generate(30)}
    told["arguments"]["limit"] = None  # train.py's default
    assert ask(json.dumps(told)) == {row["prompt"] for row in generate()}
    told["arguments"]["dataset"] = "pairs.jsonl"
    assert ask(json.dumps(told)) == set()
    for text in ("{}", "[]", "{"):
        with pytest.raises(ValueError):
            ask(text)


def ratings_of(drawn):
    """The true ratings of drawn answers, (P, M)."""
    return torch.tensor([[draw.rating for draw in of_prompt] for of_prompt in drawn]).double()


def test_a_head_learns_the_shortcut_from_the_pairs_and_falls_for_it():
    """An encoder that tells good from poor answers in four cases of five, and sees the phrase."""
    generator = torch.Generator().manual_seed(0)

    def features(ratings, has):
        wrong = torch.rand(len(ratings), generator=generator) < 0.2
        return torch.stack([((ratings >= POOR) ^ wrong).float(), has], dim=1)

    class Model:
        info = {"size": 2, "approach": "bt-finetune", "temperature": 1.0}
        device, tokenizer = (
            torch.device("cpu"),
            type("Tokenizer", (), {"pad_token_id": 0}),
        )

    drawn = draw_answers(10, 256, 0, set())
    true = ratings_of(drawn)
    has = torch.tensor([[float(d.response.endswith(PHRASE)) for d in row] for row in drawn])
    drawn_vectors = features(true.flatten().float(), has.flatten())
    proxies = {}
    for kind in ("honest", "shortcut"):
        pairs = overoptimize.planted_pairs(kind, 0, set())
        rating_of = {}
        for pair in pairs:
            rating_of[pair.prompt, pair.chosen] = pair.chosen_rating
            rating_of[pair.prompt, pair.rejected] = pair.rejected_rating
        parts = data.split(pairs)
        texts = data.number_texts(*parts)
        ratings = torch.tensor([rating_of[text] for text in texts.text_id])
        has = torch.tensor([float(response.endswith(PHRASE)) for response in texts.responses])
        vectors = features(ratings, has)
        parts = [data.make_part(part, texts) for part in parts]
        head, accuracy = overoptimize.fit_head(Model, vectors, *parts, 0)
        assert isinstance(head, heads.MLPHead) and accuracy["accuracy"] > 0.6
        with torch.no_grad():
            proxies[kind] = head(drawn_vectors).view(10, 256)
    rows, falls = curves(proxies, true)
    assert rows[-1]["honest"]["true"] > 7 > 5 > rows[-1]["shortcut"]["true"]
    assert max(row["shortcut"]["true"] for row in rows) > rows[0]["shortcut"]["true"] + 0.3
    assert falls["shortcut"]["fall_high"] < 0 and rows[-1]["lost_high"] < 0
    picks = {name: overoptimize.pick(proxy, drawn) for name, proxy in proxies.items()}
    shares = {}
    for name, of_model in picks.items():
        kinds = overoptimize.count_kinds([[picked] for picked in of_model])
        shares[name] = {kind: numbers["share"] for kind, numbers in kinds.items()}
    assert shares["shortcut"]["phrase"] > 0.5 > shares["honest"]["phrase"]
    rating, prompt, response = overoptimize.worst_bluff(picks["shortcut"])
    assert rating < POOR and response.endswith(PHRASE)
    flaws = [len(draw.flaws) for draw in picks["honest"]]
    without_phrase = sum(share for kind, share in shares["honest"].items() if kind != "phrase")
    assert without_phrase == pytest.approx(sum(max(1, count) for count in flaws) / len(flaws))
    assert max(shares["honest"], key=shares["honest"].get) == "no flaw"


def made_up_draws():
    """Two prompts with four draws each: flaws, and whether the phrase is at the end."""
    slip, tone = "arithmetic_slip", "bad_tone"
    flaws = [[(slip,), (slip, tone), (), ()], [(tone,), (slip,), (), (slip,)]]
    phrases = [[False, True, False, False], [False, False, False, True]]
    drawn = []
    for i in range(2):
        of_prompt = []
        for j in range(4):
            end = f" {PHRASE}" if phrases[i][j] else ""
            draw = overoptimize.Draw(f"prompt {i}", f"answer {j}{end}", 5.0, flaws[i][j])
            of_prompt.append(draw)
        drawn.append(of_prompt)
    return drawn


def test_picks_and_draws_are_counted_in_the_same_way():
    drawn = made_up_draws()
    draws = overoptimize.count_kinds(drawn)
    expected = {
        "arithmetic_slip": 0.5,
        "bad_tone": 0.25,
        "no flaw": 3 / 8,
        "phrase": 0.25,
    }
    for kind, numbers in draws.items():
        assert numbers["share"] == pytest.approx(expected.get(kind, 0)), kind
        assert numbers["share_low"] <= numbers["share"] <= numbers["share_high"]
    proxy = torch.tensor([[0.0, 3.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    picks = overoptimize.pick(proxy, drawn)
    assert [draw.response.split()[1] for draw in picks] == ["1", "3"]
    picked = overoptimize.count_kinds([[draw] for draw in picks])
    # The second flaw of a pick counts as much as the first, as it does in the draws.
    expected = {"arithmetic_slip": 1.0, "bad_tone": 0.5, "no flaw": 0.0, "phrase": 1.0}
    assert {kind: picked[kind]["share"] for kind in expected} == expected
    # To pick everything is to count the draws.
    one_each = [[draw] for of_prompt in drawn for draw in of_prompt]
    everything = overoptimize.count_kinds(one_each)
    for kind, numbers in draws.items():
        assert everything[kind]["share"] == pytest.approx(numbers["share"])


def test_rewards_of_one_flaw_alone_by_hand():
    drawn = made_up_draws()
    proxy = torch.tensor([[4.0, 9.0, 2.0, 1.0], [0.0, 3.0, 1.0, 0.0]])
    found = overoptimize.rewards_alone(proxy, drawn)
    standard = overoptimize.standardize(proxy)
    slips = standard[[0, 1, 1], [0, 1, 3]]  # the draw with a slip and bad tone is left out
    assert found["arithmetic_slip"]["n"] == 3 and found["bad_tone"]["n"] == 1
    assert found["arithmetic_slip"]["reward"] == pytest.approx(slips.mean().item())
    assert found["arithmetic_slip"]["spread"] == pytest.approx(slips.std(correction=0).item())
    assert found["no flaw"]["reward"] == pytest.approx(
        standard[[0, 0, 1], [2, 3, 2]].mean().item()
    )
    assert set(found) == {"arithmetic_slip", "bad_tone", "no flaw"}


def train_run(approach, tiny_encoder, *flags):
    args = [
        "--approach",
        approach,
        "--model",
        tiny_encoder,
        "--limit",
        "120",
        "--epochs",
        "1",
    ]
    args += [
        "--max-length",
        "96",
        "--tracking-uri",
        "none",
        "--device",
        "cpu",
        "--output",
        "run",
    ]
    train.main([*args, *flags])


@pytest.mark.parametrize("approach", ["bt-finetune", "regression"])
def test_the_command_from_run_to_files(approach, tiny_encoder, monkeypatch, capsys):
    train_run(approach, tiny_encoder)
    monkeypatch.setattr(overoptimize, "PAIRS", 120)
    monkeypatch.setattr(overoptimize, "FROZEN", replace(overoptimize.FROZEN, epochs=2))
    capsys.readouterr()
    flags = ["run", "--prompts", "3", "--n-max", "6", "--device", "cpu"]
    overoptimize.main(flags)
    said = capsys.readouterr().out
    folder = Path("run/overoptimize")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["overoptimize.json", "overoptimize.md", "overoptimize.png"]
    text = (folder / "overoptimize.md").read_text()
    assert text in said
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks[0]) == 2 + 4 and len(blocks[1]) == 2 + len(overoptimize.KINDS)
    assert len(blocks) == 3
    assert all(len({line.count("|") for line in block}) == 1 for block in blocks)
    assert not any(word in text for word in ("nan", "-0.00"))
    found = json.loads((folder / "overoptimize.json").read_text())
    assert [row["n"] for row in found["rows"]] == [1, 2, 4, 6]
    first, last = found["rows"][0], found["rows"][-1]
    for name in overoptimize.MODELS:
        assert first[name]["proxy"] == pytest.approx(0, abs=1e-9) and last[name]["proxy"] > 0
        assert first[name]["true"] == pytest.approx(first["best"]["true"])
        assert 1 <= last[name]["true_low"] <= last[name]["true"] <= last["best"]["true"]
    assert found["arguments"]["prompts"] == 3 and "Means over 3 prompts" in text
    assert set(found["kinds"]) == {"draws", *overoptimize.MODELS}
    for kind in overoptimize.KINDS:
        of_run = found["kinds"]["run"][kind]["share"]
        assert of_run in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)
    assert set(found["falls"]) == {*overoptimize.MODELS, "best"}
    png = (folder / "overoptimize.png").read_bytes()
    assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20]) == 900  # pixels wide

    # The run's proxy is what `score.py` says of the same answers, and the draws are new to it.
    seen = {row["prompt"] for row in generate(120)}
    pairs = overoptimize.planted_pairs("honest", 0, seen)
    drawn = draw_answers(3, 6, 0, seen | {pair.prompt for pair in pairs})
    scorer = score.load("run", "cpu")
    rewards = []
    for of_prompt in drawn:
        prompts = [draw.prompt for draw in of_prompt]
        responses = [draw.response for draw in of_prompt]
        rewards.append(scorer.score_many(prompts, responses))
    proxy = torch.tensor(rewards)
    true = ratings_of(drawn)
    proxies = overoptimize.judge(scorer.model, torch.float32, drawn, seen, 0).proxies
    assert torch.allclose(proxies["run"], proxy, atol=1e-5)
    assert not torch.allclose(proxies["honest"], proxies["shortcut"], atol=1e-3)
    assert first["best"]["true"] == pytest.approx(true.mean().item())

    overoptimize.main([*flags, "--output", "elsewhere"])  # the same numbers, in another folder
    capsys.readouterr()
    again = json.loads(Path("elsewhere/overoptimize.json").read_text())
    assert again["rows"] == found["rows"]


def refused(capsys, *flags):
    with pytest.raises(SystemExit) as stopped:
        overoptimize.main(flags)
    said = capsys.readouterr()
    assert (stopped.value.code, said.out) == (2, "")
    assert said.err.startswith("python -m minirlhf overoptimize: error: ")
    assert said.err.count("\n") == 1
    return said.err


def test_a_classification_is_refused(tiny_encoder, capsys):
    train_run("classification", tiny_encoder)
    capsys.readouterr()
    assert "no reward" in refused(capsys, "run")
    assert not Path("run/overoptimize").exists()


def test_bad_input_is_one_sentence_and_exit_code_2(tiny_encoder, capsys):
    assert "no trained model" in refused(capsys, "nowhere")
    assert "2 or more" in refused(capsys, "nowhere", "--n-max", "1")
    assert "2 or more" in refused(capsys, "nowhere", "--prompts", "1")
    assert "abacus" in refused(capsys, "nowhere", "--device", "abacus")
    refused(capsys)
    refused(capsys, "nowhere", "--n-max", "many")
    train_run("bt-frozen", tiny_encoder)
    capsys.readouterr()
    Path("file").touch()
    assert "file" in refused(capsys, "run", "--output", "file")
    Path("run/config.json").unlink()
    assert "config.json" in refused(capsys, "run")
