"""Appendices to the book: each is run as `python -m minirlhf.tools.NAME`, and the book needs none.

selfcheck    padding, order, loss at start, save and load: is this model's plumbing sound?
"""
