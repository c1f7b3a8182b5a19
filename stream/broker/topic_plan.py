"""Compares topics that exist with what they should be. Decides what is a conflict; reads and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from stream.broker.protocol import TopicDifference, TopicPlan, TopicSpec

__all__ = ["planned"]

_MIN_IN_SYNC = "min.insync.replicas"


def planned(
    specs: Sequence[TopicSpec], known: Mapping[str, TopicSpec], *, settings: bool = True, servers: str = ""
) -> TopicPlan:
    """What is missing, and what differs.

    Parameters
    ----------
    specs : sequence of TopicSpec
        What topics should be.
    known : mapping of str to TopicSpec
        What exists. Settings that it does not name are not compared.
    settings : bool
        Whether the log minds settings, or has partitions and compaction alone.
    servers : str
        Of the cluster, for the commands that an operator may run.
    """
    present = {spec.name: known[spec.name] for spec in specs if spec.name in known}
    if not settings:
        present = {name: replace(spec, config={}) for name, spec in present.items()}
    differences = [found for spec in specs if spec.name in present for found in _differences(spec, present[spec.name])]
    return TopicPlan(
        tuple(spec for spec in specs if spec.name not in known),
        tuple(_with_remedy(difference, servers) for difference in differences),
    )


def _differences(wanted: TopicSpec, found: TopicSpec) -> Iterator[TopicDifference]:
    name = wanted.name
    if found.partitions != wanted.partitions:  # keys would move between partitions
        yield TopicDifference(name, "partitions", str(found.partitions), str(wanted.partitions), conflict=True)
    if found.compacted != wanted.compacted:  # compacting an inbox loses messages, not compacting a changelog bounds it
        policies = {True: "compact", False: "delete"}
        shown = found.config.get("cleanup.policy", policies[found.compacted])
        yield TopicDifference(name, "cleanup.policy", shown, policies[wanted.compacted], conflict=True)
    if found.replicas is not None:
        if int(found.config.get(_MIN_IN_SYNC) or 1) > found.replicas:
            need = f"at most {found.replicas}, its replicas"
            yield TopicDifference(name, _MIN_IN_SYNC, found.config[_MIN_IN_SYNC], need, conflict=True)
        if wanted.replicas is not None and found.replicas < wanted.replicas:
            yield TopicDifference(name, "replicas", str(found.replicas), str(wanted.replicas), conflict=False)
    for setting, value in sorted(wanted.config.items()):
        present = found.config.get(setting, value)
        if present != value and (setting != "cleanup.policy" or found.compacted == wanted.compacted):
            # A changelog that is also cut by age forgets members of an association that is still open.
            conflict = setting == "cleanup.policy"
            yield TopicDifference(name, setting, present, value, conflict=conflict)


def _with_remedy(difference: TopicDifference, servers: str) -> TopicDifference:
    if difference.setting == "replicas":
        return replace(difference, remedy="kafka-reassign-partitions.sh, with a plan that names its brokers")
    if difference.setting == "partitions" or difference.wanted.startswith("at most"):
        return difference
    remedy = (
        f"kafka-configs.sh --bootstrap-server {servers} --alter --entity-type topics --entity-name {difference.topic} "
        f"--add-config {difference.setting}={difference.wanted}"
    )
    return replace(difference, remedy=remedy)
