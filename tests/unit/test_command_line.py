"""`wharf` as its user meets it: what it prints where, how it exits, and what it leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from custody.wire import File, Job, JobState, Model, NewKey, Pool
from tests.unit.fake_service import KEY, NOW, FakeService, serving
from wharfinger import discovery
from wharfinger.command import app
from wharfinger.commands import predict as predict_command
from wharfinger.commands import server as server_commands

NOBODY = "no worker serves yolo11n now: start one with `wharf worker --model yolo11n`"
# Whatever started the tests may ignore Ctrl-C, as a shell does for what it runs in the background.
MAIN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    " from wharfinger.command import main; sys.argv[0] = 'wharf'; main()"
)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(("WHARF_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return folder


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    with serving() as running:
        monkeypatch.setenv("WHARF_SERVER", running.url)
        monkeypatch.setenv("WHARF_API_KEY", KEY)
        yield running


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two pictures of one name in two folders below it, and things that are no pictures."""
    for name, grey in (("a/bus.jpg", 100), ("b/deep/bus.PNG", 200)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        Image.new("L", (80, 60), grey).save(path)
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / "a" / ".hidden.jpg").write_text("not a picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wharf(*words: object, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run(*words: object, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)], capture_output=True, text=True, timeout=60, **options
    )


class TestPredict:
    def test_prints_a_row_a_detection(self, service: FakeService, pictures: Path) -> None:
        result = wharf("predict", "a/bus.jpg")
        assert result.exit_code == 0
        rows = [line.split() for line in result.stdout.splitlines()]
        assert ["a/bus.jpg", "bus", "0.94", "3", "229", "796", "729"] in rows
        assert result.stderr == "1 picture; bus 1; yolo11n version 1\n"

    def test_json_is_exactly_one_document_the_job(self, service: FakeService, pictures: Path) -> None:
        result = wharf("predict", "a/bus.jpg", "b/deep/bus.PNG", "--json")
        assert result.exit_code == 0
        job = Job.model_validate(json.loads(result.stdout))
        assert job.results is not None
        assert [each.filename for each in job.results] == ["bus.jpg", "bus.PNG"]

    def test_a_folder_means_the_pictures_below_it(self, service: FakeService, pictures: Path) -> None:
        result = wharf("predict", ".")
        assert result.exit_code == 0
        assert sorted(file.filename or "" for file in service.files.values()) == ["bus.PNG", "bus.jpg"]
        assert result.stdout.index("a/bus.jpg") < result.stdout.index("b/deep/bus.PNG")

    def test_a_dash_means_stdin(self, service: FakeService, pictures: Path) -> None:
        content = Path("a/bus.jpg").read_bytes()
        result = wharf("predict", "-", "--save", "out", stdin=content)
        assert result.exit_code == 0
        assert "stdin" in result.stdout
        assert list(service.blobs.values()) == [content]
        assert Path("out/stdin.annotated.jpg").exists()

    def test_a_pipe_is_read_once_and_used_thrice(self, service: FakeService, pictures: Path) -> None:
        os.mkfifo("pipe")
        with subprocess.Popen("cat a/bus.jpg > pipe", shell=True):
            result = wharf("predict", "pipe", "--save", "out")
        assert result.exit_code == 0
        assert list(service.blobs.values()) == [Path("a/bus.jpg").read_bytes()]
        assert Path("out/pipe.annotated.jpg").exists()

    def test_settings_reach_the_service(self, service: FakeService, pictures: Path) -> None:
        wharf("predict", "a/bus.jpg", "--model", "yolo11n", "--conf", "0.4")
        sent = json.loads(service.made("POST", "/v1/jobs")[0].body)
        assert (sent["model"], sent["params"]) == ("yolo11n", {"conf": 0.4})

    def test_saved_pictures_have_their_boxes_and_names_of_their_own(self, service: FakeService, pictures: Path) -> None:
        before = Path("a/bus.jpg").read_bytes()
        result = wharf("predict", "a", "b", "--save", "a")
        assert result.exit_code == 0
        assert Path("a/bus.jpg").read_bytes() == before
        for name, grey in (("bus.annotated.jpg", 100), ("bus-2.annotated.jpg", 200)):
            with Image.open(pictures / "a" / name) as saved:
                assert saved.mode == "RGB"
                assert len({round(pixel / 40) for pixel in saved.tobytes()}) > 2, "something is drawn on the grey"
                assert saved.getpixel((1, 1)) == pytest.approx((grey, grey, grey), abs=3)
        assert "saved a/bus-2.annotated.jpg" in result.stderr

    def test_a_refused_file_is_told_and_its_neighbours_are_inferred(self, service: FakeService, pictures: Path) -> None:
        result = wharf("predict", "a/notes.txt", "a/bus.jpg", "--json")
        assert result.exit_code == 1
        assert result.stderr.startswith("a/notes.txt: The bytes are of no accepted format [unsupported_media_type]")
        job = Job.model_validate_json(result.stdout)
        assert [each.filename for each in job.results or []] == ["bus.jpg"]

    def test_names_belong_to_their_results_where_a_file_was_refused(self, service: FakeService, pictures: Path) -> None:
        result = wharf("predict", "a/notes.txt", "b/deep/bus.PNG", "a/bus.jpg")
        assert result.stdout.index("b/deep/bus.PNG") < result.stdout.index("a/bus.jpg")
        assert "notes.txt" not in result.stdout

    def test_nothing_but_refused_files_makes_no_job(self, service: FakeService, pictures: Path) -> None:
        result = wharf("predict", "a/notes.txt", "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        assert service.jobs == {}

    def test_a_failed_input_is_a_row_and_exit_code_1(self, service: FakeService, pictures: Path) -> None:
        Path("broken.jpg").write_bytes(b"broken")
        result = wharf("predict", "broken.jpg", "a/bus.jpg")
        assert result.exit_code == 1
        assert "The picture cannot be decoded [undecodable_image]" in result.stdout
        assert "bus  " in result.stdout
        assert "2 pictures, 1 failed" in result.stderr

    def test_a_model_that_nobody_serves_is_told_once_while_it_waits(self, service: FakeService, pictures: Path) -> None:
        service.workers, service.seconds = 0, 1.5
        result = wharf("predict", "a/bus.jpg", "--json")
        assert result.exit_code == 0
        assert len(service.made("GET", "/v1/jobs/")) > 1
        assert result.stderr == f"{NOBODY}\n"
        service.workers = 1
        assert NOBODY not in wharf("predict", "a/bus.jpg").stderr

    def test_a_deadline_reaches_the_service(self, service: FakeService, pictures: Path) -> None:
        job = Job.model_validate_json(wharf("predict", "a/bus.jpg", "--expires-in", "90", "--json").stdout)
        assert job.expires_at is not None
        assert (job.expires_at - job.created_at).total_seconds() == 90
        assert wharf("predict", "a/bus.jpg", "--expires-in", "0").exit_code == 2

    def test_a_picture_without_objects_says_so(self, service: FakeService, pictures: Path) -> None:
        Path("sky.jpg").write_bytes(b"empty")
        result = wharf("predict", "sky.jpg")
        assert result.exit_code == 0
        assert "nothing found" in result.stdout

    def test_many_pictures_are_one_job_with_all_its_results_and_a_request_each(
        self, service: FakeService, pictures: Path
    ) -> None:
        Path("many").mkdir()
        for number in range(130):
            Path(f"many/{number:03}.jpg").write_bytes(b"%d" % number)
        result = wharf("predict", "many", "--json")
        assert result.exit_code == 0
        results = Job.model_validate_json(result.stdout).results
        assert [each.filename for each in results or []] == [f"{number:03}.jpg" for number in range(130)]
        assert max(len(each.body) for each in service.made("POST", "/v1/files")) < 500

    def test_beyond_a_jobs_size_there_are_several_jobs_in_one_document(
        self, service: FakeService, pictures: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(predict_command, "_INPUTS_A_JOB", 2)
        for name in ("x.jpg", "y.jpg"):
            Path(name).write_bytes(name.encode())
        words = ("predict", "a/bus.jpg", "x.jpg", "y.jpg")
        document = json.loads(wharf(*words, "--json").stdout)
        assert [len(each["results"]) for each in document["items"]] == [2, 1]
        table = wharf(*words).stdout
        assert table.index("a/bus.jpg") < table.index("x.jpg") < table.index("y.jpg")

    @pytest.mark.parametrize("words", [["nowhere.jpg"], ["."], ["a.jpg", "--conf", "7"], []])
    def test_a_wrong_word_is_told_before_anything_is_sent(
        self, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = wharf("predict", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert service.requests == []

    def test_an_unknown_model_is_told_as_the_service_tells_it(self, service: FakeService, pictures: Path) -> None:
        result = wharf("predict", "a/bus.jpg", "--model", "yolo99")
        assert result.exit_code == 1
        assert result.stderr == "No active model is called yolo99 [model_not_found]\n"

    def test_control_characters_of_a_name_never_reach_the_terminal(self, service: FakeService, pictures: Path) -> None:
        name = "evil\x1b]0;title\x07[red].jpg"
        Path(name).write_bytes(b"picture")
        Path("evil\x1b[2J.txt").write_bytes(b"not a picture")
        result = wharf("predict", name, "evil\x1b[2J.txt")
        assert "\x1b" not in result.stdout + result.stderr
        assert "\x07" not in result.stdout + result.stderr
        assert "title\N{REPLACEMENT CHARACTER}[red].jpg" in result.stdout


class TestWithoutService:
    def test_nobody_at_the_address_is_two_lines_and_exit_code_3(self, pictures: Path) -> None:
        result = run("predict", "a/bus.jpg", "--server", "http://127.0.0.1:9", env=dict(os.environ))
        assert (result.returncode, result.stdout) == (3, "")
        assert result.stderr == (
            "no Wharfinger answers at http://127.0.0.1:9 (connection refused)\n"
            "Start one with `wharf up`, or name one with --server or WHARF_SERVER.\n"
        )

    def test_a_wrong_key_is_exit_code_3_and_says_where_a_right_one_is(
        self, service: FakeService, pictures: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WHARF_API_KEY", "wrong")
        for words in (["predict", "a/bus.jpg"], ["files", "list"], ["keys", "create", "ci"]):
            result = wharf(*words)
            assert (result.exit_code, result.stdout) == (3, "")
            assert "WHARF_API_KEY" in result.stderr
            assert len(result.stderr.splitlines()) == 2

    def test_a_wrong_url_is_a_usage_error(self, pictures: Path) -> None:
        result = wharf("models", "list", "--server", "localhost:8000")
        assert result.exit_code == 2
        assert "write it like http://127.0.0.1:8000" in result.stderr

    def test_the_running_service_of_this_machine_is_found_by_itself(
        self, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WHARF_SERVER")
        monkeypatch.delenv("WHARF_API_KEY")
        (tmp_path / discovery.KEY_FILE).write_text(f"{KEY}\n")
        (tmp_path / discovery.SERVER_FILE).write_text(service.url)
        discovery.remember(tmp_path)
        assert wharf("models", "list").exit_code == 0

    def test_ctrl_c_stops_waiting_and_says_how_to_stop_the_job(self, service: FakeService, pictures: Path) -> None:
        service.seconds = 60
        with subprocess.Popen(
            [sys.executable, "-c", MAIN, "predict", "a/bus.jpg"], stderr=subprocess.PIPE, text=True
        ) as process:
            while not service.made("GET", "/v1/jobs/"):
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=10)
        assert process.returncode == 130
        assert f"wharf jobs cancel {next(iter(service.jobs))}" in stderr
        assert "Traceback" not in stderr

    def test_ctrl_c_does_not_wait_for_uploads_that_hang(self, service: FakeService, pictures: Path) -> None:
        service.upload_seconds = 60
        with subprocess.Popen(
            [sys.executable, "-c", MAIN, "upload", "."], stderr=subprocess.PIPE, text=True
        ) as process:
            while not service.made("POST"):
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=5)
        assert (process.returncode, stderr) == (130, "")


class TestUpload:
    def test_files_are_listed_and_not_sent_twice(self, service: FakeService, pictures: Path) -> None:
        first = wharf("upload", "a/bus.jpg")
        assert first.exit_code == 0
        assert "bus.jpg" in first.stdout
        sent = len(service.made("POST", "/v1/files"))
        again = wharf("upload", "a/bus.jpg", "--json")
        assert [each["filename"] for each in json.loads(again.stdout)["items"]] == ["bus.jpg"]
        assert [each.body for each in service.made("POST", "/v1/files")[sent:]] == [b""]

    def test_a_file_that_may_not_be_read_is_told_and_the_others_are_sent(
        self, service: FakeService, pictures: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = Path.open

        def forbidden(path: Path, *words: object, **more: object) -> object:
            if path.name == "bus.PNG":
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *words, **more)

        monkeypatch.setattr(Path, "open", forbidden)
        result = wharf("upload", "b", "a")
        assert result.exit_code == 1
        assert "b/deep/bus.PNG" in result.stderr
        assert "Permission denied" in result.stderr
        assert "bus.jpg" in result.stdout

    def test_how_long_files_are_kept_is_said_with_them(self, service: FakeService, pictures: Path) -> None:
        assert wharf("upload", "a/bus.jpg", "--expires-in", "12h").exit_code == 0
        [file] = service.files.values()
        assert file.expires_at == NOW + timedelta(hours=12)
        assert wharf("upload", "a/bus.jpg", "--expires-in", "12").exit_code == 2


class TestFiles:
    @pytest.fixture
    def file(self, service: FakeService) -> File:
        return service._file("bus.jpg", b"content of the bus")

    def test_list_shows_the_newest_up_to_the_limit(self, service: FakeService) -> None:
        files = [service._file(f"{number}.jpg", b"%d" % number) for number in range(5)]
        result = wharf("files", "list", "--limit", "2")
        assert [str(each.id) in result.stdout for each in files] == [False, False, False, True, True]
        assert len(json.loads(wharf("files", "list", "--json").stdout)["items"]) == 5

    def test_show_tells_all_about_a_file(self, file: File) -> None:
        result = wharf("files", "show", file.id)
        assert file.sha256 in result.stdout
        assert "810 x 1080" in result.stdout
        assert File.model_validate_json(wharf("files", "show", file.id, "--json").stdout) == file

    def test_get_writes_the_file_under_its_name_and_overwrites_nothing(self, file: File, pictures: Path) -> None:
        result = wharf("files", "get", file.id)
        assert (result.exit_code, result.stdout) == (0, "bus.jpg\n")
        assert Path("bus.jpg").read_bytes() == b"content of the bus"
        Path("bus.jpg").write_bytes(b"mine")
        assert wharf("files", "get", file.id).exit_code == 1
        assert Path("bus.jpg").read_bytes() == b"mine"
        assert wharf("files", "get", file.id, "--force").exit_code == 0
        assert Path("bus.jpg").read_bytes() == b"content of the bus"

    def test_get_writes_to_another_place_or_to_stdout(self, file: File, pictures: Path) -> None:
        assert wharf("files", "get", file.id, "-o", "a/other.jpg").exit_code == 0
        assert Path("a/other.jpg").read_bytes() == b"content of the bus"
        assert wharf("files", "get", file.id, "-o", "-").stdout_bytes == b"content of the bus"
        assert wharf("files", "get", file.id, "-o", "nowhere/other.jpg").exit_code == 1

    @pytest.mark.parametrize(
        ("name", "kept"), [("../../escape.jpg", "escape.jpg"), ("..\\x.jpg", "x.jpg"), ("a\x1bb", "a_b"), (".rc", "rc")]
    )
    def test_a_hostile_name_does_not_lead_out_of_the_folder(
        self, service: FakeService, pictures: Path, name: str, kept: str
    ) -> None:
        here = pictures / "a" / "here"
        here.mkdir()
        os.chdir(here)
        assert wharf("files", "get", service._file(name, b"content").id).stdout == f"{kept}\n"
        assert [each.name for each in here.iterdir()] == [kept]

    def test_damaged_bytes_leave_no_file(self, service: FakeService, file: File, pictures: Path) -> None:
        service.blobs[file.sha256] = b"bit rot"
        before = sorted(pictures.iterdir())
        result = wharf("files", "get", file.id)
        assert result.exit_code == 1
        assert "damaged" in result.stderr
        assert sorted(pictures.iterdir()) == before

    def test_rm_deletes_and_an_unknown_id_is_exit_code_1(self, service: FakeService, file: File) -> None:
        assert wharf("files", "rm", file.id).exit_code == 0
        assert service.files == {}
        result = wharf("files", "rm", file.id)
        assert (result.exit_code, result.stderr) == (1, "There is nothing of this id [not_found]\n")
        assert wharf("files", "rm", "not-an-id").exit_code == 2

    def test_files_are_pinned_unpinned_and_dated_and_the_list_tells(self, service: FakeService, file: File) -> None:
        assert "pinned" in wharf("files", "pin", file.id).stdout
        assert "pinned" in wharf("files", "list").stdout
        assert "kept until it is unpinned" in wharf("files", "show", file.id).stdout
        assert "pinned" not in wharf("files", "unpin", file.id).stdout
        assert "2031-05-0" in wharf("files", "expire", file.id, "--at", "2031-05-01T12:00:00+02:00").stdout
        assert "2031-05-0" in wharf("files", "list").stdout
        moved = json.loads(wharf("files", "expire", file.id, "--in", "7d", "--json").stdout)["items"][0]
        left = datetime.fromisoformat(moved["expires_at"]) - datetime.now(UTC)
        assert timedelta(days=6.9) < left < timedelta(days=7)
        assert json.loads(wharf("files", "expire", file.id, "--json").stdout)["items"][0]["expires_at"] is None

    @pytest.mark.parametrize(
        "words",
        [
            ["--at", "2031-05-01"], ["--at", "2031-05-01T12:00:00"], ["--at", "soon"], ["--in", "7"], ["--in", "-7d"],
            ["--in", "7w"], ["--in", ""], ["--in", "1e3d"], ["--in", "7d", "--at", "2031-05-01T12:00:00Z"],
        ],
    )  # fmt: skip
    def test_a_time_that_is_none_is_a_usage_error(self, service: FakeService, file: File, words: list[str]) -> None:
        assert wharf("files", "expire", file.id, *words).exit_code == 2
        assert service.made("PATCH") == []

    def test_purge_asks_tells_and_may_be_repeated(self, service: FakeService, file: File) -> None:
        other = service._file("other.jpg", b"other")
        refused = wharf("files", "purge", file.id, stdin=b"n\n")
        assert refused.exit_code == 1
        assert file.id in service.files
        asked = wharf("files", "purge", file.id, stdin=b"y\n")
        assert (asked.exit_code, f"purged {file.id}: 1 files" in asked.stdout) == (0, True)
        again = wharf("files", "purge", "--yes", file.id, f"sha256:{other.sha256}", "--json")
        assert again.exit_code == 0
        assert [each["file_ids"] for each in json.loads(again.stdout)["items"]] == [[str(file.id)], [str(other.id)]]
        assert service.files == {}

    def test_purge_goes_on_after_an_id_of_which_nothing_is_there_and_exits_with_1(
        self, service: FakeService, file: File
    ) -> None:
        unknown = "01a1ffff-0000-7000-8000-000000000000"
        result = wharf("files", "purge", "--yes", unknown, file.id)
        assert (result.exit_code, result.stderr) == (1, f"{unknown}: you have nothing by this id\n")
        assert service.files == {}


class TestJobs:
    @pytest.fixture
    def job(self, service: FakeService, pictures: Path) -> UUID:
        assert wharf("predict", "a/bus.jpg").exit_code == 0
        return next(iter(service.jobs))

    def test_list_show_and_results_tell_of_the_job(self, job: UUID) -> None:
        assert str(job) in wharf("jobs", "list").stdout
        assert str(job) not in wharf("jobs", "list", "--state", "failed").stdout
        assert wharf("jobs", "list", "--state", "asleep").exit_code == 2
        assert "1 of 1 done" in wharf("jobs", "show", job).stdout
        assert "0.94" in wharf("jobs", "results", job).stdout
        assert json.loads(wharf("jobs", "list", "--json").stdout)["items"][0]["id"] == str(job)
        assert Job.model_validate_json(wharf("jobs", "show", job, "--json").stdout).id == job
        assert json.loads(wharf("jobs", "results", job, "--json").stdout)["items"][0]["detections"]

    def test_show_tells_how_many_workers_serve_a_jobs_model(self, service: FakeService, job: UUID) -> None:
        assert "workers" not in wharf("jobs", "show", job).stdout
        service.jobs[job] = (service.jobs[job][0] + 60, service.jobs[job][1])
        assert ["workers", "2"] in [line.split() for line in wharf("jobs", "show", job).stdout.splitlines()]
        service.workers = 0
        assert NOBODY in wharf("jobs", "show", job).stdout

    def test_watch_waits_for_the_end(self, service: FakeService, job: UUID) -> None:
        service.jobs[job] = (service.jobs[job][0] + 0.5, service.jobs[job][1])
        result = wharf("jobs", "watch", job)
        assert (result.exit_code, result.stdout) == (0, f"{job} succeeded: 1 of 1 done\n")
        assert Job.model_validate_json(wharf("jobs", "watch", job, "--json").stdout).state is JobState.SUCCEEDED

    def test_cancel_ends_a_job_and_watching_it_is_exit_code_1(self, job: UUID) -> None:
        assert "cancelled" in wharf("jobs", "cancel", job).stdout
        assert wharf("jobs", "watch", job).exit_code == 1

    def test_rerun_makes_a_new_job(self, service: FakeService, job: UUID) -> None:
        again = Job.model_validate_json(wharf("jobs", "rerun", job, "--json").stdout)
        assert again.rerun_of == job
        assert str(job) in wharf("jobs", "show", again.id).stdout
        assert "1 of 1 done" in wharf("jobs", "rerun", job, "--only-failed").stdout
        assert service.requests[-1].query == {"only": "failed"}

    def test_retry_shows_what_came_of_each_job_and_exits_with_1_where_one_cannot_be_rerun(
        self, service: FakeService
    ) -> None:
        result = wharf("jobs", "retry", "--model", "yolo11n", "--error-code", "worker_lost", "--state", "failed")
        assert (result.exit_code, result.stdout.count("acme")) == (1, 3)
        assert "[input_gone]" in result.stdout
        assert "2 jobs rerun, 1 cannot be" in result.stderr
        sent = json.loads(service.requests[-1].body)
        assert (sent["model"], sent["error_code"], sent["all_tenants"]) == ("yolo11n", "worker_lost", False)
        dry = wharf("jobs", "retry", "--dry-run", "--all-tenants", "--json")
        assert dry.exit_code == 0
        assert [each["rerun"] for each in json.loads(dry.stdout)["items"]] == [None] * 3
        assert json.loads(service.requests[-1].body)["all_tenants"] is True

    def test_retry_takes_a_time_or_how_long_ago(self, service: FakeService) -> None:
        wharf("jobs", "retry", "--since", "2h", "--until", "2026-01-31T18:00+00:00")
        sent = json.loads(service.requests[-1].body)
        ago = datetime.now(UTC) - datetime.fromisoformat(sent["created_after"])
        assert timedelta(hours=2) <= ago < timedelta(hours=2, minutes=5)
        assert datetime.fromisoformat(sent["created_before"]) == datetime(2026, 1, 31, 18, tzinfo=UTC)
        for wrong in ("yesterday", "2x", "-1h", "999999d", ""):
            assert wharf("jobs", "retry", "--since", wrong).exit_code == 2
        assert wharf("jobs", "retry", "--state", "running").exit_code == 2

    def test_an_unknown_job_is_exit_code_1(self, service: FakeService) -> None:
        for verb in ("show", "results", "watch", "rerun"):
            assert wharf("jobs", verb, uuid4()).exit_code == 1


class TestModelsAndKeys:
    def test_models_are_listed_and_shown(self, service: FakeService) -> None:
        assert "640 x 640" in wharf("models", "list").stdout
        assert "person, bus" in wharf("models", "show", "yolo11n").stdout
        assert Model.model_validate_json(wharf("models", "show", "yolo11n", "--json").stdout).name == "yolo11n"
        assert json.loads(wharf("models", "list", "--json").stdout)["items"][0]["name"] == "yolo11n"
        assert wharf("models", "show", "yolo99").exit_code == 1

    def test_a_model_is_retired(self, service: FakeService) -> None:
        result = wharf("models", "retire", "yolo11n", "--version", 1)
        assert result.exit_code == 0
        assert "retired" in result.stdout
        assert service.requests[-1].query == {"version": "1"}
        assert Model.model_validate_json(wharf("models", "retire", "yolo11n", "--json").stdout) == service.model
        assert wharf("models", "retire", "other").exit_code == 1
        assert wharf("models", "retire", "yolo11n", "--version", "0").exit_code == 2

    def test_pools_are_listed_and_stopped_and_go_on(self, service: FakeService) -> None:
        rows = [line.split() for line in wharf("pools", "list").stdout.splitlines()]
        assert ["yolo11n", "active", "7", "2", "1"] in rows
        for action, state in (("pause", "paused"), ("drain", "draining"), ("resume", "active")):
            assert state in wharf("pools", action, "yolo11n").stdout
            assert service.pool.state == state
        assert json.loads(wharf("pools", "list", "--json").stdout)["items"][0]["workers"][0]["name"] == "w1"
        assert Pool.model_validate_json(wharf("pools", "pause", "yolo11n", "--json").stdout).state == "paused"
        assert wharf("pools", "pause", "other").exit_code == 1

    def test_a_keys_secret_is_all_that_create_prints_to_stdout(self, service: FakeService) -> None:
        result = wharf("keys", "create", "ci", "--role", "reader")
        assert (result.exit_code, result.stdout) == (0, "wharf_secret\n")
        assert "reader" in result.stderr
        assert NewKey.model_validate_json(wharf("keys", "create", "ci", "--json").stdout).role == "writer"
        assert wharf("keys", "create", "ci", "--role", "king").exit_code == 2
        assert wharf("keys", "create", "ci", "--tenant", "No Such").exit_code == 2

    def test_keys_are_listed_and_revoked(self, service: FakeService) -> None:
        wharf("keys", "create", "ci")
        key = next(iter(service.keys))
        assert str(key) in wharf("keys", "list").stdout
        assert "wharf_secret" not in wharf("keys", "list", "--json").stdout
        assert wharf("keys", "revoke", key).exit_code == 0
        assert service.keys == {}

    def test_a_tenants_retention_is_shown_and_set(self, service: FakeService) -> None:
        assert "files   kept as long as the service says" in wharf("tenant", "show").stdout
        assert "files   kept for 7 days" in wharf("tenant", "set", "--file-retention-days", "7").stdout
        wharf("tenant", "set", "--job-retention-days", "14", "--file-retention-days", "default")
        assert json.loads(wharf("tenant", "show", "--json").stdout) == {
            "name": "default", "file_retention_days": None, "job_retention_days": 14,
        }  # fmt: skip
        for days in ("0", "3651", "-1", "1.5", "soon", ""):
            assert wharf("tenant", "set", "--file-retention-days", days).exit_code == 2


class TestServerCommands:
    @pytest.fixture
    def commands(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[typer.Typer]:
        (tmp_path / "wharf_test_commands.py").write_text(
            textwrap.dedent('''
                from typing import Annotated
                import typer

                def up(name: str, port: Annotated[int, typer.Option("--port", "-p")] = 8000) -> None:
                    """Come up."""
                    typer.echo(f"{name} {port}")
                    raise typer.Exit(7)
            ''')
        )
        (tmp_path / "wharf_test_incomplete.py").write_text("import a_package_that_nobody_installs")
        monkeypatch.syspath_prepend(tmp_path)
        made = typer.Typer()
        values = {"up": "wharf_test_commands:up", "broker": "wharf_test_incomplete:broker", "own": "nowhere:own"}
        server_commands.register(made, [EntryPoint(name, value, "wharf.commands") for name, value in values.items()])
        yield made
        sys.modules.pop("wharf_test_commands", None)

    def test_all_are_in_the_help_and_none_is_imported(self, commands: typer.Typer) -> None:
        result = CliRunner().invoke(commands, ["--help"])
        assert "Run everything on this machine" in result.stdout
        assert result.stdout.index("up ") < result.stdout.index("broker ") < result.stdout.index("own ")
        assert "wharf_test_commands" not in sys.modules

    def test_words_and_exit_code_are_the_commands_own(self, commands: typer.Typer) -> None:
        result = CliRunner().invoke(commands, ["up", "here", "-p", "9000"])
        assert (result.exit_code, result.stdout) == (7, "here 9000\n")
        assert CliRunner().invoke(commands, ["up", "--port", "9001", "there"]).stdout == "there 9001\n"
        assert CliRunner().invoke(commands, ["up", "here", "--port", "many"]).exit_code == 2

    def test_one_with_a_dot_joins_the_commands_of_its_noun(self, commands: typer.Typer) -> None:
        models = typer.Typer()
        models.command("list")(lambda: typer.echo("listed"))
        commands.add_typer(models, name="models")
        entries = {"models.add": "wharf_test_commands:up", "ships.launch": "wharf_test_commands:up"}
        server_commands.register(
            commands, [EntryPoint(name, value, "wharf.commands") for name, value in entries.items()]
        )
        result = CliRunner().invoke(commands, ["models", "add", "here", "-p", "9000"])
        assert (result.exit_code, result.stdout) == (7, "here 9000\n")
        assert CliRunner().invoke(commands, ["models", "list"]).stdout == "listed\n"
        assert CliRunner().invoke(commands, ["ships", "launch", "there"]).exit_code == 7
        assert "models add" not in CliRunner().invoke(commands, ["--help"]).stdout
        assert "Register a model file" in CliRunner().invoke(commands, ["models", "--help"]).stdout

    def test_its_help_is_its_own(self, commands: typer.Typer) -> None:
        result = CliRunner().invoke(commands, ["up", "--help"])
        assert result.exit_code == 0
        assert "Come up." in result.stdout
        assert "--port" in result.stdout

    def test_one_that_cannot_be_imported_says_what_to_install(self, commands: typer.Typer) -> None:
        result = CliRunner().invoke(commands, ["broker", "--port", "9"])
        assert (result.exit_code, result.stdout) == (1, "")
        assert "a_package_that_nobody_installs" in result.stderr
        assert "pip install 'wharfinger[standalone]'" in result.stderr


class TestStart:
    def test_help_lists_everything_and_imports_little_and_no_server(self) -> None:
        heavy = (
            "fastapi",
            "openvino",
            "numpy",
            "cv2",
            "psycopg",
            "uvicorn",
            "PIL",
            "structlog",
            "broker",
            "standalone",
        )
        code = f"""
            import sys
            sys.argv = ["wharf", "--help"]
            from wharfinger.command import main
            try:
                main()
            finally:
                print("heavy:", sorted({set(heavy)!r} & set(sys.modules)), "modules:", len(sys.modules))
        """
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=True
        )
        assert "heavy: []" in result.stdout
        # What it imports is what it costs, on any machine: 518 with typer and rich, 752 with the broker.
        assert int(result.stdout.split("modules:")[1]) < 700
        for name in (
            "predict",
            "upload",
            "files",
            "jobs",
            "models",
            "pools",
            "keys",
            "up",
            "broker",
            "worker",
            "migrate",
            "doctor",
        ):
            assert f" {name} " in result.stdout

    def test_every_entry_point_has_its_line_in_the_help(self) -> None:
        from importlib.metadata import entry_points

        names = {each.name for each in entry_points(group=server_commands.GROUP)}
        assert names
        assert names <= set(server_commands._HELP)

    def test_the_version_is_one_line(self) -> None:
        result = wharf("--version")
        assert result.exit_code == 0
        assert result.stdout[0].isdigit()
        assert result.stdout.count("\n") == 1

    def test_a_reader_that_goes_away_ends_the_program_quietly(self, service: FakeService) -> None:
        for number in range(400):
            service._file(f"{number}.jpg", b"%d" % number)
        command = f'"{sys.executable}" -c "{MAIN}" files list --limit 400 | head -1'
        result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0
        assert result.stderr == ""


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize(("uid", "gid", "mask"), [(1000670000, 0, 0o002), (1000670000, 1000, 0o022), (0, 0, 0o022)])
def test_what_a_container_writes_is_its_group_s_whose_next_uid_may_be_another(uid: int, gid: int, mask: int) -> None:
    code = f"""
        import os, sys
        from wharfinger.command import main
        sys.argv = ["wharf", "--version"]
        os.umask(0o022)
        os.setgid({gid})
        os.setuid({uid})
        try:
            main()
        finally:
            print(os.umask(0))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(result.stdout.splitlines()[-1]) == mask


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="only root makes PID namespaces")
def test_a_container_that_waits_ends_when_it_is_asked_to() -> None:
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", MAIN, "migrate", "--wait", "60"]
    environment = {**os.environ, "WHARF_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as outside:
        try:
            assert outside.stderr is not None
            outside.stderr.readline()
            [first] = psutil.Process(outside.pid).children()
            first.send_signal(signal.SIGTERM)
            assert outside.wait(20) == 128 + signal.SIGTERM
        finally:
            outside.kill()
