"""Telling others what this replica made of the log, and heeding what they tell: see `broker.journal.audits`."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import NoReturn

from broker import limits
from broker.journal.audits import Audits
from broker.journal.cluster_record import Audit, Envelope
from broker.journal.cluster_standing import Standing

log = logging.getLogger("streamfold.journal")


class Auditor:
    """Owned by a `ClusterJournal`. `write` takes a record that is to be written, `diverge` never returns."""

    def __init__(
        self,
        standing: Standing,
        write: Callable[[Envelope], None],
        diverge: Callable[[str], NoReturn],
        audit_s: float,
    ) -> None:
        self._standing = standing
        self._write = write
        self._diverge = diverge
        self._audit_s = audit_s
        self._audits = Audits(standing.boot)
        self._audited_chain = b""  # that of the last audit read, whoever wrote it
        self._due = 0.0
        self.agreed = 0
        self.passed_over = 0
        """Audits that did not agree, and whose writers were outvoted, or by the log itself; or of what the log lost."""

    def resume(self) -> None:
        """The store stands where `standing` does: nothing new is to be told."""
        self._audited_chain = self._standing.chain
        self.note()

    def note(self) -> None:
        """A record was applied."""
        self._audits.note(self._standing.position, self._standing.chain)

    def retire(self, boot: int) -> None:
        """As `Audits.retire`."""
        self._audits.retire(boot)

    def put_off(self) -> None:
        """Wait for the next one, and not all nodes as long: the first one's record tells the others that it is done."""
        self._due = asyncio.get_running_loop().time() + self._audit_s * random.uniform(1, 1.5)  # noqa: S311 -- as said

    def hear(self, boot: int, audit: Audit, *, is_first_hand: bool) -> None:
        """Hold a replica's chain against ours. Raises Diverged.

        `is_first_hand`: what this node has, it has from the log itself, all of it: the other one was wrong, and is gone
        or is told by ours. Nobody could ever get past its record otherwise.
        """
        is_ours = audit.log_uuid == self._standing.meta.log_uuid
        if is_ours and audit.position > self._standing.position:
            self._pass_over_lost(audit.position)
            return
        self.put_off()
        self._audited_chain = audit.chain
        is_equal = self._audits.hear(boot, audit.position, audit.chain) if is_ours else False
        if is_equal:
            self.agreed += 1
        elif is_equal is not None and is_first_hand:
            self._pass_over(audit.position)
        elif not is_ours:
            self._diverge("a record speaks of another log: the topic was deleted and made anew")
        elif is_equal is not None:
            self._dispute(audit.position)

    def judge(self) -> None:
        """Raises Diverged when this node is not among the most."""
        for verdict in self._audits.verdicts(asyncio.get_running_loop().time()):
            if verdict.is_wrong:
                self._diverge(f"most nodes made something else of the log before position {verdict.position}")
            self._pass_over(verdict.position)

    def tell_if_due(self) -> None:
        """Tell what this node made of the log, if anything is new and nobody has told of late."""
        is_due = asyncio.get_running_loop().time() >= self._due
        if is_due and self._standing.chain != self._audited_chain:
            self.put_off()
            self._tell(self._standing.position, self._standing.chain)

    def _dispute(self, position: int) -> None:
        """Somebody has made something else of the log: ask all who are there."""
        chain = self._audits.dispute(position, asyncio.get_running_loop().time() + limits.DISPUTE_S)
        if chain is not None:
            log.error("DISPUTED: what the log makes before position %d; every node is asked", position)
            self._tell(position, chain)

    def _tell(self, position: int, chain: bytes) -> None:
        self._write(Envelope(0, 0, audit=Audit(self._standing.meta.log_uuid, position, chain)))

    def _pass_over_lost(self, position: int) -> None:
        """Its writer had read a log that has lost records since, while this was under way: it tells of none that is."""
        self.passed_over += 1
        here = self._standing.position
        log.error("the log lost records: who wrote the one at position %d had read all before %d", here, position)

    def _pass_over(self, position: int) -> None:
        self.passed_over += 1
        log.error("a node made something else of the log before position %d than it says", position)
