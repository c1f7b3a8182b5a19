"""Object storage: the seam, and its drivers in `stream.store.obstore_store`. Importing this loads none."""

from __future__ import annotations

from stream.store.protocol import ObjectInfo, ObjectStore, check_key, probe_put_if_absent

__all__ = ["ObjectInfo", "ObjectStore", "check_key", "probe_put_if_absent"]
