"""Run records: atomic, append-only, the single truth for resume and dedupe."""

from fabric.store.attempt import Attempt
from fabric.store.encoding import dump_json
from fabric.store.lease import LockedError
from fabric.store.lock import driver_lives, driver_lock
from fabric.store.objects import StoreUnavailableError, told_when_full
from fabric.store.place import Place, Url, cache_of, is_url, local, located
from fabric.store.record import FAILED, FINISHED, RUNNING, STOPPED, Checkpoint, Status, TrialRecord
from fabric.store.sharing import fetch, share
from fabric.store.store import Store

__all__ = [
    "FAILED",
    "FINISHED",
    "RUNNING",
    "STOPPED",
    "Attempt",
    "Checkpoint",
    "LockedError",
    "Place",
    "Status",
    "Store",
    "StoreUnavailableError",
    "TrialRecord",
    "Url",
    "cache_of",
    "driver_lives",
    "driver_lock",
    "dump_json",
    "fetch",
    "is_url",
    "local",
    "located",
    "share",
    "told_when_full",
]
