"""Schemas, the AsyncAPI document and the page of metrics say what the code does, and are up to date."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.asyncapi import default_topology
from ops.generated_docs import generated, main
from ops.product_sets import ProductSet
from stream.aggregator import Aggregator
from stream.association import AssociationSettings, Close, ClosedMember, CloseOutcome, CloseReason
from stream.broker.embedded import EmbeddedBroker
from stream.broker.protocol import Headers, TopicPartition, TopicSpec
from stream.clock import SystemClock
from stream.dead_letters import bury
from stream.failure import PoisonError
from stream.member_list import MemberList, put_member_list
from stream.message import MemberMessage, MemberStatus, Message, MessageKind, OrderMessage, decode
from stream.metrics import CATALOGUE, Metrics
from stream.results import Manifest, ObjectKind, StoredObject
from stream.router import Router, run_topics
from stream.store.obstore_store import open_store
from stream.topology import Preset, dead_letter_topic_name
from tests.contract.jobs_suite import until
from tests.stream.test_message import DIGEST, EXPOSURE, FACTS, FINALIZE, MEMBER, ORDER, document, record

DOCS = Path(__file__).parents[2] / "docs"
FILES = generated()
SCHEMAS = {
    Path(path).name.removesuffix(".schema.json"): json.loads(text)
    for path, text in FILES.items()
    if path.endswith(".schema.json")
}
ASYNCAPI = json.loads(FILES["schemas/asyncapi.json"])
VALIDATORS = {name: jsonschema.Draft7Validator(schema) for name, schema in SCHEMAS.items()}
MESSAGES = {
    "exposure": document(Message(**EXPOSURE)),
    "finalize": document(Message(**FINALIZE)),
    "member": document(MemberMessage(**MEMBER)),
    "order": document(OrderMessage(**ORDER)),
}
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


def is_valid(name: str, value: Any) -> bool:
    return bool(VALIDATORS[name].is_valid(value))


def check(name: str, value: Any) -> None:
    VALIDATORS[name].validate(json.loads(json.dumps(value)))


def texts(headers: Headers) -> dict[str, str]:
    assert len(dict(headers)) == len(headers)
    return {name: value.decode() for name, value in headers}


def test_the_committed_files_are_what_the_code_gives(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--docs", str(DOCS), "--check"]) == 0, capsys.readouterr().out


def test_a_file_that_is_missing_changed_or_too_many_is_told_and_put_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(DOCS / "schemas", tmp_path / "schemas")
    (tmp_path / "schemas" / "close.schema.json").write_text("{}\n")
    (tmp_path / "schemas" / "old.schema.json").write_text("{}\n")
    assert main(["--docs", str(tmp_path), "--check"]) == 1
    told = capsys.readouterr().out
    assert [name for name in ("close.schema", "old.schema", "metrics.md", "member.schema") if name in told] == [
        "close.schema", "old.schema", "metrics.md",
    ]  # fmt: skip
    assert main(["--docs", str(tmp_path)]) == 0
    assert main(["--docs", str(tmp_path), "--check"]) == 0
    assert not (tmp_path / "schemas" / "old.schema.json").exists()


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_each_schema_is_one(name: str) -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMAS[name])
    assert f"schemas/{name}.schema.json" in (DOCS / "messages.md").read_text()


@pytest.mark.parametrize("kind", sorted(MESSAGES))
@given(facts=FACTS)
@settings(deadline=None, max_examples=30)
def test_what_is_encoded_is_valid_and_of_its_kind_alone(kind: str, facts: dict[str, Any]) -> None:
    value = {**MESSAGES[kind], "facts": facts}
    message = decode(record(json.dumps(value).encode()))
    assert [name for name in MESSAGES if is_valid(name, json.loads(message.encode()))] == [kind]


VALUES = [
    None, True, 0, 1, -3, 2.5, "", "x", "a/b", "a b", "é", "a" * 250, "a" * 1025, DIGEST, DIGEST.upper(), [], ["a"],
    ["a", "a"], ["a", "b"], ["a", 1], {}, {"deep": [1, None]}, "1.0", "1.7", "1.10", "2.0", "0.9", "1", "1.01",
    *MessageKind, *MemberStatus, "close", "reopen", 2,
]  # fmt: skip
FIELDS = sorted({*Message.model_fields, *MemberMessage.model_fields, *OrderMessage.model_fields, "colour", "shape"})


@st.composite
def changed_messages(draw: st.DrawFn) -> dict[str, Any]:
    value = dict(MESSAGES[draw(st.sampled_from(sorted(MESSAGES)))])
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        value[field] = draw(st.sampled_from(VALUES))
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=2)):
        value.pop(field, None)
    if draw(st.booleans()):
        value["schema_version"] = draw(st.sampled_from(["1.0", "1.1", "1.7"]))
    return value


def disagreement(value: dict[str, Any]) -> str | None:
    """How schema and decoder differ about a document of the kind that it says."""
    kind = value.get("kind", "exposure")
    valid = is_valid(kind if kind in ("finalize", "member", "order") else "exposure", value)
    try:
        decode(record(json.dumps(value).encode()))
    except PoisonError as error:
        return f"valid by the schema, and refused: {error}" if valid else None
    return None if valid else f"decoded, and not valid by the schema: {value}"


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_a_schema_takes_what_the_decoder_takes_whichever_field_is_changed(kind: str) -> None:
    whole = MESSAGES[kind]
    changed = [{**whole, field: value} for field in FIELDS for value in VALUES]
    shorter = [{name: value for name, value in whole.items() if name != field} for field in FIELDS]
    assert [found for value in [*changed, *shorter] if (found := disagreement(value))] == []


@given(changed_messages())
@settings(deadline=None, max_examples=100)
def test_a_schema_takes_what_the_decoder_takes_whichever_fields_are_changed_together(value: dict[str, Any]) -> None:
    assert disagreement(value) is None


def test_a_newer_minor_version_may_have_more_fields_and_a_newer_major_version_is_refused() -> None:
    for name, value in MESSAGES.items():
        assert is_valid(name, {**value, "schema_version": "1.7", "colour": "red"})
        assert not is_valid(name, {**value, "colour": "red"})
        assert not is_valid(name, {**value, "schema_version": "2.0"})


@pytest.mark.parametrize("message", [Message(**EXPOSURE), Message(**FINALIZE), MemberMessage(**MEMBER)])
def test_headers_of_messages_are_those_of_the_schema(message: Message | MemberMessage) -> None:
    headers = texts(message.headers("t", time=1_800_000_000.25, traceparent=TRACE))
    check("message-headers", headers)
    assert headers.keys() | {"not-before"} == SCHEMAS["message-headers"]["properties"].keys()
    bare = texts(MemberMessage(run="r", association="a", member="m", status=MemberStatus.FAILED).headers("t"))
    check("message-headers", bare)
    assert bare.keys() == set(SCHEMAS["message-headers"]["required"])
    check("message-headers", texts(OrderMessage(**ORDER).headers("t", time=1_800_000_000.25)))


def test_an_event_about_products_is_valid_also_when_it_is_too_large_to_name_them() -> None:
    close = Close("a", 2, CloseReason.CHANGED, CloseOutcome.ALIGN, (ClosedMember("e", "ok", DIGEST),))
    product = {"name": "e_cal.asdf", "key": "objects/e", "digest": DIGEST, "size": 7, "content": DIGEST}
    products = ProductSet("a", 2, "mosaic", {"e": {"manifest": "results/x/1", "products": [product]}})
    event = products.event("prompt", close, record="runs/prompt/products/a/2", record_digest=DIGEST)
    for told in (event, event.bounded(max_bytes=100)):
        check("products", json.loads(told.encode()))
        headers = texts(told.headers("t", time=1_800_000_000.25, traceparent=TRACE))
        check("product-event-headers", headers)
        assert headers["ce_dataref"] == told.record
    value = json.loads(event.encode())
    assert value["exposures"] == {"e": [product]}
    assert "exposures" not in {k for k, v in json.loads(event.bounded(max_bytes=100).encode()).items() if v}
    assert not is_valid("products", {**value, "colour": "red"})
    assert not is_valid("products", {**value, "record": None})


@pytest.mark.anyio
async def test_headers_of_a_dead_letter_are_those_of_the_schema(tmp_path: Path) -> None:
    message = Message(**EXPOSURE)
    async with EmbeddedBroker(tmp_path) as broker:
        await broker.create_topics([TopicSpec(name) for name in ("prompt.photom", dead_letter_topic_name("prompt"))])
        sent = await broker.publish(
            "prompt.photom", key=message.key, value=message.encode(), headers=message.headers("prompt.photom")
        )
        failure = {"class": "permanent", "type": "PermanentError", "message": "no flat"}
        buried = await bury(broker, "prompt", sent, stage="photom", failure=failure, attempts=2)
    headers = texts(buried.headers)
    check("dead-letter-headers", headers)
    assert headers.keys() == set(SCHEMAS["dead-letter-headers"]["required"]) | texts(sent.headers).keys()
    assert not is_valid("dead-letter-headers", {**headers, "dead-letter-class": "unlucky"})


@pytest.mark.anyio
async def test_what_the_aggregator_keeps_is_valid_and_what_it_meets_is_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    segments = default_topology().segments(Preset.GRANULAR)
    metrics.prepare({"tweakreg": ("tweakreg",)})
    store = open_store(tmp_path / "store")
    await put_member_list(store, "prompt", MemberList("a-1", ("r1", "r2")))
    async with EmbeddedBroker(tmp_path / "log") as broker:
        await broker.create_topics(run_topics("prompt", segments))

        async def unused(*_: Any) -> None:
            raise AssertionError

        router = Router(
            broker=broker, segments=segments, run="prompt", status_of=lambda _: MemberStatus.OK, clock=SystemClock()
        )
        aggregator = Aggregator(
            broker=broker, store=store, router=router, solver=unused, abandon=unused, clock=SystemClock(),
            settings=AssociationSettings(deadline=None), observe=metrics.observe,
        )  # fmt: skip
        await broker.publish("prompt.tweakreg", key=b"a-1", value=b"junk", headers=())
        await router.send_member(MemberMessage(**MEMBER))
        async with anyio.create_task_group() as tasks:
            await tasks.start(aggregator.run)
            assert await until(lambda: aggregator.inbox.prefix(TopicPartition("prompt.tweakreg", 0)) == 2)
            tasks.cancel_scope.cancel()
        kept = await broker.read_latest("prompt.tweakreg.changelog")
        (buried,) = await broker.read(dead_letter_topic_name("prompt"), 0, 0, 9)
    assert kept.keys() == {b"a-1/r1/1", b"#whole/0"}
    for known in kept.values():
        check("changelog", json.loads(known.value or b"null"))
    check("changelog", {"partition": 0, "revision": 1})
    check("dead-letter-headers", texts(buried.headers))
    sampled = metrics.registry.get_sample_value
    labels = {"segment": "tweakreg", "class": "poison"}
    assert sampled("rampstream_dead_letters_total", labels) == 1
    assert sampled("rampstream_message_seconds_count", {"segment": "tweakreg"}) == 2


def test_objects_in_the_store_are_valid() -> None:
    stored = StoredObject("tree", "objects/e/photom/1/tree.asdf", DIGEST, 7, ObjectKind.TREE)
    manifest = Manifest(
        identity=DIGEST, exposure="e", stage="photom", branch="WFI_IMAGE", facts={"a": 1}, objects=(stored,)
    )
    check("manifest", manifest.document())
    members = (ClosedMember("e", "ok", DIGEST), ClosedMember("f", "missing", None))
    close = Close("a", 1, CloseReason.DEADLINE, CloseOutcome.ALIGN, members)
    check("close", close.to_json())
    check("member-list", asdict(MemberList("a", ("e", "f"), "product", {"kind": "x"})))
    check("product-set", ProductSet("a", 1, None, {"e": {"manifest": manifest.key}}, {"f": "missing"}).to_json())
    for name, value in {"manifest": manifest.document(), "close": close.to_json()}.items():
        for field in SCHEMAS[name]["required"]:
            assert not is_valid(name, json.loads(json.dumps({k: v for k, v in value.items() if k != field})))


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_each_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    found = list(references(ASYNCAPI))
    assert len(found) > 30
    for reference in found:
        assert reference.startswith("#/")
        target = ASYNCAPI
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        assert isinstance(target, dict)
        assert target
    unused = {f"#/components/{kind}/{name}" for kind, named in ASYNCAPI["components"].items() for name in named}
    assert unused - set(found) == set()


def test_operations_take_messages_of_their_channel() -> None:
    operated = set()
    for operation in ASYNCAPI["operations"].values():
        assert operation["action"] in {"send", "receive"}
        channel = operation["channel"]["$ref"]
        operated.add((channel, operation["action"]))
        assert operation["messages"]
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])
    carrying = {f"#/channels/{name}" for name, channel in ASYNCAPI["channels"].items() if channel["messages"]}
    assert operated == {(channel, action) for channel in carrying for action in ("send", "receive")}


def addresses(name: str) -> re.Pattern[str]:
    channel = ASYNCAPI["channels"][name]
    parts = re.split(r"\{(\w+)\}", channel["address"])
    assert set(parts[1::2]) == channel["parameters"].keys()
    alternatives = [
        "|".join(map(re.escape, channel["parameters"][part]["enum"])) if "enum" in channel["parameters"][part] else ".+"
        for part in parts[1::2]
    ]
    text = re.escape(parts[0])
    for alternative, literal in zip(alternatives, parts[2::2], strict=True):
        text += f"({alternative}){re.escape(literal)}"
    return re.compile(text)


@pytest.mark.parametrize("preset", list(Preset))
def test_each_topic_of_a_run_is_covered_by_one_channel(preset: Preset) -> None:
    patterns = {name: addresses(name) for name in ASYNCAPI["channels"]}
    topics = run_topics("reproc-2027a", default_topology().segments(preset), partitions=36, retry_tiers=3)
    used = set()
    for topic in topics:
        covering = [name for name, pattern in patterns.items() if pattern.fullmatch(topic.name)]
        assert len(covering) == 1, topic.name
        used.add(covering[0])
        bindings = ASYNCAPI["channels"][covering[0]]["bindings"]["kafka"]
        assert bindings["partitions"] == topic.partitions
        assert bindings["topicConfiguration"]["cleanup.policy"] == ["compact" if topic.compacted else "delete"]
    assert used == patterns.keys()


def test_the_page_has_each_metric_under_the_name_that_a_scrape_shows() -> None:
    metrics = Metrics()
    metrics.prepare({"photom": ("photom",)})
    page = (DOCS / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \|", page, re.MULTILINE)
    exposed = {
        f"{family.name}_total" if family.type == "counter" else family.name: family.type
        for family in metrics.registry.collect()
    }
    assert dict(rows) == exposed
    assert len(rows) == len(CATALOGUE)
