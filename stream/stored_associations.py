"""What the store says of an association: its member list, its closes, and whether a newer list supersedes it."""

from __future__ import annotations

import logging

from stream.association import Association, AssociationSettings
from stream.member_list import MemberList, load_close, read_member_list, superseded_by
from stream.store import ObjectStore

__all__ = ["StoredAssociations"]

LOG = logging.getLogger(__name__)


class StoredAssociations:
    """The associations of one run, as they are in the store.

    Parameters
    ----------
    store : ObjectStore
        Where they are.
    run : str
        The run.
    settings : AssociationSettings
        When associations close.
    """

    def __init__(self, store: ObjectStore, run: str, settings: AssociationSettings) -> None:
        self._store = store
        self._run = run
        self._settings = settings
        self._product_names: dict[str, str | None] = {}

    async def load(self, association: str) -> Association:
        """Who belongs to an association and how it was closed; nothing is known of its members yet.

        Raises
        ------
        stream.failure.PermanentError
            It was never announced.
        """
        return await self.state_of(await read_member_list(self._store, self._run, association))

    async def state_of(self, members: MemberList, *, revision: int | None = None) -> Association:
        """The same for a list that was read, with its newest ``revision`` (0 for none) where that is known."""
        state = Association(members.association, self._settings)
        state.expect(members.members)
        if revision is None:
            await self.catch_up(state)
        elif revision:
            close = await load_close(self._store, self._run, members.association, revision)
            if close is not None:
                state.record_close(close)
        self._product_names[members.association] = members.product_name
        return state

    async def catch_up(self, state: Association) -> bool:
        """Learn of the closes that are not known yet; whether there were any."""
        first = revision = 1 + (0 if state.last_close is None else state.last_close.revision)
        while (close := await load_close(self._store, self._run, state.id, revision)) is not None:
            state.record_close(close)
            revision += 1
        return revision > first

    async def look_for_newer_list(self, state: Association) -> bool:
        """Learn whether the association is superseded."""
        before, name = state.superseded_by, self._product_names.get(state.id)
        state.supersede(await superseded_by(self._store, self._run, state.id, name))
        if state.superseded_by != before:
            LOG.info("association %s is superseded by %s", state.id, state.superseded_by)
        return state.superseded_by is not None

    def forget(self, association: str) -> None:
        """Forget what is known of an association besides its state."""
        self._product_names.pop(association, None)
