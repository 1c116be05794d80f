"""Certificates and keys at work: read from files, and read again when the files change, without a restart.

Nobody has to watch the files. Whoever is about to make a connection asks for the newest material, and at most once a
second that looks at the files. Material that cannot be used (half written, or a key of another certificate) is told
once, and what was in use before stays in use.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

from sidecar.core.errors import SettingsError
from sidecar.settings.tls import ClientTlsSettings, ServerTlsSettings

logger = logging.getLogger(__name__)
LOOK_PERIOD_S = 1.0  # an orchestrator replaces a certificate hours before the old one expires

_Stamp = tuple[tuple[int, int, int] | None, ...]


class ChangingFiles:
    """Files that somebody else may replace. Says whether they have changed since they were last taken."""

    def __init__(self, paths: Iterable[Path], time_s: Callable[[], float] = time.monotonic) -> None:
        self._paths = tuple(paths)
        self._time_s = time_s
        self._taken = self.stamp()
        self._look_at_s = time_s() + LOOK_PERIOD_S

    def stamp(self) -> _Stamp:
        """Return what tells one content of the files from another, without reading them."""
        return tuple(map(_stamp_of, self._paths))

    def changed(self, *, now: bool = False) -> _Stamp | None:
        """Return the stamp of the new content; None if nothing changed, or, unless `now`, if it is too soon to look."""
        now_s = self._time_s()
        if now_s < self._look_at_s and not now:
            return None
        self._look_at_s = now_s + LOOK_PERIOD_S
        stamp = self.stamp()
        return None if stamp == self._taken else stamp

    def take(self, stamp: _Stamp) -> None:
        """The content with this stamp has been read, be it usable or not."""
        self._taken = stamp


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()  # of what a symbolic link leads to: Kubernetes replaces the link
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pem:
    """What the files hold. Out of the repr, so that no log shows a key."""

    context: ssl.SSLContext
    authorities: bytes | None
    certificates: bytes | None
    key: bytes | None

    def __repr__(self) -> str:
        return "_Pem(…)"


class Material:
    """The certificates and the key of one place. Raises SettingsError if they cannot be used at the start."""

    def __init__(
        self,
        settings: ServerTlsSettings | ClientTlsSettings,
        where: str,
        time_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`where` is the setting that names the files, e.g. `tls.listen`."""
        self._settings = settings
        self._where = where
        self._files = ChangingFiles(filter(None, _files_of(settings)), time_s)
        self._pem = _read(settings, where)
        self.version = 0  # grows with each change that was taken

    def refresh(self) -> int:
        """Take what the files hold by now, and return the version of what is in use."""
        stamp = self._files.changed()
        if stamp is None:
            return self.version
        try:
            pem = _read(self._settings, self._where)
        except SettingsError as error:
            if stamp == self._files.stamp():
                self._files.take(stamp)
                logger.error("%s; the certificates before stay in use", error)
            return self.version
        if stamp == self._files.stamp():  # else they are being replaced: the next look reads them again
            self._files.take(stamp)
            self._pem = pem
            self.version += 1
            logger.info("%s: the certificates have changed; new connections use them", self._where)
        return self.version

    # ---- for gRPC ----------------------------------------------------------------------------------------------------

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of a server that shows the newest certificate to each new connection."""
        used = self.version

        def newest() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            if used == self.refresh():
                return None
            used = self.version
            return self._server_configuration()

        asks = self._pem.authorities is not None
        return grpc.dynamic_ssl_server_credentials(
            self._server_configuration(),
            newest,  # type: ignore[arg-type]  # the stubs forget that None stands for no change
            asks,
        )

    def _server_configuration(self) -> grpc.ServerCertificateConfiguration:
        pem = self._pem
        assert pem.key is not None, "the settings of a server have both"
        assert pem.certificates is not None, "the settings of a server have both"
        return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificates)], pem.authorities)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a channel, as the files are now: a channel keeps what it was made with."""
        pem = self._pem
        return grpc.ssl_channel_credentials(pem.authorities, pem.key, pem.certificates)

    def channel_options(self) -> tuple[tuple[str, str], ...]:
        """What a channel needs to know beside its credentials."""
        name = self._settings.server_name if isinstance(self._settings, ClientTlsSettings) else ""
        return (("grpc.ssl_target_name_override", name),) if name else ()

    # ---- for HTTP ----------------------------------------------------------------------------------------------------

    def server_context(self) -> ssl.SSLContext:
        """A context that hands each new connection to the newest one."""
        return _Newest.over(self)

    def newest_context(self) -> ssl.SSLContext:
        """The context that holds what the files hold by now."""
        self.refresh()
        return self._pem.context


class _Newest(ssl.SSLContext):
    """asyncio asks a context for one object per connection; this one asks the newest context for it."""

    material: Material

    @classmethod
    def over(cls, material: Material) -> _Newest:
        made = cls(ssl.PROTOCOL_TLS_SERVER)
        made.material = material
        return made

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        context = self.material.newest_context()
        return context.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def material(settings: ServerTlsSettings | ClientTlsSettings | None, where: str) -> Material | None:
    """Return the material of one place; None if the settings ask for no TLS there. Raises SettingsError."""
    return None if settings is None else Material(settings, where)


def _files_of(settings: ServerTlsSettings | ClientTlsSettings) -> tuple[Path | None, Path | None, Path | None]:
    """The files of authorities, certificates and key."""
    authorities = settings.client_ca_file if isinstance(settings, ServerTlsSettings) else settings.ca_file
    return authorities, settings.certificate_file, settings.key_file


def _read(settings: ServerTlsSettings | ClientTlsSettings, where: str) -> _Pem:
    """Read the files, and check that they belong together. Raises SettingsError."""
    serves = isinstance(settings, ServerTlsSettings)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT)
    authorities, certificates, key = (None if each is None else _bytes(each, where) for each in _files_of(settings))
    if settings.certificate_file is not None and settings.key_file is not None:
        try:
            context.load_cert_chain(settings.certificate_file, settings.key_file, password=lambda: "")
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            pair = f"{settings.certificate_file} and {settings.key_file}"
            raise SettingsError(f"{where}: {pair} are no certificate and its key: {_reason(error)}") from None
    if authorities is not None:
        try:
            context.load_verify_locations(cadata=authorities.decode())
        except (OSError, ValueError) as error:
            raise SettingsError(f"{where}: {_files_of(settings)[0]} holds no certificate: {_reason(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return _Pem(context=context, authorities=authorities, certificates=certificates, key=key)


def _bytes(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{where}: cannot read {path}: {error.strerror}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
