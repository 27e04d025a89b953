"""A token file: its ids, mapped into memory, and the sidecar that says what is in them."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class BinInfo:
    """What a token file holds; stands beside it as JSON (train.bin, train.json)."""

    tokens: int
    stories: int
    bytes: int  # UTF-8 bytes of the stories' text, markers not counted
    vocab_size: int
    dtype: str
    tokenizer_sha256: str
    sha256: str  # of the token file
    source: str = ""

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for one token, the end-of-text markers counted as tokens: what turns nats a token to bits a byte."""
        return self.bytes / self.tokens

    @classmethod
    def of(cls, bin_path: str | Path) -> "BinInfo | None":
        """Read the sidecar of a token file; None where there is none. Raises ValueError when it is not readable."""
        sidecar = Path(bin_path).with_suffix(".json")
        if not sidecar.exists():
            return None
        try:
            return cls(**json.loads(sidecar.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{sidecar} is not a token file's sidecar ({error}): write the bin again (02_tokenizer)"
            ) from error


def open_tokens(path: Path) -> np.ndarray:
    """The ids of a token file, memory-mapped where the disk supports it and read into memory where not."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no token file {path}: run 02_tokenizer (or `tokenizer` in the shell) first")
    size = path.stat().st_size
    if size % 2 or not size:
        raise ValueError(
            f"{path} has {size} bytes; uint16 ids take two each, so it is damaged: write it again (02_tokenizer)"
        )
    try:
        return np.memmap(path, np.uint16, mode="r")
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{path} cannot be memory-mapped ({error}): reading its {size / 1e6:,.0f} MB into memory", stacklevel=3
        )
        return np.fromfile(path, np.uint16)


def check_sidecar(path: Path, tokens: int, vocab_size: int | None, tokenizer_sha256: str | None) -> BinInfo | None:
    """The sidecar of a token file, None where there is none. Raises ValueError where it and the world disagree."""
    info = BinInfo.of(path)
    if info is None:
        return None
    advice = "write the file again (02_tokenizer)"
    if info.dtype != "uint16":
        raise ValueError(f"{path} is said to hold {info.dtype}; only uint16 can be read: {advice}")
    if info.tokens != tokens:
        raise ValueError(f"{path} holds {tokens:,} tokens, but its sidecar says {info.tokens:,}: {advice}")
    if vocab_size is not None and info.vocab_size > vocab_size:
        raise ValueError(
            f"{path} was written with {info.vocab_size:,} tokens in the vocabulary, the model has {vocab_size:,}: {advice}"
        )
    if tokenizer_sha256 is not None and info.tokenizer_sha256 != tokenizer_sha256:
        raise ValueError(f"{path} was written with another tokenizer than the tokenizer.json beside it: {advice}")
    return info
