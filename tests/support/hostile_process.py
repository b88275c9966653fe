"""A process that puts junk where poolstats looks, under a user of its own if that is wanted."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

__all__ = ["Hostile"]

# Everything is imported first: another user may not be able to read this Python.
PROGRAM = """
import json, os, socket, sys, threading, time
uid, folder = int(sys.argv[1]), sys.argv[2]
if uid:
    os.setgid(uid)
    os.setuid(uid)
os.makedirs(folder, mode=0o700, exist_ok=True)

def listener(number):
    made = socket.socket(socket.AF_UNIX)
    made.bind(f"{folder}/{number}.{number:08x}.sock")
    made.listen(64)
    return made

def answering(number, answer):
    made = listener(number)
    def serve():
        while True:
            client, _ = made.accept()
            threading.Thread(target=attempt, args=(answer, client), daemon=True).start()
    threading.Thread(target=serve, daemon=True).start()

def attempt(answer, client):
    with client:
        try:
            answer(client)
        except OSError:
            pass

def trickle(client):
    while True:
        client.send(b" ")
        time.sleep(0.05)

def hold(client):
    time.sleep(600)

def say(**figures):
    gauges = {"size": 1, "idle": 1, "in_use": 0, "waiting": 0, "max_size": 1}
    pool = {"alias": "default", **gauges, **figures}
    answer = {"version": 1, "pid": 1, "command": "x", "pools": [pool]}
    return lambda client: client.sendall(json.dumps(answer).encode())

kept = []
"""


class Hostile:
    """The process, from when its sockets are there until it is killed.

    Args:
        base: The ``stats_dir``.
        program: What it does, with what is defined above.
        uid: Its user.
    """

    def __init__(self, base: Path, program: str, uid: int) -> None:
        self.uid = uid
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c"),
                f"{PROGRAM}{program}\nprint('ready', flush=True)\ntime.sleep(600)",
                *(str(uid), str(base / f"django_pooled-{uid}")),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
