"""Messages survive the wire, refuse what they do not understand, and carry equal ids for equal content."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.broker.protocol import Record
from stream.failure import PoisonError
from stream.identity import hash_parts
from stream.message import MemberMessage, MemberStatus, Message, MessageKind, OrderAction, OrderMessage, decode

DIGEST = hash_parts("test", 1)
EXPOSURE: dict[str, Any] = {
    "run": "prompt",
    "exposure": "r0000101001001001001_0001_wfi01_f158",
    "stage": "ramp_fit",
    "branch": "WFI_IMAGE",
    "identity": DIGEST,
    "manifest": f"results/{DIGEST}",
    "facts": {"detector": "WFI01", "locality": 1, "wcs": [0.1, -0.0]},
    "associations": ("a-1", "b-2"),
}
FINALIZE: dict[str, Any] = {
    **EXPOSURE,
    "kind": MessageKind.FINALIZE,
    "association": "a-1",
    "revision": 2,
    "solution": "solutions/x",
}
MEMBER: dict[str, Any] = {
    "run": "prompt",
    "association": "a-1",
    "member": "r1",
    "status": MemberStatus.OK,
    "branch": "WFI_IMAGE",
    "identity": DIGEST,
    "manifest": f"results/{DIGEST}",
    "tie_points": "objects/t",
    "tie_points_digest": DIGEST,
    "facts": {"start_time": "2027-01-01T00:00:00"},
}
ORDER: dict[str, Any] = {"run": "prompt", "association": "a-1", "action": OrderAction.REOPEN, "revision": 2}


def record(value: bytes | None) -> Record:
    return Record("prompt.ramp_fit", 3, 17, b"key", value, (), 0)


def wire(document: dict[str, Any], **changes: Any) -> Record:
    return record(json.dumps({**document, **changes}).encode())


def document(message: Message | MemberMessage | OrderMessage) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(message.encode())
    return decoded


@pytest.mark.parametrize(
    "message", [Message(**EXPOSURE), Message(**FINALIZE), MemberMessage(**MEMBER), OrderMessage(**ORDER)]
)
def test_messages_survive_the_wire(message: Message | MemberMessage | OrderMessage) -> None:
    decoded = decode(record(message.encode()))
    assert decoded == message
    assert type(decoded) is type(message)
    assert decoded.encode() == message.encode()


FACTS = st.dictionaries(
    st.text(max_size=5),
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False),
    max_size=4,
)


@given(FACTS)
@settings(deadline=None)
def test_facts_keep_every_bit(facts: dict[str, Any]) -> None:
    decoded = Message.from_record(record(Message(**{**EXPOSURE, "facts": facts}).encode()))
    assert {key: (type(value), repr(value)) for key, value in decoded.facts.items()} == {
        key: (type(value), repr(value)) for key, value in facts.items()
    }


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_a_message_or_poison(value: bytes) -> None:
    with pytest.raises(PoisonError, match=r"prompt\.ramp_fit\[3\]@17"):
        decode(record(value))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "has no value"),
        (b"\xff", "not JSON in UTF-8"),
        (b"{", "not JSON in UTF-8"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b"[" * 100_000, "not JSON in UTF-8"),
        (b"[]", "a JSON list, expected an object"),
        (b"{}", "run: Field required"),
    ],
)
def test_poison_says_where_it_lies_and_what_is_wrong(value: bytes | None, text: str) -> None:
    with pytest.raises(PoisonError, match=text) as raised:
        decode(record(value))
    assert "prompt.ramp_fit[3]@17" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"exposure": ""}, "exposure"),
        ({"exposure": "../../etc"}, "exposure"),
        ({"exposure": 7}, "exposure"),
        ({"identity": "abc"}, "identity"),
        ({"facts": []}, "facts"),
        ({"associations": ["a", "a"]}, "named twice"),
        ({"associations": "a"}, "associations"),
        ({"kind": "other"}, "kind"),
        ({"revision": 1}, "belong to finalize messages alone"),
        ({"kind": "finalize"}, "a finalize message names its association"),
        ({"kind": "finalize", "association": "a", "revision": 0}, "revision"),
        ({"colour": "red"}, "version 1.1 has no field 'colour'"),
    ],
)
def test_a_field_that_is_wrong_is_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(PoisonError, match=text):
        decode(wire(document(Message(**EXPOSURE)), **changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"status": "fine"}, "status"),
        ({"identity": None}, "has identity, manifest and branch"),
        ({"tie_points": None}, "come together"),
    ],
)
def test_a_member_status_that_is_wrong_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(PoisonError, match=text):
        decode(wire(document(MemberMessage(**MEMBER)), **changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"action": "delete"}, "action"),
        ({"action": "close"}, "to close cannot be for revision 2"),
        ({"revision": 1}, "to reopen cannot be for revision 1"),
        ({"revision": 0}, "revision"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(PoisonError, match=text):
        decode(wire(document(OrderMessage(**ORDER)), **changes))


def test_an_order_has_the_key_of_the_members_and_an_id_that_tells_what_it_wants() -> None:
    order = OrderMessage(**ORDER)
    assert order.key == MemberMessage(**MEMBER).key
    assert order.event_id("t") == OrderMessage(**ORDER).event_id("t")
    others = {order.replaced(**{name: value}).event_id("t") for name, value in [("revision", 3), ("association", "b")]}
    assert len(others | {order.event_id("t"), order.event_id("u")}) == 4


def test_messages_of_the_version_before_are_still_read() -> None:
    for message in (Message(**EXPOSURE), Message(**FINALIZE), MemberMessage(**MEMBER)):
        older = decode(wire(document(message), schema_version="1.0"))
        assert document(older) == {**document(message), "schema_version": "1.0"}


def test_a_failed_member_needs_no_result() -> None:
    failed = MemberMessage(run="r", association="a", member="m", status=MemberStatus.FAILED, reason="no flat")
    assert MemberMessage.from_record(record(failed.encode())) == failed


def test_fields_of_a_newer_minor_version_are_kept_and_emitted_again() -> None:
    newer = wire(document(Message(**EXPOSURE)), schema_version="1.7", colour={"deep": [1, None]})
    message = Message.from_record(newer)
    onwards = message.replaced(stage="photom")
    assert onwards.stage == "photom"
    assert document(onwards) == {**document(message), "stage": "photom"}
    assert document(onwards)["colour"] == {"deep": [1, None]}
    assert document(onwards)["schema_version"] == "1.7"


@pytest.mark.parametrize("name", ["self", "changes", "digest", "encode", "headers", "model_extra"])
def test_a_newer_field_may_be_called_as_anything_is_called_here(name: str) -> None:
    message = MemberMessage.from_record(wire(document(MemberMessage(**MEMBER)), schema_version="1.7", **{name: [1]}))
    assert document(message.replaced(member="r2")) == {**document(message), "member": "r2", name: [1]}
    assert document(Message(**FINALIZE).following(message))[name] == [1]


def test_what_follows_from_a_message_has_its_newer_fields_but_none_that_means_something_else_there() -> None:
    failed = MemberMessage(run="r", association="a", member="m", status=MemberStatus.FAILED, reason="no flat")
    cause = wire(document(Message(**EXPOSURE)), schema_version="1.7", colour="deep", reason=3, tie_points="objects/t")
    followed = failed.following(Message.from_record(cause))
    assert document(followed) == {**document(failed), "schema_version": "1.7", "colour": "deep"}
    assert followed.event_id("t") == failed.event_id("t")


def test_what_follows_from_a_message_without_newer_fields_is_as_it_is() -> None:
    finalize = Message(**FINALIZE)
    for changes in [{}, {"schema_version": "1.0"}, {"schema_version": "1.7"}, {"schema_version": "1.7", "stage": "s"}]:
        cause = MemberMessage.from_record(wire(document(MemberMessage(**MEMBER)), **changes))
        assert finalize.following(cause).encode() == finalize.encode()


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0"])
def test_another_major_version_is_refused_and_says_so(version: str) -> None:
    with pytest.raises(PoisonError, match=rf"major version of '{version}' is not supported, this software reads '1.1'"):
        decode(wire(document(Message(**EXPOSURE)), schema_version=version))


@pytest.mark.parametrize("version", ["1", "1.x", "", "1.01", "9" * 5000 + ".0"])
def test_a_version_that_is_none_is_poison(version: str) -> None:
    with pytest.raises(PoisonError):
        decode(wire(document(Message(**EXPOSURE)), schema_version=version))


def test_the_wrong_kind_is_poison() -> None:
    with pytest.raises(PoisonError, match="kind 'member', expected 'exposure'"):
        Message.from_record(record(MemberMessage(**MEMBER).encode()))
    with pytest.raises(PoisonError, match="kind 'exposure', expected 'member'"):
        MemberMessage.from_record(record(Message(**EXPOSURE).encode()))


def test_messages_are_immutable_and_do_not_share_their_facts() -> None:
    facts = {"a": [1]}
    message = Message(**{**EXPOSURE, "facts": facts})
    facts["a"].append(2)
    assert message.facts == {"a": [1]}
    with pytest.raises(pydantic.ValidationError):
        message.stage = "photom"
    with pytest.raises(pydantic.ValidationError, match="finite"):
        Message(**{**EXPOSURE, "facts": {"a": float("nan")}})
    with pytest.raises(pydantic.ValidationError):
        message.replaced(stage=7)


def test_headers_are_cloudevents_in_binary_mode() -> None:
    message = Message(**EXPOSURE)
    headers = dict(message.headers("prompt.ramp_fit", time=1_800_000_000.25, traceparent="00-a-b-01"))
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": message.event_id("prompt.ramp_fit").encode(),
        "ce_source": b"/rampstream/prompt",
        "ce_type": b"rampstream.exposure",
        "ce_subject": EXPOSURE["exposure"].encode(),
        "content-type": b"application/json",
        "schema_version": b"1.1",
        "ce_dataref": f"results/{DIGEST}".encode(),
        "ce_time": b"2027-01-15T08:00:00.250+00:00",
        "traceparent": b"00-a-b-01",
    }
    failed = MemberMessage(run="r", association="a", member="m", status=MemberStatus.FAILED)
    assert {name for name, _ in failed.headers("t")} & {"ce_time", "traceparent", "ce_dataref"} == set()
    assert dict(failed.headers("t"))["ce_type"] == b"rampstream.member"


def test_the_same_message_has_the_same_event_id_and_any_other_another() -> None:
    ids = {Message(**FINALIZE).event_id("t"), Message(**FINALIZE).event_id("t")}
    assert len(ids) == 1
    for name, value in [
        ("run", "other"), ("exposure", "e"), ("stage", "photom"), ("branch", "b"), ("identity", hash_parts("x")),
        ("associations", ("a-1",)), ("association", "b-2"), ("revision", 3), ("solution", None),
    ]:  # fmt: skip
        ids.add(Message(**{**FINALIZE, name: value}).event_id("t"))
    ids |= {Message(**FINALIZE).event_id("u"), Message(**EXPOSURE).event_id("t"), MemberMessage(**MEMBER).event_id("t")}
    assert len(ids) == 13


def test_a_repeat_of_a_member_is_known_by_result_and_status_not_by_words() -> None:
    base = MemberMessage(**MEMBER)
    assert base.replaced(reason="other words", facts={}, manifest="results/y/2").digest == base.digest
    others = {
        base.replaced(status=MemberStatus.SATURATED).digest,
        base.replaced(identity=hash_parts("x")).digest,
        base.replaced(tie_points_digest=hash_parts("x")).digest,
        base.replaced(member="r2").digest,
    }
    assert len(others | {base.digest}) == 5


def test_keys_keep_an_exposure_and_an_association_each_in_one_partition() -> None:
    assert Message(**EXPOSURE).key == EXPOSURE["exposure"].encode()
    assert MemberMessage(**MEMBER).key == b"a-1"
