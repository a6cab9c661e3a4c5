"""The data set that comes with the library, in the form of a seeded generator.

arithmetic.py imports nothing of minirlhf, so you can copy it alone.
"""
