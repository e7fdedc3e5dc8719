"""The life of a LoRA adapter without the gateway: read it, judge it, keep it, watch where it comes from.

    check(path, base, max_lora_rank) -> Verdict     would vLLM load it and serve it rightly? (no torch, no GPU)
    BaseModel.read(folder) -> BaseModel             what a check needs to know of the base model
    AdapterStore.open(root).add(folder, accept)     an immutable copy under its digest
    scan(folders) -> Scan, changes(known, a, b)     what source folders offer, and what changed there
    python -m adapters.importing                    fetches, checks and keeps one adapter, in a process of its own

Standard library only, but for what fetches over a network; never imports `gateway`. All calls here block on the disk:
call them in a thread.
"""

from adapters.base_model import BaseModel, BaseModelError
from adapters.findings import Code, Finding, RefusedError, Severity
from adapters.inspect import Inspection, required_max_lora_rank
from adapters.manifest import Manifest
from adapters.sources.folder import Changes, FolderState, Scan, changes, scan
from adapters.store import AdapterStore, StoredAdapter, StoreError, digest_of
from adapters.validate import Verdict, check

__all__ = [
    "AdapterStore",
    "BaseModel",
    "BaseModelError",
    "Changes",
    "Code",
    "Finding",
    "FolderState",
    "Inspection",
    "Manifest",
    "RefusedError",
    "Scan",
    "Severity",
    "StoreError",
    "StoredAdapter",
    "Verdict",
    "changes",
    "check",
    "digest_of",
    "required_max_lora_rank",
    "scan",
]
