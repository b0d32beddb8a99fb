"""Who visits the shop? Customers that come and go, through real HTTP requests from a thread of their own."""

from __future__ import annotations

import asyncio
import math
import random
import time

SKUS = ("tea", "cup", "pot", "tin", "spoon", "book")


class Client:
    """Sends requests to the shop. Without httpx, which belongs to the shop here and would be counted as its own."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    async def send(self, method: str, path: str) -> int:
        """The status of the answer; 0 when there was none in time."""
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    head = f"{method} {path} HTTP/1.1\r\nhost: {self.host}\r\ncontent-length: 0\r\n"
                    writer.write(head.encode() + b"connection: close\r\n\r\n")
                    answer = await reader.read()
                finally:
                    writer.transport.abort()
            return int(answer.split(b" ", 2)[1])
        except (OSError, TimeoutError, IndexError, ValueError):
            return 0


async def customers(client: Client) -> None:
    """Come for ever: about ten requests a second, more and less in waves of 40 s."""
    shopping: set[asyncio.Task[int]] = set()
    while True:
        wave = 1 + 0.6 * math.sin(2 * math.pi * time.monotonic() / 40)
        await asyncio.sleep(random.expovariate(10 * wave))
        if len(shopping) < 40:  # the shop is stuck: nobody queues longer than that
            task = asyncio.create_task(client.send(*_wish()))
            shopping.add(task)
            task.add_done_callback(shopping.discard)


def _wish() -> tuple[str, str]:
    sku = random.choice(SKUS)
    wishes = {
        ("GET", "/products"): 4,
        ("GET", f"/products/{sku}"): 3,
        ("POST", f"/orders?sku={sku}"): 2,
        ("GET", f"/orders/{random.randint(1, 50)}/receipt"): 1,
    }
    return random.choices(list(wishes), list(wishes.values()))[0]
