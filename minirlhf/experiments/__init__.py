"""What readers reproduce. `python -m minirlhf NAME` runs one; `--help` lists its flags.

    mistakes.py       what each of eight classic mistakes costs, mended one by one
    overoptimize.py   choose the best of n answers by reward, and see what they are really worth
    turn.py           how far a policy rises on a reward before it turns, over several runs
    coverage.py       how often the 95 % intervals hold the truth, by simulation
    benchmark.py      speed, memory and start-up on this machine, beside other libraries
    pictures.py       draw the pictures of the README from committed results

README.md in this folder is the lab notebook: what was asked, measured and concluded.
"""
