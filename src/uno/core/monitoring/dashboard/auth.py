"""Who may see the dashboard?

One token for the dashboard; a browser exchanges it for a signed cookie. A token that nobody chose is made of 256
random bits, and the workers of one server share it through a file that only their user can read.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import math
import os
import secrets
import stat
import sys
import tempfile
import time
from pathlib import Path

from uno.core.monitoring.dashboard.web import HTTPError, Request

log = logging.getLogger("uno.dashboard")

VARIABLE = "UNO_DASHBOARD_TOKEN"
SESSION_SECONDS = 7 * 86_400
FAILURES, WINDOW = 10, 60.0  # refused tokens from one address in so many seconds
MAX_ADDRESSES = 1_000
STRONG, VARIED = (
    22,
    10,
)  # characters, and different ones, of a token that nobody guesses: 128 random bits in base64


class TokenAuth:
    """Checks tokens and cookies. It keeps no sessions: a cookie is valid by its signature, in every worker."""

    def __init__(self, token: str) -> None:
        self._token = token.encode("utf-8", "surrogatepass")
        # Cookies ignore ports: two services on one host must not take each other's away.
        self.cookie = "uno_" + self._sign("cookie name")[:8]
        self._strong = len(token) >= STRONG and len(set(token)) >= VARIED
        #: by address: how many wrong tokens are not forgiven yet, and as of when; one is every six seconds
        self._failures: dict[str, tuple[float, float]] = {}

    def allows(self, request: Request) -> bool:
        """Whether a request carries a valid cookie or ``Authorization: Bearer``. HTTPError 429 after too many
        wrong tokens."""
        if any(self._is_valid(value) for value in request.cookies(self.cookie)):
            return True
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and bool(token) and self.accepts(token.strip(), request)

    def accepts(self, token: str, request: Request) -> bool:
        """Whether this is the token, in time that tells nothing. HTTPError 429 after too many wrong ones.

        A token that cannot be guessed is let in all the same: behind a proxy, the one who guesses and the one who
        knows have one address. A weaker one has to wait with the rest, since an answer would be one more guess.
        """
        right = hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self._token)
        if right and self._strong:
            return True
        address, now = _address(request), time.monotonic()
        count, then = self._failures.get(address, (0.0, now))
        count = max(0.0, count - (now - then) * FAILURES / WINDOW)
        if count > FAILURES - 1:
            wait = math.ceil((count - FAILURES + 1) * WINDOW / FAILURES)
            raise HTTPError(429, f"Too many wrong tokens. Try again in {wait} s.", {"retry-after": str(wait)})
        self._failures.pop(address, None)
        if right:
            return True
        if len(self._failures) >= MAX_ADDRESSES:
            del self._failures[next(iter(self._failures))]
        self._failures[address] = (count + 1, now)
        return False

    def session(self) -> str:
        """The value of a new session's cookie."""
        expires = int(time.time()) + SESSION_SECONDS
        nonce = secrets.token_urlsafe(9)
        return f"{expires}.{nonce}.{self._sign(f'session {expires} {nonce}')}"

    def set_cookie(self, request: Request) -> str:
        """The Set-Cookie headers, by lines.

        The second has no path, so it is for ``<dashboard>/api/`` as the browser sees it: behind a proxy that cuts
        off a prefix and does not say which, the first one's path is not the browser's.
        """
        flags = f"Max-Age={SESSION_SECONDS}; HttpOnly; SameSite=Strict"
        if request.scope.get("scheme") == "https":
            flags += "; Secure"
        value = self.session()
        path = "".join(c for c in request.base if c > " " and c not in ";\x7f" and c.isascii()) or "/"
        return f"{self.cookie}={value}; Path={path}; {flags}\n{self.cookie}={value}; {flags}"

    def _is_valid(self, value: str) -> bool:
        expires, _, rest = value.partition(".")
        nonce, _, signature = rest.partition(".")
        expected = self._sign(f"session {expires} {nonce}")
        if not hmac.compare_digest(signature.encode("utf-8", "replace"), expected.encode()):
            return False
        return expires.isdigit() and int(expires) > time.time()

    def _sign(self, text: str) -> str:
        data = text.encode("utf-8", "replace")
        return hmac.new(self._token, b"uno dashboard " + data, hashlib.sha256).hexdigest()


def _address(request: Request) -> str:
    """The peer; of an IPv6 address the network, which one visitor has whole."""
    host = str((request.scope.get("client") or ("", 0))[0])[:64]
    return ":".join(host.split(":")[:4]) if ":" in host else host


def is_cross_site(request: Request) -> bool:
    """Whether a page of another site sent this: by Sec-Fetch-Site, else by the Origin's host."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    if origin is None:
        return False  # not a browser
    host = origin.partition("://")[2].lower()
    hosts = (request.headers.get("host", ""), request.headers.get("x-forwarded-host", ""))
    return not host or host not in (known.lower() for known in hosts)


# -- the token that nobody chose -----------------------------------------------------------------------


class SharedToken:
    """A token of 256 random bits, the same for all processes that the same parent started with the same command.

    Where no private folder can be had the token is this process's own.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._lock: int | None = None
        self._folder = _private_folder()
        self._stem = _stem(service) if self._folder is not None else None
        self.value = self._shared() or secrets.token_urlsafe(32)

    def _shared(self) -> str | None:
        if self._folder is None or self._stem is None:
            return None
        path = self._folder / f"{self._stem}.token"
        fresh = self._folder / f".{os.getpid()}-{secrets.token_hex(4)}"
        try:
            _forget_dead(self._folder)
            with contextlib.suppress(FileNotFoundError):
                return _read(path)
            descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32))
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)  # whole or not at all; the first worker wins
            return _read(path)
        except OSError as error:
            log.debug("the token is not shared with other workers: %s", type(error).__name__)
            return None
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink()

    def speaks(self, path: str) -> bool:
        """Whether this process is the one that prints the address: one of all that share the token."""
        if self._lock is not None or self._folder is None or self._stem is None:
            return True
        try:
            import fcntl

            name = hashlib.sha256(path.encode("utf-8", "replace")).hexdigest()[:8]
            self._lock = os.open(self._folder / f"{self._stem}-{name}.lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the process ends
        except BlockingIOError:
            self.close()
            return False
        except (ImportError, OSError):
            self.close()
        return True

    def close(self) -> None:
        """Let another process speak."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _private_folder() -> Path | None:
    """A folder of this user that nobody else can look into; None where there is none."""
    if sys.platform == "win32":
        return None
    given = os.environ.get("XDG_RUNTIME_DIR")
    bases = [Path(given) / "uno"] if given and os.path.isdir(given) else []
    bases.append(Path(tempfile.gettempdir()) / f"uno-{os.getuid()}")
    for folder in bases:
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(0o700)
            found = folder.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
    return None


def _read(path: Path) -> str | None:
    """A token file's content; None when it is not ours alone or holds no token."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(descriptor) as file:
        found = os.fstat(file.fileno())
        token = file.read(200).strip()
    return token if found.st_uid == os.getuid() and not found.st_mode & 0o077 and len(token) >= 43 else None


def _stem(service: str) -> str | None:
    """The same for all workers of one server: its pid and start, and what was started."""
    import psutil

    parent = os.getppid()
    try:
        started = psutil.Process(parent).create_time()
        where = os.getcwd()
    except (psutil.Error, OSError):
        return None
    what = "\0".join((service, where, f"{started:.1f}", *sys.argv))
    return f"{parent}-{hashlib.sha256(what.encode('utf-8', 'replace')).hexdigest()[:16]}"


def _forget_dead(folder: Path) -> None:
    """Remove the files of servers that have ended."""
    import psutil

    for path in list(folder.iterdir())[:1_000]:
        pid = path.name.partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            with contextlib.suppress(OSError):
                path.unlink()
