"""A corpus and a run so small that training takes a second, for tests and for the fault harness."""

from itertools import product
from pathlib import Path

from tinystories_lab.model import GPTConfig
from tinystories_lab.tokenizer import save_tokenizer, train_tokenizer, write_bin

MODEL = GPTConfig(vocab_size=300, n_layer=2, n_head=2, d_model=32, max_len=16)


def make_stories() -> list[str]:
    """144 stories of about twenty tokens each, all different."""
    names, things, places = ("Lily", "Ben", "Mia"), ("ball", "kite", "boat", "hat"), ("park", "garden", "pond")
    return [
        f"{name} found a {colour} {thing} in the {place}. {name} was very happy."
        for name, colour, thing, place in product(names, ("red", "blue", "green", "big"), things, places)
    ]


def make_data(folder: Path) -> None:
    """A real data folder of those stories, with a vocabulary of 300."""
    stories = make_stories()
    tokenizer = train_tokenizer(stories, MODEL.vocab_size)
    save_tokenizer(tokenizer, folder / "tokenizer.json")
    write_bin(folder / "train.bin", stories[:120], tokenizer, source="made up")
    write_bin(folder / "val.bin", stories[120:], tokenizer, source="made up")
