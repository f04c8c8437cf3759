"""Mutators for fuzz tests: from one good file many broken ones, the same ones for the same seed.

Every mutator is a generator `(good, rng) -> bytes` (or a value, for structures) and takes its chances from a
`random.Random`, so a seed and a number name an input for ever.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**63), 2**64, 10**30, 1e308, -0.0, 0.5),
    *("", "a", "0", "nan", "\x1b[2J", "\u202e", "../../etc/passwd", "/etc/passwd", "x" * 5000),
    *([], {}, [[]], [None], {"": None}, [1, "a", {}], {"a": {"b": {"c": []}}}),
)
"""Values that no field expects."""


def mutated_bytes(good: bytes, rng: random.Random) -> bytes:
    """One to four changes of single bytes, pieces removed, doubled, zeroed or moved, or the end cut off."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        if not data:
            return bytes(data)
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.choice((1, 2, 4, 8, 64, len(data) // 3 + 1)))
        change = rng.randrange(7)
        if change == 0:
            data[start] = rng.randrange(256)
        elif change == 1:
            data[start] ^= 1 << rng.randrange(8)
        elif change == 2:
            del data[start:end]
        elif change == 3:
            data[start:start] = data[start:end]
        elif change == 4:
            data[start:end] = rng.choice((b"\0", b"\xff")) * (end - start)
        elif change == 5:
            data[start:end] = rng.randbytes(end - start)
        else:
            del data[start:]
    return bytes(data)


def mutated_structure(good: Any, rng: random.Random) -> Any:
    """A copy of plain data (dicts, lists, texts, numbers) with one to three of its places changed."""
    copy = json.loads(json.dumps(good))
    for _ in range(rng.randint(1, 3)):
        copy = _changed(copy, rng)
    return copy


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, change = rng.choice(keys), rng.random()
        if change < 0.15:
            del value[key]
        elif change < 0.25 and isinstance(value, dict):
            value[rng.choice(("", "a.b", "x" * 5000, "\x1b", str(key) + "_", str(rng.choice(keys))))] = (
                value.pop(key)
            )
        elif change < 0.32:
            value[key] = _nested(value[key], rng.choice((5, 100, 2000)))
        else:
            value[key] = _changed(value[key], rng)
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.4:
        return rng.choice((value + 1, value - 1, -value, value * 1000, value * 2**40, str(value), [value]))
    return deepcopy(rng.choice(STRANGE))


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def dumps(value: Any) -> bytes:
    """JSON of any nesting: the standard writer gives up where nesting begins to be interesting."""
    text: list[str] = []
    waiting: list[Any] = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, _Raw):
            text.append(here)
        elif isinstance(here, list):
            parts = [part for item in here for part in (_Raw(","), item)][1:]
            waiting += [_Raw("]"), *reversed(parts), _Raw("[")]
        elif isinstance(here, dict):
            parts = [p for key, item in here.items() for p in (_Raw(","), _Raw(json.dumps(key) + ":"), item)][
                1:
            ]
            waiting += [_Raw("}"), *reversed(parts), _Raw("{")]
        else:
            text.append(json.dumps(here))
    return "".join(text).encode()


class _Raw(str):
    """Text that is JSON already."""


def mutated_json(good: bytes, rng: random.Random) -> bytes:
    """JSON with changes of its structure, or of its bytes."""
    if rng.random() < 0.25:
        return mutated_bytes(good, rng)
    return dumps(mutated_structure(json.loads(good), rng))


def mutated_safetensors(good: bytes, rng: random.Random) -> bytes:
    """A safetensors file with changes in its header's structure (most), its length, or its bytes."""
    length = int.from_bytes(good[:8], "little")
    header, body, change = json.loads(good[8 : 8 + length]), good[8 + length :], rng.random()
    if change < 0.15:
        return mutated_bytes(good, rng)
    if change < 0.25:
        wrong = rng.choice((0, 1, length - 1, length + 1, 2**24, 2**31, 2**40 - 1, 2**63, 2**64 - 1))
        return wrong.to_bytes(8, "little") + good[8:]
    name = rng.choice(list(header))
    if change < 0.5 and name != "__metadata__":  # one entry, aimed at its fields
        field = rng.choice(("dtype", "shape", "data_offsets"))
        header[name][field] = _changed(header[name][field], rng)
    elif change < 0.65:  # shapes that agree with their offsets, but not with what the name stands for
        header, body = _reshaped(header, body, rng)
    else:
        header = mutated_structure(header, rng)
    text = dumps(header)
    if rng.random() < 0.1:
        body = mutated_bytes(body, rng)
    return len(text).to_bytes(8, "little") + text + body


def _reshaped(header: dict[str, Any], body: bytes, rng: random.Random) -> tuple[dict[str, Any], bytes]:
    names = [name for name in header if name != "__metadata__"]
    for name in rng.sample(names, min(len(names), rng.randint(1, 6))):
        shape = rng.choice(
            ([], [0], [1], [1, 1], [3, 5], [1, 2, 3, 4], [2, 0, 7], header[name]["shape"][::-1])
        )
        header[name] = {**header[name], "dtype": "F32", "shape": shape}
    place = 0
    for name in names:
        size = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(header[name]["dtype"], 1)
        for side in header[name]["shape"]:
            size *= side
        header[name]["data_offsets"] = [place, place + size]
        place += size
    return header, body[:place].ljust(place, b"\0")


def mutated_zip(good: bytes, rng: random.Random, inner: Callable[[bytes, random.Random], bytes]) -> bytes:
    """A zip archive with one member changed by `inner`, dropped, renamed or compressed, or damaged."""
    if rng.random() < 0.25:
        return mutated_bytes(good, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as archive, zipfile.ZipFile(out, "w") as changed:
        entries = archive.infolist()
        chosen, change = rng.choice(entries).filename, rng.random()
        programs = [entry.filename for entry in entries if entry.filename.endswith(".pkl")]
        if programs and change < 0.6:
            chosen = programs[0]
        for entry in entries:
            data, name = archive.read(entry), entry.filename
            if name == chosen:
                if change < 0.7:
                    data = inner(data, rng)
                elif change < 0.8:
                    continue
                elif change < 0.9:
                    name = rng.choice(("../" + name, "/" + name, name.upper(), "x/data.pkl"))
            pack = zipfile.ZIP_DEFLATED if change > 0.95 else zipfile.ZIP_STORED
            changed.writestr(name, data, compress_type=pack)
    return out.getvalue()


def mutated_pickle(good: bytes, rng: random.Random) -> bytes:
    """A pickle with changed bytes, opcodes put into it, or another program in its place."""
    if rng.random() < 0.5 or len(good) < 3:
        return mutated_bytes(good, rng)
    if rng.random() < 0.4:
        return rng.choice(hostile_pickles())
    place = rng.randrange(2, len(good))
    opcodes = (
        b"0",
        b"2",
        b"(",
        b"}",
        b"]",
        b")",
        b"\x85",
        b"\x86",
        b"R",
        b"b",
        b"N",
        b"\x88",
        b"s",
        b"u",
        b"e",
        b"t",
    )
    opcodes += (b"h\0", b"q\0", b"K\xff", b"X\xff\xff\xff\x7f", b"J\0\0\0\x80", b"cos\nsystem\n", b"Q", b".")
    return good[:place] + rng.choice(opcodes) * rng.choice((1, 1, 2, 500)) + good[place:]


def mutated_torch(good: bytes, rng: random.Random) -> bytes:
    """What `torch.save` wrote, in the zip format or the old one, changed."""
    return mutated_zip(good, rng, mutated_pickle) if good[:2] == b"PK" else mutated_pickle(good, rng)


def hostile_pickles(trace: str = "/nonexistent/trace") -> list[bytes]:
    """Programs that want to run code, or to take all memory or time; `trace` is a file they would create."""
    shared: Any = {"k": 1}
    for _ in range(40):
        shared = {"a": shared, "b": shared}
    itself: dict[str, Any] = {}
    itself["state_dict"] = itself
    command = f"touch {trace}".encode()
    call = struct.pack("<I", len(command)) + command + b"\x85R."
    return [
        *(
            b"\x80\x02c" + name + b"\nX" + call
            for name in (b"posix\nsystem", b"os\nsystem", b"builtins\neval")
        ),
        b"\x80\x02cnumpy.testing._private.utils\nrunstring\nX" + call,
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93X" + call,
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02X\xff\xff\xff\x7faa.",
        b"\x80\x02}" + b"N\x85" * 1 + b"\x85" * 200_000 + b"Ns.",
        b"\x80\x02}N\x85q\0" + b"h\0\x86q\0" * 60 + b"Ns.",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        pickle.dumps(shared, 2),
        pickle.dumps(itself, 2),
    ]


def safetensors(tensors: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> bytes:
    """A good safetensors file of zeros (F32) with these names and shapes."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for name, shape in tensors.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = dumps(header)
    return len(text).to_bytes(8, "little") + text + bytes(place)


def mutated_text(good: bytes, rng: random.Random) -> bytes:
    """Text in another encoding, with odd line ends and characters, repeated, or with changed bytes."""
    text, change = good.decode("utf-8", "replace"), rng.randrange(6)
    if change == 0:
        return mutated_bytes(good, rng)
    if change == 1:
        return text.encode(
            rng.choice(("utf-16", "utf-16-be", "utf-8-sig", "utf-32", "cp1252", "utf-7")), "replace"
        )
    place = rng.randrange(len(text) + 1)
    odd = (
        "\0",
        "\u2028",
        "\x85",
        "\x1b[2J",
        "\u202e",
        "\ud83d\ude80",
        '"',
        '""',
        ",",
        "\t",
        "=",
        "\\",
        "\r",
        "../",
    )
    odd += (
        "nan",
        "1e999",
        "-1",
        "9" * 400,
        "&a [*a]",
        "!!python/object:os.system ls",
        "{{",
        "<<: ",
        "x" * 200_000,
    )
    piece = rng.choice(odd) * rng.choice((1, 1, 3, 50))
    if change == 2:
        lines = text.splitlines(keepends=True) or [""]
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines) * rng.choice((1, 2, 1000)))
        return "".join(lines).encode()
    end = place if change < 5 else min(len(text), place + rng.choice((1, 5, 20)))
    return (text[:place] + piece + text[end:]).encode("utf-8", "surrogatepass")


def mutated_yaml(good: bytes, rng: random.Random) -> bytes:
    """Lines `name: JSON` with changed values, or changed as any text."""
    if rng.random() < 0.4:
        return mutated_text(good, rng)
    pairs = (line.partition(": ") for line in good.decode().splitlines() if ": " in line)
    changed = mutated_structure({name: json.loads(value) for name, _, value in pairs}, rng)
    if not isinstance(changed, dict):
        return dumps(changed)
    return b"\n".join(dumps(str(name)) + b": " + dumps(value) for name, value in changed.items())


def mutated_lines(good: bytes, rng: random.Random) -> bytes:
    """JSON lines, one of them changed, or changed as any text."""
    if rng.random() < 0.4:
        return mutated_text(good, rng)
    lines = good.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = mutated_json(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def mutated_gif(good: bytes, rng: random.Random) -> bytes:
    """Bytes changed, more often in the headers, where sizes and times stand."""
    head = rng.choice((64, 512, len(good)))
    return mutated_bytes(good[:head], rng) + good[head:]


MUTATORS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".safetensors": mutated_safetensors,
    **dict.fromkeys((".ckpt", ".pt", ".bin"), mutated_torch),
    ".json": mutated_json,
    ".jsonl": mutated_lines,
    ".yaml": mutated_yaml,
    **dict.fromkeys((".txt", ".caption", ".csv"), mutated_text),
}
"""Ending of a file -> how it is changed; others as `mutated_gif`."""


def mutated(name: str, good: bytes, rng: random.Random) -> bytes:
    """The content of a file of this name, changed after its kind."""
    return MUTATORS.get(name[name.rfind(".") :], mutated_gif)(good, rng)
