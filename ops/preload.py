"""Imported by the fork server, so that every job process is born with the heavy libraries loaded.

Nothing here may start a thread: a fork copies only the one that forks.
"""

from __future__ import annotations

import ops.job  # noqa: F401
