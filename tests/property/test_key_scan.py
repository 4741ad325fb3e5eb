"""The scan for repeated keys never misses one, whatever stands around it."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import as_json, json_trees

from streamdet.codec.keys import suspects

_keys = st.one_of(
    st.sampled_from(["a", "b", "ab", "", "{", "}", ",", ":", "[", '"', "\\", "é"]), st.text(max_size=4)
)
_members = st.lists(st.tuples(_keys, json_trees), max_size=6)
_spaces = st.text(" \t\r", max_size=2)


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """One JSON object on one line, which may name keys twice, in any spelling that JSON knows."""
    parts = []
    for key, value in draw(_members):
        name = json.dumps(key, ensure_ascii=draw(st.booleans()))
        if key.isascii() and key and draw(st.booleans()):
            name = '"' + "".join(f"\\u{ord(c):04x}" for c in key) + '"'
        space = draw(_spaces)
        written = json.dumps(value, ensure_ascii=draw(st.booleans()))
        parts.append(f"{space}{name}{space}:{space}{written}{space}")
    return ("{" + ",".join(parts) + "}").encode("utf-8", errors="surrogatepass")


def repeats_a_key(text: bytes) -> bool:
    """By reading it whole: does the top level name a key twice?"""
    pairs = json.loads(text.decode("utf-8", errors="surrogatepass"), object_pairs_hook=list)
    return len({name for name, _ in pairs}) < len(pairs)


@given(st.lists(objects(), min_size=1, max_size=5))
def test_no_repeated_key_is_missed(lines: list[bytes]) -> None:
    marked = suspects(b"\n".join(lines), len(lines))
    repeated = np.array([repeats_a_key(line) for line in lines])
    assert (marked | ~repeated).all()


@given(
    st.lists(st.dictionaries(st.text("abcdefgh", max_size=4), json_trees, max_size=8), min_size=1, max_size=5)
)
def test_an_object_of_plain_distinct_keys_is_not_marked(trees: list[dict[str, object]]) -> None:
    lines = [as_json(tree) for tree in trees]
    assert not suspects(b"\n".join(lines), len(lines)).any()


@given(st.integers(100, 200), st.integers(0, 199))
def test_a_repeated_key_is_found_among_many(count: int, twin: int) -> None:
    names = [f"k{i}" for i in range(count)]
    names.append(names[twin % count])
    line = ("{" + ", ".join(f'"{name}": 1' for name in names) + "}").encode()
    assert suspects(line, 1).all()


@given(st.binary(max_size=60))
def test_bytes_that_are_no_json_do_not_break_the_scan(text: bytes) -> None:
    assert len(suspects(text, text.count(b"\n") + 1)) == text.count(b"\n") + 1
