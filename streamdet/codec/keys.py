"""Finds JSON texts that a fast parser would let pass though something is wrong, at the speed of memory.

Parsers keep the last of two equal keys without a word, read two objects on a line as two, stop at a depth that
depends on who called them, and let through halves of surrogate pairs, which UTF-8 cannot say. This scan over the
bytes of a whole batch marks every line that may be one of these; those few are then read with care. It never misses
one, and may mark too many: a key with an escape, more than 128 keys, two keys of equal hash, a whole surrogate pair.
"""

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled
from streamdet.events import Bools

_QUOTE, _BACKSLASH, _NEWLINE, _COMMA = ord('"'), ord("\\"), ord("\n"), ord(",")
_OPEN_OBJECT, _OPEN_LIST, _CLOSE_OBJECT, _CLOSE_LIST = ord("{"), ord("["), ord("}"), ord("]")
_KEYS_MAX = 128
# Deeper texts are refused: parsers recurse, and where they give up depends on how deep their caller stands.
DEPTH_MAX = 64
# An escape from \ud800 to \udfff is half of a pair.
_U, _D, _D_UPPER, _EIGHT = ord("u"), ord("d"), ord("D"), ord("8")
_FNV_OFFSET, _FNV_PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)


def suspects(lines: bytes, count: int) -> Bools:
    """For each of `count` lines, whether it may be other than one well-formed object of distinct keys, (count,)."""
    out = np.zeros(count, np.bool_)
    _scan(np.frombuffer(lines, np.uint8), out)
    return out


def is_too_deep(text: bytes) -> bool:
    """Whether lists and objects are nested more than `DEPTH_MAX` deep, anywhere in a text that may be no JSON."""
    return _deepest(np.frombuffer(text, np.uint8)) > DEPTH_MAX


@compiled
def _deepest(text: NDArray[np.uint8]) -> int:  # pragma: no cover - compiled
    depth = deepest = 0
    in_string = escaped = False
    for byte in text:
        if in_string:
            in_string = escaped or byte != _QUOTE
            escaped = not escaped and byte == _BACKSLASH
        elif byte == _QUOTE:
            in_string = True
        elif byte in (_OPEN_OBJECT, _OPEN_LIST):
            depth += 1
            deepest = max(deepest, depth)
        elif byte in (_CLOSE_OBJECT, _CLOSE_LIST):
            depth -= 1
    return deepest


@compiled
def _scan(text: NDArray[np.uint8], out: Bools) -> None:  # noqa: C901, PLR0912  # pragma: no cover - compiled
    keys = np.empty(_KEYS_MAX, np.uint64)
    line = objects = seen = depth = 0
    in_string = escaped = is_key = key_next = False
    digest = _FNV_OFFSET
    for i, byte in enumerate(text):
        if in_string:
            if escaped:
                escaped = False
                if byte == _U and _is_surrogate(text, i + 1):
                    out[line] = True
            elif byte == _BACKSLASH:
                escaped = True
                if is_key:
                    out[line] = True
            elif byte == _QUOTE:
                in_string = False
                if is_key:
                    for k in range(seen):
                        if keys[k] == digest:
                            out[line] = True
                    if seen < _KEYS_MAX:
                        keys[seen] = digest
                        seen += 1
                    else:
                        out[line] = True
            elif is_key:
                digest = (digest ^ np.uint64(byte)) * _FNV_PRIME
        elif byte == _QUOTE:
            in_string = True
            is_key = key_next and depth == 1
            key_next = False
            digest = _FNV_OFFSET
        elif byte in (_OPEN_OBJECT, _OPEN_LIST):
            depth += 1
            objects += depth == 1
            if depth > DEPTH_MAX:
                out[line] = True
            key_next = depth == 1 and byte == _OPEN_OBJECT
        elif byte in (_CLOSE_OBJECT, _CLOSE_LIST):
            depth -= 1
        elif byte == _COMMA:
            key_next = depth == 1
        elif byte == _NEWLINE:
            if depth != 0 or objects != 1:
                out[line] = True
            line += 1
            objects = seen = depth = 0
            key_next = False
    if in_string or depth != 0 or objects != 1:
        out[line] = True


@compiled
def _is_surrogate(text: NDArray[np.uint8], at: int) -> bool:  # pragma: no cover - compiled
    """Whether the four hexadecimal digits there name half of a surrogate pair."""
    return at + 1 < len(text) and text[at] in (_D, _D_UPPER) and text[at + 1] >= _EIGHT
