"""Settings: what users write, what is stored, and what becomes of values that nobody should have stored."""

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.core.config import (
    DEFAULTS,
    MESSAGE_LIMIT,
    READ_ONLY,
    SETTINGS,
    SHOWN_TEXT,
    Compression,
    Framing,
    StoredConfig,
    TopicConfig,
    TopicFacts,
    format_value,
    parse_change,
)
from dnpipefs.core.names import FileId, Offset, Revision
from dnpipefs.errors import InvalidSetting, ReadOnlySetting

limits = st.none() | st.integers(1, 2**63 - 1)
configs = st.builds(
    TopicConfig,
    st.sampled_from(Framing),
    limits,
    limits,
    limits,
    st.integers(1, MESSAGE_LIMIT),
    st.sampled_from(Compression),
)
unknown_fields = st.dictionaries(
    st.text().filter(lambda name: name not in SETTINGS), st.integers() | st.text()
)


def texts(config: TopicConfig) -> dict[str, str | None]:
    return {name: format_value(name, config) for name in SETTINGS}


def test_every_field_is_a_setting() -> None:
    assert [found.attribute for found in SETTINGS.values()] == [field.name for field in fields(TopicConfig)]


@given(configs)
def test_what_is_shown_can_be_set(config: TopicConfig) -> None:
    """Invariant 1 of settings, through what etcd stores."""
    stored = StoredConfig().changed(parse_change(texts(config)))
    assert StoredConfig(json.loads(json.dumps(stored.fields))) == stored
    assert stored.effective == config
    assert stored.complaints == ()


@pytest.mark.parametrize(
    ("name", "text", "value", "shown"),
    [
        ("framing", "write", "write", "write"),
        ("framing", " line\n", "line", "line"),
        ("compression", "none", "none", "none"),
        ("retention.bytes", "10MiB", 10 << 20, "10MiB"),
        ("retention.bytes", "64 KiB", 64 << 10, "64KiB"),
        ("retention.bytes", "1gib", 1 << 30, "1GiB"),
        ("retention.bytes", "2TiB", 2 << 40, "2TiB"),
        ("retention.bytes", "500KB", 500_000, "500KB"),
        ("retention.bytes", "3MB", 3_000_000, "3MB"),
        ("retention.bytes", "4096", 4096, "4KiB"),
        ("retention.bytes", "12345", 12345, "12345"),
        ("retention.bytes", "7B", 7, "7"),
        ("retention.bytes", "none", None, "none"),
        ("retention.bytes", "", None, "none"),
        ("retention.age", "30s", 30 * 10**9, "30s"),
        ("retention.age", "15m", 15 * 60 * 10**9, "15m"),
        ("retention.age", "12h", 12 * 3600 * 10**9, "12h"),
        ("retention.age", "7d", 7 * 86400 * 10**9, "7d"),
        ("retention.age", "2w", 14 * 86400 * 10**9, "14d"),
        ("retention.age", "90m", 90 * 60 * 10**9, "90m"),
        ("retention.age", "1500ms", 1500 * 10**6, "1500ms"),
        ("retention.messages", "1000", 1000, "1000"),
        ("max_message", "16MiB", 16 << 20, "16MiB"),
        ("max_message", "1", 1, "1"),
        ("dead_letter", "/team/broken", "team/broken", "team/broken"),
        ("dead_letter", "d/" * 2047 + "a", "d/" * 2047 + "a", "d/" * 2047 + "a"),
    ],
)
def test_values(name: str, text: str, value: object, shown: str) -> None:
    assert parse_change({name: text}) == {name: value}
    assert format_value(name, StoredConfig({name: value}).effective) == shown


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("framing", "lines", "line or write"),
        ("framing", "", "line or write"),
        ("compression", "lz4", "zstd or none"),
        *[
            ("retention.bytes", text, "a size such as 10MiB")
            for text in ("0", "-1", "1.5GiB", "10M", "x", "8388608TiB")
        ],
        *[
            ("retention.bytes", text, "a size such as 10MiB")
            for text in ("9" * 30, "1_000", "\u0661", "KiB", "7d")
        ],
        *[("retention.age", text, "such as 30s, 15m") for text in ("30", "1h30m", "7 days", "0s", "\\xff")],
        *[("retention.messages", text, "a number such as 1000") for text in ("1k", "0", "many")],
        *[("dead_letter", text, "path of a topic") for text in ("/", "a@b", "n" * 256)],
        *[("dead_letter", text, "path of a topic") for text in ("d/" * 2047 + "ab", "/" * 4095 + "a")],
        *[("max_message", text, "from 1 to 16MiB") for text in ("0", "none", "", "16777217", "17MiB")],
    ],
)
def test_bad_values_are_told_what_is_allowed(name: str, text: str, allowed: str) -> None:
    with pytest.raises(InvalidSetting, match=allowed) as caught:
        parse_change({name: text})
    shown = text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT] + "…"
    assert str(caught.value).startswith(f"{name}: {shown!r} is not")
    assert len(str(caught.value)) < 2 * SHOWN_TEXT + 100


@given(st.sampled_from(list(SETTINGS)), st.text())
def test_any_text_is_a_value_or_refused(name: str, text: str) -> None:
    try:
        change = parse_change({name: text})
    except InvalidSetting:
        return
    assert StoredConfig(change).complaints == ()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("frame", r"did you mean framing\?"),
        ("retention.byte", r"did you mean retention\.bytes\?"),
        ("maxmessage", r"did you mean max_message\?"),
        ("xyz", "there are framing, retention.bytes, retention.age"),
    ],
)
def test_unknown_names_are_told_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InvalidSetting, match=hint):
        parse_change({"framing": "write", name: "1"})
    with pytest.raises(InvalidSetting, match=hint):
        parse_change({name: None})


@pytest.mark.parametrize("name", READ_ONLY)
@pytest.mark.parametrize("text", ["1", None])
def test_facts_cannot_be_set(name: str, text: str | None) -> None:
    with pytest.raises(ReadOnlySetting, match=name):
        parse_change({name: text})


@given(configs, unknown_fields, st.sets(st.sampled_from(list(SETTINGS))))
def test_unset_is_the_default_and_what_is_not_known_stays(
    config: TopicConfig, unknown: dict[str, Any], names: set[str]
) -> None:
    """Invariant 2 of settings: of fields of a later release."""
    stored = StoredConfig(unknown).changed(parse_change(texts(config)))
    after = stored.changed(parse_change(dict.fromkeys(names)))
    for name, found in SETTINGS.items():
        assert found.of(after.effective) == (found.default if name in names else found.of(config))
    assert after.fields.items() >= unknown.items()
    assert after.fields.keys() & names == set()
    back = after.changed(parse_change(dict.fromkeys(SETTINGS)))
    assert (back.fields, back.effective) == (unknown, DEFAULTS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("framing", value) for value in ("record", 1, None, ["line"], {"a": 1})],
        *[("retention.bytes", value) for value in ("10MiB", 0, -1, 1.5, True, 2**63)],
        *[("max_message", value) for value in (None, 0, MESSAGE_LIMIT + 1, "1MiB")],
        ("compression", "lz4"),
    ],
)
def test_a_stored_value_that_cannot_be_leaves_the_default(name: str, value: object) -> None:
    """Invariant 2 of settings: other settings hold, and the value stays until it is set anew."""
    other = "retention.messages"
    stored = StoredConfig({name: value, other: 9})
    (complaint,) = stored.complaints
    assert name in complaint
    assert format_value(name, DEFAULTS) in complaint
    assert stored.effective == TopicConfig(retention_messages=9)
    assert stored.changed(parse_change({other: "8"})).fields == {name: value, other: 8}
    mended = stored.changed(parse_change({name: format_value(name, DEFAULTS)}))
    assert (mended.fields, mended.complaints) == ({other: 9}, ())


def test_facts_as_text() -> None:
    facts = TopicFacts(FileId(0xAB), Revision(7), 3, Offset(0), Offset(10), Revision(9))
    shown = {name: facts.text(name) for name in READ_ONLY}
    assert shown == {
        "id": "00000000000000ab",
        "generation": "7",
        "messages": "3",
        "first_offset": "0",
        "end_offset": "10",
        "revision": "9",
    }
