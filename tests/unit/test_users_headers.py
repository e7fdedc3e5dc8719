"""No headers make a person of somebody, but a signature."""

from __future__ import annotations

import time
from urllib.parse import quote

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.users import Identification
from gateway.domain.call import Client
from gateway.domain.errors import GatewayError, InvalidRequest, Unauthenticated
from gateway.domain.people import People, Team
from gateway.domain.principal import Principal
from gateway.domain.secret import Secret
from tests.people import ADA, BOB, SECRET, claims, handmade, plain, token
from tests.tiers import repeated

KEY = Principal("webui", key="webui")
SIGNED = People(
    jwt_secret=Secret(SECRET),
    trusted_headers=True,
    rights={"admin": frozenset({"adapters"})},
    teams={"lab": Team("lab", members=("*",), groups=("*",))},
)
NAMES = ("user-id", "user-email", "user-role", "user-name", "groups", "task", "chat-id", "auth-type")
PARTS = st.sampled_from(
    [*(part for one in (token(ADA), token(BOB)) for part in one.split(".")), "", "e30", "W10", "AA"]
)
CLAIMS = st.sampled_from(["sub", "iss", "exp", "role", "email", "groups"])
TOKENS = st.one_of(
    st.binary(max_size=64).filter(bytes.isascii),
    st.lists(PARTS, min_size=1, max_size=4).map(lambda parts: ".".join(parts).encode()),
    st.sampled_from(["none", "HS512", "RS256", "ES256", "hs256", None, ["HS256"]]).map(
        lambda algorithm: handmade({"alg": algorithm, "typ": "JWT"}, ADA).encode()
    ),
    st.text(min_size=1, max_size=40).map(lambda secret: token(secret=secret * 32).encode()),
    st.dictionaries(CLAIMS, st.none() | st.integers() | st.text()).map(
        lambda changes: handmade({"alg": "HS256"}, claims(**changes)).encode()
    ),
    st.builds(token, st.sampled_from([ADA, BOB])).map(str.encode),
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from([f"x-openwebui-{name}".encode() for name in NAMES]),
    st.text(max_size=40).map(lambda text: quote(text).encode()) | st.binary(max_size=40).filter(bytes.isascii),
    max_size=len(NAMES),
)


def identified(people: People, headers: dict[bytes, bytes]) -> Client | GatewayError:
    try:
        return Identification().client(people, KEY, headers, acts=True)
    except (Unauthenticated, InvalidRequest) as refusal:
        return refusal


def proves(presented: bytes) -> str | None:
    """Whom a token proves, by the rules of the library alone."""
    try:
        return str(jwt.decode(presented, SECRET, algorithms=["HS256"], issuer="open-webui", leeway=30)["sub"])
    except jwt.PyJWTError:
        return None


@repeated(200, 20_000)
def test_where_users_are_signed_nobody_is_anybody_without_a_signature(repetitions: int) -> None:
    @settings(max_examples=repetitions, deadline=None)
    @given(HEADERS, st.none() | TOKENS)
    def whatever_is_sent(headers: dict[bytes, bytes], presented: bytes | None) -> None:
        if presented is not None:
            headers = {**headers, b"x-openwebui-user-jwt": presented}
        found = identified(SIGNED, headers)
        if isinstance(found, Client):
            if presented is None:
                assert (found.user, found.verified, found.rights, found.team) == ("", False, frozenset(), "")
            else:
                assert found.verified
                assert found.user == proves(presented)

    whatever_is_sent()


@repeated(100, 10_000)
def test_where_nobody_is_trusted_nobody_is_anybody(repetitions: int) -> None:
    @settings(max_examples=repetitions, deadline=None)
    @given(HEADERS, TOKENS)
    def whatever_is_sent(headers: dict[bytes, bytes], presented: bytes) -> None:
        found = identified(People(), {**headers, b"x-openwebui-user-jwt": presented})
        assert isinstance(found, Client)
        assert (found.user, found.verified, found.roles, found.rights) == ("", False, frozenset(), frozenset())

    whatever_is_sent()


def test_a_token_that_was_verified_counts_until_it_expires_and_not_a_second_longer() -> None:
    now = time.time()
    identification = Identification(lambda: now)
    headers = {b"x-openwebui-user-jwt": token(exp=int(now) + 60).encode()}
    assert identification.client(SIGNED, KEY, headers, acts=True).user == ADA["sub"]
    now += 85  # the clocks may differ by 30
    assert identification.client(SIGNED, KEY, headers, acts=True).user == ADA["sub"]
    now += 6
    with pytest.raises(Unauthenticated, match="expired"):
        identification.client(SIGNED, KEY, headers, acts=True)


def test_a_token_that_was_verified_does_not_outlive_the_secret() -> None:
    identification, headers = Identification(), {b"x-openwebui-user-jwt": token().encode()}
    assert identification.client(SIGNED, KEY, headers, acts=True).verified
    with pytest.raises(Unauthenticated, match="not signed"):
        identification.client(People(jwt_secret=Secret(SECRET[::-1])), KEY, headers, acts=True)


def test_the_memory_of_tokens_is_bounded() -> None:
    identification = Identification()
    for number in range(1500):
        presented = token(sub=f"u-{number}").encode()
        found = identification.client(SIGNED, KEY, {b"x-openwebui-user-jwt": presented}, acts=True)
        assert found.user == f"u-{number}"
    assert len(identification._verified) == 1024


def test_refused_tokens_are_not_remembered() -> None:
    identification = Identification()
    for presented in (token(secret=SECRET[::-1]), token(iss="x"), "x"):
        for _ in range(2):
            with pytest.raises(Unauthenticated):
                identification.client(SIGNED, KEY, {b"x-openwebui-user-jwt": presented.encode()}, acts=True)
    assert not identification._verified


def test_in_a_trusted_network_the_plain_headers_are_the_person() -> None:
    headers = {name.encode(): value.encode() for name, value in plain(ADA)}
    found = Identification().client(People(trusted_headers=True), KEY, headers, acts=True)
    assert (found.user, found.verified, found.roles) == (ADA["sub"], True, frozenset({"admin"}))
