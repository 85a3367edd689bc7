"""The harness of `make faults`, for a moment; and that it sees what it is to see."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from tests.faults.chaos import checks, usage
from tests.faults.chaos.faults import faults_of
from tests.faults.chaos.ledger import Deletion, KeptFile, Ledger, PromisedJob, Violation
from tests.faults.chaos.report import table_of_faults, table_of_promises
from tests.faults.chaos.run import Account, conclude, play
from tests.faults.chaos.site import Site, holds_at_last
from tests.support.rabbitmq import require_rabbitmq

SECONDS = 20
SEED = "4"

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Played:
    site: Site
    ledger: Ledger
    account: Account

    def broken(self) -> list[Violation]:
        return checks.broken_promises(self.ledger, self.site.service)

    def change(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.site.service.database) as connection:
            assert connection.execute(statement, values).rowcount > 0

    def blob(self, file: KeptFile) -> Path:
        sha256 = file.sha256
        return self.site.service.volume / "blobs" / "sha256" / sha256[:2] / sha256[2] / sha256

    def file(self, deletion: Deletion = Deletion.NONE) -> KeptFile:
        return next(file for file in self.ledger.files.values() if file.deletion is deletion)

    def jobs(self) -> list[PromisedJob]:
        """Of one client, and none of them a rerun."""
        first: dict[tuple[str, str], PromisedJob] = {}
        for job in self.ledger.jobs.values():
            first.setdefault((job.key, job.operation), job)
        succeeded = [job for job in first.values() if job.endings == {"succeeded"}]
        return [job for job in succeeded if job.key == succeeded[0].key]


@pytest.fixture(scope="module")
def played() -> Iterator[Played]:
    require_rabbitmq()
    folder = Path(tempfile.mkdtemp(prefix="wharf-chaos-"))
    ledger = Ledger()
    try:
        with Site(folder, ledger) as site:
            account = play(site, ledger, seconds=SECONDS, seed=SEED, tell=lambda line: None)
            # It would clear away what the tests leave about.
            for cleanup in site.of("cleanup"):
                site.end(cleanup)
            yield Played(site, ledger, account)
    finally:
        shutil.rmtree(folder)


def test_a_fleet_that_is_hurt_at_random_keeps_what_it_promised(played: Played) -> None:
    assert played.ledger.violations == []
    assert played.account.brought.total() >= 1
    assert len(played.ledger.files) > 20
    assert len(played.ledger.jobs) > 20
    assert {fault.name for fault in faults_of(played.site)} >= set(played.account.brought)
    assert table_of_faults(played.account).row_count == len(played.account.brought) + 2
    assert table_of_promises(played.account).row_count > 0


def test_the_reckoning_sees_missing_bytes(played: Played) -> None:
    file = played.file()
    content = played.blob(file).read_bytes()
    played.blob(file).unlink()
    said = played.broken()
    assert any(each.kind == "lost" and file.id in each.what for each in said)
    assert any(
        each.kind == "lost" and f"blob {file.sha256} is present and cannot be read" in each.what for each in said
    )
    played.blob(file).write_bytes(content)
    assert played.broken() == []


def test_the_reckoning_sees_other_bytes(played: Played) -> None:
    file = played.file()
    content = played.blob(file).read_bytes()
    played.blob(file).chmod(0o600)
    played.blob(file).write_bytes(content[:-1] + b"?")
    said = played.broken()
    assert any(each.kind == "lost" and f"file {file.id} has other bytes" in each.what for each in said)
    assert any(each.kind == "lost" and f"blob {file.sha256} is present and has other" in each.what for each in said)
    played.blob(file).write_bytes(content)
    assert played.broken() == []


@pytest.mark.parametrize("folder", ["staging", "dropped"])
def test_the_reckoning_sees_what_is_left_in_progress(played: Played, folder: str) -> None:
    left = played.site.service.volume / folder / "broker-1.somebody"
    left.write_bytes(b"half a picture")
    assert played.broken() == [Violation("left over", f"{folder}/broker-1.somebody")]
    left.unlink()


def test_the_reckoning_sees_bytes_that_no_row_knows(played: Played) -> None:
    orphan = "blobs/sha256/ab/c/abc" + 61 * "0"
    (played.site.service.volume / orphan).write_bytes(b"nobody's")
    assert played.broken() == [Violation("left over", orphan)]
    (played.site.service.volume / orphan).unlink()


def test_the_reckoning_sees_bytes_that_nobody_refers_to(played: Played) -> None:
    unwanted = "ab" * 32
    path = played.site.service.volume / "blobs" / "sha256" / "ab" / "a" / unwanted
    path.write_bytes(b"x")
    played.change("INSERT INTO wharf.blobs (sha256, size, state) VALUES (decode(%s, 'hex'), 1, 'deleting')", unwanted)
    [said] = played.broken()
    assert said.kind == "left over"
    assert unwanted in said.what
    played.change("DELETE FROM wharf.blobs WHERE sha256 = decode(%s, 'hex')", unwanted)
    path.unlink()


def test_the_reckoning_sees_a_file_that_came_back(played: Played) -> None:
    file = played.file(Deletion.NONE)
    file.deletion = Deletion.DONE
    assert [each.what.split(" was ")[0] for each in played.broken()] == [f"file {file.id}"]
    file.deletion = Deletion.NONE


@pytest.mark.parametrize(("deletion", "kind"), [(Deletion.PURGED, "wrong"), (Deletion.DATED, "left over")])
def test_the_reckoning_sees_a_file_that_is_to_be_gone(played: Played, deletion: Deletion, kind: str) -> None:
    file = played.file(Deletion.NONE)
    file.deletion = deletion
    [said] = played.broken()
    assert (said.kind, file.id in said.what) == (kind, True)
    file.deletion = Deletion.NONE


def test_the_reckoning_sees_bytes_and_results_that_outlive_their_purge(played: Played) -> None:
    assert {file.deletion for file in played.ledger.files.values()} >= {Deletion.PURGED, Deletion.DATED}
    purged = [file for file in played.ledger.files.values() if file.deletion is Deletion.PURGED]
    file = next(file for file in purged if not played.blob(file).exists())
    job = played.jobs()[0]
    job.purge = Deletion.PURGED
    played.blob(file).write_bytes(b"still there")
    said = played.broken()
    assert any(file.sha256 in each.what and "were purged" in each.what for each in said)
    assert any(job.id in each.what and "was purged, and is not" in each.what for each in said)
    played.blob(file).unlink()
    job.purge = Deletion.NONE
    assert played.broken() == []


def test_the_reckoning_sees_a_promise_that_nobody_knows_of(played: Played) -> None:
    job, file = played.jobs()[0], played.file()
    nobody = "0190a0a0-0000-7000-8000-000000000000"
    lost_job, lost_file = replace(job, id=nobody), replace(file, id=nobody)
    played.ledger.promised(lost_job, lost_file)
    assert sorted(each.what.split(" ")[0] for each in played.broken()) == ["file", "job"]
    assert {each.kind for each in played.broken()} == {"lost"}
    del played.ledger.jobs[nobody], played.ledger.files[nobody]


def test_the_reckoning_sees_two_jobs_of_one_request(played: Played) -> None:
    one, other = played.jobs()[:2]
    rename = "UPDATE wharf.jobs SET metadata = jsonb_build_object('operation', %s::text) WHERE id = %s"
    played.change(rename, one.operation, other.id)
    [said] = played.broken()
    assert said.kind == "duplicated"
    assert one.id in said.what
    assert other.id in said.what
    played.change(rename, other.operation, other.id)


def test_the_reckoning_sees_the_answers_of_two_pictures_exchanged(played: Played) -> None:
    one, other = played.jobs()[:2]
    exchange = """
        WITH found AS (
            SELECT t.id, r.detections, row_number() OVER (ORDER BY t.id) AS number
            FROM wharf.tasks t JOIN wharf.results r ON r.task_id = t.id
            WHERE t.job_id = ANY (%s::uuid[]) AND t.input = 0
        )
        UPDATE wharf.results r SET detections = f2.detections FROM found f1, found f2
        WHERE r.task_id = f1.id AND f1.number <> f2.number
    """
    played.change(exchange, [one.id, other.id])
    said = played.broken()
    assert {each.kind for each in said} == {"wrong"}
    assert all(any(job.id in each.what for each in said) for job in (one, other))
    played.change(exchange, [one.id, other.id])
    assert played.broken() == []


def test_the_reckoning_sees_a_result_that_is_gone(played: Played) -> None:
    job = played.jobs()[0]
    tasks = played.site.service.ask("SELECT id::text FROM wharf.tasks WHERE job_id = %s", job.id)
    played.change(
        "CREATE TABLE kept AS SELECT * FROM wharf.results WHERE task_id::text = ANY (%s)", [t for (t,) in tasks]
    )
    played.change("DELETE FROM wharf.results WHERE task_id IN (SELECT task_id FROM kept)")
    said = played.broken()
    assert any(each.kind == "wrong" and str(tasks[0][0]) in each.what for each in said)
    played.change("INSERT INTO wharf.results SELECT * FROM kept")
    assert played.broken() == []


def test_the_reckoning_sees_a_job_that_has_not_ended(played: Played) -> None:
    job = next(job for job in played.jobs() if len(job.fingerprints) == 1)
    # Nobody may claim it, so that nobody ends it meanwhile.
    played.change(
        "UPDATE wharf.tasks SET state = 'queued', ended_at = NULL, not_before = 'infinity' WHERE job_id = %s", job.id
    )
    played.change(
        "UPDATE wharf.jobs SET state = 'open', finished_at = NULL, done = NULL, failed = NULL WHERE id = %s", job.id
    )
    said = played.broken()
    played.change("UPDATE wharf.tasks SET state = 'succeeded', ended_at = now() WHERE job_id = %s", job.id)
    played.change(
        "UPDATE wharf.jobs SET state = 'succeeded', finished_at = now(), done = 1, failed = 0 WHERE id = %s", job.id
    )
    assert sum(each.kind == "stuck" and job.id in each.what for each in said) == 2
    assert played.broken() == []


LEAK = 10_000


@pytest.mark.parametrize("what", ["resident_bytes", "descriptors", "threads", "children"])
def test_what_a_process_holds_more_and_more_of_is_a_leak(played: Played, what: str) -> None:
    before = usage.look(played.site)
    worse = {what: getattr(before.usages["broker-1"], what) + (LEAK << 20 if "bytes" in what else LEAK)}
    after = replace(before, usages={**before.usages, "broker-1": replace(before.usages["broker-1"], **worse)})
    [leak] = usage.leaks(before, after)
    assert leak.kind == "leaked"
    assert leak.what.startswith("broker-1 has ")
    assert list(usage.leaks(before, before)) == []


@pytest.mark.parametrize("what", ["in_transaction", "connections", "channels", "messages"])
def test_what_the_servers_hold_for_nobody_is_a_leak(played: Played, what: str) -> None:
    before = usage.look(played.site)
    assert len(list(usage.leaks(before, replace(before, **{what: LEAK})))) == 1


def test_more_and_more_sessions_are_a_leak(played: Played) -> None:
    before = usage.look(played.site)
    assert set(before.sessions) == {"wharf_api", "wharf_relay", "wharf_worker"}
    [leak] = usage.leaks(before, replace(before, sessions={**before.sessions, "wharf_api": LEAK}))
    assert "wharf_api has 10000 sessions" in leak.what


def test_a_process_that_does_not_end_as_told_is_stuck(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.chaos.site.END_SECONDS", 1)
    relay = played.site.of("relay")[0]
    played.site.stop(relay)
    threading.Timer(3, lambda: played.site.go_on(relay)).start()
    played.site.end(relay)
    assert played.ledger.violations == [Violation("stuck", "relay-1 did not end within 1 s of SIGTERM")]
    played.ledger.violations.clear()
    played.site.start(relay)
    assert holds_at_last(lambda: played.site.is_up(relay), 30)


def test_a_process_that_ends_by_itself_is_a_violation_and_comes_back(played: Played) -> None:
    relay = played.site.of("relay")[0]
    former = relay.part.pid
    os.kill(former, signal.SIGKILL)
    assert holds_at_last(lambda: relay.part.pid != former and played.site.is_up(relay), 30)
    [said] = played.ledger.violations
    assert said.what.startswith("relay-1 ended by itself")
    played.ledger.violations.clear()


def test_in_the_end_every_process_ends_and_none_has_told_of_a_bug(played: Played) -> None:
    conclude(played.site, played.ledger)
    assert played.ledger.violations == []
    with played.site.of("relay")[0].part.log.open("a") as log:
        log.write("Traceback (most recent call last):")
    conclude(played.site, played.ledger)
    assert [each.kind for each in played.ledger.violations] == ["harmed"]
    assert "relay-1" in played.ledger.violations[0].what
