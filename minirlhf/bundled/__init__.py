"""The data set that comes with the library, as a generator.

arithmetic.py imports nothing of minirlhf: copy it alone.
"""
