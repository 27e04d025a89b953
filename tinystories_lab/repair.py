"""Text whose UTF-8 somebody read as Windows-1252, made whole again."""

import re

# UTF-8 that was decoded as Windows-1252 shows as â€œ or Ã©. Python's cp1252 leaves five bytes undefined that the wrong
# decoders pass through (the last byte of a closing quote is one), so those map to themselves.
_BYTE_OF = {bytes([byte]).decode("cp1252", errors="ignore") or chr(byte): byte for byte in range(0x80, 0x100)}
CONTINUATION = "[" + "".join(char for char, byte in _BYTE_OF.items() if byte < 0xC0) + "]"
# Punctuation and currency, emoji, accented letters: only openings that no language writes. Whatever decodes would take
# too much: "allé »" with its French space is three such characters, and nothing is wrong with it. Ã» is û only inside a
# word; after its last letter it may be Portuguese, as in «AMANHÃ».
DAMAGED = re.compile(rf"â[€‚„]{CONTINUATION}|ðŸ{CONTINUATION}{{2}}|(?!Ã»(?!\w))[ÂÃ][\u00a0-\u00bf]")


def repair(text: str) -> str:
    """Undo UTF-8 read as Windows-1252, run by run (â€œ becomes “); text that is not damaged comes back as it is."""
    if text.isascii():  # most are, and a look is cheaper than a search
        return text

    def decode(match: re.Match) -> str:
        try:
            return bytes(_BYTE_OF[char] for char in match[0]).decode()
        except UnicodeDecodeError:
            return match[0]

    return DAMAGED.sub(decode, text)
