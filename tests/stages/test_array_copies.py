"""The folder of unpacked arrays keeps its bound, and no copy goes from under whoever holds it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stages.array_copies import ArrayCopies


def thousand(path: Path) -> None:
    path.write_bytes(b"x" * 1000)


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_least_recently_used_copy_goes(tmp_path: Path) -> None:
    copies = ArrayCopies(tmp_path, 2500)
    paths = []
    for name in ("a", "b", "a", "c"):  # "a" is used again, so "b" is the oldest
        path, held = copies.hold(name, thousand)
        held.close()
        paths.append(path)
    assert kept(tmp_path) == {paths[0].name, paths[3].name}


def test_a_copy_is_made_once_and_without_a_bound_stays(tmp_path: Path) -> None:
    made: list[Path] = []
    copies = ArrayCopies(tmp_path)
    for _ in range(3):
        for name in ("a", "b"):
            copies.hold(name, lambda path: (made.append(path), thousand(path))[1])[1].close()
    assert len(made) == len(kept(tmp_path)) == 2


def test_a_held_copy_stays_whatever_the_bound(tmp_path: Path) -> None:
    copies = ArrayCopies(tmp_path, 1500)
    path, held = copies.hold("a", thousand)
    copies.hold("b", thousand)[1].close()
    assert path.exists()
    held.close()
    copies.hold("c", thousand)[1].close()
    assert not path.exists()


@pytest.mark.parametrize("alive", [True, False])
def test_a_copy_that_another_process_holds_stays_until_that_process_ends(tmp_path: Path, alive: bool) -> None:
    script = f"""
        from pathlib import Path
        from stages.array_copies import ArrayCopies
        path, held = ArrayCopies(Path({str(tmp_path)!r}), 1500).hold("a", lambda p: p.write_bytes(b"x" * 1000))
        print(path, flush=True)
        input()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    path = Path(other.stdout.readline().strip())
    if not alive:
        other.kill()
        other.wait()
    ArrayCopies(tmp_path, 1500).hold("b", thousand)[1].close()
    assert path.exists() is alive
    other.kill()
    other.communicate()


def test_a_copy_removed_before_it_was_held_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = ArrayCopies(tmp_path)
    path, held = copies.hold("a", thousand)
    held.close()
    whole = ArrayCopies._held
    calls: list[Path] = []

    def late(target: Path) -> object:
        calls.append(target)
        if len(calls) == 1:
            with monkeypatch.context() as patched:
                patched.setattr("stages.array_copies.fcntl.flock", lambda *_: target.unlink())
                return whole(target)
        return whole(target)

    monkeypatch.setattr(ArrayCopies, "_held", staticmethod(late))
    again, held = copies.hold("a", thousand)
    assert again == path
    assert path.stat().st_size == 1000
    held.close()
