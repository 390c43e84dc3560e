"""What a pickle would call, declare and allocate, found without running it.

torch's ``weights_only`` loader runs a pickle with a short list of callables. That keeps foreign code out, but not
these: a few hundred bytes that allocate gigabytes (``bytearray(2**31)``, a view that reaches past its storage and
grows it), keys whose hash takes for ever, a storage that says another size than the file holds. Its errors name one
blocked callable at a time, and advise to turn it off. Here the pickle is walked with symbols in place of objects: all
that it names is listed, and calls are held against a table of what a weights file needs.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from se_inject.checkpoints.pickle_calls import (
    CALLS,
    OBJECTS,
    Made,
    Name,
    Storage,
    Symbol,
    call_problem,
    hashable,
    values,
)

MARK = object()
OPERATIONS = 1_000_000  # of one pickle, of which a second walks most; resnet152 with EMA and Adam takes 110,000
GLOBALS = 1000  # different ones; a state dict names about 20


@dataclass
class Scan:
    """What a pickle would do. ``problems``: why it is not a plain weights file, the blocked globals apart."""

    globals: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    records: dict[str, tuple[str, int]] = field(default_factory=dict)  # storage key -> type, bytes

    def refuse(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    @property
    def blocked(self) -> tuple[str, ...]:
        """The globals that no weights file needs, sorted, in printable ASCII."""
        return tuple(sorted(ascii(name)[1:-1] for name in self.globals - set(CALLS) - OBJECTS - values()))


def scan(file: IO[bytes], operations: int | None = None) -> Scan:
    """Walk one pickle, up to its end, and leave ``file`` just behind it.

    Raises ``ValueError`` when the bytes are not a whole pickle, or one of more ``operations`` (default ``OPERATIONS``).
    """
    limit = OPERATIONS if operations is None else operations
    found = Scan()
    stack: list[Symbol] = []
    memo: dict[Any, Symbol] = {}
    try:
        for count, (op, arg, _) in enumerate(pickletools.genops(file)):
            if count == limit:
                raise ValueError(f"more than {limit:,} operations")
            if op.name not in WEIGHTS_ONLY_OPCODES:
                found.refuse(f"its pickle uses {op.name}, which torch.save does not write by default")
            operands, items = _operands(op, stack)
            if op.name.endswith("PUT"):
                memo[arg] = stack[-1]
            elif op.name.endswith("GET"):
                stack.append(memo[arg])
            elif op.name == "MEMOIZE":
                memo[len(memo)] = operands[0]
                stack.append(operands[0])
            elif op.name == "PROTO" and arg != 2:
                found.refuse(f"it is a pickle of protocol {arg}, where torch.save writes 2")
            else:
                stack.extend(_results(op, arg, operands, items, found))
    except (IndexError, KeyError, OverflowError, UnicodeError) as error:
        raise ValueError(str(error)) from error
    return found


# torch/_weights_only_unpickler.py reads these and no others.
# fmt: off
WEIGHTS_ONLY_OPCODES = frozenset({
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPERSID", "BINPUT", "BINUNICODE",
    "BUILD", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "GLOBAL", "LONG1", "LONG_BINGET", "LONG_BINPUT",
    "MARK", "NEWFALSE", "NEWOBJ", "NEWTRUE", "NONE", "PROTO", "REDUCE", "SETITEM", "SETITEMS", "SHORT_BINSTRING",
    "STOP", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
})
# fmt: on
CONSTANTS: dict[str, Symbol] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def _operands(op: pickletools.OpcodeInfo, stack: list[Symbol]) -> tuple[list[Symbol], list[Symbol]]:
    """What ``op`` takes off the stack: its operands, and the items above the mark."""
    items: list[Symbol] = []
    count = len(op.stack_before)
    if pickletools.markobject in op.stack_before:
        while (item := stack.pop()) is not MARK:
            items.append(item)
        items.reverse()
        count = op.stack_before.index(pickletools.markobject)
    if count > len(stack):
        raise IndexError("the stack is empty")
    operands = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return operands, items


def _results(
    op: pickletools.OpcodeInfo, arg: Any, operands: list[Symbol], items: list[Symbol], found: Scan
) -> Sequence[Symbol]:
    """What ``op`` puts on the stack."""
    match op.name:
        case "MARK":
            return [MARK]
        case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
            return [CONSTANTS[op.name]]
        case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
            return [tuple(items or operands)]
        case "EMPTY_LIST" | "LIST":
            return [items]
        case "APPEND" | "APPENDS":
            if isinstance(operands[0], list):
                operands[0].extend(items or operands[1:])
            return operands[:1]
        case "SETITEM" | "SETITEMS" | "DICT":
            keys = items[::2] or operands[1:2]
            if not all(hashable(key) for key in keys):
                found.refuse("a key is neither a string nor a usual number")
            return operands[:1] or [Made()]
        case "GLOBAL" | "STACK_GLOBAL":
            module, name = arg.split(" ", 1) if op.name == "GLOBAL" else map(str, operands)
            return [_name(module, name, found)]
        case "INST":
            module, name = arg.split(" ", 1)
            _name(module, name, found)
        case "REDUCE" | "NEWOBJ":
            made = op.name == "NEWOBJ" and isinstance(operands[0], Name) and operands[0].path in OBJECTS
            if problem := "" if made and operands[1] == () else call_problem(*operands):
                found.refuse(problem)
        case "BUILD":
            return operands[:1]
        case "DUP":
            return operands * 2
        case "BINPERSID":
            return [_storage(operands[0], found)]
    if not op.stack_before and op.stack_after:
        return [arg]  # a number or a string
    return [Made() for _ in op.stack_after]


def _name(module: str, name: str, found: Scan) -> Name:
    if (module, name) in NAME_MAPPING:  # spelled as in Python 2, as protocol 2 does
        module, name = NAME_MAPPING[(module, name)]
    path = f"{IMPORT_MAPPING.get(module, module)}.{name}"
    found.globals.add(path)
    if len(found.globals) > GLOBALS:
        raise ValueError(f"more than {GLOBALS:,} globals")
    return Name(path)


def _storage(identity: Symbol, found: Scan) -> Symbol:
    """``("storage", type, key, location, elements[, view])``."""
    match identity:
        case ("storage", Name(path=kind), str(key), str(), int(elements), *view) if view in ([], [None]):
            record = kind, elements * _itemsize(kind)
            if record[1] >= 0 and _itemsize(kind) and found.records.setdefault(key, record) == record:
                return Storage(elements, _itemsize(kind))
    found.refuse("a storage is not declared as torch.save declares it")
    return Made()


def _itemsize(storage: str) -> int:
    if storage == "torch.storage.UntypedStorage":
        return 1
    try:
        return int(torch.serialization.StorageType(storage.removeprefix("torch.")).dtype.itemsize)
    except (KeyError, AttributeError):
        return 0
