"""Which exposures form one association because they are the detectors of one exposure of the observation.

The names of the files tell; who is expected is said once a run, by whoever ingests the first. Publishes nothing.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from ops.ingest import Ingest
from stages.product_names import split_detector
from stream.failure import PermanentError
from stream.identity import association_id, canonical_json
from stream.member_list import MemberList
from stream.store import ObjectStore

__all__ = ["DetectorGroups", "group_key"]

LOG = logging.getLogger(__name__)


def group_key(run: str, product_name: str) -> str:
    """Key of the record that says who the detectors of one exposure are."""
    return f"runs/{run}/detector-groups/{product_name}"


@dataclass(frozen=True, slots=True)
class DetectorGroups:
    """The groups of one run.

    Parameters
    ----------
    store : ObjectStore
        Where they are kept.
    run : str
        The run.
    detectors : tuple of str
        Detectors that are expected of each exposure, in order of their numbers.
    """

    store: ObjectStore
    run: str
    detectors: tuple[str, ...]

    async def regroup(self, ingest: Ingest) -> None:
        """Have each plain file be a member of its group instead of an association of itself; refuse what has none."""
        lists = {members.association: members for members in ingest.lists if not _is_plain(members)}
        for (exposure,) in [members.members for members in ingest.lists if _is_plain(members)]:
            try:
                group = await self.group_of(exposure)
            except PermanentError as error:
                ingest.refused[str(ingest.entries[exposure].path)] = str(error)
                if not any(exposure in members.members for members in lists.values()):
                    del ingest.entries[exposure]
                continue
            lists.setdefault(group.association, group)
        ingest.lists = list(lists.values())

    async def group_of(self, exposure: str) -> MemberList:
        """Return the group of an exposure, and say who belongs to it if nobody has.

        Raises
        ------
        stream.failure.PermanentError
            Its name has no detector part, or it is not among those that are expected.
        """
        parts = split_detector(exposure)
        if parts is None:
            msg = (
                f"{exposure}: --group-detectors needs a name with a detector, like …_0001_wfi01_uncal.asdf; "
                "ingest this file without it"
            )
            raise PermanentError(msg)
        before, detector, after = parts
        # Members are spelt as this one is: names of files are told apart by case.
        names = [name if detector.isupper() else name.lower() for name in self.detectors]
        members = tuple(f"{before}_{name}{after}" for name in names)
        product_name = before + after
        wanted = MemberList(association_id(product_name, members), members, product_name)
        found = await self._known(product_name)
        if found is None and exposure in members:  # the first: what it says stays for good, whatever others expect
            document = {"association": wanted.association, "members": list(members)}
            await self.store.put_if_absent(group_key(self.run, product_name), canonical_json(document))
            found = await self._known(product_name)
        if found is None or exposure not in found.members:
            msg = f"{exposure}: {detector.upper()} is not among the detectors that are expected of {product_name}"
            raise PermanentError(msg)
        if found != wanted:
            LOG.warning(
                "%s was announced with %d detectors; the %d of this command do not count",
                product_name, len(found.members), len(members),
            )  # fmt: skip
        return found

    async def _known(self, product_name: str) -> MemberList | None:
        """The group as it was first announced."""
        data = await self.store.get(group_key(self.run, product_name))
        if data is None:
            return None
        value = json.loads(data)
        return MemberList(value["association"], tuple(value["members"]), product_name)


def _is_plain(members: MemberList) -> bool:
    """Whether a list is that of a file that was named for itself."""
    return members.product_name is None
