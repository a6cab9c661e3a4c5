"""The second half of RLHF: what a reward does to a policy. README.md is the chapter; read it first.

    settings.py      every flag, with its default
    objectives.py    log-probabilities, cross-entropy, DPO, GRPO, the estimates of KL    copy me
    methods.py       four ways to use a reward, on one page
    loop.py          draw, reward, learn, validate: on one screen
    policies.py      a causal language model that writes, and says how likely an answer is
    questions.py     what it is asked
    rewards.py       a trained reward model, several of them, or the truth
    language.py      the language of the toy: words, and slots for numbers
    start.py         the supervised start of the toy
    best_of_n.py, data_pairs.py, report.py, resume.py

`python -m minirlhf policy --help` lists the flags.
"""
