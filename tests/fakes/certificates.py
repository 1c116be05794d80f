"""An authority of a test's own, and the certificates that it signs: by OpenSSL's command, as an operator makes them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc

from sidecar.settings.tls import ClientTlsSettings, ServerTlsSettings

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path

    def replaced_by(self, other: Pair) -> None:
        """The files of this pair hold the other one, as after a renewal."""
        for mine, new in ((self.certificate, other.certificate), (self.key, other.key)):
            staged = mine.with_suffix(".new")
            staged.write_bytes(new.read_bytes())
            staged.replace(mine)

    @property
    def fingerprint(self) -> str:
        """Its SHA-256, as the file of keys names a certificate."""
        shown = _openssl("x509", "-in", self.certificate, "-noout", "-fingerprint", "-sha256")
        return shown.strip().rpartition("=")[2].replace(":", "").lower()


class Authority:
    """Signs certificates, in a directory of its own."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self.certificate, self._key = directory / f"{name}.pem", directory / f"{name}.key"
        self._sign(("-x509", "-days", "2"), name, self.certificate, self._key)

    def issue(self, name: str, *, expired: bool = False) -> Pair:
        """A certificate for this host, whose common name is `name`."""
        pair = Pair(certificate=self._directory / f"{name}.pem", key=self._directory / f"{name}.key")
        request, extensions = self._directory / f"{name}.csr", self._directory / f"{name}.ext"
        self._sign((), name, request, pair.key)
        extensions.write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
        signed = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, "-out", pair.certificate, "-days", "-1" if expired else "2", *signed)
        return pair

    def trusted(self, own: Pair | None = None) -> grpc.ChannelCredentials:
        """What a gRPC client has that believes this authority, and shows `own`."""
        key, certificate = (None, None) if own is None else (own.key.read_bytes(), own.certificate.read_bytes())
        return grpc.ssl_channel_credentials(self.certificate.read_bytes(), key, certificate)

    def serving(self, pair: Pair, callers: Authority | None = None) -> ServerTlsSettings:
        """The settings of a port that shows `pair`, and lets in whom the authority `callers` signed."""
        ca_file = None if callers is None else callers.certificate
        return ServerTlsSettings(certificate_file=pair.certificate, key_file=pair.key, client_ca_file=ca_file)

    def believed(self, own: Pair | None = None) -> ClientTlsSettings:
        """The settings of a connection that believes this authority, and shows `own`."""
        if own is None:
            return ClientTlsSettings(ca_file=self.certificate)
        return ClientTlsSettings(ca_file=self.certificate, certificate_file=own.certificate, key_file=own.key)

    def _sign(self, options: tuple[str, ...], name: str, out: Path, key: Path) -> None:
        _openssl("req", "-new", *options, *_CURVE, "-subj", f"/CN={name}", "-keyout", key, "-out", out)


def _openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, text=True)
    return done.stdout
