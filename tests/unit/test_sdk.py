"""The SDK against a service that speaks the contract over real HTTP, and against transports that fail on purpose."""

import hashlib
import io
import json
import os
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from custody.wire import JobState, Problem
from tests.unit.fake_service import KEY, NOW, FakeService, Trouble, serving
from wharfinger import (
    AnswerError,
    AuthenticationError,
    BusyError,
    Client,
    ConfigurationError,
    ConflictError,
    FileChangedError,
    InvalidRequestError,
    NotFoundError,
    Patience,
    PermissionDeniedError,
    PoolState,
    ProblemError,
    ServerError,
    UnreachableError,
    discovery,
)

PICTURE = bytes(range(256)) * 40


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def patience(self, **seconds: float) -> Patience:
        return Patience(sleep=self.sleep, clock=lambda: self.now, **seconds)


@pytest.fixture
def service() -> Iterator[FakeService]:
    with serving() as running:
        yield running


@pytest.fixture
def client(service: FakeService) -> Iterator[Client]:
    with Client(service.url, KEY) as connected:
        yield connected


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "bus.jpg"
    path.write_bytes(PICTURE)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user to whom nothing has happened yet."""
    folder = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(("WHARF_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return folder


def over(handler: Callable[[httpx.Request], httpx.Response], clock: Clock | None = None, **seconds: float) -> Client:
    """A client whose requests `handler` answers, without a network."""
    clock = clock or Clock()
    return Client("http://wharf.test", KEY, patience=clock.patience(**seconds), transport=httpx.MockTransport(handler))


def problem(status: int, code: str = "some_code", field: str | None = None) -> bytes:
    about = Problem(
        type="urn:x", title="T", status=status, code=code, detail="It went wrong", request_id="request-7", field=field
    )
    return about.model_dump_json().encode()


class TestPredict:
    def test_paths_and_bytes_become_one_job_with_results_in_their_order(
        self, client: Client, service: FakeService, picture: Path
    ) -> None:
        job = client.predict(picture, b"empty", str(picture))
        assert job.state is JobState.SUCCEEDED
        assert job.results is not None
        assert [each.filename for each in job.results] == ["bus.jpg", "picture-2", "bus.jpg"]
        assert [len(each.detections or []) for each in job.results] == [1, 0, 1]
        assert service.blobs[job.results[0].sha256] == PICTURE
        assert [(each.method, each.path) for each in service.requests] == [("POST", "/v1/predict")]

    def test_settings_are_sent_only_where_they_were_given(self, client: Client, service: FakeService) -> None:
        client.predict(b"a", model="yolo11n", conf=0.4, metadata={"order": 7})
        sent = service.requests[0].body
        assert b'name="model"\r\n\r\nyolo11n\r\n' in sent
        assert b'name="conf"\r\n\r\n0.4\r\n' in sent
        assert b'{"order": 7}' in sent
        assert b"iou" not in sent
        assert b"priority" not in sent

    def test_waits_in_long_polls_until_the_job_has_ended(self, client: Client, service: FakeService) -> None:
        service.seconds = 1.2
        job = client.predict(b"a", wait=None)
        assert job.state is JobState.SUCCEEDED
        assert len(service.requests) == 1, "the upload itself waits"

    def test_a_long_job_is_asked_for_a_few_times_and_never_in_a_busy_loop(self) -> None:
        clock = Clock()
        asked: list[float] = []

        with serving() as service:
            real = Client(service.url, KEY)
            running = real.predict(b"a").model_copy(update={"state": JobState.RUNNING, "results": None})
            ended = running.model_copy(update={"state": JobState.SUCCEEDED, "results": []})
            real.close()

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(clock.now)
            done = clock.now > 1060
            if request.method == "GET" and clock.now < 1030:
                clock.now += float(request.headers["Prefer"].removeprefix("wait="))
            # From then on the service answers at once, as one does that does not know Prefer.
            return httpx.Response(200, content=(ended if done else running).model_dump_json())

        with over(answer, clock) as client:
            assert client.predict(b"a").state is JobState.SUCCEEDED
        assert len(asked) < 40
        assert all(later - earlier >= 1.0 for earlier, later in pairwise(asked[1:]))

    def test_returns_the_running_job_when_the_given_time_is_over(self, client: Client, service: FakeService) -> None:
        service.seconds = 30
        assert client.predict(b"a", wait=1).state is JobState.RUNNING
        assert client.predict(b"a", wait=0).state is JobState.RUNNING
        assert "prefer" not in service.requests[-1].headers

    def test_many_pictures_go_file_by_file_into_one_job_whose_results_are_all_there(
        self, client: Client, service: FakeService
    ) -> None:
        job = client.predict(*(f"picture {number}".encode() for number in range(120)))
        assert job.results is not None
        assert [each.input for each in job.results] == list(range(120))
        assert not service.made("POST", "/v1/predict")
        assert len(service.made("POST", "/v1/jobs")) == 1

    def test_a_failed_input_leaves_its_neighbours_their_results(self, client: Client) -> None:
        job = client.predict(b"a", b"broken")
        assert job.state is JobState.FAILED
        assert job.results is not None
        assert job.results[0].detections
        assert job.results[1].error is not None
        assert job.results[1].error.code == "undecodable_image"

    @pytest.mark.parametrize("wrong", [{"conf": 7.0}, {"conf": float("nan")}, {"max_detections": 0}])
    def test_parameters_out_of_range_are_refused_before_anything_is_sent(
        self, client: Client, service: FakeService, wrong: dict[str, float]
    ) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            client.predict(b"a", **wrong)
        with pytest.raises(ValueError, match="at least one picture"):
            client.predict()
        assert service.requests == []

    def test_a_missing_file_is_noticed_before_anything_is_sent(self, client: Client, service: FakeService) -> None:
        with pytest.raises(FileNotFoundError):
            client.predict(b"a", "nowhere.jpg")
        assert service.requests == []


class TestUpload:
    def test_the_bytes_arrive_with_their_name(self, client: Client, service: FakeService, picture: Path) -> None:
        file = client.upload(picture)
        assert (file.filename, file.size) == ("bus.jpg", len(PICTURE))
        assert service.blobs[file.sha256] == PICTURE

    @pytest.mark.parametrize("name", ["naïve höhe 図.jpg", "semi;colon, comma.jpg", "a b'c%20.jpg"])
    def test_unusual_names_arrive_whole(self, client: Client, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.write_bytes(b"content")
        assert client.upload(path).filename == name
        assert client.upload(path).filename == name, "by hash, too"

    def test_bytes_that_the_tenant_holds_are_not_sent_again(
        self, client: Client, service: FakeService, picture: Path
    ) -> None:
        first = client.upload(picture)
        moved: list[tuple[int, int]] = []
        second = client.upload(picture, filename="again.jpg", progress=lambda *bytes_: moved.append(bytes_))
        assert [(each.method, len(each.body) > 0) for each in service.requests] == [
            ("HEAD", False),
            ("POST", True),
            ("HEAD", False),
            ("POST", False),
        ]
        assert second.id != first.id
        assert (second.sha256, second.filename) == (first.sha256, "again.jpg")
        assert moved == [(len(PICTURE), len(PICTURE))]

    def test_bytes_deleted_between_question_and_answer_are_sent_after_all(self, picture: Path) -> None:
        with serving() as service:
            held = service._routes

            def forgetful() -> list[tuple[str, str, Callable[..., tuple[int, object]]]]:
                return [("HEAD", "/v1/files/sha256:(.*)", lambda _, digest: (200, None)), *held()]

            service._routes = forgetful
            with Client(service.url, KEY) as client:
                assert service.blobs[client.upload(picture).sha256] == PICTURE

    def test_progress_counts_up_to_the_file_and_starts_over_with_a_new_attempt(
        self, client: Client, service: FakeService, tmp_path: Path
    ) -> None:
        path = tmp_path / "large.jpg"
        path.write_bytes(os.urandom(1_000_000))
        moved: list[int] = []
        client.files.holds("0" * 64)
        service.troubles = [Trouble(status=404), Trouble()]
        client.upload(path, progress=lambda done, total: moved.append(done))
        assert moved.count(1_000_000) == 2
        half = moved.index(1_000_000) + 1
        assert moved[:half] == sorted(moved[:half]) == moved[half:]
        assert len(moved) > 4

    def test_a_large_file_is_never_whole_in_memory(self, tmp_path: Path) -> None:
        size = 96 * 1024 * 1024
        path = tmp_path / "huge.jpg"
        with path.open("wb") as file:
            file.truncate(size)
        digest = hashlib.sha256(bytes(size)).hexdigest()
        received = 0

        class Sink(httpx.BaseTransport):
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                nonlocal received
                if request.method == "HEAD":
                    return httpx.Response(404)
                assert isinstance(request.stream, httpx.SyncByteStream)
                received = sum(len(chunk) for chunk in request.stream)
                assert int(request.headers["Content-Length"]) == received
                with serving() as service:
                    file = service._file("huge.jpg", b"").model_copy(update={"sha256": digest})
                return httpx.Response(201, content=f'{{"items": [{file.model_dump_json()}]}}')

        with Client("http://wharf.test", KEY, transport=Sink()) as client:
            tracemalloc.start()
            try:
                client.upload(path)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert received > size
        assert peak < 4 * 1024 * 1024

    def test_a_file_that_becomes_shorter_on_its_way_is_reported(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jpg"
        path.write_bytes(b"x" * 1_000_000)

        def answer(request: httpx.Request) -> httpx.Response:
            if request.method == "HEAD":
                os.truncate(path, 10)
                return httpx.Response(404)
            raise AssertionError("nothing else is complete")

        with over(answer) as client, pytest.raises(FileChangedError, match=r"log\.jpg became shorter"):
            client.upload(path)

    def test_a_file_rewritten_on_its_way_is_reported(self, client: Client, service: FakeService, picture: Path) -> None:
        known = service.answer

        def rewriting(request: object) -> tuple[int, object]:
            picture.write_bytes(PICTURE[::-1])
            return known(request)

        service.answer = rewriting
        with pytest.raises(FileChangedError, match="changed while it was sent"):
            client.upload(picture)


class TestTryingAgain:
    def test_a_lost_answer_is_asked_for_again_under_the_same_key_and_has_one_effect(
        self, client: Client, service: FakeService
    ) -> None:
        client.files.holds("0" * 64)
        service.troubles = [Trouble(done=True), Trouble(done=True)]
        job = client.predict(b"a")
        posts = service.made("POST")
        assert len(posts) == 3
        assert len({each.headers["idempotency-key"] for each in posts}) == 1
        assert list(service.jobs) == [job.id]
        assert all(each.body.count(b"\r\n\r\na\r\n") == 1 for each in posts), "every attempt sends the whole body"

    def test_two_calls_have_two_keys(self, client: Client, service: FakeService) -> None:
        client.predict(b"a")
        client.predict(b"a")
        assert len({each.headers["idempotency-key"] for each in service.made("POST")}) == 2

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_full_service_is_asked_again_after_the_time_that_it_names(self, status: int) -> None:
        clock = Clock()
        answers = [httpx.Response(status, headers={"Retry-After": "7"}, content=problem(status))] * 2
        answers += [httpx.Response(200, content=b'{"items": []}')]
        with over(lambda _: answers.pop(0), clock) as client:
            assert list(client.models.list()) == []
        assert all(7.0 <= slept < 8.0 for slept in clock.slept)
        assert len(clock.slept) == 2

    @pytest.mark.parametrize(("status", "code"), [(429, "tenant_backlog_full"), (503, "pool_backlog_full")])
    def test_a_submission_that_finds_no_room_is_sent_again_as_the_same_one(self, status: int, code: str) -> None:
        clock = Clock()
        with serving() as service:
            patience = clock.patience()
            full = Trouble(status, {"Retry-After": "5"})
            with Client(service.url, KEY, patience=patience) as client:
                client.files.holds("0" * 64)
                service.troubles = [full, full, full]
                job = client.predict(b"a")
            posts = service.made("POST", "/v1/predict")
            assert (len(posts), list(service.jobs)) == (4, [job.id])
            assert len({each.headers["idempotency-key"] for each in posts}) == 1
        assert [5 <= slept < 6 for slept in clock.slept] == [True] * 3

    def test_a_date_in_retry_after_is_understood(self) -> None:
        long_ago = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
        clock = Clock()
        answers = [httpx.Response(503, headers=long_ago), httpx.Response(200, content=b'{"items": []}')]
        with over(lambda _: answers.pop(0), clock) as client:
            assert list(client.models.list()) == []
        assert sum(clock.slept) < 1

    def test_a_backlog_that_lasts_longer_than_patience_is_raised_with_the_time_to_wait(self) -> None:
        clock = Clock()
        full = httpx.Response(429, headers={"Retry-After": "40"}, content=problem(429, "backlog_full"))
        with over(lambda _: full, clock, backlog=100) as client, pytest.raises(BusyError) as raised:
            client.models.get("a")
        assert raised.value.retry_after == 40
        assert len(clock.slept) == 2
        assert sum(clock.slept) <= 100

    def test_pauses_grow_and_differ(self) -> None:
        clock = Clock()

        def refused(_: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("[Errno 111] Connection refused")

        with over(refused, clock, first_contact=20) as client, pytest.raises(UnreachableError):
            client.models.get("a")
        assert sum(clock.slept) <= 20
        assert len(clock.slept) > 4
        for number, slept in enumerate(clock.slept):
            step = min(5.0, 0.1 * 2**number)
            assert step / 2 <= slept <= step
        assert len(set(clock.slept)) == len(clock.slept)

    def test_a_service_that_never_answered_is_given_up_soon_and_one_that_did_is_waited_for(self) -> None:
        clock = Clock()
        answers = [httpx.Response(200, content=b'{"items": []}')]

        def once(_: httpx.Request) -> httpx.Response:
            if answers:
                return answers.pop()
            raise httpx.ConnectError("[Errno 111] Connection refused")

        with over(once, clock, first_contact=1, reconnect=30) as client:
            list(client.models.list())
            with pytest.raises(UnreachableError):
                list(client.models.list())
            assert 15 < sum(clock.slept) <= 30
        clock.slept.clear()
        with over(once, clock, first_contact=1, reconnect=30) as client:
            with pytest.raises(
                UnreachableError, match=r"no Wharfinger answers at http://wharf\.test \(connection refused"
            ):
                list(client.models.list())
            assert sum(clock.slept) <= 1

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500])
    def test_a_final_answer_is_not_asked_for_again(self, status: int) -> None:
        asked = []

        def refuse(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return httpx.Response(status, content=problem(status))

        with over(refuse) as client, pytest.raises(ProblemError):
            client.predict(b"a")
        assert len(asked) == 1

    def test_a_delete_whose_answer_was_lost_has_succeeded(self, client: Client, service: FakeService) -> None:
        file = client.upload(b"a")
        service.troubles = [Trouble(done=True)]
        client.files.delete(file.id)
        assert service.files == {}
        with pytest.raises(NotFoundError):
            client.files.delete(file.id)


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, InvalidRequestError),
            (401, AuthenticationError),
            (403, PermissionDeniedError),
            (404, NotFoundError),
            (409, ConflictError),
            (413, InvalidRequestError),
            (422, InvalidRequestError),
            (429, BusyError),
            (500, ServerError),
            (503, BusyError),
            (507, ServerError),
        ],
    )
    def test_a_problem_becomes_the_exception_of_its_status_with_all_that_it_says(
        self, status: int, kind: type[ProblemError]
    ) -> None:
        answer = httpx.Response(status, content=problem(status, "the_code", "conf"))
        with over(lambda _: answer, backlog=0, reconnect=0) as client, pytest.raises(ProblemError) as raised:
            client.models.get("a")
        error = raised.value
        assert type(error) is kind
        assert (error.code, error.status, error.detail) == ("the_code", status, "It went wrong")
        assert (error.request_id, error.field) == ("request-7", "conf")
        assert "It went wrong" in str(error)

    def test_a_proxys_page_is_still_an_exception_of_the_tree(self) -> None:
        page = httpx.Response(413, content=b"<html>too large</html>", headers={"X-Request-ID": "proxy-1"})
        with over(lambda _: page) as client, pytest.raises(InvalidRequestError) as raised:
            client.models.get("a")
        assert (raised.value.code, raised.value.request_id) == ("http_413", "proxy-1")

    def test_a_key_that_is_not_known_shows_at_the_first_question_already(
        self, service: FakeService, picture: Path
    ) -> None:
        with Client(service.url, "wrong") as client, pytest.raises(AuthenticationError):
            client.upload(picture)
        assert [each.method for each in service.requests] == ["HEAD"]

    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(200, content=b"<html>It works!</html>"),
            httpx.Response(200, content=b'{"items": [{"name": 1}]}'),
            httpx.Response(301, headers={"Location": "https://wharf.test/"}),
        ],
    )
    def test_something_else_than_wharfinger_is_recognised(self, answer: httpx.Response) -> None:
        with over(lambda _: answer) as client, pytest.raises(AnswerError, match=r"wharf\.test"):
            list(client.models.list())


class TestNouns:
    def test_a_list_fetches_pages_only_as_far_as_it_is_read(self, client: Client, service: FakeService) -> None:
        files = [client.upload(f"file {number}".encode()) for number in range(5)]
        newest_first = client.files.list(page_size=2)
        assert not service.made("GET")
        assert next(newest_first).id == files[4].id
        assert len(service.made("GET")) == 1
        assert [each.id for each in newest_first] == [each.id for each in reversed(files[:4])]
        assert [each.query.get("cursor") for each in service.made("GET")] == [None, "2", "4"]

    def test_a_file_comes_back_as_it_went(self, client: Client, service: FakeService) -> None:
        file = client.upload(PICTURE)
        target = io.BytesIO()
        assert client.files.download(file.id, target).id == file.id
        assert target.getvalue() == PICTURE
        service.blobs[file.sha256] = b"bit rot"
        with pytest.raises(FileChangedError, match="damaged"):
            client.files.download(file.id, io.BytesIO())

    def test_a_file_that_is_deleted_is_gone(self, client: Client) -> None:
        file = client.upload(b"a")
        client.files.delete(file.id)
        with pytest.raises(NotFoundError):
            client.files.get(file.id)

    def test_how_long_a_file_is_kept_is_said_with_its_upload_and_changed_later(
        self, client: Client, service: FakeService
    ) -> None:
        day = 24 * 3600
        sent, known = client.upload(b"a", expires_in=day), client.upload(b"a", expires_in=day)
        predicted = client.predict(b"b", file_expires_in=day).results[0]
        for file in (sent, known, client.files.get(predicted.file_id)):
            assert file.expires_at == NOW + timedelta(days=1)
        assert client.files.pin(sent.id).pinned
        assert not client.files.unpin(sent.id).pinned
        moment = datetime(2031, 5, 1, 12, tzinfo=UTC)
        assert client.files.expire(sent.id, moment).expires_at == moment
        assert client.files.expire(sent.id).expires_at is None
        assert [json.loads(each.body) for each in service.made("PATCH")] == [
            {"pinned": True}, {"pinned": False}, {"expires_at": "2031-05-01T12:00:00+00:00"}, {"expires_at": None},
        ]  # fmt: skip
        with pytest.raises(ValueError, match="offset"):
            client.files.expire(sent.id, datetime(2031, 5, 1))  # noqa: DTZ001

    def test_a_purge_gives_its_receipt_also_where_the_answer_was_lost(
        self, client: Client, service: FakeService
    ) -> None:
        files = [client.upload(b"a"), client.upload(b"a")]
        service.troubles = [Trouble(done=True)]
        receipt = client.files.purge(files[0].id)
        assert receipt.file_ids == [each.id for each in files]
        assert client.files.purge(files[1].id) == receipt
        assert service.files == {}
        by_bytes = client.upload(b"b")
        assert client.files.purge(f"sha256:{by_bytes.sha256}").file_ids == [by_bytes.id]

    def test_a_purge_of_nothing_is_not_found_also_where_an_answer_was_lost(
        self, client: Client, service: FakeService
    ) -> None:
        for troubles in ([], [Trouble(done=True)]):
            service.troubles = list(troubles)
            with pytest.raises(NotFoundError):
                client.files.purge(uuid4())

    def test_a_tenants_retention_is_read_and_set(self, client: Client) -> None:
        assert client.tenant.get().file_retention_days is None
        assert client.tenant.set_retention(file_retention_days=7).file_retention_days == 7
        changed = client.tenant.set_retention(job_retention_days=14)
        assert (changed.file_retention_days, changed.job_retention_days) == (7, 14)
        assert client.tenant.set_retention(file_retention_days=None).file_retention_days is None

    def test_jobs_are_submitted_on_files_waited_for_watched_and_listed_by_state(
        self, client: Client, service: FakeService
    ) -> None:
        file = client.upload(b"a")
        service.seconds = 0.5
        job = client.jobs.submit([file, file.id], metadata={"a": 1})
        assert job.state is JobState.RUNNING
        assert [each.state for each in client.jobs.watch(job.id)][-1] is JobState.SUCCEEDED
        assert client.jobs.wait(job.id).metadata == {"a": 1}
        assert [each.id for each in client.jobs.list(state="succeeded")] == [job.id]
        assert list(client.jobs.list(state=JobState.FAILED)) == []
        assert len(list(client.jobs.results(job.id, page_size=1))) == 2

    def test_a_job_can_be_cancelled(self, client: Client, service: FakeService) -> None:
        service.seconds = 60
        job = client.predict(b"a", wait=0)
        assert client.jobs.cancel(job.id).state is JobState.CANCELLED
        assert client.jobs.wait(job.id).state is JobState.CANCELLED

    def test_a_job_is_rerun_whole_or_where_it_failed(self, client: Client, service: FakeService) -> None:
        job = client.predict(b"a")
        again = client.jobs.rerun(job.id)
        assert (again.rerun_of, service.requests[-1].query) == (job.id, {})
        service.seconds = 0.5
        assert client.jobs.rerun(job.id, wait=5).state is JobState.SUCCEEDED
        client.jobs.rerun(job.id, only_failed=True)
        assert service.requests[-1].query == {"only": "failed"}
        with pytest.raises(NotFoundError):
            client.jobs.rerun(uuid4())

    def test_a_retry_walks_through_all_batches_and_tells_what_came_of_each(
        self, client: Client, service: FakeService
    ) -> None:
        since = datetime(2026, 11, 21, tzinfo=UTC)
        retried = list(
            client.jobs.retry(state="failed", error_code="worker_lost", metadata={"a": 1}, created_after=since)
        )
        assert [each.error.code if each.error else None for each in retried] == [None, "input_gone", None]
        first, second = (json.loads(request.body) for request in service.made("POST", "/v1/jobs/retry"))
        assert first.pop("cursor") is None
        assert second.pop("cursor") == "on"
        assert first == second
        assert first["created_after"] == "2026-11-21T00:00:00Z"
        assert (first["error_code"], first["metadata"], first["dry_run"]) == ("worker_lost", {"a": 1}, False)
        assert "model" not in first

    def test_a_retry_asks_for_no_more_jobs_than_it_was_told(self, client: Client, service: FakeService) -> None:
        assert len(list(client.jobs.retry(limit=2, dry_run=True))) == 2
        [request] = service.made("POST", "/v1/jobs/retry")
        assert (json.loads(request.body)["limit"], json.loads(request.body)["dry_run"]) == (2, True)
        assert len(list(client.jobs.retry(limit=3))) == 3
        assert json.loads(service.requests[-1].body)["limit"] == 1
        with pytest.raises(ValueError, match="state"):
            list(client.jobs.retry(state="running"))  # type: ignore[arg-type]

    def test_models_are_listed_and_got_by_name(self, client: Client) -> None:
        assert [each.name for each in client.models.list()] == ["yolo11n"]
        assert client.models.get("yolo11n").ready_workers == 2
        with pytest.raises(NotFoundError):
            client.models.get("../keys")

    def test_a_deadline_goes_with_the_pictures_or_the_job(self, client: Client, service: FakeService) -> None:
        job = client.predict(b"a", expires_in=90)
        assert job.expires_at is not None
        assert (job.expires_at - job.created_at).total_seconds() == 90
        assert client.jobs.submit([client.upload(b"a")], expires_in=0.5).expires_at is not None
        assert client.predict(b"a").expires_at is None
        with pytest.raises(ValueError, match="expires_in"):
            client.jobs.submit([client.upload(b"a")], expires_in=0)

    def test_a_known_answer_can_be_declined(self, client: Client, service: FakeService) -> None:
        client.predict(b"a", cache=False)
        assert b'name="cache"\r\n\r\nfalse\r\n' in service.requests[-1].body
        client.jobs.submit([client.upload(b"a")], cache=False)
        assert json.loads(service.requests[-1].body)["cache"] is False
        # What is the default is left out: a service of an older release refuses fields that it does not know.
        client.predict(b"a")
        assert b"cache" not in service.requests[-1].body
        client.jobs.submit([client.upload(b"a")])
        assert "cache" not in json.loads(service.requests[-1].body)

    def test_a_model_is_retired_whole_or_in_one_version(self, client: Client, service: FakeService) -> None:
        assert client.models.retire("yolo11n", 2).versions[0].state == "active"
        assert service.requests[-1].query == {"version": "2"}
        assert client.models.retire("yolo11n").versions[0].state == "retired"
        with pytest.raises(NotFoundError):
            client.models.retire("../keys")

    def test_pools_are_listed_paused_drained_and_resumed(self, client: Client) -> None:
        [pool] = client.pools.list()
        assert (pool.name, pool.waiting, [each.name for each in pool.workers]) == ("yolo11n", 7, ["w1"])
        assert client.pools.pause("yolo11n").state is PoolState.PAUSED
        assert client.pools.drain("yolo11n").state is PoolState.DRAINING
        assert client.pools.resume("yolo11n").state is PoolState.ACTIVE
        with pytest.raises(NotFoundError):
            client.pools.pause("../keys")

    def test_keys_are_created_listed_and_revoked(self, client: Client, service: FakeService) -> None:
        key = client.keys.create("ci", "writer")
        assert key.secret == "wharf_secret"
        assert [each.name for each in client.keys.list()] == ["ci"]
        client.keys.revoke(key.id)
        assert service.keys == {}
        with pytest.raises(ValueError, match="role"):
            client.keys.create("ci", "king")


class TestDiscovery:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / discovery.KEY_FILE).write_text("local-key\n")
        (folder / discovery.SERVER_FILE).write_text("http://127.0.0.1:9000\n")
        return folder

    def test_without_anything_the_default_address_and_no_key(self) -> None:
        assert discovery.find() == discovery.Connection("http://127.0.0.1:8000", None)

    def test_a_running_service_of_another_place_is_found_through_its_pointer_until_it_is_forgotten(
        self, data: Path
    ) -> None:
        discovery.remember(data)
        assert discovery.find() == discovery.Connection("http://127.0.0.1:9000", "local-key")
        discovery.forget(data)
        assert discovery.find().api_key is None

    def test_a_user_who_cannot_write_a_pointer_can_still_run_a_service(self, home: Path, data: Path) -> None:
        (home / ".local").write_text("a file where a folder should be")
        discovery.remember(data)
        discovery.forget(data)
        assert discovery.find(environ={"WHARF_DATA": str(data)}).api_key == "local-key"

    def test_forgetting_leaves_the_pointer_of_a_later_service(self, data: Path, tmp_path: Path) -> None:
        discovery.remember(tmp_path / "earlier")
        discovery.remember(data)
        discovery.forget(tmp_path / "earlier")
        assert discovery.find().api_key == "local-key"

    def test_a_relative_data_folder_is_remembered_as_an_absolute_one(
        self, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(data.parent)
        discovery.remember(Path("data"))
        monkeypatch.chdir("/")
        assert discovery.find().api_key == "local-key"

    def test_the_default_data_folder_is_the_users_and_roots_is_the_systems(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.platform", "linux")
        assert discovery.default_data_folder() == home / ".local" / "share" / "wharfinger"
        assert discovery.default_data_folder({"XDG_DATA_HOME": "/x"}) == Path("/x/wharfinger")
        monkeypatch.setattr("sys.platform", "darwin")
        assert discovery.default_data_folder() == home / "Library" / "Application Support" / "wharfinger"
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert discovery.default_data_folder() == Path("/var/lib/wharfinger")

    def test_what_is_named_comes_before_what_is_found(self, data: Path, tmp_path: Path) -> None:
        discovery.remember(data)
        key_file = tmp_path / "key"
        key_file.write_text("file-key\n")
        environ = dict(os.environ) | {"WHARF_SERVER": "https://wharf.example/", "WHARF_API_KEY_FILE": str(key_file)}
        assert discovery.find(environ=environ) == discovery.Connection("https://wharf.example", "file-key")
        environ["WHARF_API_KEY"] = "environment-key"
        assert discovery.find(environ=environ).api_key == "environment-key"
        assert discovery.find("http://a.test", "k", environ) == discovery.Connection("http://a.test", "k")

    def test_data_folder_from_the_environment(self, data: Path) -> None:
        assert discovery.find(environ={"WHARF_DATA": str(data), "HOME": "/"}).api_key == "local-key"

    def test_the_local_key_is_not_shown_to_another_server(self, data: Path) -> None:
        discovery.remember(data)
        assert discovery.find("http://localhost:9000").api_key == "local-key"
        assert discovery.find("http://127.0.0.1:9001").api_key is None
        assert discovery.find("https://elsewhere.example:9000").api_key is None

    @pytest.mark.parametrize("server", ["localhost:8000", "ftp://a", "http://", "http://a:port", "", "http://[::1"])
    def test_a_wrong_url_is_told_with_a_right_one(self, server: str) -> None:
        environ = {"HOME": "/"} | {"WHARF_SERVER": server}
        if server:
            with pytest.raises(ConfigurationError, match=r"write it like http://127\.0\.0\.1:8000"):
                discovery.find(environ=environ)
        else:
            assert discovery.find(environ=environ).server == discovery.DEFAULT_SERVER

    def test_a_key_file_without_a_key_is_told_by_its_name(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"WHARF_API_KEY_FILE names .*missing"):
            discovery.find(environ={"WHARF_API_KEY_FILE": str(tmp_path / "missing")})
        (tmp_path / "folder").mkdir()
        with pytest.raises(ConfigurationError, match=r"cannot read .*folder"):
            discovery.find(environ={"WHARF_API_KEY_FILE": str(tmp_path / "folder")})
        with pytest.raises(ConfigurationError, match="copy it again"):
            discovery.find(api_key="two\nlines")

    def test_a_key_does_not_show_when_a_connection_is_printed(self) -> None:
        assert "secret" not in repr(discovery.Connection("http://a", "secret"))

    def test_the_pointer_is_in_a_folder_of_the_users_own(self, home: Path, data: Path) -> None:
        discovery.remember(data)
        folder = home / ".local" / "state" / "wharfinger"
        assert (folder / "current").read_text().strip() == str(data)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [each.name for each in folder.iterdir()] == ["current"]

    def test_a_client_finds_the_service_by_itself(
        self, service: FakeService, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (data / discovery.KEY_FILE).write_text(KEY)
        (data / discovery.SERVER_FILE).write_text(service.url)
        discovery.remember(data)
        # A proxy in the environment must not come between two processes of one machine.
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        with Client() as client:
            assert client.models.get("yolo11n").name == "yolo11n"


def test_foreign_ids_are_one_segment_of_the_path_whatever_they_hold(client: Client, service: FakeService) -> None:
    with pytest.raises(NotFoundError):
        client.jobs.get(uuid4())
    with pytest.raises(NotFoundError):
        client.models.get("a/b?c=d#e")
    assert service.requests[-1].path == "/v1/models/a/b?c=d#e"
    assert service.requests[-1].query == {}
