"""What an aggregator knows of the associations in its partitions, and how it comes to know and to forget it.

State, statuses, and which close was sent on; in memory, in the changelog and in the store. When to close or to forget
is not decided here.

A closed association that nothing happens to is forgotten: it leaves memory and changelog, for its newest close and the
statuses in the store say all of it. What a close says of a member that the changelog lacks, or has otherwise, is read
back from there, so that it makes no difference whether all its records are gone, some, or some of them are an old
owner's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial

import anyio

from stream.association import Association, AssociationSettings
from stream.broker.protocol import Broker
from stream.changelog import Changelog
from stream.close import Close
from stream.member_statuses import Kept, KeptMember, MemberStatuses
from stream.router import Router
from stream.store import ObjectStore
from stream.stored_associations import StoredAssociations
from stream.together import together
from stream.topology import changelog_topic_name

__all__ = ["FORGET_SECONDS", "KnownAssociations"]

LOG = logging.getLogger(__name__)

FORGET_SECONDS = 86_400.0
"""How long a closed association stays in memory and changelog after its last change and its ``revision_delay``.

It stays for who comes late, whose coming then needs no look at the store: a day, for the redrives of the morning after.
18 members take some 20 kB, so that a day of 2000 exposures takes 40 MB; for good, each start would restore them all."""

_FORGOTTEN_TOGETHER = 4
"""Associations that leave the changelog at once: each is a write a member, which nobody waits for."""

_TOGETHER = 32
"""Associations taken up at once: each waits for the store twice, and there may be ten thousand."""


class KnownAssociations:
    """The associations that one aggregator knows.

    Parameters
    ----------
    broker, store : Broker, ObjectStore
        Where the changelog lies, and lists, closes and statuses.
    router : Router
        Names the run and its joint stage.
    settings : AssociationSettings
        When associations close.

    Attributes
    ----------
    states : dict of str to Association
        By id.
    members : dict of str to dict of str to KeptMember
        Newest status of each member, by association and member.
    dispatched : dict of str to int
        Newest revision whose members were all sent on.
    partitions : dict of str to int
        Where the statuses of an association lie.
    touched : dict of str to float
        Unix time at which something came last, news or not; nothing for what was restored.
    """

    def __init__(self, *, broker: Broker, store: ObjectStore, router: Router, settings: AssociationSettings) -> None:
        self.changelog = Changelog(broker, changelog_topic_name(router.run, router.joint_stage))
        self.statuses = MemberStatuses(store, router.run)
        self.stored = StoredAssociations(store, router.run, settings)
        self.states: dict[str, Association] = {}
        self.members: dict[str, dict[str, KeptMember]] = {}
        self.dispatched: dict[str, int] = {}
        self.partitions: dict[str, int] = {}
        self.touched: dict[str, float] = {}
        self._forgetting = anyio.CapacityLimiter(_FORGOTTEN_TOGETHER)

    async def restore(self, partitions: Collection[int]) -> list[str]:
        """Take up what lies in partitions that have come; returns the associations."""
        kept = await self.changelog.restore(partitions, self.statuses)
        # One of which only that its close was sent on is left is forgotten, or about to be.
        taken = {association: known for association, known in kept.items() if known.members}
        await together((partial(self._restore, *one) for one in taken.items()), most=_TOGETHER)
        return list(taken)

    async def _restore(self, association: str, known: Kept) -> None:
        state = await self._load(association, known)
        self.states[association] = state
        self.partitions[association] = known.partition
        self.dispatched[association] = known.dispatched
        self.members[association] = known.members

    async def find(self, association: str, partition: int) -> tuple[Association, Kept | None]:
        """State of an association to which something comes; with what was read back of it when it was forgotten.

        Nothing is taken up yet: the caller may own the partition no longer.

        Raises
        ------
        stream.failure.PermanentError
            It was never announced.
        """
        state = self.states.get(association)
        if state is not None:
            return state, None
        known = Kept(partition)
        return await self._load(association, known), known

    async def _load(self, association: str, known: Kept) -> Association:
        state = await self.stored.load(association)
        if state.last_close is not None:
            await self.statuses.recall(state.last_close, known)
        state.restore(member.record for member in known.members.values())
        return state

    def take(self, state: Association, partition: int, recalled: Kept | None, *, now: float) -> None:
        """Take up an association that was found."""
        self.touched[state.id] = now
        self.states[state.id] = state
        self.partitions[state.id] = partition
        if recalled is not None and state.last_close is not None:
            LOG.info("association %s was forgotten and is read back", state.id)
            self.members[state.id] = recalled.members
            self.dispatched[state.id] = state.last_close.revision  # else it would not have been forgotten

    def let_go(self, partitions: Collection[int]) -> list[str]:
        """Know no longer what lies in partitions that went; returns the associations."""
        gone = [known for known, number in self.partitions.items() if number in partitions]
        for association in gone:
            self.drop(association)
        return gone

    def is_past(self, close: Close) -> bool:
        """Whether a close is another aggregator's now, or has a newer one after it."""
        state = self.states.get(close.association)
        if state is None or close.association not in self.partitions:
            return True
        return state.last_close is not None and state.last_close.revision > close.revision

    def drop(self, association: str) -> list[KeptMember]:
        """Have an association leave memory; returns what was known of its members."""
        members = list(self.members.pop(association, {}).values())
        self.states.pop(association, None)
        self.dispatched.pop(association, None)
        self.partitions.pop(association, None)
        self.touched.pop(association, None)
        self.stored.forget(association)
        return members

    async def forget(self, association: str, members: Sequence[KeptMember]) -> None:
        """Let a closed association leave the changelog, that was dropped, when its members had been sent on.

        What comes meanwhile finds the association in the store, and is noted under other keys than those that are
        removed.
        """
        async with self._forgetting:
            await self.changelog.forget(association, members)

    async def note_member(
        self, association: str, partition: int, member: KeptMember, check_owned: Callable[[], None]
    ) -> None:
        """Have a status in memory, then in the store, then in the changelog; ``check_owned`` raises to prevent it."""
        known = self.members.setdefault(association, {})
        before = known.get(member.record.member)
        known[member.record.member] = member
        check_owned()
        await self.statuses.keep(association, partition, member)
        check_owned()
        await self.changelog.note_member(association, partition, member, before=before)

    async def note_dispatched(self, association: str, revision: int) -> None:
        """Keep that the members of a close were sent on; the caller owns the partition."""
        newest = max(revision, self.dispatched.get(association, 0))
        await self.changelog.note_dispatched(association, self.partitions[association], newest)
        self.dispatched[association] = newest
