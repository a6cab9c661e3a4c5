"""What users type: `python -m minirlhf NAME`.

score       score responses, rank them, or score a file
evaluate    judge a run on other data; `best_of_n.py` and `unseen.py` are parts of it
compare     train and test all approaches on the same folds
selfcheck   check a reward model's plumbing
policy      train a policy on a reward (the chapter is minirlhf/policy/README.md)
export      write a run for another library
"""
