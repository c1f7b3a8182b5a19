"""From which stored result a replayed exposure starts, and what is computed from there. Decisions alone.

A result is named by its input and its recipe, so what a change of parameters or references leaves alone is found under
the same name, and only what follows the first change is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stream.failure import PermanentError
from stream.topology import Segments

__all__ = ["Link", "Start", "plan_start"]


@dataclass(frozen=True, slots=True)
class Link:
    """One stage of an exposure's chain under the new definition.

    ``manifest`` is the key of the stored result, None when there is none (or it is not whole).
    """

    stage: str
    identity: str
    manifest: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Where an exposure starts: with which stage, on which result (``after`` which stage).

    ``reused`` are stages from there on that a stored result covers, theirs or that of a later stage of their segment:
    a segment goes on from the last result that it finds. ``computed`` are the others.
    """

    stage: str
    after: str
    identity: str
    manifest: str
    reused: tuple[str, ...]
    computed: tuple[str, ...]


def plan_start(root: Link, links: Sequence[Link], *, topic: str, segments: Segments) -> Start:
    """Choose the nearest stored result before a topic's stage.

    Parameters
    ----------
    root : Link
        The ingested exposure.
    links : sequence of Link
        The stages that the exposure goes through, in order.
    topic : str
        The stage whose topic is replayed: the start is never behind it, so that everything from it on is gone through.
    segments : Segments
        What is run together in the new run.

    Raises
    ------
    stream.failure.PermanentError
        The exposure does not go through that stage, or nothing that could be started from is stored.
    """
    stages = [link.stage for link in links]
    if topic not in stages:
        msg = f"the exposure does not go through {topic}, only through {', '.join(stages)}"
        raise PermanentError(msg)
    limit = stages.index(topic)
    chosen = next((n for n in range(limit, 0, -1) if links[n - 1].manifest is not None), 0)
    origin = links[chosen - 1] if chosen else root
    if origin.manifest is None:
        msg = "neither a result before it nor the ingested exposure is stored"
        raise PermanentError(msg)
    rest = links[chosen:]
    last = {segments.containing(link.stage): n for n, link in enumerate(rest) if link.manifest is not None}
    covered = {link.stage for n, link in enumerate(rest) if n <= last.get(segments.containing(link.stage), -1)}
    return Start(
        stage=rest[0].stage,
        after=origin.stage,
        identity=origin.identity,
        manifest=origin.manifest,
        reused=tuple(link.stage for link in rest if link.stage in covered),
        computed=tuple(link.stage for link in rest if link.stage not in covered),
    )
