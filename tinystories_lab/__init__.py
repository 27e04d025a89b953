"""Train a small language model on TinyStories, from raw stories to an honest look back."""

__version__ = "1.0.0"
