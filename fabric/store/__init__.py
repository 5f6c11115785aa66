"""Run records: atomic, append-only, the single truth for resume and dedupe."""

from fabric.store.attempt import Attempt
from fabric.store.encoding import dump_json
from fabric.store.lock import LockedError, driver_lock
from fabric.store.objects import StoreFullError, told_when_full
from fabric.store.record import FAILED, FINISHED, RUNNING, STOPPED, Checkpoint, Status, TrialRecord
from fabric.store.store import Store

__all__ = [
    "FAILED",
    "FINISHED",
    "RUNNING",
    "STOPPED",
    "Attempt",
    "Checkpoint",
    "LockedError",
    "Status",
    "Store",
    "StoreFullError",
    "TrialRecord",
    "driver_lock",
    "dump_json",
    "told_when_full",
]
