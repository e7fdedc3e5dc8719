"""What `storage.url` may be, and that its password is shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_core import PydanticCustomError

from gateway.controlplane.config import Config
from gateway.controlplane.loader import load
from gateway.controlplane.storageurl import StorageURL
from tests.gateway import config_text

PASSWORD = "p@ss/w:rd#1"
URL = "postgresql://gate:p%40ss%2Fw%3Ard%231@db.example:5433/gateway?sslmode=verify-full&sslrootcert=/etc/ca.pem"
PEPPER = "8c1f0b7d3e5a49627f08d1c4b6e2a953"


def config(url: str, folder: Path) -> Config:
    file = folder / "gateway.yaml"
    upstreams = [{"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"}]
    auth = {"required": False, "pepper": PEPPER}
    file.write_text(config_text({"auth": auth, "upstreams": upstreams, "storage": {"url": url}}, folder))
    return load(file, {})


def test_every_part_of_a_url_is_understood() -> None:
    place = StorageURL.parse(URL).postgresql
    assert place is not None
    assert (place.host, place.port, place.database, place.user) == ("db.example", 5433, "gateway", "gate")
    assert place.password.reveal() == PASSWORD
    assert dict(place.parameters) == {"sslmode": "verify-full", "sslrootcert": "/etc/ca.pem"}


def test_a_url_of_few_parts_is_enough() -> None:
    url = StorageURL.parse("postgres://db/gateway")
    assert url.postgresql is not None
    assert (url.postgresql.port, url.postgresql.user, bool(url.postgresql.password)) == (5432, "", False)
    assert str(StorageURL.parse("postgresql://[::1]/gateway")) == "postgresql://[::1]:5432/gateway"


def test_the_password_is_in_nothing_that_is_shown(tmp_path: Path) -> None:
    loaded = config(URL, tmp_path)
    shown = (str(loaded), repr(loaded), loaded.model_dump_json(), str(loaded.storage.url))
    for text in shown:
        assert "db.example" in text
        assert not any(secret in text for secret in (PASSWORD, "p%40ss", "w%3Ard"))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://gate:{PASSWORD}@db/gateway",
        f"postgresql://gate:{PASSWORD.replace('#', '%23')}@db/gateway",
        f"mysql://gate:{PASSWORD}@db/gateway",
        "postgresql://gate:secret-1@/gateway",
        "postgresql://gate:secret-1@db:port/gateway",
        "postgresql://gate:secret-1@db:0/gateway",
        "postgresql://gate:secret-1@db/",
        "postgresql://gate:secret-1@db/a/b",
        "postgresql://gate:secret-1@db/x?passfile=/etc/shadow",
        "postgresql://gate:secret-1@db/x?sslmode",
        "postgresql://gate:sec ret-1@db/x",
        "sqlite:///",
        "sqlite://",
        "",
    ],
)
def test_what_is_no_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(PydanticCustomError) as told:
        StorageURL.parse(url)
    assert not any(secret in str(told.value) for secret in (PASSWORD, "secret-1", "sec ret-1"))


def test_what_is_this_gateways_own_is_in_a_file(tmp_path: Path) -> None:
    assert config(URL, tmp_path).storage.file == "sqlite:///var/gateway.db"
    assert config("sqlite:///elsewhere.db", tmp_path).storage.file == "sqlite:///elsewhere.db"
