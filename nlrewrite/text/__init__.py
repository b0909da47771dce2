"""Text: where it comes from, which documents say the same, which split they belong to, and their token ids.

In: a source of documents (`sources.py`). Out: a corpus of split documents (`corpus.py`) and, once the subject's
tokenizer is known, streams and windows of token ids (`tokens.py`); from a source of its own, what a coder is trained on
(`streams.py`), read row by row (`rows.py`). Invariant: a group of documents that share their words (`duplicates.py`)
lies in one split, so that nothing is measured on text that something was fitted on.
"""
