"""Where a webhook may not go: link-local and metadata addresses, however they are written or resolved."""

from __future__ import annotations

import pytest

from pilot.coreapi import InvalidValueError
from pilot.plugins.webhook.addresses import allowed_addresses, resolve
from pilot.plugins.webhook.poster import check_url

FORBIDDEN = [
    "http://169.254.169.254/latest/meta-data", "https://169.254.0.1", "http://169.254.169.254./",
    "http://2852039166/", "http://0xa9fea9fe/", "http://169.254.43518/",
    "http://[fe80::1]/", "http://[fe80::1%25eth0]:80/", "http://[febf::1]/", "http://[::ffff:169.254.169.254]/",
    "http://[::169.254.169.254]/", "http://[64:ff9b::a9fe:a9fe]/", "http://[2002:a9fe:a9fe::1]/",
    "http://[64:ff9b:1::a9fe:a9fe]/", "http://[::ffff:0:169.254.169.254]/",
    "http://224.0.0.1/", "http://[ff02::1]/", "http://[fd00:ec2::254]/", "http://100.100.100.200/",
    "http://metadata.google.internal/computeMetadata/v1/", "http://METADATA.google.INTERNAL./", "https://ec2.internal",
    "http://instance-data-service.ec2.internal", "http://metadata.azure.com/", "http://metadata.google.com:8080/",
]  # fmt: skip


@pytest.mark.parametrize("url", FORBIDDEN)
def test_forbidden_urls(url: str) -> None:
    with pytest.raises(InvalidValueError, match="URL cannot target"):
        check_url(url)


@pytest.mark.parametrize("url", ["http://a..b/", "http://.b/", f"http://{'a' * 64}.example/"])
def test_names_that_cannot_be_resolved(url: str) -> None:
    """The resolver answers them with an error that is none of the network."""
    with pytest.raises(InvalidValueError, match="no possible name"):
        check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/", "http://localhost/hook", "https://[::1]/", "http://10.0.0.1",
        "https://user:pw@example.org/", "http://fe80.example/", "http://169.253.0.1/", "http://[2002:a00:1::]/",
        "HTTPS://EXAMPLE.ORG/",
    ],
)  # fmt: skip
def test_allowed_urls(url: str) -> None:
    assert check_url(url).host


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://h/x", 'URL must use http or https scheme, got "ftp"'),
        ("h/x", "scheme"),
        ("", "scheme"),
        ("http:///path", "no host"),
        ("http://h:0/", "port"),
        ("http://h:70000/", "port"),
        ("http://h:port/", "cannot be used"),
        ("http://h/" + "x" * 3000, "limit"),
        ("http://h/\x00", "cannot be used"),
        ("http://0251.0376.0251.0376/", "cannot be used"),
    ],
)
def test_unusable_urls(url: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        check_url(url)


async def lookup(answer: list[str]) -> list[str]:
    async def fixed(host: str, port: int) -> list[str]:
        return answer

    return await allowed_addresses("hook.example", 80, fixed)


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1%eth0", "::ffff:169.254.1.1", "fd00:ec2::254"])
async def test_a_name_is_refused_for_one_forbidden_address(address: str) -> None:
    with pytest.raises(InvalidValueError, match="URL cannot target"):
        await lookup(["192.0.2.1", address])


async def test_names_resolve() -> None:
    assert await lookup([f"192.0.2.{n}" for n in range(9)]) == ["192.0.2.0", "192.0.2.1", "192.0.2.2", "192.0.2.3"]
    with pytest.raises(OSError, match="no address"):
        await lookup([])
    assert await resolve("127.0.0.1", 80) == ["127.0.0.1"]
