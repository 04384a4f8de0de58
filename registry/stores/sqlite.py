"""A store in one SQLite file: what was acknowledged is there after a restart, also after ``kill -9``."""

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from rpc_kit.convert import decode_json, encode_json
from rpc_kit.errors import StoreError
from rpc_kit.folders import user_folder
from rpc_kit.messages import Entry

from ..table import Change, check_lease, compact
from .base import Apply, Store

APPLICATION = 0x7270636B
"""Marks the files of ours ("rpck")."""
FORMAT = 1
"""Files with a higher number were written by a later version."""

_SCHEMA = f"""
    CREATE TABLE devices (id INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, entry BLOB NOT NULL);
    CREATE TABLE leases (id INTEGER PRIMARY KEY, lease REAL NOT NULL, ends REAL NOT NULL);
    PRAGMA application_id = {APPLICATION};
    PRAGMA user_version = {FORMAT};
"""
_entries = msgspec.json.Decoder(Entry)

_CLOSED = "it, or its folder, cannot be written to: see to the permissions"
_REASONS = {
    sqlite3.SQLITE_BUSY: "another registry uses it: end that one, or choose another file",
    sqlite3.SQLITE_FULL: "the disk is full: make room",
    sqlite3.SQLITE_READONLY: _CLOSED,
    sqlite3.SQLITE_CANTOPEN: _CLOSED,
    sqlite3.SQLITE_IOERR: "the disk fails, or a quota is used up: see to the disk",
}
_CODES = {
    errno.ENOSPC: sqlite3.SQLITE_FULL,
    errno.EDQUOT: sqlite3.SQLITE_IOERR,
    errno.EIO: sqlite3.SQLITE_IOERR,
    errno.EACCES: sqlite3.SQLITE_CANTOPEN,
    errno.EPERM: sqlite3.SQLITE_CANTOPEN,
    errno.EROFS: sqlite3.SQLITE_CANTOPEN,
}
"""What SQLite would say to an error of the system."""


def default_file() -> Path:
    """In the state folder of the unit, else that of the host for root, else that of the user (XDG).

    Raises
    ------
    ValueError
        When the user has no home.
    """
    if folder := os.environ.get("STATE_DIRECTORY"):
        return Path(folder.split(":")[0]) / "registry.sqlite"
    if os.geteuid() == 0:
        return Path("/var/lib/rpc-kit/registry.sqlite")
    state = user_folder("XDG_STATE_HOME", ".local/state")
    if state is None:
        raise ValueError("this user has no home: choose a file, as sqlite:/folder/registry.sqlite")
    return Path(state) / "rpc-kit" / "registry.sqlite"


class SqliteStore(Store):
    """Keeps the entries in a file; one registry at a time.

    Ends of leases are kept in Unix seconds, as no other clock outlives the host.

    Parameters
    ----------
    file
        Made when it is not there, with its folder, readable by the owner only.
    """

    def __init__(self, file: Path, wall_clock: Callable[[], float] = time.time) -> None:
        self.exclusive = threading.Lock()
        self._file = file.absolute()
        self._wall_clock = wall_clock
        self._rows: dict[str, int] = {}

    def __str__(self) -> str:
        return str(self._file)

    def open(self, apply: Apply) -> None:
        self._apply = apply
        try:
            self._make_file()
            self._refuse_others()
            # Autocommit; one thread at a time, as `exclusive` sees to.
            self._database = sqlite3.connect(self._file, timeout=1.0, isolation_level=None, check_same_thread=False)
            try:
                found = self._prepare()
                found.reverse()
                while found:
                    apply(found.pop())  # not kept twice for longer than needed
            except BaseException:
                self._database.close()
                raise
        except StoreError:
            raise
        except (OSError, sqlite3.Error, UnicodeError) as exc:
            raise self._explained(exc, "opened") from exc

    def save(self, change: Change) -> None:
        try:
            self._database.execute("BEGIN")
            for entry in change.removed:
                self._delete(entry.uuid)
            row = self._insert(change) if change.added is not None else None
            self._database.execute("COMMIT")
        except sqlite3.Error as exc:
            self._roll_back()
            raise self._explained(exc, "written") from exc
        for entry in change.removed:
            self._rows.pop(entry.uuid, None)
        if change.added is not None and row is not None:
            self._rows[change.added.uuid] = row
        self._apply(change)

    def renew(self, leases: Mapping[str, float]) -> set[str]:
        now, rows = self._wall_clock(), self._rows
        ends = [(lease, now + lease, rows[key]) for key, lease in leases.items() if key in rows]
        try:
            if len(ends) > 1:
                self._database.execute("BEGIN")
            self._database.executemany("UPDATE leases SET lease = ?, ends = ? WHERE id = ?", ends)
            if len(ends) > 1:
                self._database.execute("COMMIT")
        except sqlite3.Error as exc:
            self._roll_back()
            raise self._explained(exc, "written") from exc
        return {key for key in leases if key not in rows}

    def close(self) -> None:
        self._database.close()

    def _make_file(self) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if not self._file.is_file():
                raise StoreError(f"{self._file} is no file: choose another one") from None
            # Not tried out: to close it again would end the lock of another store of this process.
            if not os.access(self._file, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None

    def _refuse_others(self) -> None:
        """See to whom the file belongs without the least change of it.

        SQLite would otherwise merge with it what a process that died has left beside it.
        """
        database = sqlite3.connect(f"{self._file.as_uri()}?mode=ro&immutable=1", uri=True)
        # Without a lock something may seem to be wrong; what really is wrong shows later.
        with contextlib.closing(database), contextlib.suppress(sqlite3.Error, UnicodeError):
            self._check_origin(database)

    def _check_origin(self, database: sqlite3.Connection) -> bool:
        """Whether the file is new; raises StoreError when it is not one of ours."""
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (application, version, tables) == (0, 0, 0):
            return True
        if application != APPLICATION:
            raise StoreError(f"{self._file} is a database of another program: choose another file; it is left as it is")
        if version > FORMAT:
            raise StoreError(
                f"{self._file} has format {version}, this version of rpc-kit knows {FORMAT}: install the version that "
                "wrote it, or choose another file; it is left as it is"
            )
        return False

    def _prepare(self) -> list[Change]:
        """Lock the file, see that it is one of ours, whole and writable, and read what is in it."""
        database = self._database
        # The lock is held until the file is closed, and there is no shared memory to be left behind.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN IMMEDIATE")
        is_new = self._check_origin(database)
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        found = [] if is_new else self._read()
        database.execute("COMMIT")
        # Nothing has been written so far.
        database.execute("PRAGMA journal_mode = WAL")
        # Safe against the death of the process; a power failure may take the last moments, never the file.
        database.execute("PRAGMA synchronous = NORMAL")
        # Pages that are written again and again go to the file once in 16 MB of log, which spares the flash of a Pi.
        database.execute("PRAGMA wal_autocheckpoint = 4000")
        if is_new:
            database.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        database.execute(f"PRAGMA user_version = {FORMAT}")  # a write: a full disk shows now
        return found

    def _read(self) -> list[Change]:
        now = self._wall_clock()
        query = "SELECT id, uuid, entry, lease, ends FROM devices LEFT JOIN leases USING (id) ORDER BY id"
        found: list[Change] = []
        for row, key, text, lease, ends in self._database.execute(query):
            try:
                entry = compact(decode_json(text, _entries))
                # Not longer than the lease, should the clock of the host have been set back.
                found.append(Change(added=entry, lease=min(ends - now, check_lease(lease))))
            except (TypeError, ValueError) as exc:
                raise sqlite3.DatabaseError(f"row {row}: {exc}") from exc
            if entry.uuid != key:
                raise sqlite3.DatabaseError(f"row {row} has two uuids")
            self._rows[entry.uuid] = row
        entries = [change.added for change in found if change.added is not None]
        for values in ({each.name for each in entries}, {each.address for each in entries}):
            if len(values) < len(entries):
                raise sqlite3.DatabaseError("two devices have one name or address")
        return found

    def _insert(self, change: Change) -> int:
        assert change.added is not None and change.lease is not None
        entry, execute = change.added, self._database.execute
        row = self._rows.get(entry.uuid)
        text = encode_json(entry)
        if row is None:
            row = execute("INSERT INTO devices (uuid, entry) VALUES (?, ?)", (entry.uuid, text)).lastrowid
        else:
            execute("UPDATE devices SET entry = ? WHERE id = ?", (text, row))
        ends = self._wall_clock() + change.lease
        execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (row, change.lease, ends))
        return int(row or 0)

    def _delete(self, key: str) -> None:
        if key in self._rows:
            self._database.execute("DELETE FROM devices WHERE id = ?", (self._rows[key],))
            self._database.execute("DELETE FROM leases WHERE id = ?", (self._rows[key],))

    def _roll_back(self) -> None:
        # What has failed is told already; some failures roll back by themselves.
        with contextlib.suppress(sqlite3.Error):
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")

    def _explained(self, exc: OSError | sqlite3.Error | UnicodeError, what: str) -> StoreError:
        if isinstance(exc, OSError):
            why = _REASONS.get(_CODES.get(exc.errno or 0, 0), str(exc))
        elif isinstance(exc, sqlite3.ProgrammingError):
            why = str(exc)
        else:
            damage = f"it seems to be damaged ({exc}): restore it from a backup, or move it away to begin anew"
            # The lower byte is what has happened, the upper ones say where.
            why = _REASONS.get(getattr(exc, "sqlite_errorcode", 0) & 0xFF, damage)
        return StoreError(f"the registry's file {self._file} cannot be {what}: {why}; it is left as it is")
