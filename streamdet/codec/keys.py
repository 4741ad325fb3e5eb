"""Finds JSON objects that may name a key twice, at the speed of memory.

Parsers keep the last of two equal keys without a word. This scan over the bytes of a whole batch marks every object
whose top level seems to repeat a key; those few are then read with care. It never misses one, and may mark too many:
a key with an escape, more than 128 keys, two keys of equal hash.
"""

import numpy as np
from numpy.typing import NDArray

from streamdet.compiled import compiled
from streamdet.events import Bools

_QUOTE, _BACKSLASH, _NEWLINE, _COMMA = ord('"'), ord("\\"), ord("\n"), ord(",")
_OPEN_OBJECT, _OPEN_LIST, _CLOSE_OBJECT, _CLOSE_LIST = ord("{"), ord("["), ord("}"), ord("]")
_KEYS_MAX = 128
_FNV_OFFSET, _FNV_PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)


def may_repeat_a_key(lines: bytes, count: int) -> Bools:
    """For each of `count` JSON texts, one a line: does its top level seem to repeat a key? (count,)."""
    out = np.zeros(count, np.bool_)
    _scan(np.frombuffer(lines, np.uint8), out)
    return out


@compiled
def _scan(text: NDArray[np.uint8], out: Bools) -> None:  # noqa: C901, PLR0912 - one state machine
    keys = np.empty(_KEYS_MAX, np.uint64)
    line = seen = depth = 0
    in_string = escaped = is_key = key_next = False
    digest = _FNV_OFFSET
    for byte in text:
        if in_string:
            if escaped:
                escaped = False
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
            key_next = depth == 1 and byte == _OPEN_OBJECT
        elif byte in (_CLOSE_OBJECT, _CLOSE_LIST):
            depth -= 1
        elif byte == _COMMA:
            key_next = depth == 1
        elif byte == _NEWLINE:
            line += 1
            seen = depth = 0
            key_next = False
