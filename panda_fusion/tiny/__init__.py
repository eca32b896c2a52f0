"""The embedded default: a small BERT (``model/``) and tasks about a small English-like world.

Everything here works offline. ``world`` is the grammar, ``tasks`` the tasks made from it, and ``model/``
holds the weights and the tokenizer that ``scripts/pretrain_tiny.py`` wrote. Importing this package loads
nothing.
"""
