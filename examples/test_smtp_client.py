"""Are the clients of smtplib seen as they are, against a server that speaks SMTP?"""

from __future__ import annotations

import smtplib
import socketserver
import threading
from collections.abc import Iterator

import pytest

from examples.smtp_client import SmtpMonitor
from uno.testing import Watched, everything_said, meets_contract, watching

SECRET = "correct-horse-battery"


class Mailbox(socketserver.StreamRequestHandler):
    """Takes every mail but those for nobody."""

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        for line in self.rfile:
            word = line[:4].upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                while self.rfile.readline().strip() != b".":
                    pass
            elif word == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write(b"550 nobody\r\n" if b"<nobody" in line else b"250 fine\r\n")


@pytest.fixture
def port() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def send(client: smtplib.SMTP, to: str = "shop@example.org") -> object:
    return client.sendmail("me@example.org", to, "Subject: hello\r\n\r\nhello")


def test_the_contract(port: int) -> None:
    def make() -> smtplib.SMTP:
        client = smtplib.SMTP()
        client.password = SECRET  # as login() leaves it there
        return client

    def use(client: smtplib.SMTP) -> object:
        client.connect("127.0.0.1", port)
        with client:
            return send(client)

    meets_contract(SmtpMonitor, make, use, secret=SECRET)


def test_mails_and_refusals(port: int) -> None:
    with watching(SmtpMonitor) as monitor, smtplib.SMTP("127.0.0.1", port) as client:
        smtp = Watched(monitor, client)
        assert smtp.resource.endpoint == f"127.0.0.1:{port}"
        assert send(client) == send(client) == {}
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(client, "nobody@example.org")
        smtp.until(3, "smtp.send.duration", "count")
        smtp.until(1, "uno.resource.errors", "total")
        assert smtp.read("smtp.connected") == 1
        assert "SMTPRecipientsRefused" in smtp.explain()
        assert "nobody" not in everything_said(monitor)
