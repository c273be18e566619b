"""Which hosts a URL of PostgreSQL names, in every form that libpq has."""

import pytest

from store_service.database_url import parse


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u:p@db/store", (("db", 5432),)),
        ("postgresql://u:p@db:6432/store", (("db", 6432),)),
        ("postgresql://u@[::1]:6432/store", (("::1", 6432),)),
        ("postgresql://u@a:1,b:2/store", (("a", 1), ("b", 2))),
        ("postgresql://u@127.0.0.1,localhost:6432/store", (("127.0.0.1", 5432), ("localhost", 6432))),
        ("postgresql://u@[::1]:1,[::2]/store", (("::1", 1), ("::2", 5432))),
        ("postgresql:///store?host=/run/postgresql", (("/run/postgresql", 5432),)),
        ("postgresql://u@/store?host=/run/postgresql&port=6432", (("/run/postgresql", 6432),)),
        ("postgresql://u@%2Frun%2Fpostgresql/store", (("/run/postgresql", 5432),)),
        ("postgresql://u@%2Frun%2Fpostgresql:6432/store", (("/run/postgresql", 6432),)),
        ("postgresql://u@/store?host=a,b&port=1,2", (("a", 1), ("b", 2))),
        ("postgresql://u@/store?host=a,b&port=6432", (("a", 6432), ("b", 6432))),
    ],
)
def test_url_hosts_are_parsed(url: str, hosts: tuple[tuple[str, int], ...]) -> None:
    """Hosts are in order, with the default port."""
    assert parse(url).hosts == hosts
    assert parse(url).database == "store"


def test_login_is_decoded_and_hidden() -> None:
    """User, password and database may have percent-encoded characters."""
    url = parse("postgresql://us%40er:p%2Fa%40ss@db/st%20ore?sslmode=require&target_session_attrs=primary")

    assert url.login == {"user": "us@er", "password": "p/a@ss", "database": "st ore"}
    assert url.options == {"sslmode": "require", "target_session_attrs": "primary"}
    assert "ss@" not in f"{url} {url!r}".replace("us@er", "")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://u@a:1,b:x/store", "the port must be a number"),
        ("postgresql://u@a:0/store", "the port must be a number"),
        ("postgresql://u@a,,b/store", "must name a host"),
        ("postgresql:///store", "must name a host"),
        ("postgresql://u@a:1:2/store", "a host must be"),
        ("postgresql://u@a/store?host=b", "names hosts twice"),
        ("postgresql://u@/store?host=a&host=b", "has the option host twice"),
        ("postgresql://u@/store?host=a,b,c&port=1,2", "or one for each host"),
        ("postgresql://u@a/store?target_session_attrs=prefer-standby", "target_session_attrs must be"),
        ("postgresql://u@a/store?options=-c", "unknown option options"),
        ("postgresql://u@a/", "must name a host and a database"),
    ],
)
def test_unusable_url_is_explained(url: str, sentence: str) -> None:
    """The message names what to change."""
    with pytest.raises(ValueError, match=sentence):
        parse(url)
