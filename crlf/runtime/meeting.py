"""Connects the processes of a training; names in one line a process that is missing or has other versions.

torch would wait for a missing process as long as for a slow one, which may be days, and does not compare versions.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterable
from typing import NoReturn

import torch
import torch.distributed

from crlf.errors import InputError, first_line
from crlf.text import duration

ARRIVAL = datetime.timedelta(minutes=10)  # from the first process to the last
REFUSED = 2  # the exit code of the ranks that leave the message to another rank
LOOK = 0.1  # seconds between two looks into the store
HELLO, ROLL = "crlf/hello", "crlf/roll"  # keys of the store
Card = dict[str, str]


def meet(rank: int, world: int, backend: str, wait: datetime.timedelta) -> str:
    """Wait for all processes, compare their versions, and form the group of torch.distributed.

    Args:
        rank, world: the number of this process, and the number of processes.
        backend: the backend of torch.distributed.
        wait: the time-out of its collectives.

    Returns:
        A unique name of the group; after a restart, the same processes get another name.

    Raises:
        InputError: on rank 0, if a process did not come or differs.
        SystemExit: on the other ranks. The first of a host prints the reason if rank 0 cannot.
    """
    store = _store(rank, world)
    cards = _roll_call(store, rank, world)
    _require_all(cards, rank, world)
    _require_same_versions(cards, rank)
    name = cards[0]["nonce"]
    try:
        own = torch.distributed.PrefixStore(name, store)
        torch.distributed.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=ARRIVAL)
    except RuntimeError as error:
        advice = "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network interface to use"
        _refuse(f"rank {rank} on {cards[rank]['host']} cannot reach the others ({advice}): {first_line(error)}", rank)
    if hasattr(torch.distributed, "set_timeout"):
        torch.distributed.set_timeout(wait)
    else:  # before torch 2.14
        torch.distributed.distributed_c10d._set_pg_timeout(wait)
    return name


def client(place: tuple[str, int], timeout: datetime.timedelta) -> torch.distributed.TCPStore:
    """A new connection to the store that all processes share. Raises RuntimeError."""
    return torch.distributed.TCPStore(*place, is_master=False, timeout=timeout, wait_for_workers=False)


def place_of_store() -> tuple[str, int]:
    """Host and port of the store. Raises InputError if the environment does not give them."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise InputError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {name} is not set: torchrun sets both")
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def _store(rank: int, world: int) -> torch.distributed.Store:
    """A connection to the store, which torchrun hosts; without torchrun, rank 0 hosts it."""
    place = place_of_store()
    try:
        if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return torch.distributed.TCPStore(*place, is_master=True, timeout=ARRIVAL, wait_for_workers=False)
        return client(place, ARRIVAL)
    except RuntimeError as error:
        where = f"{place[0]}:{place[1]}"
        if rank == 0:
            _refuse(f"rank 0 cannot use {where}: {first_line(error)}", rank)
        _refuse(f"rank 0 of {world} did not come within {_patience()}: nothing responds at {where}", rank)


def _roll_call(store: torch.distributed.Store, rank: int, world: int) -> dict[int, Card]:
    """The cards of the processes that came. Rank 0 collects the cards and writes the list for the others.

    After a restart, the store may hold keys of an earlier meeting: rank 0 removes old cards before it collects, and the
    others recognise the new list by their own nonce.
    """
    mine = {"nonce": uuid.uuid4().hex, "host": socket.gethostname(), "torch": torch.__version__}
    mine["crlf"] = sys.modules["crlf"].__version__
    until = time.monotonic() + ARRIVAL.total_seconds()
    if rank == 0:
        return _collected(store, {0: mine}, range(1, world), until)
    while time.monotonic() < until + 60:  # rank 0 may be the last to come
        store.set(f"{HELLO}/{rank}", json.dumps(mine))
        if store.check([ROLL]):
            cards = {int(key): card for key, card in json.loads(store.get(ROLL)).items()}
            if cards.get(rank) == mine:
                return cards
        time.sleep(LOOK)
    return {rank: mine}


def _collected(
    store: torch.distributed.Store, cards: dict[int, Card], others: Iterable[int], until: float
) -> dict[int, Card]:
    missing = list(others)
    for other in missing:
        store.delete_key(f"{HELLO}/{other}")
    while missing and time.monotonic() < until:
        cards |= {r: json.loads(store.get(f"{HELLO}/{r}")) for r in missing if store.check([f"{HELLO}/{r}"])}
        missing = [other for other in missing if other not in cards]
        time.sleep(LOOK)
    store.set(ROLL, json.dumps(cards))
    return cards


def _require_all(cards: dict[int, Card], rank: int, world: int) -> None:
    if missing := sorted(set(range(world)) - set(cards)):
        hosts = ", ".join(dict.fromkeys(card["host"] for _, card in sorted(cards.items())))
        who = f"rank {', '.join(map(str, missing))} of {world}"
        _refuse(f"{who} did not come within {_patience()}; those who came are on {hosts}", rank, 0 in cards)


def _require_same_versions(cards: dict[int, Card], rank: int) -> None:
    for library in ("torch", "crlf"):
        for other in sorted(cards):
            here, there = cards[0], cards[other]
            if here[library] != there[library]:
                found = f"{here[library]} on {here['host']} (rank 0) and {there[library]} on {there['host']}"
                _refuse(f"all processes need the same {library}, not {found} (rank {other})", rank, told=True)


def _patience() -> str:
    return duration(ARRIVAL.total_seconds())


def _refuse(message: str, rank: int, told: bool = False) -> NoReturn:
    """Raise the message on rank 0; on the other ranks, print it unless rank 0 has the same message."""
    if rank == 0:
        time.sleep(10 * LOOK)  # for the others to read the list, if the store ends with this process
        raise InputError(message)
    if not told and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr)
    raise SystemExit(REFUSED)
