"""The choice of the proxy for a model server."""

import builtins

import pytest

from batch_pipeline.errors import ConfigurationError
from batch_pipeline.model_servers.http_transport import proxy_for

HOSTED = "https://api.example.com/v1"
PROXY = "http://user:secret@proxy.example:3128"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("HTTP", "HTTPS", "ALL", "NO"):
        monkeypatch.delenv(f"{name}_PROXY", raising=False)
        monkeypatch.delenv(f"{name.lower()}_proxy", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("HTTP_PROXY", PROXY)


def test_no_server_is_called_through_a_proxy_unless_a_setting_asks_for_it():
    assert proxy_for(HOSTED, "") == ""


def test_the_environment_is_used_when_asked_and_never_for_loopback():
    assert proxy_for(HOSTED, "environment") == PROXY
    assert proxy_for("http://gpu1:11434", "environment") == PROXY
    for loopback in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"):
        assert proxy_for(loopback, "environment") == ""


def test_the_address_of_a_proxy_is_for_every_server():
    assert proxy_for("http://127.0.0.1:1", PROXY) == PROXY


@pytest.mark.parametrize(
    ("no_proxy", "exempt"),
    [
        ("*", True),
        ("example.com", True),
        (".example.com", True),
        ("*.example.com", True),
        ("api.example.com:443", False),
        ("ample.com", False),
        ("other.org, api.example.com", True),
        ("10.0.0.0/8", False),
    ],
)
def test_no_proxy_exempts_hosts_domains_and_networks(monkeypatch, no_proxy, exempt):
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_for(HOSTED, "environment") == "") == exempt


@pytest.mark.parametrize(
    ("no_proxy", "exempt"),
    [
        ("fd00::1", True),
        ("[fd00::1]", True),
        ("[fd00::1]:11434", True),
        ("[fd00::1]:80", False),
    ],
)
def test_an_address_of_ipv6_in_no_proxy_may_have_a_port(monkeypatch, no_proxy, exempt):
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_for("http://[fd00::1]:11434", "environment") == "") == exempt


def test_a_network_in_no_proxy_exempts_its_addresses(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8")
    assert proxy_for("http://10.1.2.3:11434", "environment") == ""
    assert proxy_for("http://11.1.2.3:11434", "environment") == PROXY


@pytest.mark.parametrize("no_proxy", ["[::1", "http://api.example.com", "a b", "10.0.0.0/99"])
def test_the_error_for_an_invalid_no_proxy_is_a_sentence(monkeypatch, no_proxy):
    monkeypatch.setenv("NO_PROXY", f"localhost,{no_proxy}")
    with pytest.raises(ConfigurationError, match="NO_PROXY has an entry") as raised:
        proxy_for(HOSTED, "environment")
    assert repr(no_proxy) in str(raised.value)


@pytest.mark.parametrize("address", ["proxy.example", "ftp://proxy.example", "http://u:pw@:3128"])
def test_the_error_for_an_invalid_proxy_is_a_sentence_without_the_password(address):
    with pytest.raises(ConfigurationError, match="BATCH_PIPELINE_MODEL_PROXY") as raised:
        proxy_for(HOSTED, address)
    assert "http://proxy.example:3128" in str(raised.value)
    assert "pw" not in str(raised.value)


def test_the_error_for_a_socks_proxy_without_its_package_is_a_sentence(monkeypatch):
    real = builtins.__import__

    def without_socksio(name, *args, **kwargs):
        if name == "socksio":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_socksio)
    with pytest.raises(ConfigurationError, match="pip install socksio") as raised:
        proxy_for(HOSTED, "socks5://user:secret@proxy.example:1080")
    assert "secret" not in str(raised.value)
