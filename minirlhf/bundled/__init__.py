"""The data set that comes with the library, as a generator: material, not a chapter of the book.

arithmetic.py imports nothing of minirlhf: copy it alone.
"""
