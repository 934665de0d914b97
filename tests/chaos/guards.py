"""The guards of the product, how each is switched off, and the test that must see it.

A guard is switched off in a copy of its source. Whoever changes the line is told here, by a test, to say anew how.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple


class Guard(NamedTuple):
    """One guard.

    Attributes:
        what: it keeps from happening.
        source: its file, below `src/mizzle` or among the bridge's classes.
        on: a piece of it that occurs once.
        off: what stands there when it is switched off.
        test: that must fail then: a node of pytest, or a Java test class and method.
        quick: whether it is tried in the default run as well.
    """

    what: str
    source: str
    on: str
    off: str
    test: str
    quick: bool = False

    def switch_off(self, source: Path) -> None:
        """Change a copy of its source."""
        text = source.read_text()
        assert text.count(self.on) == 1, f"{self.source} has changed: say anew how to switch off {self.what!r}"
        source.write_text(text.replace(self.on, self.off))


_STORE = "tests/contract/test_block_store.py"
_BOUNDARY = "tests/unit/spark/ranks/test_boundary.py"

PYTHON = [
    Guard(
        "the fence, in one process", "blocks/memory.py",
        "        if generation < fence:", "        if False:",
        f"{_STORE}::test_a_superseded_generation_is_refused_at_put_and_fetch[memory]", quick=True,
    ),
    Guard(
        "the fence, in shared memory", "blocks/shared.py",
        "        if generation < fence:", "        if False:",
        f"{_STORE}::test_a_superseded_generation_is_refused_at_put_and_fetch[shared]",
    ),
    Guard(
        "a name is used once", "blocks/store.py",
        "if block in self._names or", "if",
        f"{_STORE}::test_a_name_is_never_used_twice[memory]",
    ),
    Guard(
        "the checksum of a header", "blocks/ids.py",
        "if raw[len(front) :] != _CRC.pack(crc32c.crc32c(front)) + bytes(4):", "if len(raw) < HEADER_BYTES:",
        "tests/unit/blocks/test_ids.py::test_any_changed_bit_is_found",
    ),
    Guard(
        "the checksum of a payload", "blocks/memory.py",
        "if _body_crc(announced.meta, payload) != header.body_crc:", "if False:",
        f"{_STORE}::test_a_changed_block_fails_its_check[memory]", quick=True,
    ),
    Guard(
        "the checksum of a frame", "blocks/bridge.py",
        "if not is_intact(self._received):", "if False:",
        "tests/unit/blocks/test_bridge.py::test_a_frame_with_a_changed_bit_ends_the_connection",
    ),
    Guard(
        "the checksum of a state that was kept", "spark/ranks/boundary.py",
        "return bytes(view[-_SEAL.size :]) == _SEAL.pack(crc32c.crc32c(view[: -_SEAL.size]))", "return len(view) > 0",
        f"{_BOUNDARY}::test_a_state_that_has_changed_in_memory_is_not_used_and_its_copy_is", quick=True,
    ),
    Guard(
        "deadlines", "blocks/deadline.py",
        "return cls(time.monotonic() + seconds)", "return cls(time.monotonic() + seconds + 3)",
        f"{_STORE}::test_a_wait_ends_at_its_deadline[memory]", quick=True,
    ),
    Guard(
        "the order of sums", "collectives/tree.py",
        "    planner.visit(Node(0, num_shards))\n",
        "    held = None\n    for operand in range(len(sources)):\n"
        "        held = operand if held is None else planner.combine(held, operand)\n"
        "    planner.visited = len(sources)\n",
        "tests/unit/collectives/test_tree.py::test_bits_do_not_depend_on_which_rank_holds_which_shard",
    ),
    Guard(
        "an end to faults that come again", "spark/recovery.py",
        "if again or", "if",
        "tests/unit/spark/test_recovery.py::test_a_rank_that_is_lost_again_and_again_ends_the_run_with_the_cause",
    ),
    Guard(
        "states of the boundary are not overwritten", "spark/ranks/boundary.py",
        "if one != self._pinned and not self._holds_boundary(one))", "if one != self._pinned)",
        f"{_BOUNDARY}::test_a_boundary_is_not_overwritten_before_the_next_one_counts", quick=True,
    ),
    Guard(
        "a state counts for its boundary only", "spark/ranks/boundary.py",
        'return (label["iteration"], label["generation"]) == (self._since.iteration, self._since.generation)',
        'return label["iteration"] == self._since.iteration',
        "tests/unit/spark/ranks/test_boundary.py::test_a_state_of_the_same_iteration_but_another_generation_is_not_used",
    ),
    Guard(
        "a boundary is for all, in the model", "spark/ranks/boundary.py",
        "        taken = between.hand_over(give, self._room)\n        own", "        taken = {}\n        own",
        "tests/chaos/test_model.py::test_no_schedule_forks_a_history_loses_a_boundary_or_reads_an_older_generation",
    ),
    Guard(
        "the check of a manifest", "training/manifest.py",
        "if as_written != raw:", "if as_written is None:",
        "tests/unit/training/test_manifest.py::test_every_bit_counts[0]", quick=True,
    ),
    Guard(
        "the checksum of a checkpoint's file", "training/checkpoint.py",
        "if digest != part.sha256:", "if not digest:",
        "tests/unit/training/test_checkpoint_damage.py"
        "::test_the_valid_one_before_a_damaged_one_is_chosen_and_the_damaged_file_named",
    ),
    Guard(
        "no update with what is not finite", "training/verdict.py",
        "    bad = report.first_not_finite\n", "    bad = None\n",
        "tests/contract/test_not_finite.py"
        "::test_skip_leaves_the_same_iterations_out_on_all_ranks_bit_for_bit[nan]",
    ),
    Guard(
        "ranks tell what they train", "training/rank.py",
        "check_identities(self._exchange.reduce().metas)", "self._exchange.reduce()",
        "tests/contract/test_handshake.py"
        "::test_a_rank_that_differs_is_refused_within_two_seconds_and_nothing_is_written[another mizzle-other hosts]",
    ),
]  # fmt: skip
if shutil.which("strace"):  # the test is skipped without
    PYTHON += [
        Guard(
            what, "training/storage.py", on, on.rpartition(" " * 12)[0],
            "tests/unit/training/test_checkpoint_crashes.py"
            "::test_all_is_on_disk_before_the_manifest_has_its_name_and_the_name_before_the_save_returns",
        )
        for what, on in (
            ("a file is on disk before it counts", "            os.fsync(opened)\n"),
            ("its name is, too", "            self._write(at, file, content, seen)\n            _sync_open(at)\n"),
            ("and the manifest's", "src_dir_fd=at, dst_dir_fd=at)\n            _sync_open(at)\n"),
        )
    ]  # fmt: skip

JAVA = [
    Guard(
        "the fence", "Runs",
        "Integer.compareUnsigned(generation, run.fence) < 0) {\n      counters", "false) {\n      counters",
        "RunsTest.anOlderGenerationThanTheFenceIsRefusedAndCounted", quick=True,
    ),
    Guard(
        "memory of the newest generation is found first", "Runs",
        "Arena::labelledIn, Comparator.reverseOrder()", "(Arena arena) -> 0",
        "RunsTest.whatALaterGenerationLeftIsFoundBeforeWhatAnOlderProcessHeldForLong",
    ),
    Guard(
        "admission", "Rendezvous",
        'return Join.refused("superseded: all " + join.size() + " ranks of this group were admitted");',
        "return Join.table(0, gathering.table);",
        "RendezvousTest.whoeverComesLaterIsRefused", quick=True,
    ),
    Guard(
        "one attempt a rank", "Rendezvous",
        "members.remove(newest.put(join.wanted(), join.nonce()));", "newest.put(join.wanted(), join.nonce());",
        "RendezvousTest.aRetryTakesThePlaceOfTheAttemptThatWantedTheSameRank",
    ),
    Guard(
        "an attempt that was replaced does not come back", "Rendezvous",
        "} else if (!newest.get(join.wanted()).equals(join.nonce())) {", "} else if (newest.isEmpty()) {",
        "RendezvousTest.aForgottenAttemptDoesNotComeBackBeforeItsRetry",
    ),
    Guard(
        "an older group is not admitted", "Rendezvous",
        "if (groups.keySet().stream().anyMatch(join.group()::isOlder)) {", "if (groups == null) {",
        "RendezvousTest.anOlderGroupIsRefusedOnceALaterOneGathers",
    ),
    Guard(
        "the nonce of an admission, in the names of blocks", "Header",
        'String.format("%016x", nonce);', 'String.format("%016x", 0);',
        "HeaderTest.namesAreSpeltAsInPython", quick=True,
    ),
    Guard(
        "the nonce of an admission, in the names of bells", "Group",
        "kind, run, Integer.toUnsignedString(generation), nonce);",
        "kind, run, Integer.toUnsignedString(generation), 0);",
        "HeaderTest.namesAreSpeltAsInPython",
    ),
    Guard(
        "the checksum of a header", "Header",
        "return raw.getInt(HEADER_CRC_AT) == ownCrc() && raw.getInt(HEADER_CRC_AT + Integer.BYTES) == 0;",
        "return ownCrc() != 0;",
        "HeaderTest.everyBitButTheTypeIsComparedWithWhatWasAskedFor",
    ),
    Guard(
        "a header is compared with what was asked for", "Sink",
        "|| !header.hasIdentity(wanted)", "",
        "SinkTest.aBlockThatIsNotTheOneAskedForIsRefusedAndNothingWritten",
    ),
    Guard(
        "the checksum of a payload", "Sink",
        "} else if (header.bodyMatches(landing.crc())) {", "} else if (header != null) {",
        "SinkTest.anyChangedBitOfTheBodyIsFound", quick=True,
    ),
    Guard(
        "the checksum of a frame", "Frame",
        "if (crc != crc(size, type, tag, body.duplicate())) {", "if (crc == 0 && size == 0) {",
        "FrameTest.anyChangedBitIsFoundOrLeavesTheFrameUnfinished",
    ),
    Guard(
        "whose lease is over serves nobody", "Lease",
        "if (isOver()) {", "if (limitMs < 0) {",
        "LeaseTest.nobodyIsServedOrAdmittedWhileItIsOver",
    ),
    Guard(
        "whose lease was over is of an older generation", "Runs",
        "fences.put(name, generation + 1)", "fences.put(name, generation)",
        "LeaseTest.whoTookPartIsToldAndIsOldEvenWhenTheDriverIsBack",
    ),
    Guard(
        "fences are raised before a lease is renewed", "LeaseAnswers",
        "    answer.newest().forEach(runs::fence);\n    lease.renewed(askedMs);\n",
        "    lease.renewed(askedMs);\n    answer.newest().forEach(runs::fence);\n",
        "LeaseAnswersTest.theFencesAreRaisedBeforeItIsRenewed",
    ),
    Guard(
        "the verdict over who is silent", "Pulse",
        "if (now - Math.max(last, judgedSinceMs) > limitMs) {", "if (now - last > Long.MAX_VALUE / 2) {",
        "PulseTest.whoHasReportedAndIsNotHeardOfIsSilent",
    ),
    Guard(
        "a superfluous attempt does not win", "GroupAttempt",
        "if (number > 0 && !waitInVain(task)) {", "if (number > 1000) {",
        "GroupAttemptTest.aSuperfluousAttemptWaitsToBeKilled",
    ),
]  # fmt: skip

_STRANGERS = "if (!sameUser || !MessageDigest.isEqual(token, bridge.token())) {"
SOCKET = [
    Guard(
        "the token of the bridge's socket", "Session",
        _STRANGERS, "if (!sameUser) {",
        "tests/cluster/test_outsiders.py::test_a_process_of_the_same_user_with_another_token_is_refused",
    ),
]  # fmt: skip
"""Guards of the bridge that a test on Spark sees."""
if os.geteuid() == 0:  # the test is skipped without
    SOCKET.append(
        Guard(
            "the user of who connects to the bridge", "Session",
            _STRANGERS, "if (!MessageDigest.isEqual(token, bridge.token())) {",
            "tests/cluster/test_outsiders.py"
            "::test_another_user_is_refused_even_with_the_token_and_through_an_open_directory",
        )
    )  # fmt: skip
