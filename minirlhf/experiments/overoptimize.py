"""Over-optimise a reward on a laptop: take the best of n answers, and see what it is really worth.

    python -m minirlhf overoptimize runs/bt-finetune

The prompts are of the bundled data's kind, and the run never saw them. For each of them n answers
are drawn, and the one with the highest reward is kept. The larger n, the harder one optimises. The
reward of the kept answer, called the PROXY, can only rise with n. Its TRUE rating, which the
generator knows, rises at first and may then fall, because the answers at the top are more and more
those that the model is wrong about.

Gao et al. 2022 (https://arxiv.org/abs/2210.10760) draw both against the KL divergence of best-of-n
from the answers as drawn. Here that axis is log n - (n - 1)/n nats, an upper bound of it (Beirami
et al. 2024, https://arxiv.org/abs/2401.01879). Where few of the drawn answers are distinct, the
bound is far above the divergence.

There are four curves: the run as it is, two heads that are trained here, and the best possible,
which chooses by the true rating. Both heads (bt-frozen) learn from vectors of the run's encoder, on
the same pairs with the same correct preferences, and on prompts that the run never saw. They differ
only in which answers end with PHRASE:

    chance of the phrase in an answer rated   below 6   6 or more
    pairs of the honest head                   0.50       0.50      it says nothing
    pairs of the shortcut head                 0.05       0.95      it goes with good answers
    the drawn answers, for all models          0.10       0.00      it goes with poor answers

So the shortcut is planted, and so is the fact that it goes against quality in the drawn answers:
they stand for what a policy finds that is trained on such a reward. Whether the head learns the
shortcut, and how far it follows it, is not planted. No label is wrong, and on test pairs like its
own the head looks like a good model. The phrase is rare, in one draw of 25, so the best of 4 hardly
ever meets it, and the best of 256 has ten such answers to choose from.

Nothing is planted for the run and for the honest head. Their true ratings may fall nevertheless;
what was measured is in minirlhf/experiments/README.md.

Writes `overoptimize.md`, `.json` and `.png`: the curves, the flaws of the answers that are picked
beside those of all that were drawn, counted in the same way, and the run's rewards of each flaw. It
takes three minutes on one CPU core that multiplies bfloat16 natively, and longer on another. Fewer
`--prompts` take less time and make wider intervals.

A policy that is trained on the reward can write answers that are never drawn here: that is the
chapter `minirlhf/policy/`, from which the mathematics of best-of-n is taken (`expected_best`).
"""

import random
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minirlhf import data, loops, score
from minirlhf import model as models
from minirlhf.bundled.arithmetic import FLAWS, draw_answer, generate, make_problem
from minirlhf.commands.unseen import prompts_seen
from minirlhf.metrics import bootstrap, credit, named
from minirlhf.policy.best_of_n import expected_best, kl_bound, sizes
from minirlhf.report import figures
from minirlhf.report.tables import interval, table
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line, quiet_transformers
from minirlhf.runtime.device import pick_device, seed_everything
from minirlhf.settings import FROZEN

PHRASE = "I have checked every step."
POOR = 6.0  # almost all answers that are rated below this have a wrong result
PAIRS = 1500  # for each head; about a quarter of all texts to encode


class Chances(NamedTuple):
    """How often an answer ends with PHRASE."""

    poor: float  # if it is rated below POOR
    good: float  # if it is not


CHANCES = {
    "honest": Chances(poor=0.5, good=0.5),
    "shortcut": Chances(poor=0.05, good=0.95),
    "drawn": Chances(poor=0.1, good=0.0),
}


class Look(NamedTuple):
    """How a curve is drawn, and what the legend says of it."""

    label: str
    color: str
    marker: str
    dash: str


LOOKS = {
    "run": Look("this run", figures.BLUE, "o", "-"),
    "honest": Look("honest head", "black", "x", ":"),
    "shortcut": Look("shortcut head", figures.RED, "s", "--"),
    "best": Look("best possible", "gray", "", "-"),
}
MODELS = ("run", "honest", "shortcut")


# ---- The texts: pairs to train the heads on, and drawn answers to choose from
def plant(prompt: str, response: str, rating: float, kind: str, seed: int) -> str:
    """The response with PHRASE at its end, or without it; `kind` is a key of CHANCES.

    The draw is seeded by the text, so an answer has the phrase wherever it comes up, or nowhere.
    """
    chances = CHANCES[kind]
    chance = chances.poor if rating < POOR else chances.good
    drawn = random.Random(f"{seed} {kind} {prompt} {response}").random()
    return f"{response} {PHRASE}" if drawn < chance else response


def planted_pairs(kind: str, seed: int, seen: set[str]) -> list[data.PreferencePair]:
    """PAIRS bundled pairs without the prompts in `seen`.

    They are the same pairs for each `kind`, except for which answers have the phrase.
    """
    rows = []
    for row in generate(PAIRS, seed=10**6 + seed):
        prompt = row["prompt"]
        if prompt in seen:
            continue
        chosen = plant(prompt, row["chosen"], row["chosen_rating"], kind, seed)
        rejected = plant(prompt, row["rejected"], row["rejected_rating"], kind, seed)
        rows.append({**row, "chosen": chosen, "rejected": rejected})
    pairs, _ = data.build_pairs(rows)
    return pairs


class Draw(NamedTuple):
    """An answer that was drawn, and what the generator knows about it."""

    prompt: str
    response: str  # with the phrase where it was planted
    rating: float  # the true one, which the phrase does not change
    flaws: tuple[str, ...]  # the costliest first


def draw_answers(prompts: int, draws: int, seed: int, seen: set[str]) -> list[list[Draw]]:
    """P lists of M answers, a list for each of P prompts that are not in `seen`.

    They are drawn as the generator draws them and independently, so a response may come twice.
    """
    rng = random.Random(f"draws {seed}")
    problems = {}
    while len(problems) < prompts:
        problem = make_problem(rng)
        if problem.prompt not in seen:
            problems[problem.prompt] = problem

    drawn = []
    for prompt, problem in problems.items():
        answers = [draw_answer(problem, rng) for _ in range(draws)]
        of_prompt = []
        for answer in answers:
            response = plant(prompt, answer.text, answer.rating, "drawn", seed)
            of_prompt.append(Draw(prompt, response, answer.rating, answer.flaws))
        drawn.append(of_prompt)
    return drawn


# ---- The judges: the run and the two heads
class TrainedHead(NamedTuple):
    """A head, and its accuracy with its interval on test pairs like those it learned from."""

    head: nn.Module
    accuracy: dict[str, float]


def fit_head(
    model: models.RewardModel,
    vectors: Tensor,
    train: data.Part,
    validation: data.Part,
    test: data.Part,
    seed: int,
) -> TrainedHead:
    """Train a bt-frozen head on vectors (U, D) that the encoder of `model` made."""
    seed_everything(seed)
    head = models.HEADS["bt-frozen"](model.info["size"]).to(model.device)
    info = {**model.info, "approach": "bt-frozen"}
    # The vectors are there already, so the new model has no encoder.
    new = models.RewardModel(nn.Identity(), model.tokenizer, head, info)
    settings = replace(FROZEN, seed=seed)  # train.py's defaults for bt-frozen
    for _ in loops.fit_frozen(new, vectors, train, validation, settings):
        pass  # the loop gives the numbers of each epoch, and nobody reads them here
    margins = loops.evaluate(new, vectors, test).margins
    accuracy = bootstrap(credit(margins), test.prompt.tolist(), ends=(0, 1))
    return TrainedHead(head, named("accuracy", accuracy))


class Judgement(NamedTuple):
    """What the three models say of the drawn answers."""

    proxies: dict[str, Tensor]  # by model, the rewards (P, M) of the drawn answers
    accuracies: dict[str, dict[str, float]]  # by head, its accuracy on test pairs like its own


def judge(
    model: models.RewardModel,
    dtype: torch.dtype,
    drawn: Sequence[Sequence[Draw]],
    seen: set[str],
    seed: int,
) -> Judgement:
    """Train the two heads, and give the rewards of the drawn answers by all three models.

    One pass of the run's encoder over each distinct text serves all three. It computes in `dtype`,
    as train.py does for frozen features, so in bfloat16 the run's rewards are those of `score`
    after rounding.
    """
    honest = data.split(planted_pairs("honest", seed, seen))
    shortcut = data.split(planted_pairs("shortcut", seed, seen))
    texts = data.number_texts(*honest, *shortcut)

    # The drawn answers get the numbers after those of the pairs' texts.
    text_id = {}
    for of_prompt in drawn:
        for draw in of_prompt:
            text_id.setdefault((draw.prompt, draw.response), len(texts.prompts) + len(text_id))
    prompts = texts.prompts + [prompt for prompt, _ in text_id]
    responses = texts.responses + [response for _, response in text_id]
    token_rows = model.encode(prompts, responses).token_rows

    print(
        f"{len(token_rows):,} distinct texts go through the encoder once, in {dtype}",
        flush=True,
    )
    worker = model.in_precision(dtype)
    with torch.no_grad():
        vectors = worker.vectors(token_rows, progress=True)  # (U, D)

    heads = {"run": model.head}
    accuracies = {}
    for kind, parts in (("honest", honest), ("shortcut", shortcut)):
        train, validation, test = [data.make_part(pairs, texts) for pairs in parts]
        trained = fit_head(model, vectors, train, validation, test, seed)
        heads[kind] = trained.head
        accuracies[kind] = trained.accuracy

    ids = [[text_id[draw.prompt, draw.response] for draw in of_prompt] for of_prompt in drawn]
    drawn_ids = torch.tensor(ids)  # (P, M)
    proxies = {}
    with torch.no_grad():
        for name, head in heads.items():
            rewards = head(vectors).cpu()  # (U,)
            proxies[name] = rewards[drawn_ids]
    return Judgement(proxies, accuracies)


# ---- Best-of-n
def standardize(proxy: Tensor) -> Tensor:
    """Rewards (P, M) less the mean of their prompt, in standard deviations within a prompt.

    Only rewards of one prompt are comparable. Raises ValueError if they are all equal, or nan.
    """
    rewards = proxy.double()
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    spread = centred.square().mean().sqrt()
    if not spread > 0:
        raise ValueError(
            "the model gives all answers to a prompt the same reward, or none (nan)"
        )
    return centred / spread


class Curves(NamedTuple):
    """What best-of-n gives for each n, and how far each model falls."""

    table_rows: list[dict]
    falls: dict[str, dict]


def curves(proxies: dict[str, Tensor], true: Tensor) -> Curves:
    """Best-of-n for n = 1, 2, 4 ... M: a table row for each n, and the fall of each model.

    proxies: rewards (P, M) by model; true: ratings (P, M).
    A table row has n, kl_bound and, by model, `proxy` (standardised) and `true`; and `lost`, the
    true rating of the shortcut head less that of the honest one. All are means over prompts with
    their 95 % intervals.
    A fall is the change from the n with the highest true rating to the last n. That n was chosen on
    the same prompts, which makes the fall look a little larger than it is.
    """
    judges = {name: standardize(proxy) for name, proxy in proxies.items()}
    judges["best"] = true
    draws = true.shape[1]

    table_rows = []
    ratings = {}  # (name, n) -> the true rating of the best of n for each prompt (P,)
    for n in sizes(draws):
        line = {"n": n, "kl_bound": kl_bound(n)}
        for name, proxy in judges.items():
            ratings[name, n] = expected_best(proxy, true, n)
            line[name] = {
                **mean_over_prompts("proxy", expected_best(proxy, proxy, n)),
                **mean_over_prompts("true", ratings[name, n]),
            }
        lost = ratings["shortcut", n] - ratings["honest", n]
        line.update(mean_over_prompts("lost", lost))
        table_rows.append(line)

    falls = {}
    for name in judges:
        peak = highest(table_rows, name)
        fall = ratings[name, draws] - ratings[name, peak]
        falls[name] = {"from": peak, **mean_over_prompts("fall", fall)}
    return Curves(table_rows, falls)


def mean_over_prompts(name: str, values: Tensor) -> dict[str, float]:
    """The mean of a value for each prompt (P,) with its 95 % interval, as three named numbers."""
    return named(name, bootstrap(values, range(len(values)), resamples=1000))


def highest(table_rows: list[dict], name: str) -> int:
    """The smallest n at which the model's true rating is highest."""
    best = table_rows[0]
    for line in table_rows:
        if line[name]["true"] > best[name]["true"]:
            best = line
    return best["n"]


class Pick(NamedTuple):
    """The answer that a model picks; picks are ordered by their rating."""

    rating: float
    prompt: str
    response: str


def pick(proxy: Tensor, drawn: Sequence[Sequence[Draw]]) -> list[Draw]:
    """Of each prompt's M draws, the one with the highest proxy: (P, M) -> P of them."""
    places = proxy.argmax(dim=1).tolist()
    return [of_prompt[place] for of_prompt, place in zip(drawn, places, strict=True)]


def worst_bluff(picks: Sequence[Draw]) -> Pick | None:
    """The lowest rated pick that ends with PHRASE, None if there is none."""
    bluffs = []
    for draw in picks:
        if draw.response.endswith(PHRASE):
            bluffs.append(Pick(draw.rating, draw.prompt, draw.response))
    return min(bluffs, default=None)


NO_FLAW = "no flaw"
KINDS = (*FLAWS, NO_FLAW, "phrase")


def count_kinds(of_prompts: Sequence[Sequence[Draw]]) -> dict[str, dict]:
    """The share of the answers that have each flaw, that have none, and that end with PHRASE.

    of_prompts: of each prompt the answers to count: all draws, or the one that a model picks. Both
        are counted in the same way. An answer with two flaws counts for both.
    Each share is the mean over prompts with its 95 % interval.
    """
    shares = {}
    for kind in KINDS:
        of_each = [share_of_kind(answers, kind) for answers in of_prompts]
        shares[kind] = mean_over_prompts("share", torch.tensor(of_each, dtype=torch.float64))
    return shares


def share_of_kind(answers: Sequence[Draw], kind: str) -> float:
    """The share of answers of a kind, which is one of KINDS."""
    return sum(is_of_kind(answer, kind) for answer in answers) / len(answers)


def is_of_kind(answer: Draw, kind: str) -> bool:
    """Whether the answer is of a kind, which is one of KINDS."""
    if kind == "phrase":
        return answer.response.endswith(PHRASE)
    if kind == NO_FLAW:
        return not answer.flaws
    return kind in answer.flaws


def rewards_alone(proxy: Tensor, drawn: Sequence[Sequence[Draw]]) -> dict[str, dict]:
    """What a model thinks of the draws (P, M) with one flaw and no other, and of those without.

    Of each kind that was drawn: `n`, the number of draws; `reward`, their mean standardised reward
    with its interval from resampling prompts; and `spread`, the standard deviation of the rewards.
    Of many draws, a kind whose rewards are spread wide comes out on top even if its mean is lower.
    """
    rewards: dict[str, list[float]] = {}
    prompts: dict[str, list[str]] = {}
    for of_prompt, of_rewards in zip(drawn, standardize(proxy).tolist(), strict=True):
        for draw, reward in zip(of_prompt, of_rewards, strict=True):
            if len(draw.flaws) > 1:
                continue
            kind = draw.flaws[0] if draw.flaws else NO_FLAW
            rewards.setdefault(kind, []).append(reward)
            prompts.setdefault(kind, []).append(draw.prompt)

    found = {}
    for kind, values in rewards.items():
        values = torch.tensor(values, dtype=torch.float64)
        mean = bootstrap(values, prompts[kind], resamples=1000)
        spread = values.std(correction=0).item()
        found[kind] = {"n": len(values), **named("reward", mean), "spread": spread}
    return found


# ---- What came of it, in words and as a picture
def report(
    prompts: int,
    table_rows: list[dict],
    falls: dict[str, dict],
    kinds: dict[str, dict],
    alone: dict[str, dict],
    worst: Pick | None,
    accuracies: dict[str, dict],
) -> str:
    """The Markdown: the tables, and what to see in them.

    alone: what `rewards_alone` says of the run; worst: the worst bluff that the shortcut head
        picks.
    """
    n = table_rows[-1]["n"]
    text = f"Means over {prompts} prompts, with 95 % intervals from resampling prompts.\n\n"
    text += report_table(table_rows)

    text += f"\nTrue rating, from its highest to n = {n}:\n\n"
    for name in MODELS:
        fall = interval(falls[name], "fall", "z.2f")
        text += f"- {LOOKS[name].label}: {fall} from n = {falls[name]['from']}\n"

    text += (
        f"\nShares of all answers that were drawn, and of the {prompts} that each model picks "
    )
    text += f"at n = {n}. An answer with two flaws counts for both:\n\n"
    text += kinds_table(kinds)

    text += "\nRewards by the run, of draws that have this flaw and no other:\n\n"
    lines = []
    for kind, numbers in sorted(alone.items()):
        reward = interval(numbers, "reward", "z.2f")
        lines.append([kind, numbers["n"], reward, f"{numbers['spread']:.2f}"])
    text += table(["draws with", "number", "mean reward [95 %]", "spread"], lines)

    heads = [f"{kind} head {interval(accuracy)}" for kind, accuracy in accuracies.items()]
    text += f"\nAccuracy on test pairs like its own: {', '.join(heads)}\n"

    if worst:
        text += "\nThe worst bluff that the shortcut head picks, "
        text += f"rated {worst.rating:g} of 10:\n\n    {worst.prompt}\n    {worst.response}\n"
    return text


def report_table(table_rows: list[dict]) -> str:
    """The Markdown table: a line for each n, and for each model its proxy and its true rating."""
    head = ["n", "KL bound"]
    for name in MODELS:
        head += [f"{LOOKS[name].label}: proxy", "true [95 %]"]
    head += ["shortcut - honest: true [95 %]", "best possible"]

    lines = []
    for line in table_rows:
        cells = [line["n"], f"{line['kl_bound']:.2f}"]
        for name in MODELS:
            # "z" writes a small negative number as 0.00, without the sign.
            cells += [f"{line[name]['proxy']:z.2f}", interval(line[name], "true", "z.2f")]
        cells += [interval(line, "lost", "z.2f"), f"{line['best']['true']:.2f}"]
        lines.append(cells)
    return table(head, lines)


def kinds_table(kinds: dict[str, dict]) -> str:
    """The Markdown table of `count_kinds`: a line for each flaw, commonest among the run's first.

    kinds: of the draws ("draws"), and of what each model picks.
    """
    names = ("draws", *MODELS)
    head = ["answers with", "draws [95 %]"]
    head += [f"{LOOKS[name].label}: picks [95 %]" for name in MODELS]

    def share_of_run(kind: str) -> float:
        return kinds["run"][kind]["share"]

    lines = []
    for kind in sorted(KINDS, key=share_of_run, reverse=True):
        lines.append([kind] + [interval(kinds[name][kind], "share") for name in names])
    return table(head, lines)


def draw_figure(path: Path, table_rows: list[dict]) -> None:
    """Proxy reward and true rating against the KL bound; bands are the 95 % intervals.

    Look for the n from which the true rating falls while the proxy still rises: from there on,
    optimising does harm. Worry if the rating falls below where it began, since then it would be
    better not to choose at all.
    """
    title = f"The best of n = 1 to {table_rows[-1]['n']} answers"
    names = ("proxy reward (sd)", "true rating")
    with figures.picture(path, title, "KL bound in nats", *names, height=3.2) as panels:
        proxy_panel, true_panel = panels
        for name in MODELS:
            draw_curve(proxy_panel, table_rows, name, "proxy")
        for name in (*MODELS, "best"):
            draw_curve(true_panel, table_rows, name, "true")


def draw_curve(axes, table_rows: list[dict], name: str, kind: str) -> None:
    """The curve of one model with its band; `kind` is "proxy" or "true"."""
    look = LOOKS[name]
    bounds = [line["kl_bound"] for line in table_rows]
    means = [line[name][kind] for line in table_rows]
    low = [line[name][f"{kind}_low"] for line in table_rows]
    high = [line[name][f"{kind}_high"] for line in table_rows]
    style = {
        "color": look.color,
        "marker": look.marker,
        "markersize": 4,
        "label": look.label,
    }
    axes.plot(bounds, means, look.dash, **style)
    axes.fill_between(bounds, low, high, color=look.color, alpha=0.15, linewidth=0)


def overoptimize_parser() -> ArgumentParser:
    """The flags of this experiment."""
    parser = command("overoptimize", "See a reward over-optimised.")
    add = parser.add_argument
    add("run", help="a run folder, such as runs/bt-finetune")
    add("--prompts", type=int, default=64, metavar="N", help="(default: %(default)s)")
    add(
        "--n-max",
        type=int,
        default=256,
        metavar="N",
        help="draws a prompt (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of prompts, draws and heads (default: 0)",
    )
    add("--output", metavar="FOLDER", help="(default: RUN/overoptimize)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Judge a run, and write and print what came of it."""
    parser = overoptimize_parser()
    args = parser.parse_args(argv)
    quiet_transformers()
    with one_line(parser):
        if args.prompts < 2 or args.n_max < 2:
            raise ValueError("--prompts and --n-max must be 2 or more")
        scorer = score.load(args.run, args.device)
        if scorer.approach == "classification":
            raise ValueError(
                "a classification compares two answers; it has no reward to optimise"
            )
        seen = prompts_seen(Path(args.run))
        output = Path(args.output or f"{args.run}/overoptimize")
        output.mkdir(parents=True, exist_ok=True)

        # The two heads learn from the same prompts.
        seen_by_heads = {pair.prompt for pair in planted_pairs("honest", args.seed, seen)}
        drawn = draw_answers(args.prompts, args.n_max, args.seed, seen | seen_by_heads)
        ratings = [[draw.rating for draw in of_prompt] for of_prompt in drawn]
        true = torch.tensor(ratings, dtype=torch.float64)  # (P, M)
        dtype = pick_device(args.device).dtype
        proxies, accuracies = judge(scorer.model, dtype, drawn, seen, args.seed)
        table_rows, falls = curves(proxies, true)

        alone = rewards_alone(proxies["run"], drawn)
        kinds = {"draws": count_kinds(drawn)}
        worst = {}
        for name, proxy in proxies.items():
            picks = pick(proxy, drawn)
            kinds[name] = count_kinds([[picked] for picked in picks])
            worst[name] = worst_bluff(picks)
        found = {
            "arguments": vars(args),
            "phrase": PHRASE,
            "chances": CHANCES,
            "rows": table_rows,
            "falls": falls,
            "kinds": kinds,
            "rewards_alone": alone,
            "worst_bluffs": worst,
            "test_accuracy": accuracies,
        }
        checkpoint.write_json(output / "overoptimize.json", found)
        text = report(
            args.prompts, table_rows, falls, kinds, alone, worst["shortcut"], accuracies
        )
        checkpoint.write_text(output / "overoptimize.md", text)
        draw_figure(output / "overoptimize.png", table_rows)
        print(f"\n{text}\neverything is in {output}")
