"""pgpool-II before a primary and its standby, for the tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from embedded_postgres import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer

__all__ = ["PROGRAM", "Pgpool"]

PROGRAM = shutil.which("pgpool", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/bin")


class Pgpool:
    """One pgpool-II in streaming replication mode, which sends what only reads to the standby.

    Args:
        primary: Where it sends all else; its passwords are MD5 or in the clear.
        standby: Where it sends what only reads.
        weights: How often each of the two is chosen for what only reads.
        more: Other settings of its.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        primary: EmbeddedServer,
        standby: EmbeddedServer,
        weights: tuple[int, int] = (0, 1),
        **more: object,
    ) -> None:
        self.port = free_port()
        self._primary = primary
        self._folder = Path(tempfile.mkdtemp(prefix="pgpool-", dir="/tmp"))
        self._folder.chmod(0o755)
        settings: dict[str, object] = {
            "backend_clustering_mode": "streaming_replication",
            "listen_addresses": self.host,
            "port": self.port,
            "pcp_port": free_port(),
            "pid_file_name": self._folder / "pgpool.pid",
            "num_init_children": 4,
            "sr_check_user": primary.user,
            "sr_check_password": primary.password,
            "sr_check_period": 1,
            "sr_check_database": "postgres",
            "health_check_period": 0,
            # Else the end of one session counts as that of its server, which is then left.
            "failover_on_backend_shutdown": "off",
            "failover_on_backend_error": "off",
            "pool_passwd": self._folder / "pool_passwd",
            "allow_clear_text_frontend_auth": "on",
        }
        for name in ("socket_dir", "pcp_socket_dir", "logdir", "work_dir", "memqcache_oiddir"):
            settings[name] = self._folder
        for number, server in enumerate((primary, standby)):
            settings[f"backend_hostname{number}"] = server.host
            settings[f"backend_port{number}"] = server.port
            settings[f"backend_weight{number}"] = weights[number]
        settings.update(more)
        lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        self._config = self._folder / "pgpool.conf"
        self._config.write_text(lines)
        (self._folder / "pool_passwd").write_text(f"{primary.user}:TEXT{primary.password}\n")
        (self._folder / "pcp.conf").touch()

    def __enter__(self) -> Pgpool:
        assert PROGRAM is not None
        as_user: dict[str, Any] = {}
        if sys.platform != "win32" and os.geteuid() == 0:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, "nobody")
            as_user = {"user": "nobody", "extra_groups": []}
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "-n", "-f", self._config, "-F", self._folder / "pcp.conf"],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **as_user,
            )
        wait_until(self._serves_both, timeout=30, what="pgpool-II serves")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(20.0)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def parameters(self) -> dict[str, Any]:
        return {**self._primary.parameters("postgres"), "host": self.host, "port": self.port}

    def _serves_both(self) -> bool:
        with psycopg.connect(**self.parameters(), autocommit=True) as connection:
            nodes = connection.execute("SHOW pool_nodes").fetchall()
        return {"primary", "standby"} <= {word for node in nodes for word in node}
